"""Whether copies still look like what their inherited label says, as a classifier sees it.

The classifier is trained on the originals, so it is cross-fitted: they are dealt into folds, and each fold's images
and their copies are judged by a logistic regression that saw none of them. What it gets right of the originals is its
cross-validated accuracy, printed beside what it says of copies: it can be no better a judge of them than that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray

from nearfar.data.labels import Labels
from nearfar.errors import ImageError, UsageError
from nearfar.io.fitting import FitMode, fit
from nearfar.io.pictures import read_picture
from nearfar.metrics.features import FeatureNetwork, logistic_pipeline, processor_size, read_processor
from nearfar.models.folder import check_size, reading
from nearfar.models.lookup import read_config
from nearfar.tensors import Images

BATCH, FOLDS = 32, 5

Vectors = NDArray[np.float64]
Probabilities = Float64[np.ndarray, "batch classes"]


@dataclass(frozen=True)
class Judge:
    """A classifier of images of one size and number of channels.

    about: what it is and how well it does. own: name of an original -> cross-validated probability of its label.
    probabilities: (images, names of their originals) -> a row for each image, a column for each class.
    """

    about: str
    size: int
    channels: int
    classes: Sequence[str]
    own: Mapping[str, float]
    probabilities: Callable[[Images, Sequence[str]], Probabilities]

    def verdicts(self, images: Images, origins: Sequence[str], labels: Labels) -> list[dict[str, Any]]:
        """For each image the probability of its inherited label, and whether that is the likeliest."""
        rows = self.probabilities(images, origins)
        places = [self.classes.index(labels[origin][0]) for origin in origins]
        return [
            {"label_probability": round(float(row[place]), 4), "label_agrees": bool(row.argmax() == place)}
            for row, place in zip(rows, places, strict=True)
        ]


def one_label_each(names: Sequence[str], labels: Labels) -> dict[str, str]:
    """Name -> its only label. Raises UsageError where an image has none or several."""
    if bad := next((name for name in names if len(labels.get(name, ())) != 1), None):
        raise UsageError(f"a classifier needs one label for each image, and {bad} has {len(labels.get(bad, ()))}")
    return {name: labels[name][0] for name in names}


def batches(folder: Path, names: Sequence[str], size: int, channels: int) -> Iterator[tuple[list[str], Images]]:
    """Images of a folder that can be read, 32 at a time, as squares of this size."""
    found = ((name, square) for name in names if (square := square_of(folder / name, size, channels)) is not None)
    while some := list(islice(found, BATCH)):
        yield [name for name, _ in some], torch.stack([square for _, square in some])


def square_of(path: Path, size: int, channels: int) -> torch.Tensor | None:
    try:
        return fit(read_picture(path), size, channels, FitMode.PAD)
    except ImageError:
        return None


def cross_fitted(network: FeatureNetwork, folder: Path, names: Sequence[str], labels: Labels) -> Judge:
    """A judge trained on the labeled images of a folder, by their features in `network`.

    Deterministic. Cost: `network` on every image, 32 at a time. Raises UsageError where a class has a single image.
    """
    label_of = one_label_each(names, labels)
    parts = [(some, network(images)) for some, images in batches(folder, names, network.size, network.channels)]
    if not parts:
        raise UsageError(f"{folder} holds no labeled image that can be read: there is nothing to train a classifier on")
    known = [name for some, _ in parts for name in some]
    features, targets = (
        torch.cat([vectors for _, vectors in parts]).numpy(),
        np.array([label_of[name] for name in known]),
    )
    folds = deal(targets.tolist())
    models = [regression(features[folds != fold], targets[folds != fold]) for fold in range(max(folds) + 1)]
    classes, fold_of = sorted(set(targets.tolist())), dict(zip(known, folds.tolist(), strict=True))

    def judged(vectors: Vectors, origins: Sequence[str]) -> Vectors:
        rows = zip(vectors, origins, strict=True)
        return np.concatenate([models[fold_of[origin]].predict_proba(vector[None]) for vector, origin in rows])

    given = judged(features, known)
    places = np.searchsorted(classes, targets)
    own = dict(zip(known, given[np.arange(len(known)), places].tolist(), strict=True))
    about = f"logistic regression on {network.name}, {accuracy(given.argmax(1) == places, places)}, {len(models)} folds"
    return Judge(
        about, network.size, network.channels, classes, own,
        lambda images, origins: judged(network(images).numpy(), origins),
    )  # fmt: skip


def accuracy(right: NDArray[np.bool_], places: NDArray[np.intp]) -> str:
    chance = np.bincount(places).max() / len(places)
    return f"cross-validated accuracy {right.mean():.3f} (n {len(right)}, always the largest class {chance:.3f})"


def deal(labels: Sequence[str]) -> NDArray[np.intp]:
    """The fold of each image, every class spread evenly over 2 to 5 folds."""
    counts, seen = Counter(labels), Counter[str]()
    fewest = min(counts, key=lambda label: (counts[label], label))
    if len(counts) < 2 or counts[fewest] < 2:
        found = f"{len(counts)} classes, {fewest} with {counts[fewest]}"
        raise UsageError(f"a classifier needs two classes or more, two images each, got {found}: give a --classifier")
    folds = []
    for label in labels:
        folds.append(seen[label] % min(FOLDS, counts[fewest]))
        seen[label] += 1
    return np.array(folds)


def regression(features: Vectors, labels: NDArray[Any]) -> Any:
    """Standardized features, L2-regularized logistic regression."""
    return logistic_pipeline(C=0.1, max_iter=2000).fit(features, labels)


def trained_judge(folder: Path, names: Sequence[str], labels: Labels) -> Judge:
    """An image classifier of transformers from a local folder.

    Its classes must be named as the labels are. Nothing is downloaded, no code of the folder is run.
    """
    network = load_classifier(folder)
    count, named = network.config.num_labels, network.config.id2label
    classes: list[Any] = [named[number] for number in range(count)] if set(named) == set(range(count)) else [None]
    if not all(isinstance(name, str) for name in classes):
        raise UsageError(f"the classifier in {folder} must name its classes 0 to {count - 1}: mend id2label")
    if unknown := sorted(set(one_label_each(names, labels).values()) - set(classes)):
        raise UsageError(f"the classifier in {folder} does not know the label {unknown[0]}: {', '.join(classes)[:200]}")
    processor = read_processor(folder)
    mean, deviation = (torch.tensor(processor[key])[:, None, None] for key in ("image_mean", "image_std"))

    @torch.inference_mode()
    def probabilities(images: Images, _: Sequence[str]) -> Vectors:
        logits = network(pixel_values=(images / 2 + 0.5 - mean) / deviation).logits
        return np.asarray(logits.double().softmax(1))

    about, size = f"{network.config.model_type} of {folder.name}", processor_size(processor, network.config)
    return Judge(about, size, 3, classes, {}, probabilities)


def load_classifier(folder: Path) -> Any:
    try:
        from transformers import AutoModelForImageClassification
    except ImportError:
        raise UsageError("classifiers of a folder are loaded by transformers: pip install 'nearfar[text]'") from None
    check_size(folder, read_config(folder, folder / "config.json"))
    with reading(folder):
        network = AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    return network.eval().requires_grad_(False)
