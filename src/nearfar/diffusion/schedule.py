"""Noise schedules and levels: time -> (alpha, sigma), with `x_t = alpha x_0 + sigma eps`.

Every family is the same table of times and levels; only the path that turns a level into coefficients differs:

    variance preserving   level = angle      alpha = cos(level)    sigma = sin(level)    DDPM, iDDPM, Stable Diffusion
    variance exploding    level = sigma      alpha = 1             sigma = level         score SDE, EDM
    flow                  level = u          alpha = 1 - u         sigma = u             rectified flow

Times are the model's own units. Between two table entries the level is interpolated linearly, so any time is allowed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from nearfar.errors import UsageError
from nearfar.tensors import Images, TimeGrid, Times, per_image

Table = Float64[Tensor, " nodes"]

Amount = float | Sequence[float] | Tensor
"""One number for the whole batch, or one for each image."""

WARP = 2.0
"""How much denser the times of a `Sampling` are near the clean end, see `NoiseSchedule.grid`."""


@dataclass(frozen=True)
class NoisePath:
    """How a level becomes `(alpha, sigma)`, their slopes, and which level has a given noise-to-signal ratio."""

    name: str
    coefficients: Callable[[Tensor], tuple[Tensor, Tensor]]
    slopes: Callable[[Tensor], tuple[Tensor, Tensor]]
    level: Callable[[Tensor], Tensor]


VARIANCE_PRESERVING = NoisePath(
    "variance preserving",
    coefficients=lambda level: (level.cos(), level.sin()),
    slopes=lambda level: (-level.sin(), level.cos()),
    level=torch.atan,
)
VARIANCE_EXPLODING = NoisePath(
    "variance exploding",
    coefficients=lambda level: (torch.ones_like(level), level),
    slopes=lambda level: (torch.zeros_like(level), torch.ones_like(level)),
    level=lambda ratio: ratio,
)
FLOW = NoisePath(
    "flow",
    coefficients=lambda level: (1 - level, level),
    slopes=lambda level: (-torch.ones_like(level), torch.ones_like(level)),
    level=lambda ratio: 1 - 1 / (1 + ratio),
)


def interpolate(x: Tensor, nodes: Table, values: Table) -> Tensor:
    """Piecewise linear interpolation; exact at the nodes, constant beyond the ends."""
    right = torch.searchsorted(nodes, x.contiguous()).clamp(1, len(nodes) - 1)
    left = right - 1
    share = ((x - nodes[left]) / (nodes[right] - nodes[left])).clamp(0, 1)
    return torch.lerp(values[left], values[right], share)


@dataclass(frozen=True, eq=False, repr=False)
class NoiseSchedule:
    """The noise level of every time.

    times: float64 (nodes,), ascending; the first is the noise-free end, the last the noisiest level.
    levels: float64 (nodes,), ascending from 0, in the path's own unit.
    """

    times: Table
    levels: Table
    path: NoisePath

    def __repr__(self) -> str:
        most = self.ratio(self.times[-1:]).item()
        return f"NoiseSchedule({self.path.name}, {len(self.times) - 1} noisy levels, sigma up to {most:.4g})"

    @classmethod
    def variance_preserving(cls, alphas_cumprod: Tensor) -> NoiseSchedule:
        """A DDPM table: entry `i` of `alphas_cumprod` is time `i`; time -1 is clean (Ho et al., arXiv 2006.11239)."""
        signal = alphas_cumprod.double()
        return cls._indexed(torch.atan2((1 - signal).sqrt(), signal.sqrt()), VARIANCE_PRESERVING)

    @classmethod
    def variance_exploding(cls, sigmas: Tensor) -> NoiseSchedule:
        """A table of noise levels: entry `i` is time `i`; time -1 is clean (Song et al., arXiv 2011.13456)."""
        return cls._indexed(sigmas.double(), VARIANCE_EXPLODING)

    @classmethod
    def flow(cls, scale: float = 1000.0) -> NoiseSchedule:
        """Rectified flow: time `scale * u` has `alpha = 1 - u`, `sigma = u` (Liu et al., arXiv 2209.03003)."""
        levels = torch.linspace(0, 1, 1001, dtype=torch.float64)
        return cls(levels * scale, levels, FLOW)

    @classmethod
    def _indexed(cls, levels: Table, path: NoisePath) -> NoiseSchedule:
        times = torch.arange(-1, len(levels), dtype=torch.float64)
        return cls(times, torch.cat([levels.new_zeros(1), levels]), path)

    @property
    def clean_time(self) -> float:
        """The noise-free end: alpha = 1, sigma = 0."""
        return self.times[0].item()

    @property
    def first_time(self) -> float:
        """The least noisy level that the network was trained on; a network is never asked about a cleaner one."""
        return self.times[1].item()

    @property
    def noisiest_time(self) -> float:
        """The end of the forward process."""
        return self.times[-1].item()

    def level(self, t: Times) -> Times:
        """The level of each time, in the path's own unit."""
        return interpolate(t, self.times, self.levels)

    def coefficients(self, t: Times) -> tuple[Times, Times]:
        """`(alpha, sigma)` in float64 for each time."""
        return self.path.coefficients(self.level(t))

    def slopes(self, t: Times) -> tuple[Times, Times]:
        """Derivatives of alpha and sigma by the level."""
        return self.path.slopes(self.level(t))

    def ratio(self, t: Times) -> Times:
        """Noise to signal, `sigma / alpha`: 0 when clean, infinite when nothing of the signal is left."""
        alpha, sigma = self.coefficients(t)
        return sigma / alpha

    def time_of_strength(self, strength: Times) -> Times:
        """The time after this share of the forward process; strengths lie in [0, 1]."""
        check_range("strength", strength, 1.0)
        return torch.lerp(self.times[:1], self.times[-1:], strength)

    def time_of_sigma(self, sigma: Times) -> Times:
        """The time at which noise to signal is `sigma`; it must not exceed the schedule's largest."""
        check_range("sigma", sigma, self.ratio(self.times[-1:]).item())
        return interpolate(self.path.level(sigma), self.levels, self.times)

    def strength_of_time(self, t: Times) -> Times:
        """The share of the forward process that time `t` stands for."""
        return (t - self.clean_time) / (self.noisiest_time - self.clean_time)

    def grid(self, start: Times, steps: int, warp: float = 1.0) -> TimeGrid:
        """Descending times `(batch, steps + 1)` from exactly `start` to exactly clean.

        warp: 1 spaces the times evenly; above 1 puts more of them near the clean end, as `(1 - k / steps) ** warp`.
        """
        check_steps(steps)
        share = torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** warp
        grid = torch.lerp(self.times[0], start[:, None], share[None])
        grid[:, 0] = start
        return grid

    def add_noise(self, x_0: Images, t: Times, noise: Images) -> Images:
        """The forward jump `alpha x_0 + sigma noise`; at the noisiest time the signal is left out altogether.

        Tables end at a small signal (Stable Diffusion keeps 7 % of the amplitude), which would leak color and
        composition; strength 1 must not depend on the input (Lin et al., arXiv 2305.08891).
        """
        alpha, sigma = self.coefficients(t)
        alpha = torch.where(t == self.noisiest_time, 0.0, alpha)
        return per_image(alpha, x_0) * x_0 + per_image(sigma, x_0) * noise

    def digest(self) -> str:
        """SHA-256 of path, times and levels."""
        tables = torch.stack([self.times, self.levels]).numpy().astype("<f8").tobytes()
        return hashlib.sha256(self.path.name.encode() + tables).hexdigest()


def check_range(name: str, amounts: Tensor, largest: float) -> None:
    """Refuse amounts outside of [0, largest], or that are no numbers."""
    outside = ~((amounts >= 0) & (amounts <= largest)).flatten()
    if outside.any():
        index = int(outside.nonzero()[0])
        where = f" for image {index} of {len(outside)}" if len(outside) > 1 else ""
        first = amounts.flatten()[index].item()
        raise UsageError(f"{name} must be in [0, {largest:.4g}], got {first:g}{where}")


def check_steps(steps: Any) -> None:
    if not isinstance(steps, int):
        raise UsageError(f"steps must be a whole number, got {steps!r}")
    if steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")


def as_amounts(name: str, amount: Any) -> Tensor:
    """One number or one for each image, float64 on the CPU. Raises UsageError for what is no number."""
    try:
        return torch.as_tensor(amount, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError):
        got = type(amount).__name__ if len(repr(amount)) > 40 else repr(amount)
        raise UsageError(f"{name} must be a number, or one for each image, got {got}") from None


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
            check_range("strength", as_amounts("strength", self.strength), 1.0)

    @property
    def name(self) -> str:
        """Which of the two is given."""
        return "sigma" if self.strength is None else "strength"

    def times(self, schedule: NoiseSchedule, count: int) -> Times:
        """The time that each of `count` images is noised to."""
        amounts = as_amounts(self.name, getattr(self, self.name))
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
