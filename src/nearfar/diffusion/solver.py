"""Denoisers (a frozen network as a prediction of the clean image), solvers (one move on the time axis), and the loop.

A solver is a frozen value with a pure `step`. Times are one value per image, so images of different strengths share a
batch. Coefficients are computed in float64, the state stays in its own dtype. With `rho = sigma / alpha`:

    DDIM              x_s = alpha_s x_0 + sqrt(sigma_s^2 - c^2) eps + c z,   c = eta sigma_s sqrt(1 - (rho_s / rho_t)^2)
    ... fixed point   the same DDIM step, solved for x_t
    Heun              trapezium rule for dx = x_0 d(alpha) + eps d(sigma)
    DPM-Solver++ 2M   x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - rho_s / rho_t) D,   D extrapolated from two x_0
    ... SDE           the same with (rho_s / rho_t)^2 and fresh noise
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from nearfar.diffusion.noise import NoiseStream
from nearfar.diffusion.schedule import WARP, Level, NoiseSchedule, check_steps
from nearfar.errors import UsageError
from nearfar.tensors import Images, TimeGrid, Times, per_image, select, sent

Network = Callable[[Tensor, Tensor], Tensor]
"""(noisy (batch, channel, height, width), time (batch,)) -> output, in the network's own dtype."""

Inputs = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x_t, time (batch,), sigma (batch,)) -> what the network is handed as its image and its time."""

Prediction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(output, x_t, alpha, sigma) -> x_0."""


@runtime_checkable
class Denoiser(Protocol):
    """`(x_t, t) -> x_0`: the expected clean latents of noisy ones, one time per image."""

    @property
    def schedule(self) -> NoiseSchedule: ...
    def __call__(self, x_t: Images, t: Times) -> Images: ...


def as_they_are(x_t: Tensor, t: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The network takes the noisy image and its time."""
    return x_t, t


def rescaled_time(x_t: Tensor, t: Tensor, sigma: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """The network counts its times in other units (`rescale_timesteps` of improved DDPM, arXiv 2102.09672)."""
    return x_t, t * factor


def sigma_as_time(x_t: Tensor, t: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The network is told the noise level itself (Song et al., arXiv 2011.13456)."""
    return x_t, sigma


def edm_inputs(x_t: Tensor, t: Tensor, sigma: Tensor, data: float) -> tuple[Tensor, Tensor]:
    """Unit variance in, a quarter of log sigma as time; data: standard deviation (arXiv 2206.00364, table 1)."""
    return x_t / per_image((sigma**2 + data**2).sqrt(), x_t), sigma.log() / 4


def from_epsilon(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The network predicts the noise (Ho et al., arXiv 2006.11239)."""
    return (x_t - sigma * output) / alpha


def from_sample(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The network predicts the clean image."""
    return output


def from_v(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The network predicts `v = alpha eps - sigma x_0` (Salimans and Ho, arXiv 2202.00512)."""
    return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)


def from_flow(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The network predicts the velocity `eps - x_0` (Liu et al., arXiv 2209.03003)."""
    return (x_t - sigma * output) / (alpha + sigma)


def from_score(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The network predicts the score, `-eps / sigma` (Song et al., arXiv 2011.13456)."""
    return (x_t + sigma**2 * output) / alpha


def from_edm(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, data: float, sign: int = 1) -> Tensor:
    """The network predicts what a skip connection lacks (Karras et al., arXiv 2206.00364, formula 7)."""
    variance = sigma**2 + data**2
    return data**2 / variance * x_t + sign * sigma * data / variance.sqrt() * output


PREDICTIONS: dict[str, Prediction] = {
    "epsilon": from_epsilon,
    "sample": from_sample,
    "v_prediction": from_v,
    "flow_prediction": from_flow,
}


@dataclass(frozen=True)
class NetworkDenoiser:
    """A network with its schedule and its kind of prediction. One network call per use.

    inputs: what the network is handed. The network runs in `dtype`, the rest in the state's dtype. Extra output
    channels (learned variance) are dropped.
    """

    network: Network = field(repr=False)
    schedule: NoiseSchedule
    prediction: Prediction = from_epsilon
    dtype: torch.dtype = torch.float32
    inputs: Inputs = as_they_are

    def __call__(self, x_t: Images, t: Times) -> Images:
        alpha, sigma = self.schedule.coefficients(t)
        x, time = self.inputs(x_t, t, sigma)
        output = self.network(x.to(self.dtype), sent(time, x_t.device, torch.float32))
        output = output[:, : x_t.shape[1]].to(x_t.dtype)
        return self.prediction(output, x_t, per_image(alpha, x_t), per_image(sigma, x_t))


def predict(denoiser: Denoiser, x_t: Images, t: Times) -> tuple[Images, Images]:
    """Clean image and noise that `x_t` is made of: `x_t = alpha x_0 + sigma eps` holds exactly. One network call.

    A network knows no level cleaner than the schedule's first, so below it the noise is asked for at that level:
    at the clean end the image itself is `x_0` and the noise says where an inversion should go.
    """
    schedule = denoiser.schedule
    asked = t.clamp(min=schedule.first_time)
    alpha, sigma = (per_image(c, x_t) for c in schedule.coefficients(asked))
    x_0 = denoiser(x_t, asked)
    noise = (x_t - alpha * x_0) / sigma
    if not (t < asked).any():
        return x_0, noise
    alpha, sigma = (per_image(c, x_t) for c in schedule.coefficients(t))
    return select(t < asked, (x_t - sigma * noise) / alpha, x_0), noise


def clean_image(denoiser: Denoiser, x_t: Images, t: Times) -> Images:
    """The clean image alone, `predict` without its noise. One network call."""
    return predict(denoiser, x_t, t)[0] if (t < denoiser.schedule.first_time).any() else denoiser(x_t, t)


STEPS = 20

OnStep = Callable[[int, Images], None]
"""Called after each solver step with `(step, state)`; steps count from 1."""

History = tuple[Images, Times]
"""What a multistep solver remembers of the step before: the clean estimate and its log noise-to-signal ratio."""


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
    weight = ((log_ratio - rho.log()) / (2 * (log_before - log_ratio))).nan_to_num(nan=0, posinf=0, neginf=0)
    return x_0 + per_image(torch.where(within, weight, 0.0), x_0) * (x_0 - before), (x_0, log_ratio)


SOLVERS: dict[str, Solver] = {
    "ddim": DDIM(),
    "ancestral": DDIM(eta=1.0),
    "heun": Heun(),
    "dpm++": DPMSolverPP(),
    "dpm++sde": DPMSolverPPSDE(),
}
SOLVER = SOLVERS["dpm++sde"]
"""The default wherever new images are made."""


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
