"""The pull of a domain where the model is itself a Gaussian, so that the pulled way has closed forms."""

import jaxtyping
import pytest
import torch

from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.diffusion.solver import DDIM, DPMSolverPPSDE, Heun, solve
from nearfar.domain.domain import Gaussian, Pulled, pulled
from nearfar.latents.covariance import Diagonal, Structured, posterior_mean
from oracle import GaussianDenoiser

SHAPE = (2, 3, 4)
SCHEDULES = {
    "variance preserving": NoiseSchedule.variance_preserving(
        torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    ),
    "flow": NoiseSchedule.flow(),
    "variance exploding": NoiseSchedule.variance_exploding(torch.logspace(-2.7, 1.7, 1000, dtype=torch.float64)),
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def noise(count, seed=0):
    return torch.randn(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(mean, least, most):
    """Independent numbers whose variances differ."""
    variance = torch.linspace(least, most, SHAPE[0] * SHAPE[1] * SHAPE[2], dtype=torch.float64).view(SHAPE)
    return Gaussian(torch.full(SHAPE, mean, dtype=torch.float64), Diagonal(variance, 0.0))


OWN, DOMAIN = gaussian(-0.2, 0.3, 0.1), gaussian(0.4, 0.02, 0.2)


def denoiser_of(schedule, law):
    return GaussianDenoiser(schedule, law.mean, law.covariance.variance)


def mixed_levels(schedule, count=6):
    return schedule.time_of_strength(torch.linspace(0.05, 0.95, count, dtype=torch.float64))


@pytest.fixture(autouse=True)
def shapes_are_checked_elsewhere(monkeypatch):
    """Thousands of steps on small arrays: checking shapes would take most of the time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@each_schedule
def test_of_a_model_that_is_its_own_gaussian_weight_one_makes_the_domains_exact_denoiser(schedule):
    found = Pulled(denoiser_of(schedule, OWN), DOMAIN, OWN, 1.0)
    x, t = 2 * noise(6), mixed_levels(schedule)
    torch.testing.assert_close(found(x, t), denoiser_of(schedule, DOMAIN)(x, t), rtol=0, atol=1e-12)
    assert found.schedule is schedule


@each_schedule
def test_weights_between_go_a_part_of_the_way(schedule):
    model, x, t = denoiser_of(schedule, OWN), noise(6), mixed_levels(schedule)
    there = denoiser_of(schedule, DOMAIN)(x, t)
    for weight in (0.25, 0.6):
        found = Pulled(model, DOMAIN, OWN, weight)(x, t)
        torch.testing.assert_close(found, torch.lerp(model(x, t), there, weight), rtol=0, atol=1e-12)


def test_another_model_keeps_what_it_knows_beyond_its_gaussian():
    """The correction does not depend on the model, only on the level and the state."""
    schedule, x = SCHEDULES["flow"], noise(6)
    t, other = mixed_levels(schedule), lambda x, t: x.sin()
    other_denoiser = Plain(schedule, other)
    correction = Pulled(denoiser_of(schedule, OWN), DOMAIN, OWN, 0.5)(x, t) - denoiser_of(schedule, OWN)(x, t)
    found = Pulled(other_denoiser, DOMAIN, OWN, 0.5)(x, t) - x.sin()
    torch.testing.assert_close(found, correction, rtol=0, atol=1e-12)
    assert correction.abs().max() > 0.05


class Plain:
    """A denoiser of a function."""

    def __init__(self, schedule, function):
        self.schedule, self.function = schedule, function

    def __call__(self, x, t):
        return self.function(x, t)


@each_schedule
def test_images_of_a_batch_at_different_levels_do_not_meet(schedule):
    found = Pulled(denoiser_of(schedule, OWN), DOMAIN, OWN, 0.7)
    x, t = noise(6), mixed_levels(schedule)
    alone = torch.cat([found(x[n : n + 1], t[n : n + 1]) for n in range(6)])
    torch.testing.assert_close(found(x, t), alone, rtol=0, atol=1e-13)


def test_weight_zero_is_the_model_itself():
    model = denoiser_of(SCHEDULES["flow"], OWN)
    assert pulled(model, DOMAIN, OWN, 0.0) is model
    assert isinstance(pulled(model, DOMAIN, OWN, 0.3), Pulled)


def sampled(schedule, count, solver, steps):
    """From pure noise at strength 1 to clean, the model pulled in full. Noise in pairs of opposite sign."""
    half = noise(count // 2, seed=3)
    start = torch.full((count,), schedule.noisiest_time, dtype=torch.float64)
    noisy = schedule.add_noise(torch.zeros(count, *SHAPE, dtype=torch.float64), start, torch.cat([half, -half]))
    found = Pulled(denoiser_of(schedule, OWN), DOMAIN, OWN, 1.0)
    stream = Normal(count) if solver.stochastic else None
    return solve(found, noisy, schedule.grid(start, steps, 2.0), solver, stream)


class Normal:
    """Noise in pairs of opposite sign."""

    def __init__(self, count):
        self.half, self.generator = count // 2, torch.Generator().manual_seed(11)

    def draw(self):
        drawn = torch.randn(self.half, *SHAPE, dtype=torch.float64, generator=self.generator)
        return torch.cat([drawn, -drawn])


@each_schedule
@pytest.mark.parametrize(("solver", "steps"), [(DDIM(), 400), (Heun(), 60)], ids=["ddim", "heun"])
def test_from_pure_noise_the_deterministic_way_leads_to_the_domain(schedule, solver, steps):
    """Everything is linear: each number's output is the mean plus its noise times the root of its variance."""
    drawn = sampled(schedule, 40, solver, steps)
    half = noise(20, seed=3)
    torch.testing.assert_close(drawn.mean(0), DOMAIN.mean, rtol=0, atol=0.02)
    slope = ((drawn[:20] - drawn[20:]) / 2 * half).mean(0) / half.square().mean(0)
    assert (slope / DOMAIN.covariance.variance.sqrt() - 1).abs().max() < 0.02


@each_schedule
def test_from_pure_noise_the_stochastic_way_leads_to_the_domain(schedule):
    drawn = sampled(schedule, 6000, DPMSolverPPSDE(), 100)
    torch.testing.assert_close(drawn.mean(0), DOMAIN.mean, rtol=0, atol=0.02)  # pairs cancel
    # 3000 independent draws: the deviation of a variance is sqrt(2/3000) = 2.6 % of it, and 24 of them are looked at.
    assert (drawn.var(0) / DOMAIN.covariance.variance - 1).abs().max() < 4 * 0.026


def test_a_gaussian_is_fitted_by_mean_and_structured_covariance():
    latents = (0.3 + noise(50)).float()
    found = Gaussian.fit(latents)
    assert found.mean.dtype == torch.float32
    torch.testing.assert_close(found.mean, latents.double().mean(0).float())
    exact = Structured.fit(latents)
    x, levels = noise(2).float(), torch.tensor([0.5, 0.9], dtype=torch.float64)
    expected = posterior_mean(found.mean, exact, x, levels, levels)
    torch.testing.assert_close(posterior_mean(found.mean, found.covariance, x, levels, levels), expected)
