"""New latents as mixtures of a few given ones: what a domain's spread is when no Gaussian is trusted with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Generator, Tensor

from nearfar.errors import UsageError
from nearfar.geometry import slerp
from nearfar.spread import Latent
from nearfar.tensors import Latents, per_image

Parents = Int64[Tensor, "mixtures parents"]
Neighbours = Int64[Tensor, "latents neighbours"]
Weights = Float64[Tensor, "mixtures parents"]
Mixed = Float[Tensor, "mixtures places rows columns"]


@dataclass(frozen=True, eq=False)
class Mixtures:
    """Latents, and which of the given ones each was made of, with what positive weights that add up to 1."""

    latents: Latents
    parents: Parents
    weights: Weights


def mix(
    latents: Latents, mean: Latent, count: int, generator: Generator, parents: int = 3, concentration: float = 1.0
) -> Mixtures:
    """`count` mean-corrected mixtures of `parents` different latents each, with Dirichlet weights. See `combine`.

    concentration: above 0; small ones leave one parent to rule, large ones make all alike.
    """
    chosen, weights = choose(len(latents), count, parents, concentration, generator)
    return Mixtures(combine(latents, mean, chosen, weights), chosen, weights)


def mix_on_sphere(latents: Latents, count: int, generator: Generator, concentration: float = 1.0) -> Mixtures:
    """`count` spherical interpolations of two latents each, as the paper draws (arXiv 2310.09213): for comparison.

    About the origin they stretch the mean by up to the root of 2, and so leave the domain's shell half-way.
    """
    chosen, weights = choose(len(latents), count, 2, concentration, generator)
    first, second = latents[chosen[:, 0]], latents[chosen[:, 1]]
    return Mixtures(slerp(first, second, weights[:, 1].to(latents)), chosen, weights)


def combine(latents: Latents, mean: Latent, parents: Parents, weights: Weights) -> Mixed:
    """`(1 - a / sqrt b) mean + sum w x / sqrt b`, a = sum w, b = sum w^2 (LOL, arXiv 2408.08558).

    N(mean, S) for whatever fixed weights, if the parents are independent draws of N(mean, S). About the mean of the
    same `count` latents the covariance is `(1 - (a^2 / b - 1) / count) S`: up to `(parents - 1) / count` too small.
    """
    unit = weights / weights.square().sum(1, keepdim=True).sqrt()
    shares = torch.zeros(len(parents), len(latents), dtype=torch.float64).scatter_add_(1, parents, unit)
    mixed = (shares.to(latents) @ latents.flatten(1)).view(-1, *mean.shape)
    return mixed + per_image(1 - unit.sum(1), mixed) * mean


def choose(
    available: int, count: int, parents: int, concentration: float, generator: Generator
) -> tuple[Parents, Weights]:
    """Different parents for each mixture, and their Dirichlet weights."""
    check_parents(parents, available)
    if not concentration > 0:
        raise UsageError(f"concentration must be above 0, got {concentration}")
    chosen = torch.stack([torch.randperm(available, generator=generator)[:parents] for _ in range(count)])
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    weights = np.random.default_rng(seed).dirichlet([concentration] * parents, count)
    return chosen, torch.from_numpy(weights)


def others(count: int) -> Neighbours:
    """Of each of `count` latents all the others."""
    places = torch.arange(count)
    return places.expand(count, count)[places[:, None] != places].view(count, count - 1)


def choose_alike(neighbours: Neighbours, count: int, parents: int, generator: Generator) -> Parents:
    """The first parent of each mixture from all latents, the others from its neighbours, all of them different."""
    check_parents(parents, neighbours.shape[1] + 1)
    first = torch.randint(len(neighbours), (count, 1), generator=generator)
    order = torch.rand(count, neighbours.shape[1], generator=generator).argsort(1)[:, : parents - 1]
    return torch.cat([first, neighbours[first, order]], 1)


def check_parents(parents: int, available: int) -> None:
    if not 1 <= parents <= available:
        raise UsageError(f"parents must be from 1 to the {available} latents there are, got {parents}")
