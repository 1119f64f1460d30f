"""The pull of a domain: Gaussians of the new domain and of the model's own correct the frozen model.

Elsewhere this is called guidance by a density ratio; here guidance is a prompt's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nearfar.diffusion.denoiser import Denoiser
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.errors import UsageError
from nearfar.latents.covariance import Covariance, Latent, posterior_mean
from nearfar.latents.spectral import Structured
from nearfar.tensors import Images, Latents, Times

PULL = 0.15
"""Weight of the density ratio."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, covariance) over clean latents."""

    mean: Latent
    covariance: Covariance

    @classmethod
    def fit(cls, latents: Latents) -> Gaussian:
        """Mean and structured covariance of clean latents, at least 2 different ones."""
        return cls(latents.mean(0, dtype=torch.float64).to(latents.dtype), Structured.fit(latents))


@dataclass(frozen=True, eq=False)
class Pulled:
    """A denoiser of `model x (domain / own)^weight` at each noise level, the last two taken for Gaussian.

        D(x_t, t) = D_model(x_t, t) + weight (D_domain(x_t, t) - D_own(x_t, t))

    D_domain and D_own are exact denoisers of Gaussians. Where the model is as sure of its own domain as D_own is, the
    difference takes it to the new one; where both Gaussians agree (fine detail), the model works alone. Where the model
    is the Gaussian `own`, weight 1 gives exactly the domain's denoiser; otherwise a product of noised densities is not
    that of the clean ones, noised, as with all guidance.
    weight: 0 is the model itself. Cost: one network call; the rest is linear.
    """

    denoiser: Denoiser
    domain: Gaussian
    own: Gaussian
    weight: float

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Images, t: Times) -> Images:
        alpha, sigma = self.schedule.coefficients(t)
        ours, its_own = (
            posterior_mean(one.mean.to(x_t), one.covariance, x_t, alpha, sigma) for one in (self.domain, self.own)
        )
        return self.denoiser(x_t, t) + self.weight * (ours - its_own)


def pulled(denoiser: Denoiser, domain: Gaussian, own: Gaussian, weight: float) -> Denoiser:
    """The denoiser with a pull of a weight in [0, 1], or as it is at weight 0."""
    if not 0 <= weight <= 1:
        raise UsageError(f"pull must be in [0, 1], got {weight:g}")
    return Pulled(denoiser, domain, own, weight) if weight else denoiser
