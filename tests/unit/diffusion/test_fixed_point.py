"""Inversion against closed forms: how much of a linear Gaussian's amplitude the inverters keep, and who comes back.

A direction of variance `lam` (mean 0) is scaled along the exact trajectory by the ratio of its standard deviations.
"""

from dataclasses import replace

import pytest
import torch

from nearfar.diffusion.fixed_point import FixedPointDDIM
from nearfar.diffusion.schedule import WARP, Level, NoiseSchedule
from nearfar.diffusion.solver import DDIM, Sampling, solve
from nearfar.models.loading import load_model
from nearfar.sampling.inversion import denoise, invert, traced_inversion
from oracle import GaussianDenoiser

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


def implicit_gains(schedule, grid):
    """What becomes of an amplitude of 1 where every step is exactly the one that its DDIM step undoes, in float64."""
    gain = torch.ones(5, dtype=torch.float64)
    (alpha_t, sigma_t), *upper = zip(*schedule.coefficients(grid[0]), strict=True)
    for time, (alpha, sigma) in zip(grid[0, 1:], upper, strict=True):
        asked_alpha, asked_sigma = schedule.coefficients(time.clamp(min=0)[None])
        noise = asked_sigma / (asked_alpha**2 * VARIANCES + asked_sigma**2)  # eps(x, t) = noise * x
        gain = gain / (alpha_t / alpha + (sigma_t - alpha_t / alpha * sigma) * noise)
        alpha_t, sigma_t = alpha, sigma
    return gain


def shipped_grid(schedule):
    """The nodes of `invert`: as many steps as the paper has nodes, most of them near the clean end."""
    return schedule.grid(torch.tensor([float(TOP)], dtype=torch.float64), NODES, WARP).flip(1)


@pytest.mark.parametrize("nodes", ["paper", "shipped"])
@pytest.mark.parametrize("typical", [False, True])
def test_the_default_reaches_the_exact_implicit_gains(linear, nodes, typical):
    """Of an amplitude of 1, and of one standard deviation; each direction is an image of its own."""
    grid = paper_grid() if nodes == "paper" else shipped_grid(linear.schedule)
    each = GaussianDenoiser(linear.schedule, torch.zeros(1), VARIANCES.double()[:, None, None, None])
    x = VARIANCES.double().sqrt() if typical else torch.ones(5, dtype=torch.float64)
    solver = FixedPointDDIM(tolerance=1e-4) if nodes == "paper" else FixedPointDDIM()
    up = solve(each, x[:, None, None, None], grid.expand(5, -1), solver)
    down = solve(each, up, grid.flip(1).expand(5, -1), solver)
    torch.testing.assert_close(up[:, 0, 0, 0] / x, implicit_gains(linear.schedule, grid), rtol=1e-3, atol=0)
    torch.testing.assert_close(down[:, 0, 0, 0] / x, torch.ones(5).double(), rtol=1e-3, atol=0)


def test_the_explicit_round_trip_is_that_of_table_6_2(linear):
    """As the authors coded it: up from time 0 to 900, down again and one step more, to clean."""
    up = gains(linear, DDIM(), paper_grid())
    down = torch.cat([paper_grid().flip(1), torch.tensor([[-1.0]]).double()], dim=1)
    returned = up * gains(linear, DDIM(), down)
    torch.testing.assert_close(returned, torch.tensor([0.959, 0.910, 0.759, 0.499, 0.343]).double(), rtol=0, atol=1e-3)
    symmetric = (up * gains(linear, DDIM(), paper_grid().flip(1)))[1:]
    torch.testing.assert_close(symmetric, torch.tensor([0.911, 0.767, 0.548, 0.686]).double(), rtol=0, atol=1e-3)


def test_few_corrections_bring_back_at_least_what_the_table_says(linear):
    """The table's corrections start from the same guess with an older noise, so these are no worse."""
    up = gains(linear, FixedPointDDIM(3, tolerance=0.0), paper_grid())
    returned = (up * gains(linear, DDIM(), paper_grid().flip(1)))[1:]
    assert (returned >= torch.tensor([1.0, 0.999, 0.919, 0.859]).double() - 3e-3).all()
    assert (returned <= 1.001).all()


def smooth(count):
    """Soft colors, float32 (count, 3, 32, 32)."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")


@pytest.mark.slow
def test_the_round_trip_is_the_image():
    """On the bundled model: a network with random weights is no denoiser, and its map need not contract."""
    model, images, inverter = load_model(device="cpu"), smooth(1), FixedPointDDIM(tolerance=1e-5)
    latents = invert(model, images, strength=0.6, steps=8, solver=inverter)
    again = denoise(model, latents, strength=0.6, steps=8, solver=inverter)
    assert (again - images).square().mean().sqrt() < 1e-4
    assert (latents - images).square().mean().sqrt() > 0.1


class Scripted:
    """A denoiser of one-pixel images whose noise at each call is the next of a script, whatever the state."""

    def __init__(self, schedule, *script):
        self.schedule, self.script = schedule, [torch.tensor(noise, dtype=torch.float64) for noise in script]

    def __call__(self, x_t, t):
        alpha, sigma = (c[:, None, None, None] for c in self.schedule.coefficients(t))
        return (x_t - sigma * self.script.pop(0)[:, None, None, None]) / alpha


def searched(linear, script, **options):
    """One step from 500 to 700: the states as multiples of the step's gain from 0, and how they were found."""
    denoiser, found = Scripted(linear.schedule, *script), []
    times = torch.tensor([[500.0, 700.0]]).double().expand(len(script[0]), -1)
    x = torch.zeros(len(script[0]), 1, 1, 1, dtype=torch.float64)
    state = solve(denoiser, x, times, FixedPointDDIM(on_search=found.append, **options))[:, 0, 0, 0]
    (alpha_t, sigma_t), (alpha, sigma) = zip(*linear.schedule.coefficients(times[0]), strict=True)
    gain = sigma - alpha / alpha_t * sigma_t
    assert denoiser.script == []  # every call that was written down was made, and no other
    (search,) = found
    return state / gain, search.residual / gain, search


# The first noise of a script is the explicit step's; the change of an iteration is what the noise changes by.
def test_a_map_that_does_not_contract_leaves_the_explicit_step(linear):
    state, residual, search = searched(linear, [[1.0], [1.5], [0.9]])  # changes 0.5, 0.6
    assert (state.item(), search.fell_back.item(), search.calls.item()) == (pytest.approx(1.0), True, 3)
    assert residual.item() == pytest.approx(0.5)  # the explicit step's own


def test_where_contraction_ends_the_state_of_least_residual_is_kept(linear):
    state, residual, search = searched(linear, [[1.0], [1.5], [1.3], [1.4], [1.2]])  # changes 0.5, 0.2, 0.1, 0.2
    assert (state.item(), search.fell_back.item(), search.calls.item()) == (pytest.approx(1.3), False, 5)
    assert residual.item() == pytest.approx(0.1)  # of the state 1.3: the next one's is 0.2


def test_a_search_ends_at_the_tolerance_or_after_its_iterations(linear):
    sigma = linear.schedule.coefficients(torch.tensor([700.0]).double())[1].item()
    state, residual, search = searched(linear, [[1.0], [1.5], [1.5 + 1e-4]], tolerance=1e-4 / sigma)
    assert (state.item(), search.fell_back.item()) == (pytest.approx(1.5001, abs=1e-9), False)
    assert residual.item() == pytest.approx(1e-4)
    state, residual, search = searched(linear, [[1.0], [1.5], [1.2], [1.4]], iterations=3)
    assert (state.item(), search.fell_back.item(), search.calls.item()) == (pytest.approx(1.4), False, 4)
    assert residual.item() == pytest.approx(0.2)


def test_a_noise_that_is_not_finite_leaves_the_explicit_step(linear):
    state, residual, search = searched(linear, [[1.0], [float("nan")]])
    assert (state.item(), residual.item(), search.fell_back.item()) == (pytest.approx(1.0), float("inf"), True)


def test_every_image_ends_its_own_search(linear):
    script = [[1.0, 1.0, 1.0], [1.5, 1.0, 1.5], [0.9, 9.9, 1.3], [9.9, 9.9, 1.3]]
    state, residual, search = searched(linear, script)
    assert state.tolist() == pytest.approx([1.0, 1.0, 1.3])
    assert residual.tolist() == pytest.approx([0.5, 0.0, 0.0], abs=1e-12)
    assert search.fell_back.tolist() == [True, False, False]
    assert search.calls.tolist() == [3, 2, 4]


@pytest.mark.slow
def test_an_inversion_tells_how_each_step_was_found():
    model, images = load_model(device="cpu"), smooth(2)
    traced = traced_inversion(model, images, Sampling(Level([0.0, 0.6]), 6, FixedPointDDIM()))
    assert torch.equal(traced.latents, invert(model, images, strength=[0.0, 0.6], steps=6))
    times = Sampling(Level([0.0, 0.6]), 6).grid(model.schedule, 2).flip(1)
    sigma = model.schedule.coefficients(times[1, 1:])[1]
    assert (traced.residuals[1] <= 1e-3 * sigma).all()
    assert (traced.residuals[1] > 0).all()
    assert not traced.fell_back.any()
    assert traced.residuals[0].tolist() == [0.0] * 6
    assert traced.calls[0].tolist() == [0] * 6
    resting = traced_inversion(model, images, Sampling(Level(0.0), 6, FixedPointDDIM()))
    assert torch.equal(resting.latents, images)
    assert resting.calls.tolist() == [[0] * 6] * 2


@pytest.mark.slow
def test_the_calls_of_a_lone_image_are_those_of_the_network():
    model, calls = load_model(device="cpu"), []
    network = model.denoiser.network

    def counted(x, t):
        calls.append(len(x))
        return network(x, t)

    watched = replace(model, denoiser=replace(model.denoiser, network=counted))
    traced = traced_inversion(watched, torch.zeros(1, 3, 32, 32), Sampling(Level(0.6), 4, FixedPointDDIM()))
    assert traced.calls.sum() == len(calls)


def test_toward_the_clean_end_it_is_ddim(linear):
    grid = torch.tensor([[700.0, 300.0, -1.0]]).double()
    x = torch.ones(1, 1, 1, 5, dtype=torch.float64)
    assert torch.equal(solve(linear, x, grid, FixedPointDDIM()), solve(linear, x, grid, DDIM()))


@pytest.mark.slow
def test_what_becomes_of_an_image_does_not_depend_on_its_company(linear):
    solver, amplitudes = FixedPointDDIM(iterations=30, tolerance=1e-5), (0.001, 1.0, 30.0)
    images = torch.stack([torch.full((1, 1, 5), amplitude) for amplitude in amplitudes]).double()
    together = solve(linear, images, paper_grid().expand(3, -1), solver)
    for number in range(3):
        alone = solve(linear, images[number : number + 1], paper_grid(), solver)
        assert torch.equal(together[number : number + 1], alone)
