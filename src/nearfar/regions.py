"""Mixtures of latents by region: other parents rule in other places, and every place keeps its mean and variance.

A mixture with one weight per parent either copies (few parents) or averages what is particular away (many), and then
the model's own domain takes over. Where each place has a parent of its own, up to soft borders, what is particular
survives, while no parent fills more than a part of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Generator, Tensor
from torch.nn.functional import adaptive_avg_pool2d

from nearfar.errors import UsageError
from nearfar.parents import Mixed, Neighbours, Parents, choose_alike, others
from nearfar.spectral import cosine_basis
from nearfar.spread import Latent
from nearfar.tensors import Latents

REACH, SHARPNESS, GRID = 0.13, 6.0, 4
"""Blur of the regions as a share of the image's side, how sharply one parent gives way to another, and cells a side of
the averages by which parents are alike."""

WeightMaps = Float64[Tensor, "mixtures parents rows columns"]


@dataclass(frozen=True, eq=False)
class RegionMixtures:
    """Latents, which of the given ones each was made of, and the weight of each parent in each place."""

    latents: Mixed
    parents: Parents
    weights: WeightMaps


def mix_regions(
    latents: Latents,
    mean: Latent,
    count: int,
    generator: Generator,
    parents: int = 3,
    reach: float = REACH,
    sharpness: float = SHARPNESS,
    alike: Neighbours | None = None,
) -> RegionMixtures:
    """`count` mixtures of `parents` different latents each, with weights that change from place to place.

    The weights are the softmax of `sharpness` times smooth Gaussian random fields of unit variance: white noise blurred
    by `reach`, a share of the side. Sharpness 0 gives all parents the same weight everywhere. alike: of each latent
    those that may be mixed with it (see `neighbours`), all others unless given. See `combine_regions` for what is made
    of them.
    """
    if not 0 < reach < math.inf or not 0 <= sharpness < math.inf:
        raise UsageError(f"reach must be above 0 and sharpness at least 0, got {reach:g} and {sharpness:g}")
    chosen = choose_alike(others(len(latents)) if alike is None else alike, count, parents, generator)
    fields = smooth_fields(count, parents, latents.shape[2], latents.shape[3], reach, generator)
    weights = (sharpness * fields).softmax(dim=1)
    return RegionMixtures(combine_regions(latents, mean, chosen, weights), chosen, weights)


def neighbours(latents: Latents, count: int, grid: int = GRID) -> Neighbours:
    """Of each latent the `count` others that are nearest in averages over `grid x grid` cells, nearest first.

    Regions of images alike in layout and colours fit together; those of a shoe and a shirt make neither.
    """
    coarse = adaptive_avg_pool2d(latents.double(), grid).flatten(1)
    away = torch.cdist(coarse, coarse, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    return away.argsort(1)[:, : min(count, len(latents) - 1)]


def combine_regions(latents: Latents, mean: Latent, parents: Parents, weights: WeightMaps) -> Mixed:
    """`(1 - a / sqrt b) mean + sum w x / sqrt b` in each place, a = sum w, b = sum w^2 over the parents there.

    The mean-corrected combination of LOL (arXiv 2408.08558) with weights of its own for each place: for fixed weights
    and independent parents of N(mean, S), the mean and each place's covariance (over the channels) are the domain's,
    and that between two places is multiplied with the cosine of their weights. About a mean fitted to the same latents
    the covariance falls short as in `parents.combine`.
    """
    unit = weights / weights.square().sum(1, keepdim=True).sqrt()
    mixed = torch.einsum("mkhw,mkchw->mchw", unit.to(latents), latents[parents])
    return mixed + (1 - unit.sum(1, keepdim=True)).to(latents) * mean


def smooth_fields(count: int, fields: int, rows: int, columns: int, reach: float, generator: Generator) -> WeightMaps:
    """Gaussian random fields of unit variance in every place: white noise, blurred by `reach` of the sides.

    Far from the borders places `d` sides apart are correlated by `exp(-(d / reach)^2 / 4)`.
    """
    noise = torch.randn(count, fields, rows, columns, dtype=torch.float64, generator=generator)
    along_rows, along_columns = (blur(side, reach, noise) for side in (rows, columns))
    return along_rows @ noise @ along_columns.T


def blur(side: int, reach: float, like: Tensor) -> Float[Tensor, "side side"]:
    """A Gaussian blur with reflection at the ends, as a matrix whose rows have length 1."""
    basis = cosine_basis(side, like)
    frequencies = torch.arange(side, dtype=torch.float64)
    blurring = basis.T @ ((-((math.pi * reach * frequencies) ** 2) / 2).exp()[:, None] * basis)
    return blurring / blurring.square().sum(1, keepdim=True).sqrt()
