"""Noise levels, and how a state is carried between one and the clean end: `Level` and `Sampling`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nearfar.diffusion.schedule import NoiseSchedule, check_range, check_steps
from nearfar.diffusion.solver import SOLVER, Solver
from nearfar.errors import UsageError
from nearfar.tensors import TimeGrid, Times

Amount = float | Sequence[float] | Tensor
"""One number for the whole batch, or one for each image."""

STEPS = 20
WARP = 2.0
"""How much denser the times of a `Sampling` are near the clean end, see `NoiseSchedule.grid`."""


@dataclass(frozen=True)
class Level:
    """A noise level, given as exactly one of strength and sigma: one number, or one for each image of a batch.

    strength: share of the forward process, in [0, 1]. sigma: noise to signal, from 0 to the schedule's largest.
    """

    strength: Amount | None = None
    sigma: Amount | None = None

    def __post_init__(self) -> None:
        if (self.strength is None) == (self.sigma is None):
            raise UsageError("give either strength or sigma, got " + ("neither" if self.strength is None else "both"))
        if self.strength is not None:
            check_range("strength", torch.as_tensor(self.strength, dtype=torch.float64).cpu(), 1.0)

    @property
    def name(self) -> str:
        """Which of the two is given."""
        return "sigma" if self.strength is None else "strength"

    def times(self, schedule: NoiseSchedule, count: int) -> Times:
        """The time that each of `count` images is noised to."""
        amounts = torch.as_tensor(getattr(self, self.name), dtype=torch.float64).cpu()
        if amounts.ndim > 1 or (amounts.ndim == 1 and len(amounts) != count):
            raise UsageError(
                f"{self.name} must be one number or {count}, one per image, got shape {tuple(amounts.shape)}"
            )
        amounts = amounts.expand(count)
        return schedule.time_of_sigma(amounts) if self.strength is None else schedule.time_of_strength(amounts)

    def describe(self, schedule: NoiseSchedule) -> dict[str, float]:
        """Strength, time and sigma of a level of one number."""
        time = self.times(schedule, 1)
        return {
            "strength": schedule.strength_of_time(time).item(),
            "time": time.item(),
            "sigma": schedule.ratio(time).item(),
        }

    def check_noisy(self, schedule: NoiseSchedule) -> None:
        """Refuse the clean end as the level of a job."""
        if self.times(schedule, 1).item() <= schedule.clean_time:
            raise UsageError(f"{self.name} must be above 0, got 0: the originals would be copied")


@dataclass(frozen=True)
class Sampling:
    """The way between the clean end and a level: solver steps, at least 1, and the solver that takes them."""

    level: Level
    steps: int = STEPS
    solver: Solver = SOLVER

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def at(self, level: Level) -> Sampling:
        """The same way from another level."""
        return replace(self, level=level)

    def grid(self, schedule: NoiseSchedule, count: int) -> TimeGrid:
        """Times `(count, steps + 1)` from the level of each of `count` images down to the clean end."""
        return schedule.grid(self.level.times(schedule, count), self.steps, WARP)
