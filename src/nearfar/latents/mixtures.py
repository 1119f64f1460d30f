"""New latents as mixtures of a few given ones: what a domain's spread is when no Gaussian is trusted with it.

In a mosaic, other parents rule in other places, and every place keeps its mean and variance. A mixture with one weight
per parent either copies (few parents) or averages what is particular away (many), and then the model's own domain takes
over. Where each place has a parent of its own, up to soft borders, what is particular survives, while no parent fills
more than a part of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Generator, Tensor
from torch.nn.functional import adaptive_avg_pool2d

from nearfar.errors import UsageError
from nearfar.latents.covariance import Latent, cosine_basis
from nearfar.latents.shell import slerp
from nearfar.tensors import Latents, per_image

Parents = Int64[Tensor, "mixtures parents"]
Neighbors = Int64[Tensor, "latents neighbors"]
Likeness = Float64[Tensor, "latents latents"]
"""How readily each latent is mixed with each other one; 0 with itself."""
Together = Float64[Tensor, "rows columns"]
Weights = Float64[Tensor, "mixtures parents"]
Mixed = Float[Tensor, "mixtures places rows columns"]

REACH, SHARPNESS, GRID = 0.13, 6.0, 4
"""Blur of a mosaic's parts as a share of the image's side, how sharply one parent gives way to another, and cells a
side of the averages by which parents are alike."""

WeightMaps = Float64[Tensor, "mixtures parents rows columns"]


@dataclass(frozen=True, eq=False)
class Mixtures:
    """Latents, and which of the given ones each was made of, with what positive weights that add up to 1.

    weights: one for each parent, or one for each parent in each place.
    """

    latents: Latents
    parents: Parents
    weights: Float64[Tensor, "mixtures parents *places"]


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


def others(count: int) -> Likeness:
    """Each of `count` latents with all the others alike."""
    return 1 - torch.eye(count, dtype=torch.float64)


def choose_alike(likeness: Likeness, count: int, parents: int, generator: Generator) -> Parents:
    """The first parent of each mixture from all latents, the others by their likeness to it, all of them different."""
    check_parents(parents, int((likeness > 0).sum(1).min()) + 1)
    first = torch.randint(len(likeness), (count, 1), generator=generator)
    if parents == 1:
        return first
    return torch.cat([first, likeness[first[:, 0]].multinomial(parents - 1, generator=generator)], 1)


def check_parents(parents: int, available: int) -> None:
    if not 1 <= parents <= available:
        raise UsageError(f"parents must be from 1 to the {available} latents there are, got {parents}")


@dataclass(frozen=True)
class Blend:
    """How a mosaic is mixed. parents: different latents in each. reach, sharpness: see `mix_mosaics`."""

    parents: int = 3
    reach: float = REACH
    sharpness: float = SHARPNESS

    def __post_init__(self) -> None:
        if not 0 < self.reach < math.inf or not 0 <= self.sharpness < math.inf:
            got = f"{self.reach:g} and {self.sharpness:g}"
            raise UsageError(f"reach must be above 0 and sharpness at least 0, got {got}")


def mix_mosaics(
    latents: Latents,
    mean: Latent,
    count: int,
    generator: Generator,
    blend: Blend = Blend(),
    alike: Likeness | None = None,
    together: Together | None = None,
) -> Mixtures:
    """`count` mixtures of different latents, with weights that change from place to place.

    The weights are the softmax of `sharpness` times smooth Gaussian random fields of unit variance: white noise blurred
    by `reach`, a share of the side. Sharpness 0 gives all parents the same weight everywhere. alike: which latents are
    mixed (see `evenly`), all others unless given. See `combine_mosaics` for what is made of them, and for `together`.
    """
    chosen = choose_alike(others(len(latents)) if alike is None else alike, count, blend.parents, generator)
    fields = smooth_fields(chosen.shape, latents.shape[2], latents.shape[3], blend.reach, generator)
    weights = (blend.sharpness * fields).softmax(dim=1)
    return Mixtures(combine_mosaics(latents, mean, chosen, weights, together), chosen, weights)


def neighbors(latents: Latents, count: int, grid: int = GRID) -> Neighbors:
    """Of each latent the `count` others that are nearest in averages over `grid x grid` cells, nearest first.

    Parts of images alike in layout and colors fit together; those of a shoe and a shirt make neither.
    """
    coarse = adaptive_avg_pool2d(latents.double(), grid).flatten(1)
    away = torch.cdist(coarse, coarse, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    return away.argsort(1)[:, : min(count, len(latents) - 1)]


def as_likeness(near: Neighbors) -> Likeness:
    """Each latent with all its neighbors alike. Those near the mean are neighbors of many, others of none."""
    return torch.zeros(len(near), len(near), dtype=torch.float64).scatter_(1, near, 1.0)


def evenly(near: Neighbors, rounds: int = 500) -> Likeness:
    """Neighbors, whichever of the two the other's is, so that all latents are mixed in equally often.

    A picture with little in it is near to all others; where neighbors are drawn alike such pictures are most parents,
    and mixtures vary less than the domain by a quarter and more. The matrix is scaled until its rows and columns add up
    to 1 (Sinkhorn and Knopp, 1967).
    """
    found = as_likeness(near)
    both, scale = ((found + found.T) > 0).double(), torch.ones(len(near), dtype=torch.float64)
    for _ in range(rounds):
        scale = (scale / (both @ scale)).sqrt()
    return scale[:, None] * both * scale


def togetherness(latents: Latents, likeness: Likeness, reach: float = REACH) -> Together:
    """How latents that are mixed with each other correlate around each place, from 0, none, to 1, as they are equal."""
    away = (latents - latents.mean(0)).double()
    shares = likeness / likeness.sum()
    shared = torch.einsum("ij,ichw,jchw->hw", shares, away, away)
    along_rows, along_columns = (blur(side, reach, away).abs() for side in latents.shape[2:])
    power = away.square().sum(1).mean(0)
    smooth = [along_rows @ values @ along_columns.T for values in (shared, power)]
    return (smooth[0] / smooth[1].clamp(min=1e-12)).clamp(0, 1)


def combine_mosaics(
    latents: Latents, mean: Latent, parents: Parents, weights: WeightMaps, together: Together | None = None
) -> Mixed:
    """`mean + (sum w x - a mean) / sqrt(w^T C w)` in each place, a = sum w over the parents there.

    The mean-corrected combination of LOL (arXiv 2408.08558) with weights of its own for each place: for fixed weights
    and parents of N(mean, S) that correlate by C, the mean and each place's variance are the domain's, and the
    covariance between two places is multiplied with the cosine of their weights. together: the correlation of any two
    parents in each place (`togetherness`); they are independent unless given. About a mean fitted to the same latents
    the covariance falls short as in `combine`.
    """
    unit = weights / weights.square().sum(1, keepdim=True).sqrt()
    if together is not None:
        unit = unit / (1 + (unit.sum(1, keepdim=True).square() - 1) * together).sqrt()
    mixed = torch.einsum("mkhw,mkchw->mchw", unit.to(latents), latents[parents])
    return mixed + (1 - unit.sum(1, keepdim=True)).to(latents) * mean


def smooth_fields(fields: tuple[int, ...], rows: int, columns: int, reach: float, generator: Generator) -> WeightMaps:
    """Gaussian random fields of unit variance in every place: white noise, blurred by `reach` of the sides.

    Far from the borders places `d` sides apart are correlated by `exp(-(d / reach)^2 / 4)`.
    """
    noise = torch.randn(*fields, rows, columns, dtype=torch.float64, generator=generator)
    along_rows, along_columns = (blur(side, reach, noise) for side in (rows, columns))
    return along_rows @ noise @ along_columns.T


def blur(side: int, reach: float, like: Tensor) -> Float[Tensor, "side side"]:
    """A Gaussian blur with reflection at the ends, as a matrix whose rows have length 1."""
    basis = cosine_basis(side, like)
    frequencies = torch.arange(side, dtype=torch.float64)
    blurring = basis.T @ ((-((math.pi * reach * frequencies) ** 2) / 2).exp()[:, None] * basis)
    return blurring / blurring.square().sum(1, keepdim=True).sqrt()
