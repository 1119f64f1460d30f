"""Shapes that the package speaks of, what a model's images must be, and where a value per image meets its pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from nearfar.errors import UsageError

Images = Float[Tensor, "batch channel height width"]
Latents = Float[Tensor, "batch places rows columns"]
Times = Float64[Tensor, " batch"]
TimeGrid = Float64[Tensor, "batch nodes"]


def sent(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Values on a device; on a GPU nobody waits until they are there, which every later use of them does."""
    return values.to(device, dtype or values.dtype, non_blocking=device.type == "cuda")


def per_image(values: Float[Tensor, " batch"], like: Images) -> Float[Tensor, "batch 1 1 1"]:
    """One value per image, shaped to multiply `like`, in its dtype and on its device."""
    return sent(values, like.device, like.dtype)[:, None, None, None]


def select(chosen: Bool[Tensor, " batch"], images: Images, others: Images) -> Images:
    """Each image from the first of two batches where it is chosen, else from the second."""
    return torch.where(sent(chosen, images.device)[:, None, None, None], images, others)


@dataclass(frozen=True)
class ImageContract:
    """What the model takes: float32 `(batch, channels, size, size)` in [-1, 1].

    values: of a model of physical values, the `io.values.ValueTransform` that makes these images of them, as JSON.
    width: of canvases, which need not be square (`sampling/tiling.py`); `size` is then their height.
    """

    size: int
    channels: int
    values: str | None = None
    width: int | None = None

    def check(self, images: Images) -> None:
        """Refuse images of another shape, out of range or not finite."""
        expected = (self.channels, self.size, self.width or self.size)
        if images.ndim != 4 or images.shape[1:] != expected or not len(images):
            shape = f"(batch, {', '.join(map(str, expected))})"
            raise UsageError(f"images must be {shape}, got {tuple(images.shape)}")
        if not images.isfinite().all() or images.abs().max() > 1:
            span = f"{images.min().item():g} to {images.max().item():g}"
            raise UsageError(f"images must lie in [-1, 1], got values from {span}: divide 8-bit by 127.5, less 1")


def unpatched(states: Tensor, factor: int) -> Tensor:
    """Patches of pixels, their channels in the order row, column, color, as images."""
    if factor == 1:
        return states
    batch, channels, rows, columns = states.shape
    cells = states.reshape(batch, factor, factor, channels // factor**2, rows, columns)
    return cells.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, rows * factor, columns * factor)


def patched(images: Tensor, factor: int) -> Tensor:
    """The inverse of `unpatched`."""
    if factor == 1:
        return images
    batch, channels, height, width = images.shape
    cells = images.reshape(batch, channels, height // factor, factor, width // factor, factor)
    return cells.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // factor, width // factor)
