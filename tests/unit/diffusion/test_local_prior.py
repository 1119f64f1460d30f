"""The local prior: exact for Gaussians of any spectrum and schedule, orthonormal, and its profile measured."""

from dataclasses import dataclass

import pytest
import torch

from nearfar.diffusion.local_prior import Profile, frequencies, states_of
from nearfar.diffusion.noise import NoiseStream
from nearfar.diffusion.profiling import measured
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.diffusion.solver import SOLVERS, DPMSolverPPSDE, LocalPrior, profile_of, solve, used
from nearfar.models.model import PatchSpace
from oracle import GaussianDenoiser, profile_of_channels


def cosine():
    """The table of Nichol and Dhariwal, arXiv 2102.09672."""
    share = torch.linspace(0, 1, 1001, dtype=torch.float64)
    signal = torch.cos((share + 0.008) / 1.008 * torch.pi / 2) ** 2
    return torch.cumprod(1 - (1 - signal[1:] / signal[:-1]).clamp(max=0.999), 0)


LINEAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
SCHEDULES = {
    "linear": NoiseSchedule.variance_preserving(LINEAR),
    "cosine": NoiseSchedule.variance_preserving(cosine()),
    "flow": NoiseSchedule.flow(),
    "variance exploding": NoiseSchedule.variance_exploding(torch.logspace(-2, 1.7, 1000, dtype=torch.float64)),
}
STRENGTHS = torch.tensor([0.1, 0.2, 0.35, 0.5, 0.7, 1.0], dtype=torch.float64)
SIDE, CHANNELS = 8, 3
RATIOS = torch.tensor([0.01, 100.0], dtype=torch.float64)


def profile(side=SIDE, factor=1, channels=CHANNELS):
    """Eigenvalues from 100 in the lowest band to 0.003 in the highest, other ones in each of oblique directions."""
    directions, _ = torch.linalg.qr(
        torch.randn(channels, channels, generator=torch.Generator().manual_seed(0)).double()
    )
    bands = torch.logspace(2, -2.5, 12, dtype=torch.float64)
    scale = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)[:channels]
    variance = (scale[:, None] * bands).clamp(min=0.003)
    return Profile(RATIOS, variance.expand(2, -1, -1).contiguous(), directions, side, factor)


@dataclass(frozen=True)
class SpectralDenoiser:
    """The exact denoiser of Gaussian images without a mean, whose variances are those of a profile."""

    schedule: NoiseSchedule
    profile: Profile

    def __call__(self, x_t, t):
        alpha, sigma = (c[:, None, None, None] for c in self.schedule.coefficients(t))
        spectrum = frequencies(x_t, self.profile)
        variance = self.profile.spread(self.profile.variance[:1], spectrum)
        return states_of(spectrum * alpha * variance / (alpha**2 * variance + sigma**2), self.profile)


class Impulses(NoiseStream):
    """Not noise: draw k is the basis image of one frequency in image k, and nothing in the others."""

    def __init__(self, count, shape, place):
        self.count, self.shape, self.place, self.drawn = count, shape, place, 0

    def draw(self):
        noise = torch.zeros(self.count, *self.shape, dtype=torch.float64)
        noise[self.drawn] = self.place
        self.drawn += 1
        return noise


def moments(denoiser, strength, steps, place):
    """Share of the original that returns, and variance of the return, of one frequency; without sampling."""
    count, shape = steps + 2, place.shape
    start = denoiser.schedule.time_of_strength(strength.expand(count))
    grid, impulses = denoiser.schedule.grid(start, steps, 2.0), Impulses(count, shape, place)
    original = torch.zeros(count, *shape, dtype=torch.float64)
    original[-1] = place  # this image hears no noise
    noisy = denoiser.schedule.add_noise(original, start, impulses.draw())
    heard = (solve(denoiser, noisy, grid, LocalPrior(), impulses) * place).sum((1, 2, 3))
    return heard[-1], heard[:-1].square().sum()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("strength", STRENGTHS.tolist())
@pytest.mark.parametrize("band", [(0, 0), (1, 2), (7, 7)])
def test_twenty_calls_return_gaussians_with_their_variance_and_no_more_of_the_original(schedule, strength, band):
    known = profile()
    denoiser = SpectralDenoiser(SCHEDULES[schedule], known)
    spectrum = torch.zeros(1, CHANNELS, SIDE, SIDE, dtype=torch.float64)
    spectrum[0, 1, band[0], band[1]] = 1
    place = states_of(spectrum, known)[0]
    share, variance = moments(denoiser, torch.tensor([strength], dtype=torch.float64), 20, place)
    truth = known.spread(known.variance[:1], spectrum)[0, 1, band[0], band[1]]
    rho = denoiser.schedule.ratio(denoiser.schedule.time_of_strength(torch.tensor([strength], dtype=torch.float64)))
    retention = truth / (truth + rho**2) if strength < 1 else torch.zeros(1)
    assert abs(share - retention) < 1e-3
    assert abs(variance / (truth * (1 - retention**2)) - 1) < 0.02


def test_frequencies_keep_distances_and_come_back():
    states = torch.randn(2, 12, 4, 6, dtype=torch.float64)
    known = profile(factor=2)
    spectrum = frequencies(states, known)
    assert spectrum.shape == (2, 3, 8, 12)
    assert torch.allclose(spectrum.norm(), states.norm())
    assert torch.allclose(states_of(spectrum, known), states)


def test_patches_are_those_of_the_patched_latent_space():
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    pixels, patches = profile(), profile(factor=2)
    assert torch.allclose(frequencies(PatchSpace(2).encode(images), patches), frequencies(images, pixels))


def test_a_larger_canvas_has_the_bands_of_its_frequencies():
    known = profile()
    small, large = (known.spread(known.variance[:1], torch.zeros(1, 3, n, n)) for n in (8, 16))
    assert torch.equal(small[..., :4, :4], large[..., :8:2, :8:2])


def test_without_a_profile_the_step_is_that_of_dpm_sde():
    denoiser = GaussianDenoiser(SCHEDULES["linear"], torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1))
    start = denoiser.schedule.time_of_strength(torch.full((2,), 0.5, dtype=torch.float64))
    grid = denoiser.schedule.grid(start, 5)
    outputs = [
        solve(denoiser, torch.ones(2, 3, 4, 4), grid, solver, NoiseStream([b"a" * 16, b"b" * 16], (3, 4, 4)))
        for solver in (LocalPrior(), DPMSolverPPSDE())
    ]
    assert profile_of(denoiser) is None
    assert used(LocalPrior(), denoiser) == DPMSolverPPSDE()
    assert torch.equal(*outputs)


def test_a_row_does_not_depend_on_the_others_of_its_batch():
    denoiser = SpectralDenoiser(SCHEDULES["linear"], profile())
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    keys = [bytes([n]) * 16 for n in range(4)]

    def outputs(order):
        start = denoiser.schedule.time_of_strength(torch.tensor([0.2, 0.4, 0.6, 1.0], dtype=torch.float64)[order])
        noise = NoiseStream([keys[n] for n in order], (3, 8, 8))
        return solve(denoiser, x[order], denoiser.schedule.grid(start, 4), LocalPrior(), noise)

    assert torch.equal(outputs([0, 1, 2, 3])[1], outputs([3, 1, 1, 0])[1])


def test_the_local_prior_is_used_where_a_profile_is_known():
    denoiser = SpectralDenoiser(SCHEDULES["flow"], profile())
    assert used(SOLVERS["local-prior"], denoiser) == LocalPrior()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_measured_profile_knows_what_a_gaussian_denoiser_does_not(schedule):
    known = profile()
    denoiser = SpectralDenoiser(SCHEDULES[schedule], known)
    white = torch.randn(256, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    clean = states_of(white * known.spread(known.variance[:1], white).sqrt(), known)
    found = measured(denoiser, clean, 1, batch_size=128)
    rho = torch.tensor([0.05, 0.3, 1.0, 3.0], dtype=torch.float64)
    expected = known.unknown(rho)[:, :, 1:11].sum(1)  # in all directions: near equal ones may be turned
    assert (found.unknown(rho)[:, :, 1:11].sum(1) / expected - 1).abs().max() < 0.25
    assert (found.unknown(rho)[:, :, 1:11].sum(1) / expected - 1).mean().abs() < 0.05


def test_digests_differ_with_the_numbers():
    one, other = (profile_of_channels(torch.tensor([value]), 8) for value in (1.0, 2.0))
    assert one.digest() != other.digest()
    assert one.digest() == profile_of_channels(torch.tensor([1.0]), 8).digest()
