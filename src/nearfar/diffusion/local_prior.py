"""What the stochastic step whose variance is right knows of a network: how much of an image it cannot know.

With `rho = sigma / alpha`, `y = x / alpha` and `r = (rho_s / rho_t)^2`, whatever the images are,

    mean of y_s given y_t       (1 - r) D + r y_t                   D the mean of x_0 given y_t, the prediction
    variance                    rho_s^2 (1 - r) + (1 - r)^2 v       v the variance of x_0 given y_t

The ancestral step leaves the last term out and comes out too smooth. Here `v` is that of a Gaussian for each frequency
of a cosine transform over the image and each direction in the space of its channels, the local prior, whose variance
`lam` depends on the noise level: `v = lam rho^2 / (lam + rho^2)`. For Gaussian images this is exact at any number of
steps; for others the first two moments of each step are (optimal variances: Bao et al., arXiv 2201.06503, 2206.07309).

Images are no Gaussians: of noise with the right variance and no shape, the next prediction keeps less than of what it
stands for, and power is lost, as 1 / steps. What the last step's noise does not explain of the change of `D`, which for
Gaussians is nothing, does have a shape; so `D` is extrapolated along it, with a `weight` that falls with the frequency.

`lam` belongs to the frozen network and is measured once, as a `Profile`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nearfar.diffusion.schedule import interpolate
from nearfar.errors import UsageError
from nearfar.tensors import Images, Times, patched, unpatched

Spectrum = Float[Tensor, "batch channels height width"]


@dataclass(frozen=True, eq=False)
class Profile:
    """Variance of the local prior at each noise level, channel direction and band of frequencies.

    ratios: noise to signal, ascending. variance: in the squared unit of the states.
    directions: orthonormal rows in the space of the channels. side: of the images that it was measured on; band `b`
    holds the frequencies whose distance from 0 rounds to `b` half cycles along it. factor: pixels along the side of
    the patches that the states hold, whose frequencies are those of the image.
    """

    ratios: Float64[Tensor, " levels"]
    variance: Float64[Tensor, "levels channels bands"]
    directions: Float64[Tensor, "channels channels"]
    side: int
    factor: int = 1

    def __post_init__(self) -> None:
        levels, channels, _ = self.variance.shape
        if self.ratios.shape != (levels,) or self.directions.shape != (channels, channels):
            shapes = [tuple(part.shape) for part in (self.ratios, self.variance, self.directions)]
            raise UsageError(f"a profile needs levels, (levels, channels, bands) and a square, got {shapes}")

    def digest(self) -> str:
        """A hash of all numbers, in single precision."""
        parts = [part.float() for part in (self.ratios, self.variance, self.directions)]
        parts.append(torch.tensor([self.side, self.factor]))
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]

    def prior(self, rho: Times) -> Float64[Tensor, "batch channels bands"]:
        """The local prior's variance at noise to signal `rho`: log-linear between the levels, constant beyond."""
        table = self.variance.log().flatten(1)
        place = interpolate(rho.log(), self.ratios.log(), torch.arange(len(self.ratios), dtype=torch.float64))
        left = place.floor().clamp(max=len(self.ratios) - 2).long()
        values = torch.lerp(table[left], table[left + 1], (place - left)[:, None])
        return values.exp().reshape(len(rho), *self.variance.shape[1:])

    def unknown(self, rho: Times) -> Float64[Tensor, "batch channels bands"]:
        """Variance of the clean image given one with noise to signal `rho`, which may be infinite."""
        prior = self.prior(rho)
        return prior / (1 + prior / rho[:, None, None] ** 2)

    def weight(self) -> Float64[Tensor, " bands"]:
        """How far the prediction is extrapolated: 1.1 at frequency 0, falling to 0.3, and none above the axes' finest.

        Chosen on photographs of the training set of `faces`, news photographs and its own samples (docs/concepts.md).
        """
        frequency = torch.arange(self.variance.shape[-1], dtype=torch.float64) / self.side
        return torch.where(frequency < 1, 1.1 - 0.8 * frequency, 0.0)

    def spread(self, bands: Tensor, like: Spectrum) -> Tensor:
        """A value for each band, (..., bands), as one for each frequency of images `like` these."""
        place = band_of(*like.shape[2:], self.side, bands.shape[-1])
        return bands.to(like)[..., place.to(like.device)]


@lru_cache(maxsize=8)
def band_of(height: int, width: int, side: int, bands: int) -> Tensor:
    """The band of each frequency of an image (height, width), in half cycles along `side` pixels."""
    rows, columns = (torch.arange(n, dtype=torch.float64) * (side / n) for n in (height, width))
    radius = torch.hypot(rows[:, None], columns[None])
    return radius.round().long().clamp(max=bands - 1)


@lru_cache(maxsize=16)
def cosine_basis(length: int) -> Float64[Tensor, "frequency place"]:
    """The orthonormal cosine transform (DCT-II)."""
    places = torch.arange(length, dtype=torch.float64)
    basis: Tensor = (torch.pi / length * (places + 0.5) * places[:, None]).cos() * (2 / length) ** 0.5
    basis[0] /= 2**0.5
    return basis


def frequencies(states: Images, profile: Profile) -> Tensor:
    """States as the cosine transform of the images they hold, in the profile's directions; keeps all distances."""
    images = unpatched(states, profile.factor)
    rows, columns = (cosine_basis(n).to(images) for n in images.shape[2:])
    turned = torch.einsum("dc,bchw->bdhw", profile.directions.to(images), images)
    spectrum: Tensor = rows @ turned @ columns.T
    return spectrum


def states_of(spectrum: Spectrum, profile: Profile) -> Tensor:
    """The inverse of `frequencies`."""
    rows, columns = (cosine_basis(n).to(spectrum) for n in spectrum.shape[2:])
    turned = rows.T @ spectrum @ columns
    return patched(torch.einsum("dc,bdhw->bchw", profile.directions.to(spectrum), turned), profile.factor)
