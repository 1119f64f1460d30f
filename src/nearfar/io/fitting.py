"""Pictures of any shape as a model's square and back; integers and floats, 16 and 8 bits, color and gray."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nearfar.errors import ImageError, UsageError
from nearfar.io.pictures import Frame, Picture, Pixels

LUMA = np.array([[0.299, 0.587, 0.114]], np.float32)
"""Weights of red, green and blue (Rec. 601)."""


class FitMode(StrEnum):
    """How a picture of any shape becomes the model's square.

    PAD: its long side fills the square and the picture is mirrored into the rest; undone by cropping. COVER: its center
    square is all that the model sees; undone by mirroring the model's output, never the original, into the margins.
    TILE: a picture larger than the model stays as large as it is, for a model that sees it in tiles (a side shorter
    than the model's is mirrored); a smaller one goes as with PAD.
    """

    PAD = "pad"
    COVER = "cover"
    TILE = "tile"


def fit(picture: Picture, size: int, channels: int, mode: FitMode = FitMode.PAD) -> Tensor:
    """The picture as the model wants it: float32 (channels, size, size) in [-1, 1], resized with Lanczos.

    With `TILE` (channels, height, width), each at least `size`, and nothing is shrunk.

    A gray picture is repeated over 3 channels, a color picture becomes its luma for 1. A picture that has the
    model's size is not resampled: `unfit(fit(picture, ...), picture.frame)` has the very same pixels.
    """
    if size < 1 or channels not in (1, 3):
        raise UsageError(f"a model's images must have 1 or 3 channels and a size above 0, got {channels} and {size}")
    planes = np.moveaxis(picture.pixels, -1, 0)
    squares = np.stack([fit_plane(to_float(plane), size, mode) for plane in planes])
    return torch.from_numpy(with_channels(squares, channels))


def unfit(image: Tensor, frame: Frame, mode: FitMode = FitMode.PAD) -> Picture:
    """The model's image in a picture's frame: its height, width, channels, depth and alpha.

    image: of the shape that `fit` gave, clipped to [-1, 1]. mode: the one given to `fit`. Raises ImageError when the
    image has values that are not finite.
    """
    square = image.shape[-1:] == image.shape[-2:-1] or mode is FitMode.TILE
    if image.ndim != 3 or not square or image.shape[0] not in (1, 3):
        raise UsageError(f"the model's image must be (1 or 3, size, size), got {tuple(image.shape)}")
    if not image.isfinite().all():
        raise ImageError(f"the model's image has {int((~image.isfinite()).sum())} values that are not finite")
    squares = with_channels(image.detach().to("cpu", torch.float32).numpy(), frame.channels)
    planes = [unfit_plane(square, frame.height, frame.width, mode) for square in squares]
    return Picture(np.stack([to_integer(plane, frame.depth) for plane in planes], axis=-1), frame)


def fit_plane(plane: NDArray[np.float32], size: int, mode: FitMode) -> NDArray[np.float32]:
    """One channel in [-1, 1] as the model's square; itself when it has that size."""
    height, width = seen_shape(len(plane), plane.shape[1], mode)
    inner = inner_shape(height, width, max(size, height, width) if mode is FitMode.TILE else size)
    return window(resize(window(plane, height, width), *inner), *(max(size, side) for side in inner))


def unfit_plane(square: NDArray[np.float32], height: int, width: int, mode: FitMode) -> NDArray[np.float32]:
    """One channel of the model's square as (height, width); undoes `fit_plane` where nothing was resampled."""
    seen = seen_shape(height, width, mode)
    return window(resize(window(square, *inner_shape(*seen, max(square.shape))), *seen), height, width)


def to_float(plane: Pixels) -> NDArray[np.float32]:
    """0 to 255 or 65535 -> -1 to 1."""
    return plane.astype(np.float32) / (np.iinfo(plane.dtype).max / 2) - 1


def to_integer(plane: NDArray[np.float32], depth: int) -> NDArray[Any]:
    """-1 to 1, clipped -> 0 to 255 or 65535; the inverse of `to_float`."""
    top = 2**depth - 1
    return np.asarray(np.rint((plane + 1) * (top / 2)).clip(0, top), f"uint{depth}")


def resize(plane: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Lanczos, antialiased where it shrinks, clipped to [-1, 1]; the plane itself when it has that size."""
    if plane.shape == (height, width):
        return plane
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS)).clip(-1, 1)


def seen_shape(height: int, width: int, mode: FitMode) -> tuple[int, int]:
    """The height and width of what is shown to the model: all of the picture, or its center square."""
    side = min(height, width)
    return (side, side) if mode is FitMode.COVER else (height, width)


def inner_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """The height and width that it has inside the model's square, which its long side fills."""
    longest = max(height, width)
    return max(1, round(height * size / longest)), max(1, round(width * size / longest))


def window(array: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """The middle (height, width) of an array that goes on beyond its edges as its mirror image; its own inverse."""
    rows, columns = window_places(array.shape[0], height), window_places(array.shape[1], width)
    return array if array.shape[:2] == (height, width) else array[rows][:, columns]


def window_places(length: int, target: int) -> NDArray[np.intp]:
    """Which of `length` places each of `target` shows: ... 1 0 0 1 2 ... with 0 to length - 1 in the middle."""
    places = (np.arange(target) - int((target - length) / 2)) % (2 * length)
    return np.where(places < length, places, 2 * length - 1 - places)


def with_channels(planes: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """(..., 1 or 3, height, width) with 1 or 3 channels: gray repeated, colors as their luma."""
    if channels == planes.shape[-3]:
        return planes
    if channels == 1:
        return np.moveaxis(np.tensordot(LUMA, planes, axes=([1], [-3])), 0, -3)
    return np.repeat(planes, channels, axis=-3)


def to_8_bit(images: Tensor) -> Tensor:
    """-1 to 1, clipped -> uint8, the nearest."""
    return images.clamp(-1, 1).add(1).mul(127.5).round().byte()


def from_8_bit(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]; the inverse of `to_8_bit`."""
    return images.float().div(127.5).sub(1)


def as_written(images: Tensor) -> Tensor:
    """Images in [-1, 1] as they are when read again from 8 bits; what is not finite stays so."""
    return images.clamp(-1, 1).add(1).mul(127.5).round().div(127.5).sub(1)


def as_rgb(images: Tensor) -> list[NDArray[np.uint8]]:
    """Images (batch, 1 or 3, height, width) in [-1, 1] as pictures (height, width, 3) of 8 bits."""
    pixels = to_8_bit(images).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return [np.ascontiguousarray(image) for image in pixels.numpy()]


def rgb_of(picture: Picture) -> NDArray[np.uint8]:
    """The pixels of a picture, (height, width, 3) of 8 bits; 16 bits become the nearest 8."""
    pixels = picture.pixels
    if picture.frame.depth == 16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
