"""Inversion against closed forms: how much of a linear Gaussian's amplitude the inverters keep, and who comes back.

A direction of variance `lam` (mean 0) is scaled along the exact trajectory by the ratio of its standard deviations.
"""

import pytest
import torch

from nearfar.inversion import denoise, invert
from nearfar.loading import load_model
from nearfar.oracle import GaussianDenoiser
from nearfar.schedule import NoiseSchedule
from nearfar.solver import DDIM, FixedPointDDIM, solve

VARIANCES = torch.tensor([1.0, 0.1, 0.01, 0.001, 0.0001])
NODES, TOP = 80, 900


@pytest.fixture(scope="module")
def linear():
    """The linear betas of DDPM, and an exact denoiser with one variance for each pixel of a row."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    schedule = NoiseSchedule.variance_preserving((1 - betas).cumprod(0))
    return GaussianDenoiser(schedule, torch.zeros(1, 1, 1, 5), VARIANCES[None, None, None])


def paper_grid():
    """The paper's nodes, from time 0, at which it takes the clean image for noisy, to 900."""
    return torch.tensor([[k * TOP // (NODES - 1) for k in range(NODES)]], dtype=torch.float64)


def deviation(schedule, time):
    alpha, sigma = schedule.coefficients(torch.tensor([float(time)], dtype=torch.float64))
    return (alpha**2 * VARIANCES + sigma**2).sqrt()


def gains(denoiser, solver, grid):
    """What becomes of an amplitude of 1 in each direction, in float64."""
    return solve(denoiser, torch.ones(1, 1, 1, 5, dtype=torch.float64), grid, solver)[0, 0, 0]


def test_the_explicit_inverter_loses_what_theory_says(linear):
    exact = deviation(linear.schedule, TOP) / deviation(linear.schedule, 0)
    kept = gains(linear, DDIM(), paper_grid()) / exact
    torch.testing.assert_close(kept, torch.tensor([0.979, 0.954, 0.876, 0.741, 0.828]).double(), rtol=0, atol=1e-3)


# One iteration: the explicit inverter's round trip. More: what an implicit step of as many corrections keeps.
@pytest.mark.parametrize(
    ("iterations", "expected"), [(1, [0.911, 0.767, 0.548, 0.686]), (3, [1.0, 0.999, 0.919, 0.859]), (30, [1.0] * 4)]
)
def test_corrections_bring_the_amplitude_back(linear, iterations, expected):
    grid = paper_grid()
    up = gains(linear, FixedPointDDIM(iterations, tolerance=0.0), grid)
    down = gains(linear, DDIM(), grid.flip(1))
    returned = (up * down)[1:]
    assert (returned >= torch.tensor(expected).double() - 3e-3).all()
    assert (returned <= 1.001).all()


def test_the_round_trip_is_the_image():
    """On the bundled model: a network with random weights is no denoiser, and its map need not contract."""
    model = load_model(device="cpu")
    coarse = torch.rand(2, 3, 4, 4, generator=torch.manual_seed(0)) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    inverter = FixedPointDDIM(iterations=40, tolerance=1e-6)
    latents = invert(model, images, strength=0.6, steps=10, solver=inverter)
    again = denoise(model, latents, strength=0.6, steps=10, solver=inverter)
    assert (again - images).square().mean().sqrt() < 1e-4
    assert (latents - images).square().mean().sqrt() > 0.1


class Steep:
    """A denoiser whose fixed-point map throws states apart."""

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x_t, t):
        return -40 * x_t


def test_a_map_that_does_not_contract_leaves_the_explicit_step(linear):
    steep, grid = Steep(linear.schedule), torch.tensor([[500.0, 700.0]]).double()
    x = torch.full((1, 1, 1, 5), 0.5, dtype=torch.float64)
    explicit = solve(steep, x, grid, DDIM())
    stuck = solve(steep, x, grid, FixedPointDDIM(iterations=30))
    once = solve(steep, x, grid, FixedPointDDIM(iterations=1))
    assert stuck.isfinite().all()
    torch.testing.assert_close(stuck, once)
    assert (stuck - explicit).isfinite().all()


def test_towards_the_clean_end_it_is_ddim(linear):
    grid = torch.tensor([[700.0, 300.0, -1.0]]).double()
    x = torch.ones(1, 1, 1, 5, dtype=torch.float64)
    assert torch.equal(solve(linear, x, grid, FixedPointDDIM()), solve(linear, x, grid, DDIM()))


def test_what_becomes_of_an_image_does_not_depend_on_its_company(linear):
    solver, amplitudes = FixedPointDDIM(iterations=30, tolerance=1e-5), (0.001, 1.0, 30.0)
    images = torch.stack([torch.full((1, 1, 5), amplitude) for amplitude in amplitudes]).double()
    together = solve(linear, images, paper_grid().expand(3, -1), solver)
    for number in range(3):
        alone = solve(linear, images[number : number + 1], paper_grid(), solver)
        assert torch.equal(together[number : number + 1], alone)
