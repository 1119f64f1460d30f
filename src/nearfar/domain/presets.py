"""The two published versions of arXiv 2310.09213 step by step, to be compared with: `paper-v1` and `paper-v2`.

Sections are those of the project's notes on the paper and its authors' code (unseen.md). What the versions share:

    nodes       tau_k = floor(k t0 / (K - 1)), k from 0 to K - 1                           section 1.2
    inversion   explicit DDIM, the noise evaluated at the less noisy end; the image is taken to be as it is at time 0,
                so there are K - 1 steps                                                    section 1.2
    Gaussian    the mean of each number, one deviation for all of them                      section 1.4, E1 and E3
    tests       mean distance, angle at the origin, angle between two references, near constants section 1.6
    return      the same nodes downward and one step more, to the clean end                section 1.7

and what they do not: `PRESETS`. The constants of the tests were measured by the authors on their domain and model, and
so they are here; tolerances are theirs, brought from 196,608 dimensions to the model's: on a shell the deviation of a
distance is the same in every dimension and grows with the spread, that of an angle falls with the dimension's root.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Generator, Tensor

from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.domain.recipe import PRESET_NAMES
from nearfar.errors import UsageError
from nearfar.latents.covariance import Latent
from nearfar.latents.shell import Target, Targets, accept, angles, measure, norms, slerp
from nearfar.tensors import Latents

TABLE = 1000
DIMENSION, SIGMA = 3 * 256 * 256, 0.975
"""Of the authors' latents at time 900, in which their tolerances hold; at 500 the deviation was 0.92."""
POINTS = 20
"""Between two ends of version 2, which are left out."""
MOST_CANDIDATES = 20_000


@dataclass(frozen=True)
class Preset:
    """What a version has of its own. time, nodes: t0 and K. looks: references of a test. fixed: whether these are the
    same for all candidates. distance, angle: the tolerances, the angle's in degrees. eta: of the return.
    slerps: whether candidates lie between a latent and a draw of the Gaussian."""

    time: int
    nodes: int
    looks: int
    fixed: bool
    distance: float
    origin_angle: float
    pair_angle: float
    slerps: bool
    eta: float = 0.0


PRESETS = dict(
    zip(
        PRESET_NAMES,
        (
            Preset(500, 40, 2, True, 5.0, 2.0, 2.0, slerps=False),
            Preset(900, 80, 10, False, 0.3, 0.1, 0.1, slerps=True),
        ),
        strict=True,
    )
)


def preset_of(name: str) -> Preset:
    if name not in PRESETS:
        raise UsageError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


def way_up(preset: Preset, schedule: NoiseSchedule) -> Float64[Tensor, "1 nodes"]:
    """The nodes from time 0 to t0. Raises UsageError for a model that has no table of 1,000 times."""
    if (schedule.clean_time, schedule.noisiest_time) != (-1, TABLE - 1):
        span = f"{schedule.clean_time:g} to {schedule.noisiest_time:g}"
        raise UsageError(f"presets are of models with times -1 to {TABLE - 1}, this one has {span}: fit without one")
    nodes = [k * preset.time // (preset.nodes - 1) for k in range(preset.nodes)]
    return torch.tensor([nodes], dtype=torch.float64)


def way_down(preset: Preset, schedule: NoiseSchedule) -> Float64[Tensor, "1 times"]:
    """The same nodes downward, and the clean end: K steps."""
    clean = torch.full((1, 1), float(schedule.clean_time), dtype=torch.float64)
    return torch.cat([way_up(preset, schedule).flip(1), clean], 1)


def gaussian(preset: Preset, latents: Latents) -> tuple[Latent, float]:
    """Mean of each number and the one deviation, as the version's code has it.

    E1 (version 1) takes the deviations from the sum over N - 1, a slip that is kept; E3 (version 2) the variance of all
    numbers of all latents, in which is that of the mean image.
    """
    mean = latents.mean(0)
    if preset.slerps:
        return mean, latents.double().std(correction=0).item()
    slipped = latents.double().sum(0) / max(len(latents) - 1, 1)
    return mean, (latents - slipped).square().mean().sqrt().item()


def targets_of(preset: Preset, latents: Latents, generator: Generator) -> Targets:
    """Constants of the tests measured on these latents, each against the others, with the version's tolerances."""
    found, dimension = measure(latents, generator), latents[0].numel()
    spread = latents.std(0).square().mean().sqrt().item() / SIGMA
    wider = math.sqrt(DIMENSION / dimension)
    return Targets(
        Target(found.distance.value, preset.distance * spread),
        Target(found.origin_angle.value, preset.origin_angle * wider),
        Target(found.pair_angle.value, preset.pair_angle * wider),
    )


@dataclass(frozen=True, eq=False)
class Published:
    """Draws of a version: candidates until one passes the three tests."""

    preset: Preset
    latents: Latents
    mean: Latent
    deviation: float
    targets: Targets

    @classmethod
    def fit(cls, preset: Preset, latents: Latents) -> Published:
        """With constants and references of `latents`. Nothing is random: the constants have a seed of their own."""
        return cls(
            preset,
            latents,
            *gaussian(preset, latents),
            targets_of(preset, latents, Generator().manual_seed(0)),
        )

    def draw(self, generator: Generator) -> tuple[Latent, list[int], int]:
        """A candidate that passes, the latents that it lies beside, and how many were tried.

        Raises UsageError when none of 20,000 passes.
        """
        tried = 0
        while tried < MOST_CANDIDATES:
            candidates, parents = self.candidates(generator)
            for candidate in candidates:
                tried += 1
                if self.passes(candidate, generator):
                    return candidate, parents, tried
        raise UsageError(f"none of {tried:,} candidates passed the paper's three tests: fit without a preset")

    def candidates(self, generator: Generator) -> tuple[Latents, list[int]]:
        """One draw of the Gaussian (version 1), or 20 points between a latent and such a draw, in random order."""
        drawn = self.mean + self.deviation * torch.randn(self.mean.shape, generator=generator)
        if not self.preset.slerps:
            return drawn[None], []
        number = int(torch.randint(len(self.latents), (1,), generator=generator))
        shares = (torch.randperm(POINTS, generator=generator) + 1) / (POINTS + 1)
        one, other = (end.expand(POINTS, *end.shape) for end in (self.latents[number], drawn))
        return slerp(one, other, shares), [number]

    def passes(self, candidate: Latent, generator: Generator) -> bool:
        """The version's tests: of the means over 10 references, or of each side and angle with two fixed ones."""
        if self.preset.fixed:
            return bool((off_by(candidate, self.latents[:2], self.targets) <= 1).all())
        return bool(accept(candidate[None], self.latents, self.targets, generator).accepted.item())


def off_by(candidate: Latent, references: Latents, targets: Targets) -> Float64[Tensor, " 8"]:
    """How far the triangle of a candidate and two references is from what it should be, in tolerances (version 1).

    Two distances, the three angles of the triangle, the three angles at the origin; the one between the references is
    as it is, so a pair must be taken for which it holds.
    """
    x, r, q = (point[None].double() for point in (candidate, *references))
    sides = torch.cat([norms(x - r), norms(x - q)])
    corners = torch.cat([angles(r - x, q - x), angles(x - r, q - r), angles(x - q, r - q)]).rad2deg()
    origin = torch.cat([angles(x, r), angles(x, q), angles(r, q)]).rad2deg()
    each = ((sides, targets.distance), (corners, targets.pair_angle), (origin, targets.origin_angle))
    return torch.cat([(values - target.value).abs() / target.tolerance for values, target in each])
