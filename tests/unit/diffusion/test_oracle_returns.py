"""Noise Gaussian data to some strength and bring it back: mean and variance must be the closed forms.

`oracle` has the exact denoiser and the forms (derivation: research/boomerang.md 1.9). With it every solver is
affine in the image and in each draw, so the moments of its output can be had without any sampling: `Impulses` lets
pixel k hear draw k alone and another pixel nothing at all. What the silent pixel returns is the mean; the squares of
what the others return beyond it add up to the variance. A second test samples, with the noise that users get.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jaxtyping
import pytest
import torch

from nearfar.diffusion.noise import NoiseStream
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.diffusion.solver import SOLVERS, DPMSolverPPSDE, decay, solve
from oracle import GaussianDenoiser, profile_of_channels

STRENGTHS = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 1.0], dtype=torch.float64)  # one batch, one image each
# One Gaussian for each of four channels: standard deviations from 0.3 to 1.7 of a scale where images span [-1, 1].
MEAN = torch.tensor([0.3, -0.5, 0.1, -0.1], dtype=torch.float64)[None, :, None, None]
VARIANCE = torch.tensor([0.1, 0.3, 1.0, 3.0], dtype=torch.float64)[None, :, None, None]
PROFILE = profile_of_channels(VARIANCE, 32)
INPUT = MEAN + 1.5 * VARIANCE.sqrt()  # off the mean, so that the share that survives shows in the mean


def cosine():
    """The table of Nichol and Dhariwal, arXiv 2102.09672: its terminal signal is 5e-5."""
    share = torch.linspace(0, 1, 1001, dtype=torch.float64)
    signal = torch.cos((share + 0.008) / 1.008 * torch.pi / 2) ** 2
    return torch.cumprod(1 - (1 - signal[1:] / signal[:-1]).clamp(max=0.999), 0)


SCHEDULES = {
    "linear": NoiseSchedule.variance_preserving(
        torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    ),
    "cosine": NoiseSchedule.variance_preserving(cosine()),
    "flow": NoiseSchedule.flow(),
    "variance exploding": NoiseSchedule.variance_exploding(torch.logspace(-2, 1.7, 1000, dtype=torch.float64)),
}

# Steps and warp of the grid, so that discretization stays below 2 % of every variance at every strength. The error of
# a first-order solver falls as 1/N, that of the others as 1/N^2; the warp puts steps where the narrow Gaussian is made.
GRIDS = {
    "ddim": (300, 1.5),
    "ancestral": (650, 1.8),
    "heun": (60, 1.5),
    "dpm++": (60, 1.5),
    "dpm++sde": (100, 2.5),
    "local-prior": (20, 2.0),
}
EXCEPTIONS = {
    # Sigma grows by 0.9 % an entry but by all of it below the first, and the 2M rule extrapolates over that bend.
    ("dpm++sde", "variance exploding"): (200, 2.5),
}

each_solver = pytest.mark.parametrize("solver", SOLVERS)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def grid_of(solver, schedule, start):
    return SCHEDULES[schedule].grid(start, *EXCEPTIONS.get((solver, schedule), GRIDS[solver]))


def expected_return(solver, denoiser, start, shape):
    """Mean and variance by the closed form. Strength 1 leaves the input out, as if it were 0."""
    x_0 = INPUT.expand(shape) * (start < denoiser.schedule.noisiest_time)[:, None, None, None]
    form = denoiser.stochastic_return if solver.stochastic else denoiser.deterministic_return
    return form(x_0, start)


@pytest.fixture(autouse=True)
def shapes_are_checked_elsewhere(monkeypatch):
    """Ten thousand steps on small arrays: checking shapes would take two thirds of the time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


# Exact moments


class Impulses(NoiseStream):
    """Not noise: draw k is 1 in pixel k and 0 elsewhere."""

    def __init__(self, count):
        self.remaining = iter(torch.eye(count, dtype=torch.float64)[:, None, None, :, None])

    def draw(self):
        return next(self.remaining)


def exact_return(solver, denoiser, grid):
    """Mean and variance of the output, (strength, channel, 1, 1), without sampling error."""
    draws = grid.shape[1] if solver.stochastic else 1  # one for the forward jump, one for each step
    shape = (len(grid), 4, draws + 1, 1)
    impulses = Impulses(draws + 1)
    noisy = denoiser.schedule.add_noise(INPUT.expand(shape), grid[:, 0], impulses.draw().expand(shape))
    out = solve(denoiser, noisy, grid, solver, impulses)
    silent = out[:, :, -1:]
    return silent, ((out - silent) ** 2).sum(2, keepdim=True)


def check_exact_return(name, schedule, solver=None, wrap=lambda denoiser: denoiser):
    """Every mean within 2 % of a standard deviation of the data, every variance within 2 %."""
    solver = solver or SOLVERS[name]
    denoiser = GaussianDenoiser(SCHEDULES[schedule], MEAN, VARIANCE, PROFILE)
    start = denoiser.schedule.time_of_strength(STRENGTHS)
    mean, variance = exact_return(solver, wrap(denoiser), grid_of(name, schedule, start))
    expected_mean, expected_variance = expected_return(solver, denoiser, start, mean.shape)
    assert ((mean - expected_mean) / VARIANCE.sqrt()).abs().max() < 0.02
    assert (variance / expected_variance - 1).abs().max() < 0.02


@each_schedule
@each_solver
def test_mean_and_variance_of_a_return_are_the_closed_forms(solver, schedule):
    check_exact_return(solver, schedule)


# Sampled moments


def samples(solver, schedule, stream):
    """z-scores of 4096 pixels for each strength: standard normal if, and only if, the closed forms hold."""
    denoiser = GaussianDenoiser(SCHEDULES[schedule], MEAN.float(), VARIANCE.float(), PROFILE)
    start = denoiser.schedule.time_of_strength(STRENGTHS)
    shape = (len(STRENGTHS), 4, 32, 32)
    noisy = denoiser.schedule.add_noise(INPUT.float().expand(shape), start, stream.draw())
    out = solve(denoiser, noisy, grid_of(solver, schedule, start), SOLVERS[solver], stream)
    mean, variance = expected_return(SOLVERS[solver], denoiser, start, shape)
    return ((out - mean) / variance.sqrt()).double().flatten(1)


def check_samples(z):
    """Pooled over the batch: within three standard errors and within 2 %.

    Each strength alone is held to four standard errors: with 60 such comparisons three would fail by chance in every
    seventh run with another seed, four in one of 260.
    """
    for values, errors in ((z.reshape(1, -1), 3), (z, 4)):
        count = values.shape[1]
        assert values.mean(1).abs().max() < errors / count**0.5
        assert (values.var(1) - 1).abs().max() < errors * (2 / count) ** 0.5
    assert abs(z.mean()) < 0.02
    assert abs(z.var() - 1) < 0.02


def stream(start=1):
    return NoiseStream([(start + image).to_bytes(16, "little") for image in range(len(STRENGTHS))], (4, 32, 32))


@each_solver
def test_sampled_returns_have_the_closed_mean_and_variance(solver):
    check_samples(samples(solver, "linear", stream()))


# Strength 1


@each_schedule
@each_solver
def test_at_strength_1_the_output_does_not_depend_on_the_input_at_all(solver, schedule):
    denoiser = GaussianDenoiser(SCHEDULES[schedule], MEAN.float(), VARIANCE.float(), PROFILE)
    start = denoiser.schedule.time_of_strength(torch.ones(6, dtype=torch.float64))

    def local_sample(x):
        noise = stream()
        noisy = denoiser.schedule.add_noise(x, start, noise.draw())
        return solve(denoiser, noisy, denoiser.schedule.grid(start, 5), SOLVERS[solver], noise)

    black, bright = torch.full((6, 4, 32, 32), -1.0), torch.full((6, 4, 32, 32), 1000.0)
    assert torch.equal(local_sample(black), local_sample(bright))


# What the checks must see


@dataclass(frozen=True)
class Noisy:
    """SDE-DPM-Solver++ with the coefficient of its fresh noise replaced; `right` is sigma sqrt(1 - (rho_s/rho_t)^2)."""

    coefficient: Callable
    stochastic: ClassVar[bool] = True
    invertible: ClassVar[bool] = False
    order: ClassVar[int] = 2

    def calls(self, steps):
        return steps

    def step(self, denoiser, x, t, s, noise, history):
        _, sigma = denoiser.schedule.coefficients(s)
        ratio = denoiser.schedule.ratio
        right = sigma * (1 - decay(ratio(t), ratio(s)) ** 2).sqrt()
        mean, history = DPMSolverPPSDE().step(denoiser, x, t, s, None, history)
        return mean + self.coefficient(right, sigma)[:, None, None, None] * noise.draw(), history


COEFFICIENTS = {
    "square root removed": lambda right, sigma: right**2 / sigma.clamp(min=1e-9),
    "variance for standard deviation": lambda right, sigma: right**2,
    "all of the next level": lambda right, sigma: sigma,
    "no fresh noise": lambda right, sigma: 0 * right,
    "3 % too much": lambda right, sigma: 1.03 * right,
}


def test_the_frame_of_the_mutants_is_sound():
    check_exact_return("dpm++sde", "linear", Noisy(lambda right, sigma: right))


@pytest.mark.parametrize("mutant", COEFFICIENTS)
def test_the_check_sees_wrong_noise(mutant):
    with pytest.raises(AssertionError):
        check_exact_return("dpm++sde", "linear", Noisy(COEFFICIENTS[mutant]))


@dataclass(frozen=True)
class Asked:
    """A denoiser that is asked wrongly or heard wrongly."""

    right: GaussianDenoiser
    ask: Callable = lambda x, t: (x, t)
    hear: Callable = lambda x_0: x_0

    @property
    def schedule(self):
        return self.right.schedule

    def __call__(self, x_t, t):
        return self.hear(self.right(*self.ask(x_t, t)))


DENOISERS = {
    "asked five times too late": {"ask": lambda x, t: (x, t + 5)},
    "asked five times too early": {"ask": lambda x, t: (x, (t - 5).clamp(min=0))},
    "rows of times swapped": {"ask": lambda x, t: (x, t.flip(0))},
    "state not scaled": {"ask": lambda x, t: (0.97 * x, t)},
    "images clipped": {"hear": lambda x_0: x_0.clamp(-1, 1)},
}


@pytest.mark.parametrize("mutant", DENOISERS)
def test_the_check_sees_a_network_that_is_used_wrongly(mutant):
    with pytest.raises(AssertionError):
        check_exact_return("dpm++", "linear", wrap=lambda denoiser: Asked(denoiser, **DENOISERS[mutant]))


class Repeating(NoiseStream):
    """The same noise at every step, as from a generator that is seeded anew."""

    def draw(self):
        return stream().draw()


class Weak(NoiseStream):
    """Noise of 97 % of the size, from the same keys."""

    def __init__(self, right):
        self.right = right

    def draw(self):
        return 0.97 * self.right.draw()


@pytest.mark.parametrize("mutant", [Repeating([], ()), Weak(stream())], ids=["repeating", "weak"])
def test_the_sampled_check_sees_wrong_noise(mutant):
    with pytest.raises(AssertionError):
        check_samples(samples("dpm++sde", "linear", mutant))
