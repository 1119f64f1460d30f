"""PSNR and SSIM of an image against its original."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

from nearfar.tensors import Images

EXACT = 150.0
"""dB at which PSNR ends: float32 tells nothing beyond."""

WINDOW, BLUR = 11, 1.5
"""Side and standard deviation of SSIM's window in pixels (Wang et al. 2004, DOI 10.1109/TIP.2003.819861)."""


def psnr(images: Images, others: Images) -> Float[Tensor, " batch"]:
    """Peak signal to noise in dB of images in [-1, 1], each of its own."""
    error = (images.double() - others.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error.clamp(min=4 / 10 ** (EXACT / 10)))


def ssim(images: Images, others: Images) -> Float[Tensor, " batch"]:
    """Structural similarity of images in [-1, 1] (Wang et al. 2004), the mean over channels and whole windows.

    Images smaller than the window get the largest odd one that fits.
    """
    x, y = (batch.double().flatten(0, 1)[:, None] for batch in (images, others))
    moments = torch.cat([x, y, x * x, y * y, x * y])
    half = (min(WINDOW, *images.shape[2:]) - 1) // 2
    weights = torch.exp(-(torch.arange(-half, half + 1, dtype=torch.float64) ** 2) / (2 * BLUR**2))
    weights = weights / weights.sum()
    mean_x, mean_y, xx, yy, xy = conv2d(conv2d(moments, weights[None, None, None]), weights[None, None, :, None]).chunk(
        5
    )
    c_1, c_2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    structure = (2 * (xy - mean_x * mean_y) + c_2) / (xx - mean_x**2 + yy - mean_y**2 + c_2)
    likeness = (2 * mean_x * mean_y + c_1) / (mean_x**2 + mean_y**2 + c_1) * structure
    return likeness.mean((1, 2, 3)).view(images.shape[:2]).mean(1)
