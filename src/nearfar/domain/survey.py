"""A survey of noise levels: where the latents of unseen images lie beside those of the model's own, level by level.

One inversion serves all levels: both clouds climb from level to level and are looked at on the way. From what is found
a level to work at is proposed, the paper's mixing step (arXiv 2310.09213), where a Gaussian prior has a chance.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Generator, Tensor

from nearfar.diffusion.fixed_point import FixedPointDDIM
from nearfar.diffusion.schedule import WARP, Level, NoiseSchedule, check_steps
from nearfar.diffusion.solver import SOLVER, STEPS, OnStep, solve
from nearfar.domain.guards import distinct
from nearfar.errors import ModelWarning, UsageError
from nearfar.latents.normality import Frames, Gaussianity, gaussianity, rotations
from nearfar.latents.statistics import FEWEST, Geometry, Gram, RadialSpectrum, geometry, gram_matrix, radial_spectrum
from nearfar.latents.two_sample import Separation, separation
from nearfar.models.kept import find, kept
from nearfar.models.model import FrozenModel
from nearfar.sampling.local_sampling import BATCH, encode_all
from nearfar.sampling.own_domain import own_calls, own_domain, settings_of
from nearfar.tensors import Images, Latents

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
INVERTER = FixedPointDDIM(iterations=8, tolerance=1e-2)
"""Statistics of clouds need no trajectory that is undone to the last digit, but one that ends in few calls."""

SIGNIFICANT = 0.01
TOLD_APART = 0.9
NOT_GAUSSIAN = 0.05
ROUND = 0.5
SETTLED = 0.9
"""A cloud's shape has settled where its roundness comes to this share of the greatest at any level."""

CLIMB = "own-climb"
MOST_KEPT = 1 << 27
"""Bytes of own latents at all levels that are kept."""

Nodes = Float64[Tensor, "_"]
OwnImages = Float[Tensor, "_ channel height width"]


@dataclass(frozen=True)
class CloudStatistics:
    """One cloud of latents at one level."""

    geometry: Geometry
    spectrum: RadialSpectrum
    gaussianity: Gaussianity


@dataclass(frozen=True)
class LevelStatistics:
    """Both clouds at one level: `strength`, time and noise to signal `sigma` are the same level.

    separable: center distance and linear classifier are significant (p at most 0.01) and the classifier tells at least
    0.9 of left-out latents apart. gaussian: the unseen cloud passes both tests of Gaussianity at 0.05.
    round: it fills at least half of all directions. verdict: these in a sentence.
    """

    strength: float
    time: float
    sigma: float
    unseen: CloudStatistics
    own: CloudStatistics
    separation: Separation
    separable: bool
    gaussian: bool
    round: bool
    verdict: str


@dataclass(frozen=True)
class Survey:
    """What was found at each level, ascending. `dataclasses.asdict` makes it ready for JSON.

    model: sha256 of the model. count: images in each cloud. steps: as asked for. proposed: the strength to work at,
    none if the clouds are separable nowhere; reason: why, in a sentence.
    """

    model: str
    count: int
    steps: int
    seed: int
    levels: tuple[LevelStatistics, ...]
    proposed: float | None
    reason: str


def survey(
    model: FrozenModel,
    images: Images,
    *,
    own: OwnImages | None = None,
    strengths: Sequence[float] = STRENGTHS,
    steps: int = STEPS,
    seed: int = 0,
    batch_size: int = BATCH,
    on_step: OnStep | None = None,
) -> Survey:
    """Statistics of the latents of `images` along the chain, beside those of the model's own domain.

    images: float32 `(batch, channel, height, width)` in [-1, 1] of one domain, at least 8 different ones.
    own: images of the model's own domain, of which as many are used; samples of the model itself unless given.
    strengths: the levels, ascending in (0, 1]. steps: inversion steps to the last one, besides one for each level.
    seed: of the own samples, the folds and the permutations. on_step: called after every solver step of every batch.
    Proposed is the lowest level at which the clouds are separable, the unseen cloud's shape has settled (its roundness
    comes to 0.9 of the greatest at any level) and it passes as Gaussian, or only the first two if it does nowhere.
    Separable, or draws are captured by the model's own domain; settled and Gaussian, or a Gaussian prior is wrong; the
    lowest, because inversion, distance to the own domain and likeness all suffer on the way up.
    Few steps make latents wider than the exact trajectory does, in both clouds alike (by a tenth at 20 steps).
    The model's own samples and their way up are kept in the user's cache (up to 128 MiB of them).
    Cost: at most `survey_calls(...)` network calls. Memory: both clouds at one level, in float32, and the images; of
    own samples that are kept, all levels.
    """
    model.image.check(images)
    check_different(images)
    check_strengths(strengths)
    count, parts = len(images), segments(strengths, steps)
    if own is None:
        owned = own_climb(model, count, strengths, steps, seed, batch_size, on_step)
    elif len(own) < count:
        raise UsageError(f"own must hold as many images as the domain, {count}, got {len(own)}: leave it out")
    else:
        model.image.check(own)
        owned = climb(model, own[:count], parts, batch_size, on_step)
    generator = torch.Generator().manual_seed(seed)
    frames = rotations(count, generator)
    climbing = climb(model, images, parts, batch_size, on_step)
    levels = tuple(
        compare(torch.cat(clouds), count, strength, model.schedule, frames, generator)
        for strength, *clouds in zip(strengths, climbing, owned, strict=True)
    )
    return Survey(model.provenance.sha256, count, steps, seed, levels, *propose(levels))


def check_different(images: Images) -> None:
    """Refuse too few images; warn of copies, since p-values are those of independent images."""
    different = len(distinct(images))
    if different < FEWEST:
        given = f"{len(images)}" if different == len(images) else f"{different} among {len(images)}"
        raise UsageError(f"a survey needs at least {FEWEST} different images, got {given}: add some")
    if different < len(images):
        text = (
            f"{len(images) - different} of {len(images)} images are copies of others: leave them out, p-values are off"
        )
        warnings.warn(text, ModelWarning, stacklevel=3)


def check_strengths(strengths: Sequence[float]) -> None:
    ends = (0.0, *strengths, math.inf)
    if not strengths or strengths[-1] > 1 or any(low >= high for low, high in pairwise(ends)):
        raise UsageError(f"strengths must ascend in (0, 1], got {', '.join(map(str, strengths)) or 'none'}")


def survey_calls(count: int, strengths: Sequence[float] = STRENGTHS, steps: int = STEPS, batch: int = BATCH) -> int:
    """The most network calls that a survey of `count` images costs, each for a batch of at most `batch` images.

    Own samples included. A step takes about two calls of the at most eight that are counted here.
    """
    climbs = sum((len(nodes) - 1) * INVERTER.iterations + 1 for nodes in segments(strengths, steps))
    return math.ceil(count / batch) * (SOLVER.calls(STEPS) + 2 * climbs)


def segments(strengths: Sequence[float], steps: int) -> list[Nodes]:
    """The strengths on the way from clean to each level, from the level before: all levels are among the nodes."""
    check_steps(steps)
    share = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** WARP
    levels = torch.tensor(strengths, dtype=torch.float64)
    nodes = torch.unique(torch.cat([share * levels[-1], levels]))
    ends = pairwise([0.0, *levels.tolist()])
    return [nodes[(nodes >= low) & (nodes <= high)] for low, high in ends]


def own_climb(
    model: FrozenModel,
    count: int,
    strengths: Sequence[float],
    steps: int,
    seed: int,
    batch_size: int,
    on_step: OnStep | None = None,
) -> Iterator[Latents]:
    """The latents of the model's first own samples at each level, from the cache where they are kept there."""
    parts, shape = segments(strengths, steps), (count, len(strengths), *model.latent_shape)

    def make(begun: int) -> Tensor:
        own = own_domain(model, count, seed=seed, batch_size=batch_size, on_step=on_step)[begun:]
        return torch.stack([level.clone() for level in climb(model, own, parts, batch_size, on_step)], 1)

    if 4 * math.prod(shape) > MOST_KEPT:
        own = own_domain(model, count, seed=seed, batch_size=batch_size, on_step=on_step)
        return climb(model, own, parts, batch_size, on_step)
    return iter(kept(model, CLIMB, climb_settings(model, strengths, steps, seed), shape, make).unbind(1))


def own_steps(
    model: FrozenModel, count: int, strengths: Sequence[float], steps: int, seed: int, batch_size: int
) -> int:
    """Solver steps that `own_climb` would take now, each of a batch."""
    settings, shape = climb_settings(model, strengths, steps, seed), (len(strengths), *model.latent_shape)
    there = find(model, CLIMB, settings, shape)
    lacking = max(0, count - (0 if there is None else len(there)))
    if not lacking:
        return 0
    nodes = sum(len(part) - 1 for part in segments(strengths, steps))
    return own_calls(model, count, seed=seed, batch_size=batch_size) + math.ceil(lacking / batch_size) * nodes


def climb_settings(model: FrozenModel, strengths: Sequence[float], steps: int, seed: int) -> dict[str, Any]:
    """What decides the way up of own samples besides the model."""
    way = {"strengths": tuple(strengths), "inversion steps": steps, "inverter": repr(INVERTER), "warp": WARP}
    return settings_of(model, seed) | way


def climb(
    model: FrozenModel,
    images: OwnImages,
    parts: Sequence[Nodes],
    batch_size: int,
    on_step: OnStep | None = None,
) -> Iterator[Latents]:
    """The latents of all images, on the CPU, at the end of one of the `segments` after the other.

    Each overwrites the one before: a caller that keeps them makes a copy.
    """
    latents = encode_all(model, images, batch_size)
    for nodes in parts:
        times = model.schedule.time_of_strength(nodes)
        for rows in torch.split(torch.arange(len(latents)), batch_size):
            state = latents[rows].to(model.device)
            latents[rows] = solve(model.denoiser, state, times.expand(len(rows), -1), INVERTER, on_step=on_step).cpu()
        yield latents


def compare(
    latents: Latents, count: int, strength: float, schedule: NoiseSchedule, frames: Frames, generator: Generator
) -> LevelStatistics:
    """Two clouds at a level: the first `count` latents are those of unseen images, the others the model's own."""
    gram, dimension = gram_matrix(latents), latents[0].numel()
    unseen = describe(latents[:count], gram[:count, :count], frames, generator)
    own = describe(latents[count:], gram[count:, count:], frames, generator)
    apart = separation(gram, count, dimension, generator)
    separable = max(apart.distance_p, apart.accuracy_p) <= SIGNIFICANT and apart.accuracy >= TOLD_APART
    gaussian, rounded = unseen.gaussianity.p > NOT_GAUSSIAN, unseen.geometry.roundness >= ROUND
    return LevelStatistics(
        **{**Level(strength).describe(schedule), "strength": strength},
        unseen=unseen,
        own=own,
        separation=apart,
        separable=separable,
        gaussian=gaussian,
        round=rounded,
        verdict=verdict(apart, unseen, separable, gaussian, rounded),
    )


def describe(latents: Latents, gram: Gram, frames: Frames, generator: Generator) -> CloudStatistics:
    return CloudStatistics(
        geometry(gram, latents[0].numel(), generator),
        radial_spectrum(latents),
        gaussianity(gram, frames, generator),
    )


def verdict(apart: Separation, unseen: CloudStatistics, separable: bool, gaussian: bool, rounded: bool) -> str:
    """What the numbers of a level say, in a sentence."""
    return (
        f"{'separable' if separable else 'not separable'} (accuracy {apart.accuracy:.2f}, p {apart.accuracy_p:.3f}; "
        f"centers {apart.quarter_power:.1f} times the separable distance, p {apart.distance_p:.3f}), "
        f"{'passes as Gaussian' if gaussian else 'not Gaussian'} (p {unseen.gaussianity.p:.2g}), "
        f"{'round' if rounded else 'structured'} ({unseen.geometry.roundness:.1%} of the directions filled)"
    )


def propose(levels: Sequence[LevelStatistics]) -> tuple[float | None, str]:
    """The strength to work at, by the rule of `survey`, and why."""
    apart = [level for level in levels if level.separable]
    if not apart:
        return None, "at no level are the clouds separable: what is drawn there is likely to be the model's own domain"
    most = max(level.unseen.geometry.roundness for level in levels)
    settled = [level for level in apart if level.unseen.geometry.roundness >= SETTLED * most]
    if not settled:
        where = ", ".join(f"{level.strength:g}" for level in apart)
        return (
            None,
            f"the clouds are separable only where the unseen one has no settled shape yet, at {where}: add images",
        )
    gaussian = [level for level in settled if level.gaussian]
    chosen = (gaussian or settled)[0]
    roundness, accuracy = chosen.unseen.geometry.roundness, chosen.separation.accuracy
    reason = (
        f"{chosen.strength:g} is the lowest level with separable clouds (accuracy {accuracy:.2f}) and an unseen one of "
        f"settled shape ({roundness:.1%} of the directions filled, at any level {most:.1%} at most)"
    )
    if gaussian:
        return chosen.strength, reason + " that passes as Gaussian"
    return (
        chosen.strength,
        reason + "; it passes as Gaussian at none of these: mixtures of latents are safer than draws",
    )
