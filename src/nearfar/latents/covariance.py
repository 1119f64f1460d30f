"""How the latents of a domain spread around their mean: Gaussian families that need no matrix of dimensions squared.

A covariance `S` is handled through one concept, a function of its eigenvalues applied to latents: the root draws, the
inverse root whitens, `a l / (a^2 l + s^2)` denoises. `fit` takes latents of shape (count, places, rows, columns), which
are taken to be independent of each other, and leaves their own mean out without bias (`count - 1`). Statistics are
float64; latents keep their dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Generator, Tensor

from nearfar.errors import UsageError
from nearfar.latents.statistics import LATENTS_AT_ONCE, centered, gram_matrix, shrinkage
from nearfar.tensors import Latents, Times

Latent = Float[Tensor, "places rows columns"]
Moments = Float64[Tensor, "places rows columns"]
Matrices = Float64[Tensor, "*cells places places"]
Function = Callable[[Tensor], Tensor]
"""Of eigenvalues, element by element. They come in float64 with four axes, the first of length 1, and what is given
back may have one row per image there: `per_image` values need no care."""

LEAST = 1e-6
"""No eigenvalue is below this share of the mean variance, so that latents without any variance somewhere can be
whitened."""


@runtime_checkable
class Covariance(Protocol):
    """A symmetric positive matrix over all numbers of a latent."""

    def apply(self, function: Function, deviations: Latents) -> Latents:
        """`f(S) x`: the matrix with the same eigenvectors and `function` of its eigenvalues, times each latent."""
        ...


@dataclass(frozen=True, eq=False)
class Scalar:
    """One variance for every number of a latent: the paper's family (arXiv 2310.09213, code of version 2)."""

    variance: float
    dimension: int

    @classmethod
    def fit(cls, latents: Latents) -> Scalar:
        variance = pixel_variance(latents)
        return cls(variance.mean().item(), variance.numel())

    def apply(self, function: Function, deviations: Latents) -> Latents:
        return gains(function, torch.full((1, 1, 1), self.variance, dtype=torch.float64), deviations) * deviations


@dataclass(frozen=True, eq=False)
class Diagonal:
    """A variance for each number of a latent, drawn toward their average by `shrinkage` in [0, 1]. From 2 latents."""

    variance: Moments
    shrinkage: float

    @classmethod
    def fit(cls, latents: Latents) -> Diagonal:
        variance = pixel_variance(latents)
        mean = variance.mean()
        noise = sampling_noise(variance[..., None, None], len(latents)).sum()
        share = intensity(noise, (variance - mean).square().sum())
        return cls(torch.lerp(variance, mean, share).clamp(min=LEAST * mean.item()), share.item())

    def apply(self, function: Function, deviations: Latents) -> Latents:
        return gains(function, self.variance, deviations) * deviations


@dataclass(frozen=True, eq=False)
class LowRank:
    """What the latents show, drawn toward the scalar: Ledoit and Wolf (2004) through the Gram matrix. From 3 latents.

    S = (1 - shrinkage) S_empirical + shrinkage scalar: `count - 1` directions with their own variance, all others with
    `rest`. A small `shrinkage` in [0, 1] says that draws recombine the latents themselves, a large one that they are
    close to white noise. With very few latents it comes out too small: 1/3 of what is right for 3 of white noise.

    directions: orthonormal. values: their variances, falling.
    """

    directions: Float[Tensor, "rank places rows columns"]
    values: Float64[Tensor, " rank"]
    rest: float
    dimension: int
    shrinkage: float

    @classmethod
    def fit(cls, latents: Latents) -> LowRank:
        count, scalar = len(checked(latents, at_least=3)), Scalar.fit(latents)
        away = latents - latents.mean(0, keepdim=True)
        gram = centered(gram_matrix(away))
        share = shrinkage(gram, scalar.dimension)
        rest = max(share, LEAST) * scalar.variance
        squares, turns = (part.flip(-1)[..., : count - 1] for part in torch.linalg.eigh(gram))
        seen = squares > LEAST * squares[0]
        directions = torch.einsum("nr,nchw->rchw", (turns / squares.sqrt())[:, seen].to(latents), away)
        values = (1 - share) * squares[seen] / (count - 1) + rest
        return cls(directions, values, rest, scalar.dimension, share)

    def apply(self, function: Function, deviations: Latents) -> Latents:
        flat, others = self.directions.to(deviations).flatten(1), torch.full((1, 1, 1), self.rest, dtype=torch.float64)
        outside = gains(function, others, deviations)
        inside = gains(function, self.values[:, None, None], deviations) - outside
        parts = inside[..., 0, 0] * (deviations.flatten(1) @ flat.T)
        return outside * deviations + (parts @ flat).view_as(deviations)


def draw(covariance: Covariance, white_noise: Latents) -> Latents:
    """Deviations from the mean with this covariance, from standard normal noise. See `spread_about` for their size."""
    return covariance.apply(torch.sqrt, white_noise)


def whiten(covariance: Covariance, deviations: Latents) -> Latents:
    """Deviations of unit variance in every direction: `draw` undone."""
    return covariance.apply(torch.rsqrt, deviations)


def posterior_mean(mean: Latent, covariance: Covariance, x_t: Latents, alpha: Times, sigma: Times) -> Latents:
    """What is expected behind `x_t = alpha x + sigma noise` if x is N(mean, S): an exact denoiser, no network call.

    `m + a S (a^2 S + s^2)^-1 (x_t - a m)`. alpha, sigma: one of each per image; not both 0.
    """
    a, s = (level.to(x_t.device)[:, None, None, None] for level in (alpha, sigma))
    return mean + covariance.apply(lambda values: a * values / (a**2 * values + s**2), x_t - a.to(x_t) * mean)


def shrunk_mean(latents: Latents) -> tuple[Latent, float]:
    """The mean drawn toward 0 as far as it is noise (James and Stein), and the share in [0, 1] that was kept.

    The plug-in mean of few latents is longer than the domain's by the noise of N latents, `trace(S) / N` squared: the
    share is `max(0, 1 - trace(S) / (N |mean|^2))`.
    """
    scalar, mean = Scalar.fit(latents), latents.mean(0, dtype=torch.float64)
    noise = scalar.variance * scalar.dimension / len(latents)
    kept = max(0.0, 1 - noise / mean.square().sum().item())
    return (kept * mean).to(latents.dtype), kept


def spread_about(count: int, kept: float = 1.0) -> float:
    """What to multiply deviations with when they are drawn about a mean fitted to `count` latents, below 1.

    The fitted mean strays by `S / count` itself, so draws with all of `S` about it are spread by `S (1 + 1 / count)`,
    outside the domain's shell. With `sqrt(1 - 1 / count)` mean and deviation together are exactly N(mean, S). kept: the
    share of `shrunk_mean`; that mean strays by `kept` of the plug-in mean's squared error.
    """
    return math.sqrt(1 - kept / count)


def white_noise(count: int, shape: tuple[int, int, int], generator: Generator) -> Latents:
    """Standard normal noise, float32 on the CPU, latent by latent: many at once or one after another are the same."""
    return torch.stack([torch.randn(shape, generator=generator) for _ in range(count)])


def gains(
    function: Function, values: Float64[Tensor, "values high wide"], like: Latents
) -> Float[Tensor, "each values high wide"]:
    """A function of eigenvalues, one row for all images or one for each, to multiply `like`."""
    return function(values[None].to(like.device)).to(like)


def checked(latents: Latents, at_least: int = 2) -> Latents:
    if len(latents) < at_least:
        raise UsageError(f"this spread needs at least {at_least} latents, got {len(latents)}: add images")
    if not latents.isfinite().all():
        raise UsageError("latents must be finite, got nan or infinity: invert with more steps")
    return latents


def deviations_of(latents: Latents) -> Iterator[Float64[Tensor, "some places rows columns"]]:
    """From the mean, a few latents at a time."""
    mean = checked(latents).mean(0, dtype=torch.float64)
    for start in range(0, len(latents), LATENTS_AT_ONCE):
        yield latents[start : start + LATENTS_AT_ONCE].double() - mean


def pixel_variance(latents: Latents) -> Moments:
    """Unbiased variance of each number; latents that do not differ are refused."""
    variance = torch.stack([part.square().sum(0) for part in deviations_of(latents)]).sum(0) / (len(latents) - 1)
    if variance.mean() <= 1e-12 * latents[0].double().square().mean():
        raise UsageError(f"a spread needs latents that differ, got one {len(latents)} times: add other images")
    return variance


def intensity(noise: Tensor, distance: Tensor) -> Tensor:
    """Share of the target in the best mix with a noisy estimate, in [0, 1] (Ledoit and Wolf 2004, lemma 3.1).

    noise: expected squared error of the estimate. distance: squared distance of estimate and target.
    """
    return torch.where(noise < distance, noise / distance.clamp(min=1e-300), torch.ones_like(noise))


def sampling_noise(matrices: Matrices, count: int) -> Float64[Tensor, "*cells"]:
    """Expected squared error of an unbiased covariance of `count` Gaussian draws, estimated from itself.

    It is `(tr S^2 + (tr S)^2) / (count - 1)`. The estimate is unbiased for one channel, and too low by at most
    `1 / (2 count + 2)` of it for three. It works from 2 draws, where what Ledoit and Wolf count is 0.
    """
    traces = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (squared(matrices) + traces.square()) / (count + 1)


def squared(matrices: Matrices) -> Float64[Tensor, "*cells"]:
    return matrices.square().sum((-2, -1))


Colors = Float64[Tensor, "rows columns places places"]
Bands = Int64[Tensor, "rows columns"]

SIDE = 8
"""Of the coarse layout, in half cycles per image. Its matrix has (places SIDE^2) rows: 192 for three channels."""

Square = Float64[Tensor, "coarse coarse"]


@dataclass(frozen=True, eq=False)
class Spectral:
    """A color matrix for each frequency, in the orthonormal basis of the cosine transform (DCT-II). From 2 latents.

    Exact for domains that look alike everywhere and are continued by reflection at the borders; it knows nothing of
    where in the image something is. Each matrix is drawn toward the average of its radial band by that band's
    `shrinkage`, after the average was drawn toward the scalar by `band_shrinkage` (both in [0, 1], one per band).

    variances: eigenvalues of each color matrix. colors: its eigenvectors, in columns.
    """

    variances: Moments
    colors: Colors
    shrinkage: Float64[Tensor, " bands"]
    band_shrinkage: Float64[Tensor, " bands"]

    @classmethod
    def fit(cls, latents: Latents) -> Spectral:
        matrices = color_matrices(latents)
        scalar = matrices.diagonal(dim1=-2, dim2=-1).mean()
        bands = radial_bands(*matrices.shape[:2])
        noise = sampling_noise(matrices, len(latents))
        averages, band_shrinkage = band_averages(matrices, noise, bands, scalar)
        targets = averages[bands]
        share = intensity(total(noise, bands), total(squared(matrices - targets), bands))
        shrunk = torch.lerp(matrices, targets, share[bands][..., None, None])
        values, colors = torch.linalg.eigh(shrunk)
        return cls(values.clamp(min=LEAST * scalar.item()).permute(2, 0, 1), colors, share, band_shrinkage)

    def apply(self, function: Function, deviations: Latents) -> Latents:
        turned = torch.einsum("nchw,hwck->nkhw", cosines(deviations), self.colors.to(deviations))
        scaled = gains(function, self.variances, deviations) * turned
        return inverse_cosines(torch.einsum("nkhw,hwck->nchw", scaled, self.colors.to(deviations)))


def color_matrices(latents: Latents) -> Colors:
    """Unbiased covariance of the channels at each frequency of the cosine transform."""
    pixel_variance(latents)
    parts = [torch.einsum("nchw,ndhw->hwcd", *[cosines(part)] * 2) for part in deviations_of(latents)]
    return torch.stack(parts).sum(0) / (len(latents) - 1)


def band_averages(
    matrices: Colors, noise: Float64[Tensor, "rows columns"], bands: Bands, scalar: Float64[Tensor, ""]
) -> tuple[Float64[Tensor, "bands places places"], Float64[Tensor, " bands"]]:
    """Average matrix of each radial band, drawn toward the scalar by as much as it is noise; and that share."""
    sizes = bands.flatten().bincount()
    sums = matrices.new_zeros(len(sizes), *matrices.shape[2:]).index_add_(0, bands.flatten(), matrices.flatten(0, 1))
    averages, target = sums / sizes[:, None, None], scalar * torch.eye(matrices.shape[-1], dtype=torch.float64)
    share = intensity(total(noise, bands) / sizes**2, squared(averages - target))
    return torch.lerp(averages, target, share[:, None, None]), share


def total(values: Float64[Tensor, "rows columns"], bands: Bands) -> Float64[Tensor, " bands"]:
    return bands.flatten().bincount(values.flatten())


def radial_bands(rows: int, columns: int) -> Bands:
    """The band of each coefficient of the cosine transform: its frequency in half cycles along the longer side."""
    along_rows, along_columns = (torch.arange(side, dtype=torch.float64) / side for side in (rows, columns))
    return (torch.hypot(along_rows[:, None], along_columns[None]) * max(rows, columns)).round().long()


def cosine_basis(side: int, like: Tensor) -> Float[Tensor, "side side"]:
    """Orthonormal cosine transform (DCT-II) as a matrix: one frequency per row."""
    index = torch.arange(side, dtype=torch.float64)
    basis = (index[:, None] * (index + 0.5) * (math.pi / side)).cos() * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    return basis.to(like)


def cosines(latents: Latents) -> Latents:
    """Two-dimensional cosine transform of each channel."""
    rows, columns = (cosine_basis(side, latents) for side in latents.shape[2:])
    return rows @ latents @ columns.T


def inverse_cosines(coefficients: Latents) -> Latents:
    rows, columns = (cosine_basis(side, coefficients) for side in coefficients.shape[2:])
    return rows.T @ coefficients @ columns


@dataclass(frozen=True, eq=False)
class Structured:
    """The lowest frequencies with the covariance that the latents show, drawn toward the spectral one. From 2 latents.

    Where things are in the image lies in correlations between low frequencies, which `Spectral` has not. Their
    covariance is `(1 - shrinkage) S_empirical + shrinkage S_spectral`, with Ledoit and Wolf's intensity measured on
    latents whitened by the spectral family, so that a weak frequency counts as much as a strong one.

    spectral: for all other frequencies. directions, values: eigenvectors of the coarse layout, in columns, and their
    variances. rows, columns: how many of each belong to it.
    """

    spectral: Spectral
    directions: Square
    values: Float64[Tensor, " coarse"]
    rows: int
    columns: int
    shrinkage: float

    @classmethod
    def fit(cls, latents: Latents, side: int = SIDE) -> Structured:
        rows, columns = (min(side, length) for length in latents.shape[2:])
        spectral = Spectral.fit(latents)
        parts = [coarse(cosines(part), rows, columns) for part in deviations_of(latents)]
        shown = torch.stack([part.T @ part for part in parts]).sum(0) / (len(latents) - 1)
        root, whitening = (coarse_matrix(spectral, f, rows, columns) for f in (torch.sqrt, torch.rsqrt))
        white, none = whitening @ shown @ whitening, torch.eye(len(shown), dtype=torch.float64)
        share = intensity(sampling_noise(white, len(latents)), squared(white - none))
        values, directions = torch.linalg.eigh(root @ torch.lerp(white, none, share) @ root)
        return cls(spectral, directions, values, rows, columns, share.item())

    def apply(self, function: Function, deviations: Latents) -> Latents:
        frequencies = cosines(self.spectral.apply(function, deviations))
        layout = coarse(cosines(deviations), self.rows, self.columns)
        directions = self.directions.to(deviations)
        scaled = gains(function, self.values[:, None, None], deviations)[..., 0, 0] * (layout @ directions)
        place = frequencies[:, :, : self.rows, : self.columns]
        place.copy_((scaled @ directions.T).view_as(place))
        return inverse_cosines(frequencies)


def coarse(frequencies: Latents, rows: int, columns: int) -> Float[Tensor, "batch coarse"]:
    """The lowest frequencies of each latent in a row."""
    return frequencies[:, :, :rows, :columns].flatten(1)


def coarse_matrix(spectral: Spectral, function: Function, rows: int, columns: int) -> Square:
    """A function of the spectral covariance as a matrix over the coarse layout."""
    colors, values = spectral.colors[:rows, :columns], function(spectral.variances[:, :rows, :columns])
    one, other = (torch.eye(length, dtype=torch.float64) for length in (rows, columns))
    matrix = torch.einsum("hwck,khw,hwdk,hx,wy->chwdxy", colors, values, colors, one, other)
    return matrix.reshape(values.numel(), values.numel())
