"""Domains of an exact Gaussian model: small, quick to fit, and with closed forms for what comes of them."""

import warnings
from dataclasses import dataclass
from functools import lru_cache

import torch

from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.domain.domain import Domain
from nearfar.errors import ModelWarning
from nearfar.models.model import FrozenModel, PixelSpace, Provenance
from nearfar.sampling.local_sampling import own_samples
from nearfar.tensors import ImageContract
from oracle import GaussianDenoiser

SIDE, COUNT, MEAN = 8, 16, 0.1
VARIANCE = torch.linspace(0.02, 0.06, SIDE)
SCHEDULE = NoiseSchedule.variance_preserving(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double(), 0))


@dataclass
class Counted:
    """The oracle, and how often it was asked."""

    denoiser: GaussianDenoiser
    calls: int = 0
    schedule: NoiseSchedule = SCHEDULE

    def __call__(self, x_t, t):
        self.calls += 1
        return self.denoiser(x_t, t)


def oracle(sha256="abc" * 5, settings=None, space=None, latent_shape=(3, SIDE, SIDE)):
    """A model whose own domain is N(MEAN, VARIANCE), a variance for each column, of pictures of 3x8x8 pixels."""
    return FrozenModel(
        denoiser=Counted(GaussianDenoiser(SCHEDULE, torch.tensor(MEAN), VARIANCE[: latent_shape[2]])),
        latent_space=space or PixelSpace(),
        image=ImageContract(SIDE, 3),
        latent_shape=latent_shape,
        provenance=Provenance("oracle", sha256, ""),
        device=torch.device("cpu"),
        dtype=torch.float32,
        parameters=0,
        settings=settings or {},
    )


def unseen(count=COUNT, seed=0):
    """Images of another mean and of stronger coarse layout, float32 in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, SIDE // 4, SIDE // 4, generator=generator).repeat_interleave(4, 2)
    fine = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return (0.15 * coarse.repeat_interleave(4, 3) + 0.05 * fine - 0.3).clamp(-1, 1)


def own(count=24, seed=0):
    return own_samples(oracle(), count, seed=seed)


def fit(model, images, **options):
    """`Domain.fit` without its warnings, few images and a network without a middle block, and without pull."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        return Domain.fit(model, images, **{"own": own(), "pull": 0.0, **options})


@lru_cache
def fitted(**options):
    """The domain of `unseen()` in `oracle()`."""
    return fit(oracle(), unseen(), **options)
