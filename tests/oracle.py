"""Exact denoisers and the closed forms that follow from them: what every solver is tested against.

Gaussian data with mean `m` and variance `lam` (per pixel), noise to signal `rho`, retention `r = lam / (lam + rho^2)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nearfar.diffusion.local_prior import Profile
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.tensors import Images, Times, per_image


def profile_of_channels(variance: Tensor, side: int) -> Profile:
    """The profile of independent pixels with a variance for each channel, in any images."""
    ratios = torch.tensor([0.01, 100.0], dtype=torch.float64)
    table = variance.double().flatten()[None, :, None].expand(2, -1, 2 * side).contiguous()
    return Profile(ratios, table, torch.eye(table.shape[1], dtype=torch.float64), side)


@dataclass(frozen=True)
class GaussianDenoiser:
    """The exact denoiser of Gaussian data; `mean` and `variance` broadcast against the images."""

    schedule: NoiseSchedule
    mean: Tensor
    variance: Tensor
    profile: Profile | None = None

    def __call__(self, x_t: Images, t: Times) -> Images:
        alpha, sigma = (per_image(c, x_t) for c in self.schedule.coefficients(t))
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return self.mean + gain * (x_t - alpha * self.mean)

    def retention(self, t: Times) -> Tensor:
        """Share of a pixel's deviation from the mean that survives noising to `t`, in [0, 1]."""
        rho = self.schedule.ratio(t)[:, None, None, None]
        return self.variance / (self.variance + rho**2)

    def stochastic_return(self, x_0: Images, t: Times) -> tuple[Tensor, Tensor]:
        """Mean and variance of the image that a stochastic reverse process brings back from `t`."""
        kept = self.retention(t)
        return self.mean + kept * (x_0 - self.mean), self.variance * (1 - kept**2)

    def deterministic_return(self, x_0: Images, t: Times) -> tuple[Tensor, Tensor]:
        """Mean and variance of the image that the deterministic trajectory brings back from `t`."""
        kept = self.retention(t)
        return self.mean + kept.sqrt() * (x_0 - self.mean), self.variance * (1 - kept)
