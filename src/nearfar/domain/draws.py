"""Where new images of a domain begin: latents drawn from its spread, and put onto its shell if that is wanted."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int64
from torch import Generator, Tensor

from nearfar.domain.domain import Domain
from nearfar.domain.recipe import FAMILY
from nearfar.errors import UsageError
from nearfar.latents.covariance import (
    Covariance,
    Diagonal,
    Latent,
    LowRank,
    Scalar,
    draw,
    shrunk_mean,
    spread_about,
    white_noise,
)
from nearfar.latents.mixtures import Blend, Mixtures, combine_mosaics, mix, mix_mosaics, mix_on_sphere, neighbors
from nearfar.latents.shell import Shell, accept, picks
from nearfar.latents.spectral import Spectral, Structured
from nearfar.tensors import Latents

SPREADS: dict[str, Callable[[Latents], Covariance]] = {
    "scalar": Scalar.fit,
    "diagonal": Diagonal.fit,
    "spectral": Spectral.fit,
    "structured": Structured.fit,
    "shrinkage": LowRank.fit,
}
MIXTURES = {
    "mosaic": ("parents", "margin", "alike", "reach", "sharpness"),
    "parents": ("parents", "concentration"),
    "sphere": ("concentration",),
}
"""Families that mix latents, and their options."""
FAMILIES = (*MIXTURES, *SPREADS)
ALIKE, FEWEST_ALIKE = 0.2, 8
"""The share of the fitted images that one of them may be mixed with in a mosaic, and how many at least."""
MOST_ATTEMPTS = 10_000

Parents = Int64[Tensor, " parents"]


@dataclass(frozen=True, eq=False)
class Start:
    """One latent, the fitted images that it mixes (none for a Gaussian draw), and how many draws it took."""

    latent: Latent
    parents: Parents
    attempts: int = 1


Draw = Callable[[Generator], Start]


def drawing(domain: Domain, family: str = FAMILY, **options: Any) -> Draw:
    """Draws of one family of spread, fitted to the domain's latents once.

    family: "mosaic" mixes latents by place (`mix_mosaics`), "parents" as wholes (`mix`), "sphere" two
    of them on the sphere as the paper does; "scalar" (the paper's Gaussian), "diagonal", "spectral", "structured" and
    "shrinkage" are Gaussians about the shrunk mean. options: of the mixture; for "mosaic" over the domain's own
    (`Domain.mixing`) and with `margin` besides, see `novel`.
    """
    check_family(family, options)
    latents = domain.latents
    if family == "mosaic":
        return mosaic(domain, **{**domain.mixing, **options})
    if family == "parents":
        return partial(mixture_start, partial(mix, latents, latents.mean(0), **options))
    if family == "sphere":
        return partial(mixture_start, partial(mix_on_sphere, latents, **options))
    center, kept = shrunk_mean(latents)
    return partial(gaussian_start, center, SPREADS[family](latents), spread_about(len(latents), kept))


def check_family(family: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown family, and options that it does not have."""
    if family not in FAMILIES:
        raise UsageError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    known = MIXTURES.get(family, ())
    unknown = [name for name in options if name not in known]
    if unknown and family in SPREADS:
        raise UsageError(f"{family} draws take no options, got {', '.join(unknown)}: these are for mixtures")
    if unknown:
        raise UsageError(f"options of {family} are {', '.join(known)}, got {', '.join(unknown)}")


def mosaic(domain: Domain, margin: float = 0.0, alike: float = ALIKE, **options: Any) -> Draw:
    """Mosaics of latents, each of them `novel`.

    alike: each fitted image is mixed with those of this share of all that are most like it; at least 8 of them.
    """
    if not 0 <= margin < math.inf:
        raise UsageError(f"margin must be at least 0, got {margin:g}")
    if not 0 < alike <= 1:
        raise UsageError(f"alike must be above 0 and at most 1, got {alike:g}")
    near = max(round(alike * len(domain.clean)), FEWEST_ALIKE, options.get("parents", 1) - 1)
    mean, others = domain.latents.mean(0), neighbors(domain.clean, near)
    mixing = partial(mix_mosaics, domain.latents, mean, 1, blend=Blend(**options), alike=others)
    return partial(novel, domain, mixing, margin)


def novel(domain: Domain, mixing: Callable[[Generator], Mixtures], margin: float, generator: Generator) -> Start:
    """The first mixture that is expected to become no copy: no network call is spent on the others.

    Mixed in the same way, the clean latents must lie at least `margin` from each fitted one, in the guards' unit (the
    5 % quantile of the distances among the fitted ones). 0 takes every mixture. Raises UsageError when none of 10,000
    is so far away.
    """
    mean, least, most = domain.clean.mean(0), domain.clean.min(), domain.clean.max()
    for attempt in range(1, MOST_ATTEMPTS + 1):
        mixture = mixing(generator)
        start = Start(mixture.latents[0], mixture.parents[0], attempt)
        if not margin:
            return start
        clean = combine_mosaics(domain.clean, mean, mixture.parents, mixture.weights)
        away = torch.cdist(clean.clamp(least, most).flatten(1), domain.clean.flatten(1)).min().item()
        if away >= margin * domain.guards.latent_unit:
            return start
    raise UsageError(
        f"none of {MOST_ATTEMPTS:,} mixtures is {margin:g} from the fitted images: ask for a smaller margin"
    )


def mixture_start(mixing: Callable[..., Any], generator: Generator) -> Start:
    mixture = mixing(count=1, generator=generator)
    return Start(mixture.latents[0], mixture.parents[0])


def gaussian_start(mean: Latent, covariance: Covariance, scale: float, generator: Generator) -> Start:
    shape = (mean.shape[0], mean.shape[1], mean.shape[2])
    return Start(
        mean + scale * draw(covariance, white_noise(1, shape, generator))[0], torch.empty(0, dtype=torch.int64)
    )


def projected(drawn: Draw, domain: Domain) -> Draw:
    """Draws put onto the domain's shell, where they meet the paper's three tests in expectation (`Shell.project`)."""
    shell = Shell.fit(domain.latents)
    return lambda generator: moved(drawn(generator), lambda latent: shell.project(latent[None])[0])


def moved(start: Start, change: Callable[[Latent], Latent]) -> Start:
    return replace(start, latent=change(start.latent))


def tested(drawn: Draw, domain: Domain) -> Draw:
    """Draws repeated until one passes the paper's three tests; no network call is spent on the others.

    An attempt's cost does not grow with the number of fitted latents: it is held against `shell.LOOKS` of them.
    Raises UsageError when none of 10,000 does.
    """

    def repeat(generator: Generator) -> Start:
        for attempt in range(1, MOST_ATTEMPTS + 1):
            start = drawn(generator)
            looks = domain.latents[picks(len(domain.latents), 1, generator)[0]]
            if accept(start.latent[None], looks, domain.targets, generator).accepted.item():
                return replace(start, attempts=attempt)
        raise UsageError(f"none of {MOST_ATTEMPTS:,} draws passed the three tests: use the projection or free draws")

    return repeat


GEOMETRIES: dict[str, Callable[[Draw, Domain], Draw]] = {
    "free": lambda drawn, domain: drawn,
    "projected": projected,
    "tested": tested,
}


def generator_of(seed: int, number: int) -> Generator:
    """The randomness of one output: it depends on seed and number alone, not on how many there are.

    torch keeps 32 bits of a seed, so numbers are counted on from a hash: no two of a run can meet by chance.
    """
    base = int.from_bytes(hashlib.sha256(f"nearfar synthesis {seed}".encode()).digest()[:4], "little")
    return torch.Generator().manual_seed((base + number) % 2**32)


def steered(drawn: Draw, latent: Latent, mean: Latent, amount: float) -> Draw:
    """Draws of variations of one latent, by `steer`."""
    return lambda generator: moved(drawn(generator), lambda other: steer(latent, other - mean, mean, amount))


def steer(latent: Latent, deviation: Latent, mean: Latent, amount: float) -> Latent:
    """`mean + sqrt(1 - amount^2) (latent - mean) + amount deviation`.

    Of N(mean, S) for any amount in [0, 1], if the latent is of N(mean, S) and the deviation, independent, of N(0, S).
    """
    return mean + math.sqrt(1 - amount**2) * (latent - mean) + amount * deviation
