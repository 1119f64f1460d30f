"""Who looks at outputs, and how they are scored: cosines, ranks and labels through the vectors of some network.

Outputs are looked at in 8 bits, as written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from nearfar.audit.calibration import BY
from nearfar.audit.choices import Networks
from nearfar.audit.view import hits, unit
from nearfar.errors import UsageError
from nearfar.io.fitting import as_rgb, as_written
from nearfar.metrics.faces import Faces, Pixels, Points, largest
from nearfar.metrics.features import FeatureNetwork, feature_network, perceptual_distance, pixel_features
from nearfar.models.model import FrozenModel
from nearfar.tensors import Images

Vectors = Float64[Tensor, "images numbers"]
Numbers = Int[Tensor, " images"]
"""One number for each image: of the original that it was made of, or of its person or its class."""


@dataclass(frozen=True, eq=False)
class Eyes:
    """Embeds images as unit vectors. name: of the network, for records. vectors: (images, their originals, which only
    say where a face was) -> unit vectors."""

    name: str
    vectors: Callable[[Images, Images], Vectors]


def network_eyes(network: FeatureNetwork) -> Eyes:
    return Eyes(network.name, lambda images, originals: unit(network(images)))


def face_eyes(faces: Faces) -> Eyes:
    """The largest face as a recognizer sees it; where none is found any more, what is at the original's place."""
    places: dict[bytes, Points | None] = {}

    def place(picture: Pixels) -> Points | None:
        name = sha256(picture.tobytes()).digest()
        if name not in places:
            face = largest(faces.detector.find(picture))
            places[name] = None if face is None else face.landmarks
        return places[name]

    def vectors(images: Images, originals: Images) -> Vectors:
        known = [place(picture) for picture in as_rgb(originals)]
        return faces.embed(as_rgb(images), known).vectors.double()

    return Eyes(f"{faces.recognizer.name} with {faces.detector.name}", vectors)


def load_eyes(networks: Networks, model: FrozenModel) -> tuple[Eyes, FeatureNetwork]:
    """Who sees similarity, and rank1 among others, and which network sees label and distance."""
    network = feature_network(networks.features, model)
    faces = Faces.load(networks.detector, networks.recognizer)
    return network_eyes(network) if faces is None else face_eyes(faces), network


def other_eyes(attacker: Eyes, network: FeatureNetwork, model: FrozenModel) -> list[Eyes]:
    """Who else is at hand to look for an output's original: features, and plain pixels."""
    found = [network_eyes(network), network_eyes(pixel_features(model.image.size, model.image.channels))]
    return list({eyes.name: eyes for eyes in found if eyes.name != attacker.name}.values())


@dataclass(frozen=True, eq=False)
class Known:
    """Originals as unit vectors. groups, labels: the number of each one's person and of its class."""

    eyes: Eyes
    vectors: Vectors
    groups: Numbers
    labels: Numbers

    @classmethod
    def of(cls, eyes: Eyes, images: Images, groups: Numbers, labels: Numbers) -> Known:
        return cls(eyes, eyes.vectors(images, images), groups, labels)


@dataclass(frozen=True, eq=False)
class Scorer:
    """Measures outputs. attacker: embedding for rank1 and similarity. content: embedding for the label. network:
    features for the distance. others: further embeddings for rank1, of which the worst counts."""

    measures: Sequence[str]
    attacker: Known
    content: Known
    network: FeatureNetwork
    others: Sequence[Known] = ()

    @property
    def views(self) -> list[str]:
        """The measures, rank1 with each of the eyes."""
        more = [f"rank1{BY}{known.eyes.name}" for known in self.others] if "rank1" in self.measures else []
        return [*self.measures, *more]

    def __call__(self, outputs: Images, originals: Images, numbers: Numbers) -> dict[str, list[float]]:
        """By view, a score for each output."""
        seen, scores = as_written(outputs), dict[str, Tensor]()
        if "distance" in self.measures:
            scores["distance"] = perceptual_distance(self.network, seen, originals)
        if "label" in self.measures:
            scores["label"] = label(self.content, self.content.eyes.vectors(seen, originals), numbers)
        if {"rank1", "similarity"} & set(self.measures):
            vectors = self.attacker.eyes.vectors(seen, originals)
            scores["rank1"] = rank1(self.attacker, vectors, numbers)
            scores["similarity"] = (vectors * self.attacker.vectors[numbers]).sum(1)
        for known in self.others if "rank1" in self.measures else ():
            vectors = known.eyes.vectors(seen, originals)
            scores[f"rank1{BY}{known.eyes.name}"] = rank1(known, vectors, numbers)
        return {name: scores[name].tolist() for name in self.views}


def rank1(known: Known, vectors: Vectors, numbers: Numbers) -> Float64[Tensor, " images"]:
    """1 where the nearest of all originals is the output's own, or one of its person where there are others, else 0.

    In the latter case its own is not among the candidates. Ties count as the probability that the right one is drawn.
    """
    own = torch.arange(len(known.vectors))[None] == numbers[:, None]
    same = known.groups[None] == known.groups[numbers][:, None]
    asked = ~own | (same.sum(1, keepdim=True) == 1)
    return hits(vectors @ known.vectors.T, same, 1, asked)


def label(known: Known, vectors: Vectors, numbers: Numbers) -> Float64[Tensor, " images"]:
    """1 where the nearest class center is that of the original's class, which is taken without the original itself."""
    classes = torch.nn.functional.one_hot(known.labels).double()
    sums, counts, own = classes.T @ known.vectors, classes.sum(0), known.labels[numbers]
    away = (vectors[:, None] - sums / counts[:, None]).square().sum(2)
    without = (sums[own] - known.vectors[numbers]) / (counts[own] - 1)[:, None]
    away[torch.arange(len(vectors)), own] = (vectors - without).square().sum(1)
    return (away.argmin(1) == own).double()


def check_labels(labels: Numbers) -> None:
    """A label that is to be kept must be one of several, each of several images."""
    counts = labels.bincount()
    if len(counts) < 2 or counts.min() < 2:
        needed = "a folder for each of 2 classes or more, each with 2 images or more in the sample"
        raise UsageError(f"label needs {needed}: raise --sample, or give more folders or images")
