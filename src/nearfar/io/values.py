"""Physical values as images in [-1, 1], and new images back as physical values.

Each channel is divided by its softening, bent by a curve, and stretched so that [low, high] becomes [-1, 1]:

    image = 2 (f(v / softening) - f(low / softening)) / (f(high / softening) - f(low / softening)) - 1

Curves: linear; log, for positive values over several decades; asinh, for values of either sign, linear far below the
softening and logarithmic far above it (Lupton, Gunn and Szalay, astro-ph/9903081); log1p, the logarithm of 1 + v, for
values above -softening. Only asinh and log1p depend on the softening.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from numpy.typing import NDArray
from torch import Tensor

from nearfar.errors import ImageError, UsageError
from nearfar.structured import checked, json_object

Values = Float64[np.ndarray, "*batch channel height width"]
"""Physical values of one image, or of a batch."""

AGAIN = "fit it again"
NARROWEST = 1e-9
"""Share of its ends' size that a curved range must have: float64 resolves it five million times."""


def noise(values: NDArray[np.float64]) -> float:
    """The standard deviation of a channel's background: 1.4826 median absolute deviations."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


@dataclass(frozen=True)
class Curve:
    """A rising function and its inverse, what it must stay above (in softenings), and the softening of some data."""

    forward: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    inverse: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    above: float = -math.inf
    softening: Callable[[NDArray[np.float64]], float] = lambda _: 1.0


CURVES = {
    "linear": Curve(np.positive, np.positive),
    "log": Curve(np.log, np.exp, above=0.0),
    "log1p": Curve(np.log1p, np.expm1, above=-1.0),
    "asinh": Curve(np.arcsinh, np.sinh, softening=noise),
}


@dataclass(frozen=True)
class ValueTransform:
    """Physical values <-> images in [-1, 1], the same for every image of a data set.

    curve: a key of `CURVES`. low, high: per channel of the data, the values that become -1 and 1, in physical units.
    softening: per channel, in physical units.
    There and back costs at most 1e-6 of `high - low`, for log and asinh over up to 25 decades. Raises UsageError for
    a range that is empty, that the curve cannot take, or that is too narrow for this accuracy.
    """

    curve: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    softening: tuple[float, ...]
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        known(self.curve)
        lengths = [len(self.low), len(self.high), len(self.softening)]
        if len(set(lengths)) > 1 or not self.low:
            raise UsageError(f"low, high and softening must have one number for each channel, got {lengths}")
        for channel, (low, high, softening) in enumerate(zip(self.low, self.high, self.softening, strict=True)):
            check_range(f"channel {channel}", self.curve, low, high, softening)

    def to_image(self, values: Values, channels: int | None = None) -> Float32[Tensor, "*batch color height width"]:
        """One image or a batch as float32 in [-1, 1]; values outside [low, high] are clipped.

        channels: those of the model (the data's own if None); gray data are repeated. Raises ImageError for values
        that are not finite.
        """
        self.check(values)
        bottom, top = self.curved_ends()
        inside = values.clip(column(self.low), column(self.high)) / column(self.softening)
        shares = (CURVES[self.curve].forward(inside) - bottom) / (top - bottom)
        image = torch.from_numpy((2 * shares - 1).clip(-1, 1).astype(np.float32))
        return image.repeat_interleave(self.repeats(len(self.low) if channels is None else channels), dim=-3)

    def to_values(self, images: Float[Tensor, "*batch color height width"]) -> Values:
        """The inverse of `to_image`: float64 in physical units, within [low, high]; images are clipped to [-1, 1].

        For gray data the channels of a color model are averaged, before the curve is undone. Raises ImageError for
        images that are not finite.
        """
        planes = images.detach().cpu().double().numpy()
        check_finite("the model's image", planes)
        if self.repeats(planes.shape[-3]) > 1:
            planes = planes.mean(-3, keepdims=True)
        bottom, top = self.curved_ends()
        curved = bottom + (planes.clip(-1, 1) + 1) / 2 * (top - bottom)
        values = CURVES[self.curve].inverse(curved) * column(self.softening)
        return values.clip(column(self.low), column(self.high))

    def curved_ends(self) -> NDArray[np.float64]:
        """The curve at low and at high, (2, channel, 1, 1)."""
        ends = np.stack([column(self.low), column(self.high)])
        return CURVES[self.curve].forward(ends / column(self.softening))

    def check(self, values: Values) -> None:
        """Refuse values with other channels, or that are not finite."""
        if values.ndim < 3 or values.shape[-3] != len(self.low):
            raise UsageError(f"values must be ({len(self.low)}, height, width), or a batch of it, got {values.shape}")
        check_finite("the array", values)

    def repeats(self, channels: int) -> int:
        """How often each channel of the data appears among the model's."""
        own = len(self.low)
        if channels < 1 or channels != own != 1:
            raise UsageError(
                f"data of {own} channels need a model of {own}, got {channels}: use the channels one by one"
            )
        return channels // own

    def to_json(self) -> str:
        """As JSON text; `from_json` gives the very same numbers back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ValueTransform:
        """Read what `to_json` wrote; UsageError for unknown or missing keys and for bad values."""
        return checked(cls, json_object(text, "a value transform", AGAIN), "a value transform", AGAIN)


def fit_values(
    arrays: Sequence[Float64[np.ndarray, "_ _ _"]],
    curve: str = "linear",
    clip: float = 0.0,
    softening: Sequence[float] | None = None,
) -> ValueTransform:
    """The transform for a data set, its ends measured on the data.

    arrays: physical values (channel, height, width) with the same channels; all of them are held in memory once more.
    clip: share of the values cut off at either end of each channel, in [0, 0.5); 0 takes the least and the greatest.
    softening: per channel, in physical units; None measures the noise of each channel for a curve that depends on it.
    Raises UsageError for constant data and for values that the curve cannot take, ImageError for values that are not
    finite.
    """
    known(curve)
    if not 0 <= clip < 0.5:
        raise UsageError(f"clip must be a share in [0, 0.5), got {clip:g}")
    channels = pooled(arrays)
    ends = np.array([np.quantile(channel, (clip, 1 - clip)) for channel in channels])
    for number, (low, high) in enumerate(ends):
        if low == high:
            raise UsageError(f"channel {number} is {low:g} throughout at clip {clip:g}: clip less or give varied data")
    measured = [CURVES[curve].softening(channel) for channel in channels] if softening is None else softening
    return ValueTransform(curve, *(tuple(map(float, numbers)) for numbers in (*ends.T, measured)))


def pooled(arrays: Sequence[Float64[np.ndarray, "_ _ _"]]) -> list[NDArray[np.float64]]:
    """All values of each channel."""
    if len({len(array) for array in arrays}) != 1:
        raise UsageError(f"arrays must have the same channels, got the shapes {[array.shape for array in arrays][:9]}")
    for number, array in enumerate(arrays):
        check_finite(f"array {number}", array)
    return [np.concatenate([plane.ravel() for plane in planes]) for planes in zip(*arrays, strict=True)]


def check_range(name: str, curve: str, low: float, high: float, softening: float) -> None:
    """Refuse the ends of one channel from which images could not be brought back."""
    if not -math.inf < low < high < math.inf:
        raise UsageError(f"{name}: low must be below high and both finite, got {low:g} and {high:g}")
    if not 0 < softening < math.inf:
        raise UsageError(f"{name}: softening must be above 0 and finite, got {softening:g}: give the data's noise")
    above = CURVES[curve].above * softening
    if low <= above:
        raise UsageError(
            f"{name} goes down to {low:g}, {curve!r} needs values above {above:g}: use 'asinh' or clip more"
        )
    with np.errstate(all="ignore"):
        bottom, top = CURVES[curve].forward(np.array([low, high]) / softening)
        resolved = NARROWEST * max(abs(bottom), abs(top)) < top - bottom < math.inf
    if not resolved:
        raise UsageError(f"{name}: {low:.17g} to {high:.17g} is too narrow or too wide: subtract an offset or rescale")


def check_finite(name: str, array: NDArray[np.floating[Any]]) -> None:
    """Refuse NaN and infinity."""
    count = int((~np.isfinite(array)).sum())
    if count:
        raise ImageError(f"{name} has {count} values that are not finite: fill them in or crop them away")


def known(curve: object) -> str:
    """The name of a curve."""
    if not isinstance(curve, str) or curve not in CURVES:
        raise UsageError(f"curve must be one of {', '.join(CURVES)}, got {curve!r}")
    return curve


def column(numbers: Sequence[float]) -> NDArray[np.float64]:
    """One number per channel, shaped to meet (channel, height, width)."""
    return np.array(numbers, np.float64)[:, None, None]
