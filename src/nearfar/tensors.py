"""Shapes that the package speaks of, and the one place where a value per image is broadcast over its pixels."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

Images = Float[Tensor, "batch channel height width"]
Latents = Float[Tensor, "batch places rows columns"]
Times = Float64[Tensor, " batch"]
TimeGrid = Float64[Tensor, "batch nodes"]


def per_image(values: Float[Tensor, " batch"], like: Images) -> Float[Tensor, "batch 1 1 1"]:
    """One value per image, shaped to multiply `like`, in its dtype and on its device."""
    return values.to(like.device, like.dtype)[:, None, None, None]


def select(chosen: Bool[Tensor, " batch"], images: Images, others: Images) -> Images:
    """Each image from the first of two batches where it is chosen, else from the second."""
    return torch.where(chosen.to(images.device)[:, None, None, None], images, others)
