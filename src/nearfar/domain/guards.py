"""Guards per output: is it a copy of a fitted image, did it fall back to the model's own domain, is it plausible?

Three questions, each measured against the domain's own images when left out:

    copy      the nearest fitted image, in latents and in features, against the distances among the fitted images; and
              how much of the image is copied from whichever of them (`metrics/copied_area.py`)
    capture   a linear classifier between the domain and the model's own samples, as they are and in its colors
    quality   how strong layout and detail are under the domain's Gaussian: washed out or blotchy, smooth or noisy

Latents are what a model encodes an image to: its pixels where it has no encoder. Features are those of the frozen
network itself: mean and deviation over the image of what its middle block gives for a little fixed noise. What no guard
sees: whether a shape makes sense, as long as its frequencies are as strong as they should be; the model's own domain
where the classifier is unsure, which is told.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from nearfar.errors import ModelWarning, UsageError
from nearfar.latents.covariance import Structured, coarse, cosines, whiten
from nearfar.latents.two_sample import RIDGES
from nearfar.metrics.copied_area import CopiedArea
from nearfar.metrics.features import Kind, Vectors, features_of
from nearfar.models.model import FrozenModel
from nearfar.sampling.local_sampling import encode_all
from nearfar.tensors import Images, Latents

RELIABLE, BORDERLINE = 0.9, 0.975
"""The least accuracy of a classifier that is believed, and the share of the domain that is no borderline case."""


@dataclass(frozen=True, eq=False)
class Capture:
    """Ridge regression of the label, -1 for the domain and 1 for the model's own, on standardized features.

    accuracy: of both domains, each vector left out (in closed form). borderline: the score that 97.5 % of the domain's
    vectors stay below, when left out, and nearer to 0 by `5 / count` of itself.
    """

    weights: Float64[Tensor, " numbers"]
    offset: float
    accuracy: float
    borderline: float

    @classmethod
    def fit(cls, domain: Vectors, own: Float64[Tensor, "samples numbers"]) -> Capture:
        """The ridge is the one of least squared error, and the threshold lies half way between both, when left out."""
        x, count = torch.cat([domain, own]), len(domain)
        labels = torch.cat([-domain.new_ones(count), own.new_ones(len(own))])
        center, target = x.mean(0), labels - labels.mean()
        left, sizes, right = torch.linalg.svd(x - center, full_matrices=False)
        shares = sizes.square() / (sizes.square() + RIDGES[:, None] * sizes.square().mean())
        leverage = 1 / len(x) + shares @ left.square().T
        left_out = target - (target - shares * (left.T @ target) @ left.T) / (1 - leverage)
        best = (left_out - target).square().sum(1).argmin()
        means = torch.stack([left_out[best, :count].mean(), left_out[best, count:].mean()])
        scale = 2 / (means[1] - means[0]).clamp(min=1e-6)
        scores = scale * (left_out[best] - means.mean())
        weights = scale * right.T @ (shares[best] / sizes.clamp(min=1e-9) * (left.T @ target))
        right_share = ((scores[:count] < 0).double().mean() + (scores[count:] > 0).double().mean()) / 2
        offset = -(weights @ center + scale * means.mean()).item()
        return cls(
            weights, offset, right_share.item(), max(0.0, 1 - 5 / count) * scores[:count].quantile(BORDERLINE).item()
        )

    def scores(self, vectors: Vectors) -> Float64[Tensor, " batch"]:
        return vectors @ self.weights + self.offset

    @property
    def reliable(self) -> bool:
        return self.accuracy >= RELIABLE


def recolored(images: Images, like: Float[Tensor, "others channel rows columns"]) -> Images:
    """Each image with every channel's mean and deviation those of one of `like`, drawn at random; kept in [-1, 1]."""
    chosen = like[torch.randint(len(like), (len(images),), generator=torch.Generator().manual_seed(0))]
    mean, wanted_mean = (some.mean((2, 3), keepdim=True) for some in (images, chosen))
    deviation, wanted = (some.std((2, 3), keepdim=True) for some in (images, chosen))
    return ((images - mean) / deviation.clamp(min=1e-3) * wanted + wanted_mean).clamp(-1, 1)


FEWEST, FEW, FEWEST_OWN, WIDE = 3, 10, 8, 20
COPY_QUANTILE, NEAR, SURE = 0.05, 0.8, 0.5
"""Distances are told in this quantile of those among the fitted images. A copy is below 1 in latents and features, or
below `SURE` in one of them; below `NEAR` in one is nearly a copy."""
MOSAIC = 0.5
"""An image with this copied area or more, at one of the scales, is flagged."""
FOLDS, TAIL = 10, 0.01
SYMMETRIES = {"none": (1, 1), "mirror": (2, 1), "turn": (2, 4)}
"""In what ways a copy may lie: how many mirror images, and how many quarter turns of each."""

Values = Float64[Tensor, " batch"]
Samples = Float[Tensor, "samples channel height width"]
Range = tuple[float, float]
Verdict = Literal["keep", "flag", "drop"]


@dataclass(frozen=True)
class Judgment:
    """What the guards say of one output.

    nearest: the fitted image nearest in latents. latent_copy, feature_copy: distance to the nearest fitted image, in
    units of the 5 % quantile of the fitted images' distances to one another (less 2 / count of it below 20 images). A
    copy is below 1 in both, or below 0.5 in one.
    copied_area: share of the image that is copied from fitted ones, the largest over the scales of `copied_area`.
    captured: from about -1, the domain, to about 1, the model's own; above 0 is captured, and exactly 0 is not judged.
    quality: how far layout or detail, whichever is worse, lies from the middle of what the domain shows: below -1 is
    too weak, above 1 too strong. Fitted images themselves are weaker than new ones, the more so the fewer they are.
    reasons: in words, for all but "keep".
    """

    nearest: int
    latent_copy: float
    feature_copy: float
    copied_area: float
    captured: float
    quality: float
    reasons: tuple[str, ...]
    verdict: Verdict


@dataclass(frozen=True, eq=False)
class Quality:
    """How strong layout and detail are under the domain's Gaussian, and in what range they may be (logarithms)."""

    mean: Float64[Tensor, "places rows columns"]
    spread: Structured
    layout: Range = (0.0, 0.0)
    detail: Range = (0.0, 0.0)

    @classmethod
    def fit(cls, latents: Latents) -> Quality:
        """Ranges of latents left out a tenth at a time, or one by one, see `allowed`."""
        folds = torch.arange(len(latents)) % min(FOLDS, len(latents))
        parts = [
            cls.of(latents[folds != fold]).strengths(latents[folds == fold]) for fold in range(int(folds.max()) + 1)
        ]
        layout, detail = (allowed(strengths) for strengths in torch.cat(parts).unbind(1))
        return replace(cls.of(latents), layout=layout, detail=detail)

    @classmethod
    def of(cls, latents: Latents) -> Quality:
        return cls(latents.mean(0, dtype=torch.float64), Structured.fit(latents))

    def strengths(self, latents: Latents) -> Float64[Tensor, "batch 2"]:
        """Logarithm of the mean square of the whitened coefficients: of the lowest frequencies, and of the others."""
        squares = cosines(whiten(self.spread, latents.double() - self.mean)).square()
        low = coarse(squares, self.spread.rows, self.spread.columns)
        others = squares[0].numel() - low.shape[1]
        high = (squares.flatten(1).sum(1) - low.sum(1)) / max(others, 1)
        return torch.stack([low.mean(1), high if others else low.mean(1)], 1).clamp(min=1e-12).log()


def allowed(strengths: Values) -> Range:
    """Between the quantiles, and beyond them by a share of that: `1 / sqrt(count)`, or `5 / count` below 25."""
    low, high = strengths.quantile(TAIL).item(), strengths.quantile(1 - TAIL).item()
    margin = (high - low) * max(5 / len(strengths), len(strengths) ** -0.5)
    return low - margin, high + margin


def outside(value: float, limits: Range) -> float:
    """0 in the middle of a range, -1 and 1 at its ends."""
    return (2 * value - sum(limits)) / max(limits[1] - limits[0], 1e-9)


@dataclass(frozen=True, eq=False)
class Guards:
    """Everything that outputs of one domain and one model are judged by.

    latents: of the fitted images that differ, at the clean end. places: where these are among all. vectors: their
    features, standardized with center and scale. latent_unit, feature_unit: the 5 % quantile of the distances to the
    nearest other one. kind: of features. symmetry: of `SYMMETRIES`; a copy that lies so is one in latents too.
    """

    latents: Latents
    places: Int64[Tensor, " batch"]
    vectors: Vectors
    center: Float64[Tensor, " numbers"]
    scale: Float64[Tensor, " numbers"]
    capture: Capture
    quality: Quality
    latent_unit: float
    feature_unit: float
    kind: Kind
    symmetry: str
    areas: CopiedArea

    @classmethod
    def fit(
        cls, model: FrozenModel, images: Images, own: Samples, *, batch_size: int = 32, symmetry: str = "none"
    ) -> Guards:
        """From a domain's fitted images and samples of the model's own domain (`own_samples`).

        images, own: float32 `(count, channel, height, width)` in [-1, 1]; at least 3 images that differ, and 8 samples.
        Every second sample is recolored: each channel's mean and deviation are those of a random fitted image, because
        a half-captured output has the colors of the domain. Cost: one network call for each batch.
        """
        check(model, images, own, symmetry)
        places = distinct(images)
        if len(places) < FEWEST:
            raise UsageError(f"guards need at least {FEWEST} images that differ, got {len(places)}: add others")
        images = images[places]
        others = torch.cat([own[::2], recolored(own[1::2], images)])
        fitted, of_own = (encode_all(model, some, batch_size) for some in (images, others))
        kind, vectors = features_of(model, torch.cat([fitted, of_own]), batch_size)
        domain = vectors[: len(fitted)]
        center, scale = domain.mean(0), domain.std(0)
        scale = scale.clamp(min=1e-3 * scale.max().item() + 1e-12)
        domain, owned = ((vectors - center) / scale).half().double().tensor_split([len(fitted)])
        capture, quality = Capture.fit(domain, owned), Quality.fit(fitted)
        warn(len(images), capture, kind)
        turned = [encode_all(model, some, batch_size) for some in turns_of(images, symmetry)]
        units = (unit(apart(turned, fitted)), unit(apart([domain], domain)))
        areas = CopiedArea.fit(fitted, partial(turns_of, symmetry=symmetry))
        return cls(fitted, places, domain, center, scale, capture, quality, *units, kind, symmetry, areas)

    def judge(self, model: FrozenModel, outputs: Images, batch_size: int = 32) -> list[Judgment]:
        """What to do with each output: keep it, flag it (let a person look at it) or drop it.

        outputs: float32 `(batch, channel, height, width)` in [-1, 1]. Dropped are captured outputs and copies; flagged
        those that nearly are, and those of implausible quality. Nothing is random. Cost: one network call for each
        batch.
        """
        model.image.check(outputs)
        turned = [encode_all(model, some, batch_size) for some in turns_of(outputs, self.symmetry)]
        _, vectors = features_of(model, turned[0], batch_size, self.kind)
        vectors = (vectors - self.center) / self.scale
        away = distances(turned, self.latents)
        figures = (
            self.places[away.argmin(1)].tolist(),
            (away.amin(1) / self.latent_unit).tolist(),
            (distances([vectors], self.vectors).amin(1) / self.feature_unit).tolist(),
            self.areas.shares(turned[0]).amax(1).tolist(),
            self.capture.scores(vectors).tolist(),
            self.quality.strengths(turned[0]).tolist(),
        )
        return [self.judged(*row) for row in zip(*figures, strict=True)]

    def judged(
        self, nearest: int, latents: float, features: float, area: float, score: float, strengths: list[float]
    ) -> Judgment:
        layout, detail = (
            outside(value, limits)
            for value, limits in zip(strengths, (self.quality.layout, self.quality.detail), strict=True)
        )
        least, copy = min(latents, features), is_copy(latents, features)
        where = "latents" if latents < features else "features"
        score = score if self.capture.reliable else 0.0
        doubtful = self.capture.reliable and self.capture.borderline < score <= 0
        rules: list[tuple[bool, Verdict, str]] = [
            (copy, "drop", f"a copy of fitted image {nearest}"),
            (least < NEAR and not copy, "flag", f"near a fitted image in {where}"),
            (area >= MOSAIC and not copy, "flag", "half of it or more is copied from fitted images"),
            (score > 0, "drop", "fell back to the model's own domain"),
            (doubtful, "flag", "between the domain and the model's own"),
            (layout > 1, "flag", "layout or colors stronger than the domain's"),
            (layout < -1, "flag", "layout or colors washed out"),
            (detail > 1, "flag", "detail stronger than the domain's: noisy"),
            (detail < -1, "flag", "detail weaker than the domain's: smooth"),
        ]
        raised = [(verdict, reason) for holds, verdict, reason in rules if holds]
        worst: Verdict = max((verdict for verdict, _ in raised), key=["flag", "drop"].index, default="keep")
        quality = max(layout, detail, key=abs)
        return Judgment(nearest, latents, features, area, score, quality, tuple(reason for _, reason in raised), worst)

    def tensors(self) -> dict[str, Tensor]:
        """What `from_parts` needs besides the fitted images; about a kilobyte for each of them."""
        return {
            "places": self.places,
            "vectors": self.vectors.half(),
            "center": self.center,
            "scale": self.scale,
            "weights": self.capture.weights,
            "isolation": self.areas.flat(len(self.latents)),
        }

    def numbers(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {
            "latent_unit": self.latent_unit,
            "feature_unit": self.feature_unit,
            "features": self.kind,
            "symmetry": self.symmetry,
            "offset": self.capture.offset,
            "accuracy": self.capture.accuracy,
            "borderline": self.capture.borderline,
            "copied": list(self.areas.thresholds),
            "layout": list(self.quality.layout),
            "detail": list(self.quality.detail),
        }

    @classmethod
    def from_parts(cls, latents: Latents, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Guards:
        """Guards as they were, from what `tensors` and `numbers` gave. No network call.

        latents: of all fitted images at the clean end, in their order; float16 is precise enough.
        """
        fitted, vectors = latents[tensors["places"]].float(), tensors["vectors"].double()
        layout, detail = ((numbers[name][0], numbers[name][1]) for name in ("layout", "detail"))
        return cls(
            latents=fitted,
            places=tensors["places"],
            vectors=vectors,
            center=tensors["center"],
            scale=tensors["scale"],
            capture=Capture(tensors["weights"], *(numbers[name] for name in ("offset", "accuracy", "borderline"))),
            quality=replace(Quality.of(fitted), layout=layout, detail=detail),
            latent_unit=numbers["latent_unit"],
            feature_unit=numbers["feature_unit"],
            kind=numbers["features"],
            symmetry=numbers["symmetry"],
            areas=CopiedArea.from_flat(
                fitted, partial(turns_of, symmetry=numbers["symmetry"]), tensors["isolation"], numbers["copied"]
            ),
        )


def is_copy(latents: float, features: float) -> bool:
    """Whether an image at these copy distances is one."""
    return max(latents, features) < 1 or min(latents, features) < SURE


def rates(judgments: Sequence[Judgment]) -> dict[str, float]:
    """Shares of the outputs: by verdict, and those found by each guard before any of them is dropped."""
    shown = {
        **{name: [one.verdict == name for one in judgments] for name in ("keep", "flag", "drop")},
        "copies_in_latents": [one.latent_copy < 1 for one in judgments],
        "copies_in_features": [one.feature_copy < 1 for one in judgments],
        "copies_in_both": [max(one.latent_copy, one.feature_copy) < 1 for one in judgments],
        "half_copied": [one.copied_area >= MOSAIC for one in judgments],
        "captured": [one.captured > 0 for one in judgments],
        "implausible": [abs(one.quality) > 1 for one in judgments],
    }
    return {name: sum(flags) / max(len(judgments), 1) for name, flags in shown.items()}


def check(model: FrozenModel, images: Images, own: Samples, symmetry: str) -> None:
    for some in (images, own):
        model.image.check(some)
    if symmetry not in SYMMETRIES:
        raise UsageError(f"symmetry must be one of {', '.join(SYMMETRIES)}, got {symmetry}")
    if len(own) < FEWEST_OWN:
        raise UsageError(f"guards need at least {FEWEST_OWN} samples of the model's own domain, got {len(own)}")


def distinct(images: Images) -> Int64[Tensor, " different"]:
    """The places of the images that differ, each the first of its kind."""
    first = {image.cpu().numpy().tobytes(): number for number, image in reversed(list(enumerate(images)))}
    return torch.tensor(sorted(first.values()))


def warn(count: int, capture: Capture, kind: Kind) -> None:
    """Warn of what makes these guards weak."""
    if count < FEW:
        warnings.warn(f"guards rest on {count} images, so their limits are wide and rough", ModelWarning, stacklevel=3)
    if kind == "latents":
        text = "this network has no middle block: copies and capture are judged by the lowest frequencies of latents"
        warnings.warn(text, ModelWarning, stacklevel=3)
    if not capture.reliable:
        text = f"domain and model's own samples are told apart with an accuracy of {capture.accuracy:.2f} only"
        warnings.warn(f"{text} (chance is 0.5, needed {RELIABLE}): capture is not judged", ModelWarning, stacklevel=3)


def turns_of(images: Images, symmetry: str) -> list[Images]:
    """The images in all ways in which a copy may lie, first as they are."""
    flips, turns = SYMMETRIES[symmetry]
    return [some.rot90(turn, (2, 3)) for some in (images, images.flip(3))[:flips] for turn in range(turns)]


def distances(turned: Sequence[Tensor], others: Tensor) -> Float64[Tensor, "some others"]:
    """Euclidean distances of all pairs, the least one over the ways in which the first may lie."""
    flat = others.double().flatten(1)
    exact = "donot_use_mm_for_euclid_dist"
    return torch.stack([torch.cdist(one.double().flatten(1), flat, compute_mode=exact) for one in turned]).amin(0)


def apart(turned: Sequence[Tensor], others: Tensor) -> Values:
    """The distance of each of them to the nearest other one."""
    return distances(turned, others).fill_diagonal_(torch.inf).amin(1)


def unit(nearest: Values) -> float:
    """What distances are told in. Of few images the quantile is about the least distance, and too long by far."""
    count = len(nearest)
    share = 1 if count >= WIDE else 1 - 2 / count
    return max(share * nearest.quantile(COPY_QUANTILE).item(), 1e-9)
