"""How one set of images differs from another: distances of features, coverage, copies, and capture by another domain.

From `copy_rate` on all are pure functions of vectors, float64 `(count, dimensions)`.

How to read the figures of `evaluate`: every set of outputs stands beside real images of the domain. For distances these
are the fitted images themselves against the held-out ones (so whoever copies all of them reaches that), for shares the
held-out images. Nothing smaller than two deviations is a difference; with a hundred held-out images that is much.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.far.looks import band_distance, layout_distance
from benchmarks.support.image_features import ImageSet, features, image_set, recolored
from nearfar.domain.guards import turns_of
from nearfar.metrics.copied_area import SCALES, CopiedArea, Turned
from nearfar.metrics.sets import distances, frechet_distance, kernel_distance, precision_recall, radii

QUANTILE = 0.05


@dataclass(frozen=True, eq=False)
class CaptureClassifier:
    """Tells the model's own domain from a new one, and its cross-validated accuracy at that."""

    classifier: Any
    accuracy: float

    @classmethod
    def fit(cls, domain: Tensor, own: Tensor, *, folds: int = 5) -> CaptureClassifier:
        """Logistic regression on standardized vectors, both domains weighing the same.

        The accuracy is the mean over both domains, from `folds` stratified folds in the order of the images.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import cross_val_score
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        x, y = torch.cat([domain, own]).numpy(), [0] * len(domain) + [1] * len(own)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        accuracy = cross_val_score(classifier, x, y, cv=folds, scoring="balanced_accuracy").mean()
        return cls(classifier.fit(x, y), float(accuracy))

    def rate(self, outputs: Tensor) -> float:
        """Share of outputs taken for the model's own domain."""
        return float(self.classifier.predict(outputs.numpy()).mean())


@dataclass(frozen=True, eq=False)
class References:
    """The real images that outputs are compared with.

    fitted: what the outputs were made from. turned: these and what the domain's symmetry makes of them, in the order of
    `domains.symmetric_copies`. held_out: other images of the same domain.
    capture, capture_as_it_is: classifiers that know the model's own domain in the colors of the new one as well, and
    in its own alone. areas: what of an image is copied; real images are the held-out ones.
    """

    fitted: ImageSet
    turned: ImageSet
    held_out: ImageSet
    capture: CaptureClassifier
    capture_as_it_is: CaptureClassifier
    areas: CopiedArea

    @classmethod
    def of(cls, fitted: Tensor, held_out: Tensor, own: Tensor, turned: Tensor | None = None) -> References:
        """From images, float32 `(count, 3, size, size)` in [-1, 1]; own: of the model's own domain."""
        sets = [image_set(images) for images in (fitted, fitted if turned is None else turned, held_out)]
        as_it_is, colored = features(own), features(recolored(own, fitted))
        domain = sets[0].features
        strict = CaptureClassifier.fit(domain, torch.cat([as_it_is, colored]))
        areas = CopiedArea.fit(fitted, ways_of(fitted, turned), held_out)
        return cls(*sets, strict, CaptureClassifier.fit(domain, as_it_is), areas)

    def evaluate(self, outputs: ImageSet) -> dict[str, Any]:
        """All figures of a set of outputs."""
        return self.likeness(outputs) | self.novelty(outputs)

    def real(self) -> dict[str, Any]:
        """The same of real images: likeness of the fitted ones, novelty of the held-out ones."""
        return self.likeness(self.fitted) | self.novelty(self.held_out)

    def described(self) -> dict[str, Any]:
        """How many images there are, and how well the classifiers tell the domains apart."""
        sets = {"fitted": self.fitted, "turned": self.turned, "held_out": self.held_out}
        accuracy = {"captured": self.capture.accuracy, "captured_as_it_is": self.capture_as_it_is.accuracy}
        return {"counts": {name: len(images) for name, images in sets.items()}, "accuracy": accuracy}

    def likeness(self, outputs: ImageSet) -> dict[str, Any]:
        """How outputs differ from the held-out images, in features."""
        kernel = kernel_distance(self.held_out.features, outputs.features)
        real, made = self.held_out.images, outputs.images
        among = precision_recall(self.held_out.features, outputs.features)
        return {
            "kernel_distance": {"value": kernel.value, "deviation": kernel.deviation},
            "layout_distance": layout_distance(real, made),
            "band_distance": band_distance(real, made),
            "frechet_distance": frechet_distance(self.held_out.features, outputs.features),
            "precision": share(among.precision, len(outputs)),
            "recall": share(among.recall, len(self.held_out)),
        }

    def novelty(self, outputs: ImageSet) -> dict[str, Any]:
        """Whether outputs are copies of fitted images, turned or not, or fell back to the model's own domain."""
        figures: dict[str, Any] = {}
        for space in ("pixels", "features"):
            out, fitted, turned = (getattr(images, space) for images in (outputs, self.fitted, self.turned))
            figures[f"copies_in_{space}"] = share(copy_rate(out, fitted), len(out))
            figures[f"turned_copies_in_{space}"] = share(copy_rate(out, fitted, turned), len(out))
            figures[f"close_copies_in_{space}"] = share(close_copy_rate(out, fitted), len(out))
            figures[f"nearest_in_{space}"] = nearest(out, fitted)
        for size, area in zip(SCALES, self.areas.shares(outputs.images.float()).mean(0).tolist(), strict=True):
            figures[f"copied_area_{size}"] = area
        for name, classifier in (("captured", self.capture), ("captured_as_it_is", self.capture_as_it_is)):
            figures[name] = share(classifier.rate(outputs.features), len(outputs))
        return figures


def ways_of(fitted: Tensor, turned: Tensor | None) -> Turned:
    """In how many ways a copy may lie, from how many copies there are of each fitted image: 1, 2 or 8."""
    ways = 1 if turned is None else len(turned) // len(fitted)
    return partial(turns_of, symmetry={1: "none", 2: "mirror", 8: "turn"}[ways])


def evaluate(
    outputs: Tensor, fitted: Tensor, held_out: Tensor, own: Tensor, turned: Tensor | None = None
) -> dict[str, Any]:
    """All figures of a set of outputs, and those of real images in their place; see `References`.

    Each set is float32 `(count, 3, size, size)` in [-1, 1].
    """
    references = References.of(fitted, held_out, own, turned)
    return references.described() | {"outputs": references.evaluate(image_set(outputs)), "real": references.real()}


def copy_rate(outputs: Tensor, fitted: Tensor, turned: Tensor | None = None, *, quantile: float = QUANTILE) -> float:
    """Share of outputs that are nearer to a fitted image than the fitted images are to one another.

    The threshold is this quantile of the fitted images' distances to their nearest other fitted image, so new images of
    the domain reach about the quantile. Vectors may be pixels or features. turned: the fitted ones followed by turned
    copies of them all, once or more, in the same order; then a turned copy counts as a copy.
    """
    turned = fitted if turned is None else turned
    threshold = apart(fitted, turned).quantile(quantile)
    return (distances(outputs, turned).min(1).values < threshold).double().mean().item()


def apart(fitted: Tensor, turned: Tensor) -> Tensor:
    """The distance of each fitted vector to the nearest of another one's copies."""
    same = torch.arange(len(fitted))[:, None] == torch.arange(len(turned)) % len(fitted)
    return distances(fitted, turned).masked_fill(same, torch.inf).min(1).values


def close_copy_rate(outputs: Tensor, fitted: Tensor, *, quantile: float = QUANTILE) -> float:
    """The same where images differ in how far from all others they lie: a copy of a bright galaxy, changed a little, is
    farther from it than two pictures of nearly empty sky are from each other.

    An output's distance to the nearest fitted vector counts in units of that one's own distance to the nearest other;
    the threshold is this quantile of the same figure of each fitted vector left out. New images reach the quantile.
    """
    near = distances(outputs, fitted).min(1)
    ratios = near.values / radii(fitted, 1)[near.indices]
    return (ratios < ratios_among(fitted).quantile(quantile)).double().mean().item()


def ratios_among(fitted: Tensor) -> Tensor:
    """Each vector's distance to the nearest other, in units of that one's to the nearest third."""
    values, indices = distances(fitted, fitted).fill_diagonal_(torch.inf).topk(2, largest=False)
    first = indices[:, 0]
    mutual = indices[first, 0] == torch.arange(len(fitted))
    return values[:, 0] / torch.where(mutual, values[first, 1], values[first, 0])


def nearest(outputs: Tensor, fitted: Tensor) -> dict[str, float]:
    """Median distance to the nearest fitted vector, beside that of the fitted ones among themselves and its quantile.

    The quantile is the threshold of `copy_rate`.
    """
    away, among = distances(outputs, fitted).min(1).values, apart(fitted, fitted)
    levels = {"median": away.quantile(0.5), "among": among.quantile(0.5), "threshold": among.quantile(QUANTILE)}
    return {name: level.item() for name, level in levels.items()}


def share(value: float, count: int) -> dict[str, float]:
    """A share of `count` with its standard error: the deviation of the Beta posterior under a flat prior, never 0."""
    a, b = value * count + 1, (1 - value) * count + 1
    return {"value": value, "deviation": (a * b / (a + b + 1)) ** 0.5 / (a + b)}


def with_nearest(outputs: Tensor, fitted: Tensor, vectors: tuple[Tensor, Tensor]) -> Tensor:
    """Outputs beside the fitted image that each is nearest to in these vectors: `(count, 2, 3, size, size)`."""
    return torch.stack([outputs, fitted[distances(*vectors).min(1).indices]], 1)
