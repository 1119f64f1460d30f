"""Models of independent Gaussian pixels, whose returns are known in closed form."""

import torch

from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.models.model import FrozenModel, LatentSpace, PixelSpace, Provenance
from nearfar.tensors import ImageContract
from oracle import GaussianDenoiser

SCHEDULE = NoiseSchedule.variance_preserving(
    torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
)
MEAN, VARIANCE = 0.1, 0.04


def gaussian(space: LatentSpace = PixelSpace(), channels: int = 3, size: int = 16) -> FrozenModel:  # noqa: B008
    """Images of pixels with `MEAN` and `VARIANCE`, in [-1, 1], whatever unit their states have."""
    states = space.encode(torch.zeros(1, channels, size, size)).shape[1:]
    mean = space.encode(torch.full((1, channels, size, size), MEAN)).flatten()[0]
    variance = torch.tensor(VARIANCE * (space.span / 2) ** 2)
    return FrozenModel(
        denoiser=GaussianDenoiser(SCHEDULE, mean, variance),
        latent_space=space,
        image=ImageContract(size, channels),
        latent_shape=tuple(states),
        provenance=Provenance("gaussian", "0" * 64, "none"),
        device=torch.device("cpu"),
        dtype=torch.float32,
        parameters=0,
    )
