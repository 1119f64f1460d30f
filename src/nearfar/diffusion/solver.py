"""Solvers (one move on the time axis), and the loop.

A solver is a frozen value with a pure `step`. Times are one value per image, so images of different strengths share a
batch. Coefficients are computed in float64, the state stays in its own dtype. With `rho = sigma / alpha`:

    DDIM              x_s = alpha_s x_0 + sqrt(sigma_s^2 - c^2) eps + c z,   c = eta sigma_s sqrt(1 - (rho_s / rho_t)^2)
    ... fixed point   the same DDIM step, solved for x_t
    Heun              trapezium rule for dx = x_0 d(alpha) + eps d(sigma)
    DPM-Solver++ 2M   x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - rho_s / rho_t) D,   D extrapolated from two x_0
    ... SDE           the same with (rho_s / rho_t)^2 and fresh noise
    local prior       that, with fresh noise for what x_0 does not know, see `local_prior`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from nearfar.diffusion.denoiser import Denoiser, clean_image, predict
from nearfar.diffusion.local_prior import Profile, frequencies, states_of
from nearfar.diffusion.noise import NoiseStream
from nearfar.diffusion.schedule import WARP, Level, NoiseSchedule, check_steps
from nearfar.errors import UsageError
from nearfar.tensors import Images, TimeGrid, Times, per_image, select

STEPS = 20

OnStep = Callable[[int, Images], None]
"""Called after each solver step with `(step, state)`; steps count from 1."""

History = tuple[Tensor, ...]
"""What a multistep solver remembers of the step before: the clean estimate and its log noise-to-signal ratio; for the
local prior both the estimate and the noise that followed it, by frequency, and the ratio."""


@runtime_checkable
class Solver(Protocol):
    """One step of every image from its time `t` to its time `s`."""

    @property
    def stochastic(self) -> bool:
        """Whether `step` draws noise."""
        ...

    @property
    def invertible(self) -> bool:
        """Whether `step` may go up, from clean to noise."""
        ...

    def calls(self, steps: int) -> int:
        """Network calls that `steps` steps down to the clean end cost."""
        ...

    def step(
        self, denoiser: Denoiser, x: Images, t: Times, s: Times, noise: NoiseStream | None, history: History | None
    ) -> tuple[Images, History | None]: ...


@dataclass(frozen=True)
class DDIM:
    """Song et al., arXiv 2010.02502, formula 12. One network call a step.

    eta: 0 follows the deterministic trajectory; 1 is the ancestral step of DDPM with the posterior variance, which is
    the reverse process of the Boomerang paper (arXiv 2210.12100, algorithm 1).
    """

    eta: float = 0.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    @property
    def invertible(self) -> bool:
        return self.eta == 0

    def calls(self, steps: int) -> int:
        return steps

    def step(
        self, denoiser: Denoiser, x: Images, t: Times, s: Times, noise: NoiseStream | None, history: History | None
    ) -> tuple[Images, None]:
        (alpha_t, sigma_t), (alpha, sigma) = (denoiser.schedule.coefficients(time) for time in (t, s))
        fresh = self.eta * sigma * (1 - decay(sigma_t / alpha_t, sigma / alpha) ** 2).clamp(min=0).sqrt()
        x_0, eps = predict(denoiser, x, t)
        x = per_image(alpha, x) * x_0 + per_image((sigma**2 - fresh**2).clamp(min=0).sqrt(), x) * eps
        return (x if noise is None else x + per_image(fresh, x) * noise.draw()), None


@dataclass(frozen=True)
class Heun:
    """Trapezium rule in the schedule's own level, where it is smooth to the very end. Two network calls a step.

    On a variance-exploding schedule this is EDM's sampler (Karras et al., arXiv 2206.00364, algorithm 1). The step that
    ends clean is an Euler step of one call.
    """

    stochastic: ClassVar[bool] = False
    invertible: ClassVar[bool] = True

    def calls(self, steps: int) -> int:
        return 2 * steps - 1

    def step(
        self, denoiser: Denoiser, x: Images, t: Times, s: Times, noise: NoiseStream | None, history: History | None
    ) -> tuple[Images, None]:
        schedule = denoiser.schedule
        alpha, sigma = schedule.coefficients(s)
        x_0, eps = predict(denoiser, x, t)
        euler = per_image(alpha, x) * x_0 + per_image(sigma, x) * eps
        if not (sigma > 0).any():
            return euler, None
        x_0_s, eps_s = predict(denoiser, euler, s)
        half = torch.where(sigma > 0, (schedule.level(s) - schedule.level(t)) / 2, 0.0)
        alpha_slope, sigma_slope = (per_image(half * slope, x) for slope in schedule.slopes(s))
        return euler + alpha_slope * (x_0_s - x_0) + sigma_slope * (eps_s - eps), None


@dataclass(frozen=True)
class DPMSolverPP:
    """DPM-Solver++(2M), deterministic (Lu et al., arXiv 2211.01095, algorithm 2). One network call a step."""

    stochastic: ClassVar[bool] = False
    invertible: ClassVar[bool] = False

    def calls(self, steps: int) -> int:
        return steps

    def step(
        self, denoiser: Denoiser, x: Images, t: Times, s: Times, noise: NoiseStream | None, history: History | None
    ) -> tuple[Images, History]:
        (alpha_t, sigma_t), (alpha, sigma) = (denoiser.schedule.coefficients(time) for time in (t, s))
        rho_t, rho = sigma_t / alpha_t, sigma / alpha
        x_0 = clean_image(denoiser, x, t)
        estimate, remembered = extrapolate(x_0, rho_t, rho, history, s >= denoiser.schedule.first_time)
        kept = decay(rho_t, rho)
        if not self.stochastic:
            return per_image(sigma / sigma_t, x) * x + per_image(alpha * (1 - kept), x) * estimate, remembered
        mean = per_image(sigma / sigma_t * kept, x) * x + per_image(alpha * (1 - kept**2), x) * estimate
        fresh = sigma * (1 - kept**2).clamp(min=0).sqrt()
        return (mean if noise is None else mean + per_image(fresh, x) * noise.draw()), remembered


@dataclass(frozen=True)
class DPMSolverPPSDE(DPMSolverPP):
    """SDE-DPM-Solver++(2M), midpoint form (Lu et al., arXiv 2211.01095, section 5). One network call a step."""

    stochastic: ClassVar[bool] = True


@dataclass(frozen=True)
class LocalPrior:
    """Fresh noise with the variance of what the network does not know, by frequency (`local_prior`): exact for Gaussian
    images, with the denoiser's own profile. One network call a step.

    A denoiser without a profile is stepped by `used`'s stand-in.
    """

    stochastic: ClassVar[bool] = True
    invertible: ClassVar[bool] = False

    def calls(self, steps: int) -> int:
        return steps

    def step(
        self, denoiser: Denoiser, x: Images, t: Times, s: Times, noise: NoiseStream | None, history: History | None
    ) -> tuple[Images, History | None]:
        profile = profile_of(denoiser)
        if profile is None:
            return used(self, denoiser).step(denoiser, x, t, s, noise, history)
        (alpha_t, sigma_t), (alpha, sigma) = (denoiser.schedule.coefficients(time) for time in (t, s))
        rho_t, rho = sigma_t / alpha_t, sigma / alpha
        ratio = decay(rho_t, rho)
        kept, gain = ratio**2, alpha * (1 - ratio**2)
        clean = known(denoiser, profile, x, t)
        within = s >= denoiser.schedule.first_time
        estimate = clean + unexplained(profile, clean, rho_t, rho, history, within)
        unknown = profile.unknown(rho_t)
        deviation = ((sigma**2 * (1 - kept))[:, None, None] + gain[:, None, None] ** 2 * unknown).clamp(min=0).sqrt()
        fresh = torch.zeros_like(clean) if noise is None else frequencies(noise.draw(), profile)
        fresh = fresh * profile.spread(deviation, clean)
        moved = states_of(per_image(gain, x) * estimate + fresh, profile)
        stays = sigma / sigma_t * ratio  # alpha / alpha_t * kept, where alpha_t may be 0
        return per_image(stays, x) * x + moved, (clean, fresh / per_image(alpha, x), rho_t.log())


def known(denoiser: Denoiser, profile: Profile, x: Images, t: Times) -> Tensor:
    """The prediction by frequency. Below the first level that the network knows, as the local prior has it."""
    schedule = denoiser.schedule
    clean = frequencies(clean_image(denoiser, x, t), profile)
    below = t < schedule.first_time
    if not below.any():
        return clean
    rho, first = schedule.ratio(t), schedule.ratio(t.clamp(min=schedule.first_time))
    ratio = profile.unknown(rho) / profile.unknown(first) * (first / rho)[:, None, None]
    state = frequencies(x / per_image(schedule.coefficients(t)[0], x), profile)
    return select(below, state + profile.spread(ratio, clean) * (clean - state), clean)


def unexplained(
    profile: Profile, clean: Tensor, rho_t: Times, rho: Times, history: History | None, within: Bool[Tensor, " batch"]
) -> Tensor | float:
    """Where the clean estimate goes on to: its change since the step before, less what that step's noise explains."""
    if history is None:
        return 0.0
    before, noise, log_before = history
    ahead = extrapolation(rho_t.log(), rho.log(), log_before, within)
    explained = profile.unknown(rho_t) / rho_t[:, None, None] ** 2
    weight = ahead[:, None, None] * profile.weight()
    return profile.spread(weight, clean) * (clean - before - profile.spread(explained, clean) * noise)


def profile_of(denoiser: Denoiser) -> Profile | None:
    """What was measured of the network behind a denoiser, if anything was."""
    return getattr(denoiser, "profile", None)


def used(solver: Solver, denoiser: Denoiser) -> Solver:
    """The solver itself, or SDE-DPM-Solver++(2M) where it needs a profile and the denoiser has none."""
    missing = isinstance(solver, LocalPrior) and profile_of(denoiser) is None
    return DPMSolverPPSDE() if missing else solver


def explicit(schedule: NoiseSchedule, t: Times, s: Times) -> tuple[Times, Times]:
    """What the deterministic DDIM step from t to s multiplies the state and the noise with."""
    (alpha_t, sigma_t), (alpha, sigma) = (schedule.coefficients(time) for time in (t, s))
    kept = alpha / alpha_t
    return kept, sigma - kept * sigma_t


def decay(rho_t: Times, rho: Times) -> Times:
    """`rho_s / rho_t`: 1 where nothing moves, 0 at the clean end."""
    return torch.where(rho_t == rho, 1.0, rho / rho_t)


def extrapolate(
    x_0: Images, rho_t: Times, rho: Times, history: History | None, within: Bool[Tensor, " batch"]
) -> tuple[Images, History]:
    """The clean estimate extrapolated with that of the step before, and what to remember of this one.

    First order where there is no step before, where it did not move, at both infinite ends, and where the step does not
    end `within` the levels that the network knows: below them its size says nothing about the estimate's change.
    """
    log_ratio = rho_t.log()
    if history is None:
        return x_0, (x_0, log_ratio)
    before, log_before = history
    weight = extrapolation(log_ratio, rho.log(), log_before, within)
    return x_0 + per_image(weight, x_0) * (x_0 - before), (x_0, log_ratio)


def extrapolation(log_ratio: Times, log_next: Times, log_before: Times, within: Bool[Tensor, " batch"]) -> Times:
    """Half a step ahead in units of the step before; 0 at the ends."""
    weight = ((log_ratio - log_next) / (2 * (log_before - log_ratio))).nan_to_num(nan=0, posinf=0, neginf=0)
    return torch.where(within, weight, 0.0)


SOLVERS: dict[str, Solver] = {
    "local-prior": LocalPrior(),
    "dpm++sde": DPMSolverPPSDE(),
    "ancestral": DDIM(eta=1.0),
    "ddim": DDIM(),
    "dpm++": DPMSolverPP(),
    "heun": Heun(),
}
SOLVER = SOLVERS["local-prior"]
"""The default wherever new images are made; chosen by the distribution of its images (docs/concepts.md)."""


@torch.inference_mode()
def solve(
    denoiser: Denoiser,
    x: Images,
    times: TimeGrid,
    solver: Solver,
    noise: NoiseStream | None = None,
    on_step: OnStep | None = None,
) -> Images:
    """Carry every image along its own row of `times`; a row that repeats a time rests there.

    times: `(batch, steps + 1)`, descending to denoise, ascending to invert.
    noise: for stochastic solvers, one draw a step.
    """
    check_direction(times, solver, noise)
    noise = noise if solver.stochastic else None
    history: History | None = None
    for number, (t, s) in enumerate(pairwise(times.unbind(1)), start=1):
        moved, history = solver.step(denoiser, x, t, s, noise, history)
        x = select(t == s, x, moved) if (t == s).any() else moved
        if on_step:
            on_step(number, x)
    return x


def check_direction(times: TimeGrid, solver: Solver, noise: NoiseStream | None) -> None:
    """Refuse what has no meaning: inversion with a solver that cannot, randomness without a source."""
    if solver.stochastic and noise is None:
        raise UsageError(f"{solver} draws noise at every step: give it a NoiseStream")
    if (times.diff(dim=1) > 0).any() and not solver.invertible:
        raise UsageError(f"{solver} cannot run toward noise: invert with FixedPointDDIM, Heun or DDIM(eta=0)")


@dataclass(frozen=True)
class Sampling:
    """The way between the clean end and a level: solver steps, at least 1, and the solver that takes them."""

    level: Level
    steps: int = STEPS
    solver: Solver = SOLVER

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if not hasattr(self.solver, "step"):
            raise UsageError(f"solver must be a Solver, such as nearfar.DDIM(), got {self.solver!r}")

    def at(self, level: Level) -> Sampling:
        """The same way from another level."""
        return replace(self, level=level)

    def grid(self, schedule: NoiseSchedule, count: int) -> TimeGrid:
        """Times `(count, steps + 1)` from the level of each of `count` images down to the clean end."""
        return schedule.grid(self.level.times(schedule, count), self.steps, WARP)
