"""Downsampling by whole factors, and back-projection: an image changed so that it downsamples to a given one.

The operator is the mean over squares of `scale` x `scale` pixels, what a camera with larger pixels would have seen.
Unlike filters with negative lobes (bicubic, Lanczos) it has, for every image in [-1, 1], enlargements in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from nearfar.tensors import Images

Small = Float[Tensor, "batch channel rows columns"]
TINY = 1e-6


@dataclass(frozen=True)
class AreaDownsampling:
    """The mean over squares of `scale` pixels a side, and smooth ways back."""

    scale: int

    def shrink(self, images: Images) -> Small:
        """(batch, channel, height, width) -> (..., height / scale, width / scale)."""
        return functional.avg_pool2d(images, self.scale)

    def enlarge(self, small: Small) -> Images:
        """The bicubic surface whose means over the squares are `small`: `shrink(enlarge(y)) = y`. It may overshoot."""
        rows, columns = (enlargement(length, self.scale).to(small) for length in small.shape[-2:])
        return rows @ small @ columns.T

    def project(self, images: Images, small: Small) -> Images:
        """Images that downsample to `small`: what they lack is enlarged and added.

        The back-projection of Irani and Peleg (1991), exact at once; the range is not kept.
        """
        return images + self.enlarge(small - self.shrink(images))

    def settle(self, images: Images, small: Small) -> Images:
        """Images in [-1, 1] that downsample to `small` in [-1, 1].

        They are clipped, and the square whose mean that moved is drawn toward the end of the range that it has to
        approach: one multiplication, which finds the mean exactly and stays inside.
        """
        clipped = images.clamp(-1, 1)
        mean, goal = self._repeat(self.shrink(clipped)), self._repeat(small)
        brighter = 1 - (1 - clipped) * (1 - goal) / (1 - mean).clamp(min=TINY)
        darker = (1 + clipped) * (1 + goal) / (1 + mean).clamp(min=TINY) - 1
        return torch.where(mean < goal, brighter, darker).clamp(-1, 1)

    def _repeat(self, small: Small) -> Images:
        return functional.interpolate(small, scale_factor=self.scale, mode="nearest")


@lru_cache(maxsize=16)
def enlargement(length: int, scale: int) -> Float64[Tensor, "large small"]:
    """Along one side: bicubic interpolation of values whose means after it are the given ones."""
    bicubic = functional.interpolate(
        torch.eye(length, dtype=torch.float64)[None, None],
        size=(length * scale, length),
        mode="bicubic",
        antialias=True,
    )[0, 0]
    means = bicubic.reshape(length, scale, length).mean(dim=1)
    inverted: Tensor = torch.linalg.solve(means, bicubic, left=False)
    return inverted
