"""One path of noise for every solver and every number of steps, so that differences of their images are their own.

With `rho = sigma / alpha`, `y = x / alpha` and a Brownian motion `B` that counts `1 / rho^2` as its time, the exact
return adds `rho_s^2 (B_s - B_t)` on the way from a time `t` to a cleaner `s`, and so does every solver's step: its
standard normal draw is that increment over its own deviation. Coarse steps sum what fine ones draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from nearfar.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True, eq=False)
class NoisePath:
    """times: descending, all that any solver visits. parts: standard normal, one for each pair of neighbors."""

    times: Sequence[float]
    clocks: Tensor
    parts: Tensor

    @classmethod
    def drawn(cls, schedule: NoiseSchedule, grids: Iterable[Sequence[float]], like: Tensor, seed: int) -> NoisePath:
        """A path over the times of all grids; fixed by them, the shape and the seed."""
        times = sorted({round(time, 9) for grid in grids for time in grid}, reverse=True)
        ratios = schedule.ratio(torch.tensor(times, dtype=torch.float64).clamp(min=schedule.clean_time))
        generator = torch.Generator().manual_seed(seed)
        parts = torch.stack([torch.randn(like.shape, generator=generator) for _ in times[1:]])
        return cls(times, 1 / ratios**2, parts)

    def draw(self, t: float, s: float) -> Tensor:
        """What a step from t to s draws: standard normal."""
        first, last = (self.times.index(round(time, 9)) for time in (t, s))
        if self.clocks[last].isinf():
            return self.parts[last - 1]
        weights = self.clocks[first : last + 1].diff().sqrt().float()
        drawn: Tensor = torch.einsum("k,kbchw->bchw", weights / weights.norm(), self.parts[first:last])
        return drawn

    def along(self, grid: Sequence[float]) -> Draws:
        """The draws of a solver that visits these times, one after another."""
        return Draws(self.draw(t, s) for t, s in pairwise(grid))


@dataclass(frozen=True)
class Draws:
    """A `NoiseStream` over what was drawn."""

    each: Iterator[Tensor]

    def draw(self) -> Tensor:
        return next(self.each)
