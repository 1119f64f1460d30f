"""A cloud of latents, far fewer of them than they have dimensions: where it lies, and its shape.

All but the spectrum are functions of the Gram matrix, the scalar products of all pairs, so nothing has the size of the
dimensions squared. Latents are taken to be independent of each other, and to lie in the memory of the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Generator, Tensor

from nearfar.errors import UsageError
from nearfar.tensors import Latents

Gram = Float64[Tensor, "batch batch"]
Values = Float64[Tensor, " values"]

FEWEST = 8
CHOSEN = 200
"""What costs the cube of the latents looks at no more than this many of them, drawn at random."""
PIXELS_AT_ONCE = 1 << 14
LATENTS_AT_ONCE = 32


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of many values."""

    mean: float
    std: float


@dataclass(frozen=True)
class Geometry:
    """Where a cloud of `count` latents of `dimension` numbers lies, and its shape. Angles are in degrees.

    norm: of each latent. distance, origin_angle, origin_cosine: of all pairs, the angle as seen from the origin.
    triple_angle: of all triangles. Its mean is 60 for whatever cloud, angles of a triangle being 180 together; its
    deviation says how far they are from equilateral, as those of a Gaussian in endless dimensions are.
    centre_distance: from each latent to the mean of the others.
    squared_mean, trace, trace_of_square: the mean's squared norm, the traces of the covariance and of its square, all
    without bias (and so below 0 at times). `trace**2 / trace_of_square` counts the directions that the cloud fills.
    shrinkage: Ledoit and Wolf's intensity in [0, 1]: 1 for a round cloud, the less the more its directions differ.
    It falls with the number of latents too: compare clouds of one size.
    """

    count: int
    dimension: int
    norm: Spread
    distance: Spread
    origin_angle: Spread
    origin_cosine: Spread
    triple_angle: Spread
    centre_distance: Spread
    squared_mean: float
    trace: float
    trace_of_square: float
    shrinkage: float


@dataclass(frozen=True)
class RadialSpectrum:
    """Power of a 2-D Fourier coefficient (orthonormal) by its frequency, without bias; one row per channel.

    frequencies: the middles of the bins, in cycles per image. coefficients: how many lie in each.
    variance: of the deviations from the mean: 1 everywhere for white noise of variance 1. Times `coefficients` it adds
    up to the trace of the covariance. mean: of the cloud's mean, the squared mean of `Geometry` by frequency.
    """

    frequencies: tuple[int, ...]
    coefficients: tuple[int, ...]
    variance: tuple[tuple[float, ...], ...]
    mean: tuple[tuple[float, ...], ...]


def gram_matrix(latents: Latents) -> Gram:
    """Scalar products of all pairs, in float64 whatever the latents are. Memory: the latents' and `count ** 2`."""
    if not latents.isfinite().all():
        raise UsageError("latents must be finite, got nan or infinity: invert with more steps")
    gram = torch.zeros(len(latents), len(latents), dtype=torch.float64)
    for columns in latents.flatten(1).split(PIXELS_AT_ONCE, dim=1):
        columns = columns.double()
        gram += columns @ columns.T
    return gram


def centred(gram: Gram) -> Gram:
    """Scalar products of the deviations from the mean."""
    means = gram.mean(0)
    return gram - means - means[:, None] + means.mean()


def some(gram: Gram, generator: Generator) -> Float64[Tensor, "some some"]:
    """Scalar products of at most `CHOSEN` latents, in random order."""
    chosen = torch.randperm(len(gram), generator=generator)[:CHOSEN]
    return gram[chosen][:, chosen]


def pairs(matrix: Gram) -> Values:
    """The entries above the diagonal."""
    rows, columns = torch.triu_indices(len(matrix), len(matrix), offset=1)
    return matrix[rows, columns]


def spread(values: Values) -> Spread:
    return Spread(values.mean().item(), values.std().item())


def geometry(gram: Gram, dimension: int, generator: Generator) -> Geometry:
    """Norms, distances, angles and moments of a cloud of latents of `dimension` numbers.

    generator: picks the latents whose triangles are looked at when there are more than 200.
    """
    count, deviations = len(gram), deviations_of(gram)
    norms = gram.diagonal().sqrt()
    cosines = pairs(gram / norms / norms[:, None]).clamp(-1, 1)
    return Geometry(
        count=count,
        dimension=dimension,
        norm=spread(norms),
        distance=spread(pairs(distances(gram))),
        origin_angle=spread(cosines.acos().rad2deg()),
        origin_cosine=spread(cosines),
        triple_angle=spread(triple_angles(some(gram, generator))),
        centre_distance=spread(deviations.diagonal().clamp(min=0).sqrt() * count / (count - 1)),
        squared_mean=pairs(gram).mean().item(),
        trace=deviations.trace().item() / (count - 1),
        trace_of_square=trace_of_square(deviations),
        shrinkage=shrinkage(deviations, dimension),
    )


def deviations_of(gram: Gram) -> Gram:
    """`centred`, for a cloud that has a shape: enough latents, and not all of them in one place."""
    deviations = centred(gram)
    if len(gram) < FEWEST:
        raise UsageError(f"statistics need at least {FEWEST} images, got {len(gram)}: add some")
    if deviations.trace() <= 1e-12 * gram.trace():
        raise UsageError(f"statistics need images that differ, got one {len(gram)} times: add others")
    return deviations


def distances(gram: Gram) -> Gram:
    """Distances of all pairs."""
    squares = gram.diagonal()
    return (squares + squares[:, None] - 2 * gram).clamp(min=0).sqrt()


def triple_angles(gram: Gram) -> Values:
    """The angles of all triangles, in degrees."""
    sides = distances(gram)
    corners = [corner(gram - row - row[:, None] + row[i], sides[i]) for i, row in enumerate(gram)]
    return torch.cat(corners).acos().rad2deg()


def corner(products: Gram, sides: Float64[Tensor, " batch"]) -> Values:
    """Cosines between all pairs of sides that meet in one point, from their products; length 0 is no side."""
    there = sides > 0
    return pairs((products / sides / sides[:, None])[there][:, there]).clamp(-1, 1)


def trace_of_square(deviations: Gram) -> float:
    """Trace of the squared covariance without bias, whatever the distribution.

    The U-statistic of Chen and Qin (Annals of Statistics 38, 2010) in the closed form of Himeno and Yamada (2014).
    """
    n, squares = len(deviations), deviations.diagonal()
    sums = (n - 1) * (n - 2) * deviations.square().sum() + squares.sum() ** 2 - n * (n - 1) * squares.square().sum()
    return (sums / (n * (n - 1) * (n - 2) * (n - 3))).item()


def shrinkage(deviations: Gram, dimension: int) -> float:
    """Share of a multiple of the identity in the covariance of Ledoit and Wolf (2004)."""
    count = len(deviations)
    size = deviations.square().sum() / count**2
    distance = size - (deviations.trace() / count) ** 2 / dimension
    noise = (deviations.diagonal().square().sum() / count - size) / count
    return (torch.minimum(noise, distance) / distance).item()


def radial_spectrum(latents: Latents) -> RadialSpectrum:
    """Power by frequency, of the deviations from the mean and of the mean itself."""
    count, mean = len(latents), latents.mean(0, dtype=torch.float64)
    power = torch.zeros_like(mean)
    for part in latents.split(LATENTS_AT_ONCE):
        power += fourier_power(part.double() - mean).sum(0)
    variance = power / (count - 1)
    radii = radius(*mean.shape[1:]).flatten()
    coefficients = radii.bincount()
    variances, means = (
        torch.zeros(len(mean), len(coefficients), dtype=torch.float64).index_add_(1, radii, values.flatten(1))
        / coefficients
        for values in (variance, fourier_power(mean) - variance / count)
    )
    return RadialSpectrum(
        frequencies=tuple(range(len(coefficients))),
        coefficients=tuple(coefficients.tolist()),
        variance=tuple(map(tuple, variances.tolist())),
        mean=tuple(map(tuple, means.tolist())),
    )


def fourier_power(images: Float64[Tensor, "*batch rows columns"]) -> Float64[Tensor, "*batch rows columns"]:
    return torch.fft.fft2(images, norm="ortho").abs().square()


def radius(rows: int, columns: int) -> Tensor:
    """The frequency of each Fourier coefficient, in cycles per image, rounded."""
    along_rows, along_columns = (torch.fft.fftfreq(side, dtype=torch.float64) * side for side in (rows, columns))
    return torch.hypot(along_rows[:, None], along_columns[None]).round().long()
