"""Regions of a picture as a model's squares, and the model's squares back in the picture.

A region is a square, tilted as its object is. It is read with antialiasing, and what comes back is blended in by a soft
mask, in linear light: half of white and half of black is then the gray that an eye sees between them from afar.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Complex128, Float, Float64
from torch import Tensor
from torch.nn.functional import grid_sample

from nearfar.errors import UsageError
from nearfar.io.fitting import resize, to_float, to_integer, with_channels
from nearfar.io.pictures import Pixels

Planes = Float[Tensor, "channels height width"]
Square = Float[Tensor, "channels size size"]
Sampled = Float[Tensor, "channels rows columns"]
Places = Float[Tensor, "rows columns 2"]
Weights = Float[Tensor, "rows columns"]
Landmarks = Float64[np.ndarray, "5 2"]
Points = Complex128[np.ndarray, " points"]

FACE_LANDMARKS = np.array([20 + 18j, 44 + 18j, 32 + 32.5j, 22 + 43j, 42 + 43j]) / 64
"""Eyes, nose and corners of the mouth of the bundled model's faces, as shares of the square: x + iy, from the left.

Medians of what YuNet finds in 600 of UTKFace's aligned crops, made symmetric.
"""

FACE_CORE, FACE_RADIUS = (0.12, 0.16), 0.3
"""What is wholly replaced in a face's square: everything within the radius of a rectangle, as shares of the side."""

MOST_GAIN, DARKEST = 1.5, 0.01
"""By what a channel is multiplied or divided at most when colors are matched, and light that counts as black."""

TAPS = 2
"""Pixels on each side that bicubic sampling looks at."""

FINEST, STRIP = 2048, 256
"""Cells along a side by which a region is read and written at most, and rows that are blended at a time: memory."""


@dataclass(frozen=True)
class Region:
    """A square of a picture that a model is shown, and the part of it that is replaced.

    x, y: its center; side: all in pixels from the picture's upper left corner; it may reach beyond the border.
    tilt: radians, clockwise. width, height, radius: everything within `radius` of a rectangle in the middle is wholly
    replaced, in shares of the side; from there the mask falls to 0, which it reaches inside the square.
    score: the detector's. kind: the class of its object.
    """

    x: float
    y: float
    side: float
    width: float
    height: float
    radius: float = 0.0
    tilt: float = 0.0
    score: float = 1.0
    kind: str = ""


def face_region(landmarks: Landmarks, score: float = 1.0) -> Region:
    """The square in which a face lies as the bundled model knows faces: a least-squares similarity of its landmarks.

    landmarks: (x, y) of the eyes, the nose and the corners of the mouth in the picture, each pair from left to right as
    seen.
    """
    seen = landmarks @ (1, 1j)
    turn = similarity(FACE_LANDMARKS, seen)
    center = seen.mean() + turn * (0.5 + 0.5j - FACE_LANDMARKS.mean())
    x, y, side, tilt = map(float, (center.real, center.imag, abs(turn), np.angle(turn)))
    return Region(x, y, side, *FACE_CORE, FACE_RADIUS, tilt, score)


def similarity(points: Points, reference: Points) -> complex:
    """Rotation and scale about their means that bring points, x + iy, to the reference with the least squared error.

    Of Umeyama (1991), without reflections.
    """
    here, there = points - points.mean(), reference - reference.mean()
    return complex(np.vdot(here, there) / np.vdot(here, here))


def face_landmarks(region: Region) -> Landmarks:
    """Where the landmarks of a face's region lie in its square, in shares of the side from the upper left corner."""
    middle = 0.5 + 0.5j
    places = (FACE_LANDMARKS - middle) * region.radius / FACE_RADIUS + middle
    return np.stack([places.real, places.imag], axis=1)


def box_region(
    left: float, top: float, width: float, height: float, margin: float, kind: str = "", tilt: float = 0.0
) -> Region:
    """The square around a box, turned about its center; the whole box is replaced.

    margin: on each side of its long side, as a share of that. tilt: radians, clockwise.
    """
    if not margin > 0:
        raise UsageError(f"margin must be above 0, got {margin:g}: the mask needs room to fade")
    longest = max(width, height)
    box = Region(left + width / 2, top + height / 2, longest, width / longest, height / longest, tilt=tilt, kind=kind)
    return widen(box, margin)


def widen(region: Region, margin: float) -> Region:
    """A larger square around the same part, with `margin` of the side more on each side."""
    more = 1 + 2 * margin
    parts = {name: getattr(region, name) / more for name in ("width", "height", "radius")}
    return replace(region, side=region.side * more, **parts)


def crop(pixels: Pixels, region: Region, size: int, channels: int) -> Square:
    """The region as the model wants it: float32 (channels, size, size) in [-1, 1].

    Read at the picture's own scale (bicubic; mirrored beyond the border), then resized with Lanczos, antialiased. Of a
    region above `FINEST` pixels a side the picture is shrunk first.
    """
    rows, columns = extent(region, *pixels.shape[:2])
    planes = shrunk(pixels[rows, columns], min(1.0, FINEST / region.side))
    scale = torch.tensor([planes.shape[2] / (columns.stop - columns.start), planes.shape[1] / (rows.stop - rows.start)])
    corner = torch.tensor([columns.start, rows.start])
    centers = turned(square_places(cells(region)) * region.side, region.tilt) + torch.tensor([region.x, region.y])
    places = (centers - corner) * scale
    return resized(torch.from_numpy(with_channels(sample(planes, places, "reflection").numpy(), channels)), size)


def paste(pixels: Pixels, square: Square, region: Region) -> Pixels:
    """The picture with the model's square blended in; pixels that the mask does not reach stay what they are."""
    rows, columns = extent(region, *pixels.shape[:2])
    source = resized(torch.from_numpy(with_channels(square.numpy(), pixels.shape[2])), cells(region))
    result = pixels.copy()
    for start in range(rows.start, rows.stop, STRIP):
        strip = slice(start, min(start + STRIP, rows.stop))
        result[strip, columns] = blended(pixels[strip, columns], source, region, in_region(region, strip, columns))
    return result


def blended(patch: Pixels, source: Planes, region: Region, within: Places) -> Pixels:
    """A part of the picture, at these places of the region, with the region's new content."""
    new = sample(source, (within + 0.5) * source.shape[-1], "border")
    mask = coverage(region, within)
    old = torch.from_numpy(np.ascontiguousarray(np.moveaxis(to_float(patch), -1, 0)))
    mixed = blend(old, new, mask)
    integers = to_integer(mixed.permute(1, 2, 0).numpy(), patch.dtype.itemsize * 8)
    return np.where(mask[..., None].numpy() > 0, integers, patch)


def cells(region: Region) -> int:
    """By how many cells along a side a region is read and written: its pixels, within reason."""
    return min(max(1, round(region.side)), FINEST)


def blend(old: Planes, new: Planes, mask: Weights) -> Planes:
    """Images in [-1, 1], mixed by the mask in linear light."""
    return from_linear(torch.lerp(to_linear(old), to_linear(new), mask))


def match_colors(new: Square, old: Square, region: Region) -> Square:
    """The model's square with each channel's light scaled so that its mean is the original square's where they meet.

    Where they meet: in the ring in which the mask fades. The part that is wholly replaced has no say, so nothing of it
    is carried over, and black stays black.
    """
    mask = coverage(region, square_places(new.shape[-1]))
    ring = mask * (1 - mask)
    mean, wanted = ((to_linear(square) * ring).sum((1, 2), keepdim=True) for square in (new, old))
    floor = DARKEST * ring.sum() + 1e-9
    return from_linear(to_linear(new) * ((wanted + floor) / (mean + floor)).clamp(1 / MOST_GAIN, MOST_GAIN))


def coverage(region: Region, within: Places) -> Weights:
    """How much is replaced at places given in shares of the side from the region's center: 1, falling smoothly to 0."""
    half = torch.tensor([region.width / 2, region.height / 2])
    distance = torch.linalg.vector_norm((within.abs() - half).clamp(min=0), dim=-1) - region.radius
    room = 0.5 - max(region.width, region.height) / 2 - region.radius
    share: Tensor = (1 - distance / room).clamp(0, 1)
    return share.square() * (3 - 2 * share)


def changed_share(before: Pixels, after: Pixels, region: Region) -> float:
    """Which share of its wholly replaced pixels is another than before; if it has none, of all that it reaches."""
    rows, columns = extent(region, *before.shape[:2])
    counts = np.zeros((2, 2))
    for start in range(rows.start, rows.stop, STRIP):
        strip = slice(start, min(start + STRIP, rows.stop))
        weights = coverage(region, in_region(region, strip, columns)).numpy()
        differs = (before[strip, columns] != after[strip, columns]).any(axis=2)
        counts += [[part.sum(), (part & differs).sum()] for part in (weights == 1, weights > 0)]
    pixels, changed = counts[0] if counts[0, 0] else counts[1]
    return float(changed / pixels) if pixels else 0.0


def extent(region: Region, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the picture that hold all of the region, and what sampling it looks at."""
    reach = region.side / 2 * (abs(math.cos(region.tilt)) + abs(math.sin(region.tilt))) + TAPS
    bounds = ((region.y - reach, region.y + reach, height), (region.x - reach, region.x + reach, width))
    rows, columns = (slice(max(0, math.floor(low)), min(most, math.ceil(high))) for low, high, most in bounds)
    return rows, columns


def turned(places: Places, angle: float) -> Places:
    """Places turned clockwise about the origin."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return places @ torch.tensor([[cosine, sine], [-sine, cosine]], dtype=places.dtype)


def square_places(count: int) -> Places:
    """The centers of `count` x `count` equal cells of a square, in shares of the side from its center."""
    line = (torch.arange(count) + 0.5) / count - 0.5
    return torch.stack([line.expand(count, count), line[:, None].expand(count, count)], dim=-1)


def in_region(region: Region, rows: slice, columns: slice) -> Places:
    """Where the picture's pixels lie in the region, in shares of its side from its center."""
    x = torch.arange(columns.start, columns.stop) + 0.5 - region.x
    y = torch.arange(rows.start, rows.stop) + 0.5 - region.y
    places = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
    return turned(places, -region.tilt) / region.side


def sample(planes: Planes, places: Places, beyond: str) -> Sampled:
    """Bicubic values at places in pixels from the upper left corner; exact at the centers of pixels."""
    shape = torch.tensor([planes.shape[2], planes.shape[1]])
    grid = (places / shape * 2 - 1)[None].float()
    return grid_sample(planes[None], grid, "bicubic", beyond, align_corners=False)[0].clamp(-1, 1)


def resized(planes: Planes, size: int) -> Square:
    """With Lanczos, antialiased where it shrinks."""
    return torch.from_numpy(np.stack([resize(plane, size, size) for plane in planes.numpy()]))


def shrunk(pixels: Pixels, factor: float) -> Planes:
    """(height, width, channels) integers -> float32 (channels, rows, columns) in [-1, 1], made smaller by channel."""
    height, width = (max(1, round(length * factor)) for length in pixels.shape[:2])
    channels = range(pixels.shape[2])
    return torch.from_numpy(np.stack([resize(to_float(pixels[..., channel]), height, width) for channel in channels]))


def to_linear(image: Planes) -> Planes:
    """sRGB in [-1, 1] -> light in [0, 1] (IEC 61966-2-1)."""
    value = (image.clamp(-1, 1) + 1) / 2
    return torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def from_linear(light: Planes) -> Planes:
    """Light, clipped to [0, 1] -> sRGB in [-1, 1]."""
    value = light.clamp(0, 1)
    encoded = torch.where(value <= 0.0031308, value * 12.92, 1.055 * value.clamp(min=1e-9) ** (1 / 2.4) - 0.055)
    return encoded * 2 - 1
