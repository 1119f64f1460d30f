"""A cloud of latents, far fewer of them than they have dimensions: where it lies, and its shape.

All but the spectrum are functions of the Gram matrix, the scalar products of all pairs, so nothing has the size of the
dimensions squared. Latents are taken to be independent of each other, and to lie in the memory of the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Generator, Tensor

from nearfar.errors import UsageError
from nearfar.tensors import Latents

Gram = Float64[Tensor, "batch batch"]
Values = Float64[Tensor, " values"]

FEWEST = 8
CORNERS = 60
"""Triangles are those of no more than this many latents, drawn at random."""
PIXELS_AT_ONCE = 1 << 14
LATENTS_AT_ONCE = 32


@dataclass(frozen=True)
class MeanStd:
    """Mean and standard deviation of many values."""

    mean: float
    std: float


@dataclass(frozen=True)
class Geometry:
    """Where a cloud of `count` latents of `dimension` numbers lies, and its shape. Angles are in degrees.

    norm: of each latent. distance, origin_angle, origin_cosine: of all pairs, the angle as seen from the origin.
    triple_angle: of all triangles. Its mean is 60 for whatever cloud without copies, angles of a triangle being 180
    together; its deviation says how far they are from equilateral, as those of a Gaussian in endless dimensions are.
    center_distance: from each latent to the mean of the others.
    squared_mean, trace, trace_of_square: the mean's squared norm, the traces of the covariance and of its square, all
    without bias (and so below 0 at times).
    roundness: share of the directions that the cloud fills, `trace ** 2 / (dimension * trace_of_square)`, in (0, 1]:
    1 for a round cloud. It does not depend on the number of latents, which only makes it more certain.
    shrinkage: Ledoit and Wolf's intensity in [0, 1]: 1 for a round cloud, the less the more its directions differ.
    It falls with the number of latents too: compare clouds of one size.
    """

    count: int
    dimension: int
    norm: MeanStd
    distance: MeanStd
    origin_angle: MeanStd
    origin_cosine: MeanStd
    triple_angle: MeanStd
    center_distance: MeanStd
    squared_mean: float
    trace: float
    trace_of_square: float
    roundness: float
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
    return products(latents, latents)


def products(latents: Latents, others: Float[Tensor, "others places rows columns"]) -> Float64[Tensor, "batch others"]:
    """Scalar products of each with each of the others, in float64, some numbers of each latent at a time."""
    sums = torch.zeros(len(latents), len(others), dtype=torch.float64)
    parts = (torch.split(some.flatten(1), PIXELS_AT_ONCE, dim=1) for some in (latents, others))
    for part, other in zip(*parts, strict=True):
        sums += part.double() @ other.double().T
    return sums


def centered(gram: Gram) -> Gram:
    """Scalar products of the deviations from the mean."""
    means = gram.mean(0)
    return gram - means - means[:, None] + means.mean()


def some(gram: Gram, most: int, generator: Generator) -> Float64[Tensor, "some some"]:
    """Scalar products of at most `most` latents, in random order."""
    chosen = torch.randperm(len(gram), generator=generator)[:most]
    return gram[chosen][:, chosen]


def pairs(matrix: Gram) -> Values:
    """The entries above the diagonal."""
    rows, columns = torch.triu_indices(len(matrix), len(matrix), offset=1)
    return matrix[rows, columns]


def mean_std(values: Values) -> MeanStd:
    return MeanStd(values.mean().item(), values.std().item())


def geometry(gram: Gram, dimension: int, generator: Generator) -> Geometry:
    """Norms, distances, angles and moments of a cloud of latents of `dimension` numbers.

    generator: picks the latents whose triangles are looked at when there are more than 60.
    """
    count, deviations = len(gram), deviations_of(gram)
    norms, cosines = gram.diagonal().sqrt(), origin_cosines(gram)
    trace, square = deviations.trace().item() / (count - 1), trace_of_square(deviations)
    return Geometry(
        count=count,
        dimension=dimension,
        norm=mean_std(norms),
        distance=mean_std(pairs(distances(gram))),
        origin_angle=mean_std(cosines.acos().rad2deg()),
        origin_cosine=mean_std(cosines),
        triple_angle=mean_std(triple_angles(some(gram, CORNERS, generator))),
        center_distance=mean_std(deviations.diagonal().clamp(min=0).sqrt() * count / (count - 1)),
        squared_mean=pairs(gram).mean().item(),
        trace=trace,
        trace_of_square=square,
        roundness=trace**2 / max(dimension * square, trace**2),
        shrinkage=shrinkage(deviations, dimension),
    )


def deviations_of(gram: Gram) -> Gram:
    """`centered`, for a cloud that has a shape: enough latents, and not all of them in one place."""
    deviations = centered(gram)
    if len(gram) < FEWEST:
        raise UsageError(f"statistics need at least {FEWEST} images, got {len(gram)}: add some")
    if deviations.trace() <= 1e-12 * gram.trace():
        raise UsageError(f"statistics need images that differ, got one {len(gram)} times: add others")
    return deviations


def origin_cosines(gram: Gram) -> Values:
    """Cosines of the angles of all pairs, seen from the origin; a latent that lies there is at right angles to all."""
    norms = gram.diagonal().sqrt().clamp(min=1e-150)
    return pairs(gram / norms / norms[:, None]).clamp(-1, 1)


def distances(gram: Gram) -> Gram:
    """Distances of all pairs; what is within rounding of the latents' own size counts as 0."""
    squares = gram.diagonal()
    sums = squares + squares[:, None]
    apart = sums - 2 * gram
    return torch.where(apart > 1e-12 * sums, apart, 0.0).sqrt()


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
    for part in torch.split(latents, LATENTS_AT_ONCE):
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
    power: Tensor = torch.fft.fft2(images, norm="ortho").abs().square()
    return power


def radius(rows: int, columns: int) -> Tensor:
    """The frequency of each Fourier coefficient, in cycles per image, rounded."""
    along_rows, along_columns = (torch.fft.fftfreq(side, dtype=torch.float64) * side for side in (rows, columns))
    return torch.hypot(along_rows[:, None], along_columns[None]).round().long()
