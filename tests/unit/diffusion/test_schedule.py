"""Noise schedules against the tables they stand for, and their errors word for word."""

import hashlib
import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from nearfar.diffusion.denoiser import NetworkDenoiser, from_v
from nearfar.diffusion.noise import NoiseStream
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.diffusion.solver import SOLVERS, solve
from nearfar.errors import UsageError

CONFIGS = {
    "ddpm": {"beta_schedule": "linear"},
    "stable diffusion": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "iddpm": {"beta_schedule": "squaredcos_cap_v2"},
    "zero terminal snr": {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
}
ENTRIES = torch.arange(1000, dtype=torch.float64)


def table(name):
    return DDPMScheduler(**CONFIGS[name]).alphas_cumprod


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def ddpm():
    return NoiseSchedule.variance_preserving(table("ddpm"))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_entry_of_a_diffusers_table_is_met(name):
    alpha, sigma = NoiseSchedule.variance_preserving(table(name)).coefficients(ENTRIES)
    # To the angle and back costs two roundings of numbers below 1.
    torch.testing.assert_close(alpha**2, table(name).double(), rtol=0, atol=4e-16)
    torch.testing.assert_close(sigma**2, 1 - table(name).double(), rtol=0, atol=4e-16)


def test_variance_exploding_keeps_the_signal_and_reads_sigma_from_the_table():
    sigmas = torch.logspace(-2, 2, 1000, dtype=torch.float64)
    alpha, sigma = NoiseSchedule.variance_exploding(sigmas).coefficients(ENTRIES)
    assert torch.equal(alpha, torch.ones(1000, dtype=torch.float64))
    assert torch.equal(sigma, sigmas)


def test_flow_mixes_image_and_noise_in_proportion_to_time():
    alpha, sigma = NoiseSchedule.flow(scale=1000.0).coefficients(times(0, 250, 333.3, 1000))
    # A table of 1001 entries joined linearly is the straight line, up to rounding.
    torch.testing.assert_close(alpha, times(1, 0.75, 0.6667, 0), rtol=0, atol=1e-15)
    torch.testing.assert_close(sigma, times(0, 0.25, 0.3333, 1), rtol=0, atol=1e-15)


def test_between_two_entries_the_angle_is_interpolated_linearly(ddpm):
    alpha, sigma = ddpm.coefficients(times(10, 10.25, 11))
    angle = torch.atan2(sigma, alpha)
    assert angle[1].item() == pytest.approx(0.75 * angle[0].item() + 0.25 * angle[2].item(), rel=1e-14)  # rounding


@pytest.mark.parametrize(
    ("schedule", "ends"),
    [
        (NoiseSchedule.variance_preserving(table("ddpm")), (-1, 0, 999)),
        (NoiseSchedule.variance_exploding(torch.linspace(0.01, 50, 1000)), (-1, 0, 999)),
        (NoiseSchedule.flow(scale=1.0), (0, 0.001, 1)),
    ],
    ids=["ddpm", "variance exploding", "flow"],
)
def test_the_clean_end_has_all_of_the_signal_and_no_noise(schedule, ends):
    assert (schedule.clean_time, schedule.first_time, schedule.noisiest_time) == ends
    alpha, sigma = schedule.coefficients(times(schedule.clean_time))
    assert (alpha.item(), sigma.item()) == (1, 0)
    assert schedule.ratio(times(schedule.clean_time)).item() == 0


def test_times_beyond_the_ends_are_the_ends(ddpm):
    assert torch.equal(torch.stack(ddpm.coefficients(times(-5, 2000))), torch.stack(ddpm.coefficients(times(-1, 999))))


def test_strength_is_the_share_of_the_forward_process(ddpm):
    assert ddpm.time_of_strength(times(0, 0.25, 1)).tolist() == [-1, 249, 999]
    assert ddpm.strength_of_time(times(-1, 249, 999)).tolist() == [0, 0.25, 1]


# sigma/alpha of three public schedules half way, to four digits: research/boomerang.md 1.7.
@pytest.mark.parametrize(("name", "sigma"), [("ddpm", 3.424), ("stable diffusion", 1.613), ("iddpm", 1.012)])
def test_one_strength_is_another_noise_level_for_another_model(name, sigma):
    schedule = NoiseSchedule.variance_preserving(table(name))
    assert schedule.ratio(schedule.time_of_strength(times(0.5))).item() == pytest.approx(sigma, abs=0.0005)


def test_time_of_sigma_finds_a_level_between_two_entries(ddpm):
    t = ddpm.time_of_sigma(times(0, 0.5, 1.234, 10))
    assert t[0] == -1
    torch.testing.assert_close(ddpm.ratio(t), times(0, 0.5, 1.234, 10), rtol=1e-12, atol=0)  # tan(atan(x)) in float64


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda s: s.time_of_strength(times(1.4)), "strength must be in [0, 1], got 1.4"),
        (lambda s: s.time_of_strength(times(-0.1)), "strength must be in [0, 1], got -0.1"),
        (lambda s: s.time_of_strength(times(math.nan)), "strength must be in [0, 1], got nan"),
        (lambda s: s.time_of_strength(times(0, 0.5, 7)), "strength must be in [0, 1], got 7 for image 2 of 3"),
        (lambda s: s.time_of_sigma(times(200)), "sigma must be in [0, 157.4], got 200"),
        (lambda s: s.time_of_sigma(times(-1, 1)), "sigma must be in [0, 157.4], got -1 for image 0 of 2"),
        (lambda s: s.grid(times(999), 0), "steps must be at least 1, got 0"),
    ],
)
def test_a_wrong_level_gets_a_sentence(ddpm, call, sentence):
    with pytest.raises(UsageError) as error:
        call(ddpm)
    assert str(error.value) == sentence


def test_the_grid_is_even_unless_warped_toward_the_clean_end(ddpm):
    assert ddpm.grid(times(999, 199), 4).tolist() == [[999, 749, 499, 249, -1], [199, 149, 99, 49, -1]]
    assert ddpm.grid(times(999), 4, warp=2.0).tolist() == [[999, 561.5, 249, 61.5, -1]]  # -1 + 1000 (1 - k/4)^2


def test_the_forward_jump_uses_the_coefficients_of_each_image(ddpm):
    abar = table("ddpm")[[99, 499]].double()
    x_0, noise = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = abar.sqrt()[:, None, None, None] * x_0 + (1 - abar).sqrt()[:, None, None, None] * noise
    # float32 state: two products and a sum of numbers around 1.
    torch.testing.assert_close(ddpm.add_noise(x_0, times(99, 499), noise), expected.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_strength_0_is_the_image_and_strength_1_is_pure_noise(name):
    schedule = NoiseSchedule.variance_preserving(table(name))
    x_0, noise = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    noisy = schedule.add_noise(x_0, schedule.time_of_strength(times(0, 1)), noise)
    assert torch.equal(noisy[0], x_0[0])
    _, sigma = schedule.coefficients(times(999))
    assert torch.equal(noisy[1], sigma.float() * noise[1])


@pytest.mark.parametrize("name", SOLVERS)
def test_zero_terminal_snr_starts_without_signal_and_stays_finite(name):
    schedule = NoiseSchedule.variance_preserving(table("zero terminal snr"))
    start = schedule.time_of_strength(times(1, 0.5))
    assert schedule.coefficients(start)[0][0].item() == pytest.approx(0, abs=1e-16)  # cos(pi / 2) in float64

    def white(x_t, t):  # standard normal data: x_0 = alpha x_t and eps = sigma x_t, so v = alpha eps - sigma x_0 = 0
        return torch.zeros_like(x_t)

    stream = NoiseStream([bytes(16), bytes(15) + b"1"], (1, 32, 32))
    denoiser = NetworkDenoiser(white, schedule, from_v)
    out = solve(denoiser, stream.draw(), schedule.grid(start, 20), SOLVERS[name], stream)
    assert out.abs().max() < 6  # 2048 standard normals stay below 6 but once in 200,000; NaN fails too


def test_the_digest_is_the_hash_of_path_times_and_levels():
    sigmas = [0.5, 2.0]  # exact in binary, so that the bytes can be written down
    table = np.array([[-1, 0, 1], [0, *sigmas]], dtype="<f8")
    expected = hashlib.sha256(b"variance exploding" + table.tobytes()).hexdigest()
    assert NoiseSchedule.variance_exploding(times(*sigmas)).digest() == expected


def test_the_digest_changes_with_any_entry_and_with_the_path():
    sigmas = torch.linspace(0.01, 1, 10, dtype=torch.float64)
    changed = sigmas.clone()
    changed[3] = np.nextafter(sigmas[3].item(), 1)
    exploding = NoiseSchedule.variance_exploding(sigmas)
    other_path = NoiseSchedule(exploding.times, exploding.levels, NoiseSchedule.flow().path)
    others = [
        NoiseSchedule.variance_exploding(changed),
        other_path,
        NoiseSchedule.flow(1.0),
        NoiseSchedule.flow(1000.0),
    ]
    assert len({schedule.digest() for schedule in [exploding, *others]}) == 5
    assert NoiseSchedule.variance_exploding(sigmas.clone()).digest() == exploding.digest()
