"""Shapes that the package speaks of, and the one place where a value per image is broadcast over its pixels."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

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
