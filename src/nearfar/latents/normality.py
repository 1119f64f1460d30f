"""Is a cloud of latents Gaussian? Tests that are valid however many more dimensions than latents there are.

Projections on random directions are no test here: in high dimension nearly every cloud looks Gaussian along nearly
every direction (Diaconis and Freedman, Annals of Statistics 12, 1984). Two things are looked at in which clouds differ:
how much the distances from the mean vary (mixtures of scales), and the principal directions (groups, outliers).

Both are exact, for whatever covariance, as rotation tests (Langsrud, Statistics and Computing 15, 2005). The rows of a
centered Gaussian cloud may be mixed by any rotation that leaves their mean at 0 without changing its distribution. So,
given the eigenvalues of its Gram matrix, the eigenvectors of a Gaussian cloud are uniformly distributed among those
orthogonal to the vector of ones: the distances from the mean can be drawn anew with these very eigenvalues, and the
scores along a principal direction are distributed as standardized independent Gaussian numbers are. Nothing is
estimated, in contrast to a bootstrap, which would take the sample's eigenvalues for those of the covariance. The drawn
eigenvectors depend on nothing but the number of latents: one set of them serves many clouds.

No test sees everything: a cloud of independent pixels that are not Gaussian passes, as all it shows is Gaussian.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Generator, Tensor

from nearfar.latents.statistics import Gram, Values, deviations_of, some

CHOSEN = 200
"""What costs the cube of the latents looks at no more than this many of them, drawn at random."""
ROTATIONS = 199
ROTATIONS_AT_ONCE = 20
DIRECTIONS = 10
LATENTS_PER_DIRECTION = 8

Frames = Float64[Tensor, "clouds chosen others"]
"""Squared eigenvectors of Gaussian clouds."""
Scores = Float64[Tensor, "batch directions"]
Eigenvalues = Float64[Tensor, " others"]
"""All but one: a centered cloud has no extent along the vector of ones."""


@dataclass(frozen=True)
class Gaussianity:
    """Tests of Gaussianity: a small `p` says that the cloud is not.

    norm_dispersion: variance of the squared distances from the mean over `2 * trace of the squared covariance`, what it
    is for a Gaussian: 1; above for mixtures of scales, below for equal lengths and for groups. norm_p: two-sided.
    direction_p: of the leading principal directions, with Holm's correction. p: of both tests, with Bonferroni's.
    """

    norm_dispersion: float
    norm_p: float
    direction_p: tuple[float, ...]
    p: float


def rotations(count: int, generator: Generator) -> Frames:
    """What `gaussianity` needs for clouds of `count` latents, 200 at most: squares of uniformly random frames.

    Cost: a QR decomposition of a matrix of the size of the Gram matrix for each of 199, 3 s and 63 MB for 200 latents.
    """
    count, drawn = min(count, CHOSEN), []
    for start in range(0, ROTATIONS, ROTATIONS_AT_ONCE):
        clouds = min(ROTATIONS_AT_ONCE, ROTATIONS - start)
        noise = torch.randn(clouds, count, count - 1, dtype=torch.float64, generator=generator)
        drawn.append(torch.linalg.qr(noise - noise.mean(1, keepdim=True)).Q.square())
    return torch.cat(drawn)


def gaussianity(gram: Gram, frames: Frames, generator: Generator) -> Gaussianity:
    """Both tests of a cloud with this Gram matrix.

    frames: `rotations` of as many latents; with 199 of them `norm_p` is a multiple of 0.01.
    generator: of more than 200 latents, draws 200. Cost: one eigendecomposition of the Gram matrix.
    """
    deviations = deviations_of(some(gram, CHOSEN, generator))
    values, vectors = torch.linalg.eigh(deviations)
    values, vectors = values[1:].clamp(min=0), vectors[:, 1:]
    dispersion = norm_dispersion(deviations.diagonal()[None], values)
    norm_p = two_sided(dispersion.item(), norm_dispersion(frames @ values, values))
    count = min(DIRECTIONS, len(deviations) // LATENTS_PER_DIRECTION)
    direction_p = holm(anderson_darling(vectors[:, -count:].flip(1)))
    p = min(1.0, 2 * min(norm_p, direction_p.min().item()))
    return Gaussianity(dispersion.item(), norm_p, tuple(direction_p.tolist()), p)


def norm_dispersion(squares: Float64[Tensor, "clouds batch"], values: Eigenvalues) -> Float64[Tensor, " clouds"]:
    """Sum of squared deviations of squared distances, over its expectation under all rotations.

    With `m = batch - 1` eigenvalues of sum `s` and sum of squares `q` that is `2 (m q - s^2) / (batch (m + 2))`:
    `2 m (m - 1) / batch` times Bai and Saranadasa's (1996) estimate of the trace of the squared covariance.
    """
    m, total = len(values), values.sum()
    expected = 2 * (m * values.square().sum() - total**2) / ((m + 1) * (m + 2))
    return (squares - total / (m + 1)).square().sum(1) / expected


def two_sided(observed: float, null: Float64[Tensor, " clouds"]) -> float:
    """Twice the share of the null, the observed value among it, that lies at least as far out on its side."""
    beyond = min((null >= observed).sum().item(), (null <= observed).sum().item())
    return min(1.0, 2 * (1 + beyond) / (1 + len(null)))


def anderson_darling(scores: Scores) -> Float64[Tensor, " directions"]:
    """P-values of each column against Gaussians of unknown mean and variance; at least 8 rows.

    Statistic and its approximation for small samples: D'Agostino and Stephens (1986), table 4.9.
    """
    count = len(scores)
    z = ((scores - scores.mean(0)) / scores.std(0)).sort(dim=0).values
    weights = (2 * torch.arange(count, dtype=torch.float64) + 1)[:, None] / count
    statistic = -count - (weights * (torch.special.log_ndtr(z) + torch.special.log_ndtr(-z.flip(0)))).sum(0)
    a = (statistic * (1 + 0.75 / count + 2.25 / count**2)).clamp(max=10)
    upper = torch.where(a >= 0.6, 1.2937 - 5.709 * a + 0.0186 * a**2, 0.9177 - 4.279 * a - 1.38 * a**2)
    lower = torch.where(a > 0.2, -8.318 + 42.796 * a - 59.938 * a**2, -13.436 + 101.14 * a - 223.73 * a**2)
    return torch.where(a >= 0.34, upper.exp(), 1 - lower.exp())


def holm(p: Values) -> Values:
    """P-values corrected for their number, in their order (Holm, 1979)."""
    ascending, order = p.sort()
    factors = torch.arange(len(p), 0, -1, dtype=torch.float64)
    return torch.empty_like(p).index_copy_(0, order, (ascending * factors).cummax(0).values.clamp(max=1))
