"""Scores of outputs against a sample of originals: what a calibration measures, in vectors of some network.

Vectors have unit length and belong to images by number: output `i` was made of original `numbers[i]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.errors import UsageError
from nearfar.faces import FaceDetector, FaceRecogniser, as_pictures, embed_faces
from nearfar.feature_networks import FeatureNetwork, perceptual_distance
from nearfar.network_features import shortened
from nearfar.tensors import Images

Vectors = Float64[Tensor, "images numbers"]
Numbers = Int[Tensor, " images"]
"""One number for each image: of the original that it was made of, or of its person or its class."""

VectorsOf = Callable[[Images, Images], Vectors]
"""(outputs, their originals) -> vectors of the outputs. The originals only say where a face was."""


@dataclass(frozen=True)
class Scale:
    """What is taken off vectors and what they are divided by before they are brought to unit length."""

    centre: Sequence[float] = ()
    spread: Sequence[float] = ()

    @classmethod
    def of(cls, vectors: Vectors) -> Scale:
        """Mean and standard deviation of each number over the originals."""
        return cls(vectors.mean(0).tolist(), vectors.std(0).clamp(min=1e-9).tolist())

    def units(self, vectors: Vectors) -> Vectors:
        if self.centre:
            vectors = (vectors - torch.tensor(self.centre).to(vectors)) / torch.tensor(self.spread).to(vectors)
        return normalize(vectors, dim=1)


@dataclass(frozen=True, eq=False)
class Eyes:
    """A way to look at images. name: of the network, for records. raw: cosines of its vectors mean something as they
    are; other vectors are centred and scaled on the originals first."""

    name: str
    vectors: VectorsOf
    raw: bool = False


def network_eyes(network: FeatureNetwork) -> Eyes:
    """A network's vectors, shortened to 512 numbers."""
    return Eyes(network.name, lambda outputs, originals: shortened(network(outputs)))


def face_eyes(detector: FaceDetector, recogniser: FaceRecogniser) -> Eyes:
    """The largest face as a recogniser sees it; where none is found any more, what is at the original's place."""

    def vectors(outputs: Images, originals: Images) -> Vectors:
        before = embed_faces(detector, recogniser, as_pictures(originals))
        return embed_faces(detector, recogniser, as_pictures(outputs), before.landmarks).vectors.double()

    return Eyes(f"{recogniser.name} with {detector.name}", vectors, raw=True)


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the originals.

    scale, vectors: theirs. groups: the number of each one's person, each a person of its own if nothing is known.
    labels: the number of each one's class.
    """

    eyes: Eyes
    scale: Scale
    vectors: Vectors
    groups: Numbers
    labels: Numbers

    @classmethod
    def of(cls, eyes: Eyes, images: Images, groups: Numbers, labels: Numbers) -> Known:
        """Look at the originals."""
        found = eyes.vectors(images, images)
        scale = Scale() if eyes.raw else Scale.of(found)
        return cls(eyes, scale, scale.units(found), groups, labels)

    def look(self, outputs: Images, originals: Images) -> Vectors:
        return self.scale.units(self.eyes.vectors(outputs, originals))


@dataclass(frozen=True, eq=False)
class Scorer:
    """All scores that are asked for. attacker: sees rank1 and similarity. content: sees the label. network: sees the
    distance."""

    measures: Sequence[str]
    attacker: Known
    content: Known
    network: FeatureNetwork

    def __call__(self, outputs: Images, originals: Images, numbers: Numbers) -> dict[str, list[float]]:
        """By measure, a score for each output; outputs are looked at as they would be written, in 8 bits."""
        seen = outputs.add(1).mul(127.5).round().div(127.5).sub(1).clamp(-1, 1)
        scores: dict[str, Tensor] = {}
        if "distance" in self.measures:
            scores["distance"] = perceptual_distance(self.network, seen, originals)
        if "label" in self.measures:
            scores["label"] = label(self.content, self.content.look(seen, originals), numbers)
        if {"rank1", "similarity"} & set(self.measures):
            vectors = self.attacker.look(seen, originals)
            scores["rank1"] = rank1(self.attacker, vectors, numbers)
            scores["similarity"] = similarity(self.attacker, vectors, numbers)
        return {name: scores[name].tolist() for name in self.measures}


def rank1(known: Known, vectors: Vectors, numbers: Numbers) -> Tensor:
    """1 where the nearest of all originals is the right one, else 0; ties are right.

    Where a person has several originals, the right ones are the others of the same person, and the output's own is left
    out.
    """
    cosines = vectors @ known.vectors.T
    own = torch.arange(len(known.vectors))[None] == numbers[:, None]
    same = known.groups[None] == known.groups[numbers][:, None]
    several = same.sum(1, keepdim=True) > 1
    right = same & ~(own & several)
    return (best(cosines, right) >= best(cosines, ~same)).double()


def best(cosines: Tensor, among: Tensor) -> Tensor:
    return cosines.masked_fill(~among, -torch.inf).amax(1)


def similarity(known: Known, vectors: Vectors, numbers: Numbers) -> Tensor:
    """Cosine of each output and its original."""
    return (vectors * known.vectors[numbers]).sum(1)


def label(known: Known, vectors: Vectors, numbers: Numbers) -> Tensor:
    """1 where the nearest class centre is that of the original's class, which is taken without the original itself."""
    classes = torch.nn.functional.one_hot(known.labels).double()
    sums, counts, own = classes.T @ known.vectors, classes.sum(0), known.labels[numbers]
    off = (vectors[:, None] - sums / counts[:, None]).square().sum(2)
    without = (sums[own] - known.vectors[numbers]) / (counts[own] - 1).clamp(min=1)[:, None]
    off[torch.arange(len(vectors)), own] = (vectors - without).square().sum(1)
    return (off.argmin(1) == own).double()


def check_labels(labels: Numbers) -> None:
    """A label that is to be kept must be one of several, each of several images."""
    counts = labels.bincount()
    if len(counts) < 2 or counts.min() < 2:
        raise UsageError("label needs a folder for each of 2 classes or more, each with 2 images or more")
