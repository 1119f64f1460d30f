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
from jaxtyping import Float, Float64
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
