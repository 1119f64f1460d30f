"""The closed forms of a return behind a latent space: Gaussian latents, pictures in and out, through the public calls.

As in test_oracle_returns the moments are had without sampling: everything is affine in the picture and in each draw,
so `Impulses` lets one place of the latents hear one draw in one channel, and the last place nothing at all. Here that
place is a patch of pixels, and every latent channel reaches several of them.
"""

from dataclasses import dataclass

import jaxtyping
import pytest
import torch

from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.diffusion.solver import DDIM, SOLVERS, Heun
from nearfar.models.model import FrozenModel, LatentSpace, PatchSpace, Provenance
from nearfar.sampling import local_sampling
from nearfar.sampling.inversion import denoise, invert, reconstruct
from nearfar.sampling.local_sampling import local_sample
from nearfar.tensors import ImageContract
from oracle import GaussianDenoiser

STRENGTHS = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 1.0], dtype=torch.float64)
SCHEDULES = {
    "variance preserving": NoiseSchedule.variance_preserving(
        torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    ),
    "flow": NoiseSchedule.flow(),
    "variance exploding": NoiseSchedule.variance_exploding(torch.logspace(-2.7, 1.7, 1000, dtype=torch.float64)),
}
SIDE = 2  # pixels along a patch


# Two spaces, each with its matrix: pixel = matrix @ latent + offset within a patch, pixels in the order of `patches`


def patches(pictures):
    """(batch, place, color * row * column): the pixels that belong to one place of the latents."""
    batch, colors, height, width = pictures.shape
    cells = pictures.reshape(batch, colors, height // SIDE, SIDE, width // SIDE, SIDE)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, colors * SIDE**2)


def pictures_of(cells, colors, side):
    """The inverse of `patches`."""
    cells = cells.reshape(len(cells), side, side, colors, SIDE, SIDE)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(len(cells), colors, side * SIDE, side * SIDE)


@dataclass(frozen=True, eq=False)
class AffineSpace:
    """A linear autoencoder: latents are an orthogonal mixture of a patch's gray pixels, scaled and shifted."""

    mixture: torch.Tensor
    scaling: float = 2.5
    shift: float = 0.2
    factor: int = SIDE
    span: float = float("inf")

    def encode(self, images, noise=None):
        mixed = patches(images).to(self.mixture) @ self.mixture.T
        return self.scaling * (self.in_place(mixed, images.shape[-1] // SIDE) - self.shift)

    def decode(self, latents):
        mixed = (latents / self.scaling + self.shift).flatten(2).transpose(1, 2)
        return pictures_of(mixed.to(self.mixture) @ self.mixture, 1, latents.shape[-1])

    def in_place(self, cells, side):
        return cells.transpose(1, 2).reshape(len(cells), -1, side, side)


MIXTURE = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.manual_seed(0)))[0]


def patch_matrix():
    """Of 2x2 patches of colors: channel (row * 2 + column) * 3 + color is one pixel."""
    matrix = torch.zeros(12, 12, dtype=torch.float64)
    for color in range(3):
        for row in range(SIDE):
            for column in range(SIDE):
                matrix[(color * SIDE + row) * SIDE + column, (row * SIDE + column) * 3 + color] = 1
    return matrix


@dataclass(frozen=True)
class Case:
    """A space with its matrix, and how large the standard deviation of a latent is by its channel."""

    space: LatentSpace
    colors: int
    matrix: torch.Tensor
    deviations: torch.Tensor

    @property
    def channels(self):
        return len(self.deviations)

    @property
    def mean(self):
        return (0.3 * torch.linspace(-1, 1, self.channels, dtype=torch.float64))[None, :, None, None]

    @property
    def variance(self):
        return self.deviations.square()[None, :, None, None]

    def decoded_variance(self, variance):
        """Of a patch's pixels, (batch, pixels), from that of its latents."""
        return variance.flatten(1) @ self.matrix.square().T


CASES = {
    "patches": Case(PatchSpace(SIDE), 3, patch_matrix(), torch.linspace(0.1, 0.32, 12, dtype=torch.float64)),
    "affine": Case(AffineSpace(MIXTURE), 1, MIXTURE.T / 2.5, torch.tensor([0.2, 0.35, 0.5, 0.7], dtype=torch.float64)),
}
each_case = pytest.mark.parametrize("case", CASES)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def model_of(case, schedule, side):
    """A model of Gaussian latents, `side` of them along a picture's side."""
    return FrozenModel(
        denoiser=GaussianDenoiser(SCHEDULES[schedule], case.mean, case.variance),
        latent_space=case.space,
        image=ImageContract(side * SIDE, case.colors),
        latent_shape=(case.channels, side, side),
        provenance=Provenance("oracle", "", ""),
        device=torch.device("cpu"),
        dtype=torch.float32,
        parameters=0,
    )


def patch_of_pixels(case, off):
    """The pixels of the latents that lie `off` standard deviations from their mean, (pixels,)."""
    latents = (case.mean + off * case.variance.sqrt()).flatten()
    return case.matrix @ latents + offset(case)


def offset(case):
    """What a patch of latents 0 becomes."""
    return patches(case.space.decode(torch.zeros(1, case.channels, 1, 1, dtype=torch.float64)))[0, 0]


def pictures(case, side, off=1.5):
    cells = patch_of_pixels(case, off).expand(len(STRENGTHS), side**2, -1)
    return pictures_of(cells, case.colors, side).float()


@pytest.fixture(autouse=True)
def shapes_are_checked_elsewhere(monkeypatch):
    """Thousands of steps on small arrays: checking shapes would take most of the time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_the_spaces_are_what_their_matrices_say():
    for case in CASES.values():
        latents = torch.randn(2, case.channels, 3, 3, dtype=torch.float64, generator=torch.manual_seed(1))
        cells = latents.flatten(2).transpose(1, 2) @ case.matrix.T + offset(case)
        decoded = case.space.decode(latents)
        torch.testing.assert_close(patches(decoded), cells, rtol=0, atol=1e-12)
        torch.testing.assert_close(case.space.encode(decoded), latents, rtol=0, atol=1e-12)


# Returns


@dataclass
class Impulses:
    """Not noise: draw d is 1 in channel c of place d * channels + c, and 0 elsewhere."""

    shape: tuple
    number: int = 0

    def close(self):
        """It has no threads."""

    def draw(self):
        noise = torch.zeros(self.shape[0], self.shape[1] * self.shape[2], dtype=torch.float64)
        for channel in range(self.shape[0]):
            noise[channel, self.number * self.shape[0] + channel] = 1
        self.number += 1
        return noise.view(1, *self.shape)


def returned(case, schedule, solver, steps, monkeypatch):
    """Mean and variance of a patch's pixels after a local sample, (strength, pixels) each."""
    draws = steps + 1 if solver.stochastic else 1
    side = int((draws * case.channels) ** 0.5) + 1
    monkeypatch.setattr(local_sampling, "NoiseStream", lambda keys, shape, *_: Impulses(tuple(shape)))
    model = model_of(case, schedule, side)
    out = local_sample(model, pictures(case, side), strength=STRENGTHS, steps=steps, solver=solver)
    assert out.abs().max() < 1  # nothing was clipped
    cells = patches(out)
    silent = cells[:, -1:]
    return silent[:, 0], (cells - silent).square().sum(1)


def expected(case, schedule, solver):
    """The closed forms for the latents, carried to the pixels by the matrix. Strength 1 leaves the input out."""
    denoiser = model_of(case, schedule, 1).denoiser
    start = denoiser.schedule.time_of_strength(STRENGTHS)
    latents = (case.mean + 1.5 * case.variance.sqrt()) * (STRENGTHS < 1)[:, None, None, None]
    form = denoiser.stochastic_return if solver.stochastic else denoiser.deterministic_return
    mean, variance = form(latents, start)
    return mean.flatten(1) @ case.matrix.T + offset(case), case.decoded_variance(variance)


# Discretization stays below 2 % on the grid of local_sample. DDIM is of first order, and of a table of sigmas the 2M
# rule extrapolates over the bend at its first entry.
STEPS = {"dpm++sde": 120, "ddim": 600}
EXCEPTIONS = {("dpm++sde", "variance exploding"): 240}


@each_schedule
@each_case
@pytest.mark.parametrize("solver", STEPS)
def test_mean_and_variance_of_a_return_are_the_closed_forms_in_pixels(case, schedule, solver, monkeypatch):
    steps = EXCEPTIONS.get((solver, schedule), STEPS[solver])
    case, solver = CASES[case], SOLVERS[solver]
    mean, variance = returned(case, schedule, solver, steps, monkeypatch)
    expected_mean, expected_variance = expected(case, schedule, solver)
    deviation = case.decoded_variance(case.variance).sqrt()
    assert ((mean - expected_mean) / deviation).abs().max() < 0.02
    assert (variance / expected_variance - 1).abs().max() < 0.02


# The deterministic trajectory


each_inverter = pytest.mark.parametrize(("solver", "steps"), [(Heun(), 60), (DDIM(), 500)], ids=["heun", "ddim"])


@each_schedule
@each_case
@each_inverter
def test_latents_of_an_inversion_lie_on_the_trajectory(case, schedule, solver, steps):
    case, off = CASES[case], 1.5
    model = model_of(case, schedule, 1)
    latents = invert(model, pictures(case, 1, off), strength=STRENGTHS, steps=steps, solver=solver).flatten(1)
    alpha, sigma = (each[:, None] for each in model.schedule.coefficients(model.schedule.time_of_strength(STRENGTHS)))
    # Along a trajectory of Gaussian data the distance from the mean stays the same in deviations of its level.
    deviation = (alpha**2 * case.variance.flatten() + sigma**2).sqrt()
    assert ((latents - alpha * case.mean.flatten()) / deviation - off).abs().max() < 0.02


@each_schedule
@each_case
@each_inverter
def test_a_reconstruction_is_the_picture(case, schedule, solver, steps):
    model, given = model_of(CASES[case], schedule, 3), pictures(CASES[case], 3)
    back = reconstruct(model, given, strength=STRENGTHS, steps=steps, solver=solver)
    assert (back - given).abs().max() < (1e-3 if solver == Heun() else 0.02)
    assert (given - pictures(CASES[case], 3, off=0)).abs().min() > 0.1


@each_case
def test_a_reconstruction_is_an_inversion_and_its_way_back(case):
    model, given = model_of(CASES[case], "flow", 3), pictures(CASES[case], 3)
    options = {"strength": STRENGTHS, "steps": 3}
    back = reconstruct(model, given, **options)
    assert torch.equal(back, denoise(model, invert(model, given, **options), **options))
    assert (back - given).abs().max() > 1e-3
