"""New images of an unseen domain: draws of latents, mixed or Gaussian, and their way back (arXiv 2310.09213)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor

from nearfar.diffusion.solver import DDIM, OnStep
from nearfar.domain.domain import Domain
from nearfar.domain.presets import PRESETS, Published, preset_of
from nearfar.domain.recipe import FAMILY
from nearfar.errors import UsageError
from nearfar.io.conversion import as_images
from nearfar.io.notebook import sheet_png
from nearfar.latents.covariance import (
    Covariance,
    Diagonal,
    Latent,
    LowRank,
    Scalar,
    Spectral,
    Structured,
    draw,
    shrunk_mean,
    spread_about,
    white_noise,
)
from nearfar.latents.mixtures import (
    Blend,
    Mixtures,
    as_likeness,
    combine_mosaics,
    evenly,
    mix,
    mix_mosaics,
    mix_on_sphere,
    neighbors,
    togetherness,
)
from nearfar.latents.shell import Shell, accept, picks
from nearfar.models.model import FrozenModel, checked_model
from nearfar.sampling.local_sampling import BATCH, ascend, decode, draws_of_steps, encode, numbered_noise
from nearfar.tensors import Images, Latents

SPREADS: dict[str, Callable[[Latents], Covariance]] = {
    "scalar": Scalar.fit,
    "diagonal": Diagonal.fit,
    "spectral": Spectral.fit,
    "structured": Structured.fit,
    "shrinkage": LowRank.fit,
}
MIXTURES = {
    "mosaic": ("parents", "margin", "alike", "even", "reach", "sharpness"),
    "parents": ("parents", "concentration"),
    "sphere": ("concentration",),
}
"""Families that mix latents, and their options."""
FAMILIES = (*MIXTURES, *SPREADS, *PRESETS)
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


def drawing(domain: Domain, family: str | None = None, **options: Any) -> Draw:
    """Draws of one family of spread, fitted to the domain's latents once.

    family: "mosaic" mixes latents by place (`mix_mosaics`), "parents" as wholes (`mix`), "sphere" two
    of them on the sphere as the paper does; "scalar" (the paper's Gaussian), "diagonal", "spectral", "structured" and
    "shrinkage" are Gaussians about the shrunk mean; "paper-v1" and "paper-v2" are the paper's as published, of a domain
    that was fitted so. The domain's preset or "mosaic" unless given. options: of the mixture; for "mosaic" over the
    domain's own (`Domain.mixing`) and with `margin` besides, see `novel`.
    """
    family = family or domain.preset or FAMILY
    check_family(family, options)
    latents = domain.latents
    if family in PRESETS:
        return published(domain, family)
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
    if unknown and family not in MIXTURES:
        raise UsageError(f"{family} draws take no options, got {', '.join(unknown)}: these are for mixtures")
    if unknown:
        raise UsageError(f"options of {family} are {', '.join(known)}, got {', '.join(unknown)}")


def mosaic(domain: Domain, margin: float = 0.0, alike: float = ALIKE, even: bool = True, **options: Any) -> Draw:
    """Mosaics of latents, each of them `novel`.

    alike: each fitted image is mixed with those of this share of all that are most like it; at least 8 of them.
    even: whether all are mixed in equally often, and mixtures vary in each place as the domain does, although their
    parents are alike (`mixtures.evenly`, `mixtures.togetherness`).
    """
    if not 0 <= margin < math.inf:
        raise UsageError(f"margin must be at least 0, got {margin:g}")
    if not 0 < alike <= 1:
        raise UsageError(f"alike must be above 0 and at most 1, got {alike:g}")
    near = neighbors(domain.clean, max(round(alike * len(domain.clean)), FEWEST_ALIKE, options.get("parents", 1) - 1))
    likeness = evenly(near) if even else as_likeness(near)
    there, here = (togetherness(some, likeness) if even else None for some in (domain.latents, domain.clean))
    mean, blend = domain.latents.mean(0), Blend(**options)
    mixing = partial(mix_mosaics, domain.latents, mean, 1, blend=blend, alike=likeness, together=there)
    return partial(novel, domain, mixing, partial(combine_mosaics, together=here), margin)


def novel(
    domain: Domain,
    mixing: Callable[[Generator], Mixtures],
    combining: Callable[..., Tensor],
    margin: float,
    generator: Generator,
) -> Start:
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
        clean = combining(domain.clean, mean, mixture.parents, mixture.weights)
        away = torch.cdist(clean.clamp(least, most).flatten(1), domain.clean.flatten(1)).min().item()
        if away >= margin * domain.guards.latent_unit:
            return start
    raise UsageError(
        f"none of {MOST_ATTEMPTS:,} mixtures is {margin:g} from the fitted images: ask for a smaller margin"
    )


def published(domain: Domain, family: str) -> Draw:
    """Draws as published, of a domain that was fitted with the same preset."""
    if domain.preset != family:
        was = domain.preset or "no preset"
        raise UsageError(f"{family} draws are of a domain that was fitted with it, this one with {was}: fit it again")
    paper = Published.fit(preset_of(family), domain.latents)

    def drawn(generator: Generator) -> Start:
        latent, parents, tried = paper.draw(generator)
        return Start(latent, torch.tensor(parents, dtype=torch.int64), tried)

    return drawn


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


Image = Float[Tensor, "channel height width"]


@dataclass(frozen=True, eq=False, repr=False)
class Synthesis:
    """New images, float32 in [-1, 1], on the CPU, and where each of them began. `numbers`: the outputs' own."""

    images: Images
    starts: tuple[Start, ...]
    numbers: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Synthesis({len(self.images)} images, acceptance {self.acceptance:.2g})"

    def _repr_png_(self) -> bytes:
        return sheet_png(self.images)

    @property
    def acceptance(self) -> float:
        """Share of the draws that were taken; 1 where none is refused: no tests, and mixtures without a margin."""
        return len(self.starts) / sum(start.attempts for start in self.starts)


@dataclass(frozen=True, eq=False)
class Synthesizer:
    """Everything that is settled once for all outputs: the draws, the pulled model, the way down.

    eta: 0 follows the deterministic trajectory, as the paper; above, fresh noise is added, up to 1 (see `bandwidth`).
    """

    model: FrozenModel
    domain: Domain
    draw: Draw
    eta: float
    seed: int

    def starts(self, numbers: Sequence[int]) -> tuple[Start, ...]:
        """Where these outputs begin; no network call."""
        return tuple(self.draw(generator_of(self.seed, number)) for number in numbers)

    def make(
        self, numbers: Sequence[int], on_step: OnStep | None = None, starts: tuple[Start, ...] | None = None
    ) -> Synthesis:
        """The outputs of these numbers; starts: as drawn already. Cost: `steps` network calls for the batch."""
        starts = self.starts(numbers) if starts is None else starts
        latents = torch.stack([start.latent for start in starts])
        sampling = self.domain.sampling(DDIM(self.eta))
        noise = numbered_noise(self.model, "synthesis", numbers, self.seed, draws_of_steps(sampling))
        clean = self.domain.descend(self.model, latents, self.eta, noise, on_step)
        return Synthesis(decode(self.model, clean), starts, tuple(numbers))

    def make_all(self, numbers: Sequence[int], batch_size: int = BATCH, on_step: OnStep | None = None) -> Synthesis:
        """The same, a batch at a time."""
        if not numbers:
            raise UsageError("count must be at least 1, got none")
        batches = (numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size))
        parts = [self.make(batch, on_step) for batch in batches]
        starts = tuple(start for part in parts for start in part.starts)
        return Synthesis(torch.cat([part.images for part in parts]), starts, tuple(numbers))


def synthesizer(
    model: FrozenModel,
    domain: Domain,
    *,
    family: str | None = None,
    geometry: str = "free",
    pull: float | None = None,
    eta: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> Synthesizer:
    """Settle how new images are made.

    family: of spread, see `drawing`; options: of the family. geometry: "free" takes draws as they are,
    "projected" puts them onto the domain's shell, "tested" repeats them until they pass the paper's three tests.
    pull: weight of the density ratio, in [0, 1] (see `domain.Pulled`), the domain's own unless given; 0 is the
    frozen model alone. Another than the domain was fitted with bends the way back: a larger one overdoes contrast.
    eta: of the way down, see `Synthesizer`. seed: of draws and noise.
    """
    domain.check(model)
    if geometry not in GEOMETRIES:
        raise UsageError(f"geometry must be one of {', '.join(GEOMETRIES)}, got {geometry!r}")
    if not 0 <= eta <= 1:
        raise UsageError(f"eta must be in [0, 1], got {eta:g}")
    draw = GEOMETRIES[geometry](drawing(domain, family, **options), domain)
    return Synthesizer(domain.pulled(model, pull), domain, draw, eta, seed)


def synthesize(
    model: FrozenModel,
    domain: Domain,
    count: int,
    *,
    first: int = 0,
    batch_size: int = BATCH,
    on_step: OnStep | None = None,
    **options: Any,
) -> Synthesis:
    """`count` new images of a domain. Output `i` depends on model, domain, settings, seed and `i`, not on `count`.

    first: the number of the first output. options: those of `synthesizer`.
    Cost: the domain's `steps` network calls for each batch. `Domain.guards` judges what comes out.
    """
    making = synthesizer(model, domain, **options)
    return making.make_all(range(first, first + count), batch_size, on_step)


def vary(
    model: FrozenModel,
    domain: Domain,
    image: Any,
    count: int,
    *,
    amount: float = 0.5,
    batch_size: int = BATCH,
    on_step: OnStep | None = None,
    **options: Any,
) -> Images:
    """`count` variations of one image `(channel, height, width)` in [-1, 1] of the domain, or of a picture.

    amount: 0 gives the image back, 1 forgets it and is what `synthesize` makes: the image's latent and a draw are added
    as in `steer`, so that every mixture lies where latents of the domain lie. options: those of `synthesizer`;
    the image is inverted with its `pull`, too.
    Cost: one inversion, and `steps` calls for each batch.
    """
    if not isinstance(image, Tensor):
        image = as_images(image, checked_model(model).image)[0][0]
    making = varying(model, domain, image, amount=amount, on_step=on_step, **options)
    return making.make_all(range(count), batch_size, on_step).images


def varying(
    model: FrozenModel,
    domain: Domain,
    image: Image,
    *,
    amount: float,
    on_step: OnStep | None = None,
    **options: Any,
) -> Synthesizer:
    """Settle how variations of one image are made, as `vary` says; options: of `synthesizer`. Cost: one inversion."""
    if not 0 <= amount <= 1:
        raise UsageError(f"amount must be in [0, 1], got {amount:g}")
    making = synthesizer(model, domain, **options)
    making.model.image.check(image[None])
    latents = ascend(making.model, encode(making.model, image[None]), domain.sampling(), on_step)
    return replace(making, draw=steered(making.draw, latents[0].cpu(), domain.latents.mean(0), amount))
