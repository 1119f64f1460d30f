"""Geometry of clouds of latents: norms, distances, angles, and moves on the sphere."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.tensors import Images, per_image

PerImage = Float[Tensor, " batch"]


def norms(x: Images) -> PerImage:
    """Euclidean norm of each image."""
    return x.flatten(1).square().sum(dim=1).sqrt()


def angles(x: Images, y: Images) -> PerImage:
    """Angle at the origin between the images of each pair, in radians, stable for small and for opposite angles."""
    u, v = (a / per_image(norms(a), a) for a in (x, y))
    return 2 * torch.atan2(norms(u - v), norms(u + v))


def slerp(x: Images, y: Images, share: PerImage) -> Images:
    """Spherical interpolation of directions, linear interpolation of norms; `share` 0 gives x, 1 gives y."""
    angle = angles(x, y).clamp(min=1e-12)
    weights = [((1 - share) * angle).sin(), (share * angle).sin()]
    u, v = (per_image(w / norms(a), a) * a for w, a in zip(weights, (x, y), strict=True))
    length = torch.lerp(norms(x), norms(y), share)
    return per_image(length / angle.sin(), x) * (u + v)
