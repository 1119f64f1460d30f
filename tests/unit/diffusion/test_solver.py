"""Solvers: the level they start from, the calls they make, the order they have, and that each row is on its own."""

import math
from functools import partial

import jaxtyping
import pytest
import torch

from nearfar.diffusion.noise import NoiseStream
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.diffusion.solver import DDIM, SOLVERS, DPMSolverPP, DPMSolverPPSDE, Heun, solve
from nearfar.errors import UsageError
from oracle import GaussianDenoiser

ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
DDPM = NoiseSchedule.variance_preserving(ABAR)
SCHEDULES = {
    "variance preserving": DDPM,
    "variance exploding": NoiseSchedule.variance_exploding(torch.logspace(-2, 1.7, 1000)),
    "flow": NoiseSchedule.flow(),
}
MEAN = torch.tensor([0.3, -0.2, 0.0], dtype=torch.float64)[None, :, None, None]
VARIANCE = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)[None, :, None, None]
each_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@pytest.fixture
def unchecked_shapes(monkeypatch):
    """For many steps on small arrays, where checking shapes would take two thirds of the time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def gaussian(schedule, dtype=torch.float64):
    return GaussianDenoiser(schedule, MEAN.to(dtype), VARIANCE.to(dtype))


def stream(batch, shape=(3, 4, 4)):
    return NoiseStream([number.to_bytes(16, "little") for number in range(batch)], shape)


class Spy:
    """A denoiser that notes what it is asked; `once` ends the walk at the first call."""

    class Seen(Exception):  # noqa: N818
        pass

    def __init__(self, schedule, once=False):
        self.schedule = schedule
        self.once = once
        self.asked = []

    def __call__(self, x_t, t):
        self.asked.append((x_t.clone(), t.clone()))
        if self.once:
            raise self.Seen
        return x_t


# The level


PERCENT = torch.arange(1, 101, dtype=torch.float64) / 100
# One pixel is all image and the other all noise: what the network is given is (alpha, sigma) itself.
IMAGE = torch.tensor([1.0, 0.0]).expand(100, 1, 1, 2)
NOISE = torch.tensor([0.0, 1.0]).expand(100, 1, 1, 2)
UNHEARD = stream(0)  # the walk ends before the first draw


def first_question(solver, steps, schedule=DDPM):
    """What the network is asked first, for images noised to 1 %, 2 % ... 100 % in one batch."""
    start = schedule.time_of_strength(PERCENT)
    spy = Spy(schedule, once=True)
    noisy = schedule.add_noise(IMAGE, start, NOISE)
    with pytest.raises(Spy.Seen):
        solve(spy, noisy, schedule.grid(start, steps), solver, UNHEARD)
    return spy.asked[0]


def check_level(x_t, t):
    """The requested level and no other; expected values from the DDPM table: strength k % is its entry 10 k - 1."""
    entries = torch.arange(9, 1000, 10)
    assert t.tolist() == entries.tolist()
    alpha, sigma = ABAR[entries].sqrt(), (1 - ABAR[entries]).sqrt()
    alpha[-1] = 0  # strength 1 is pure noise
    # The requirement; float32 itself rounds to 6e-8.
    torch.testing.assert_close(x_t[:, 0, 0].double(), torch.stack([alpha, sigma], 1), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("unchecked_shapes")
@each_solver
def test_the_injected_level_is_the_requested_one_at_every_strength_and_step_count(solver):
    for steps in range(1, 101):
        check_level(*first_question(solver, steps))


LEVEL_MUTANTS = {
    "time of the step after": lambda grid: grid.roll(-1, 1),
    "snapped to a grid of 1000 / steps": lambda grid: grid - grid % 20,
    "one entry lower": lambda grid: grid - 1,
    "one entry higher": lambda grid: grid + 1,
}


@pytest.mark.parametrize("mutant", LEVEL_MUTANTS)
def test_the_level_check_sees_a_solver_that_starts_elsewhere(mutant, monkeypatch):
    grid = NoiseSchedule.grid
    monkeypatch.setattr(NoiseSchedule, "grid", lambda *arguments: LEVEL_MUTANTS[mutant](grid(*arguments)))
    with pytest.raises(AssertionError):
        check_level(*first_question(DDIM(), 50))


@pytest.mark.parametrize("wrong", [lambda alpha, sigma: (alpha**2, sigma), lambda alpha, sigma: (alpha, sigma**2)])
def test_the_level_check_sees_a_missing_square_root(wrong, monkeypatch):
    coefficients = NoiseSchedule.coefficients
    monkeypatch.setattr(NoiseSchedule, "coefficients", lambda *arguments: wrong(*coefficients(*arguments)))
    with pytest.raises(AssertionError):
        check_level(*first_question(DDIM(), 50))


@each_solver
@each_schedule
def test_levels_between_two_entries_are_met_too(schedule, solver):
    start = schedule.time_of_sigma(times(0.05, 0.3, 1, 7))
    spy = Spy(schedule, once=True)
    noisy = schedule.add_noise(IMAGE[:4], start, NOISE[:4])
    with pytest.raises(Spy.Seen):
        solve(spy, noisy, schedule.grid(start, 7), solver, UNHEARD)
    (alpha, sigma) = spy.asked[0][0][:, 0, 0].double().unbind(1)
    torch.testing.assert_close(sigma / alpha, times(0.05, 0.3, 1, 7), rtol=2e-7, atol=0)  # two float32 roundings


# The calls


@pytest.mark.usefixtures("unchecked_shapes")
@each_solver
def test_every_step_that_was_asked_for_is_run(solver):
    start = DDPM.time_of_strength(times(0.01, 0.35, 1))
    for steps in (1, 2, 3, 5, 10, 100):
        spy = Spy(DDPM)
        solve(spy, torch.zeros(3, 1, 1, 1), DDPM.grid(start, steps), solver, stream(3, (1, 1, 1)))
        assert len(spy.asked) == solver.calls(steps)
        assert solver.calls(steps) == (2 * steps - 1 if isinstance(solver, Heun) else steps)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_step_is_run_from_where_no_signal_is_left(name):
    flow = SCHEDULES["flow"]
    spy = Spy(flow)
    solve(spy, torch.zeros(1, 1, 1, 1), flow.grid(times(1000), 5), SOLVERS[name], stream(1, (1, 1, 1)))
    assert len(spy.asked) == SOLVERS[name].calls(5)


@each_solver
def test_the_network_is_asked_along_the_grid_and_never_below_the_first_level(solver):
    grid = DDPM.grid(times(3, 999), 10)
    spy = Spy(DDPM)
    solve(spy, torch.zeros(2, 1, 1, 1), grid, solver, stream(2, (1, 1, 1)))
    asked = torch.stack([t for _, t in spy.asked], dim=1)
    if isinstance(solver, Heun):  # asks at both ends of a step
        assert torch.equal(asked[:, 1::2], grid[:, 1:-1].clamp(min=0))
        asked = asked[:, ::2]
    assert torch.equal(asked, grid[:, :-1].clamp(min=0))


def test_each_step_is_reported_with_its_number_and_state():
    seen = []
    x = torch.ones(2, 3, 4, 4)
    out = solve(gaussian(DDPM, torch.float32), x, DDPM.grid(times(499, 99), 5), DDIM(), None, lambda *s: seen.append(s))
    assert [number for number, _ in seen] == [1, 2, 3, 4, 5]
    assert torch.equal(seen[-1][1], out)


# The order


def trajectory(schedule, x_t, t, s):
    """Where the deterministic trajectory of Gaussian data carries `x_t` from `t` to `s`: quantiles stay quantiles."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        [c[:, None, None, None] for c in schedule.coefficients(time)] for time in (t, s)
    )
    stretch = ((alpha_s**2 * VARIANCE + sigma_s**2) / (alpha_t**2 * VARIANCE + sigma_t**2)).sqrt()
    return alpha_s * MEAN + stretch * (x_t - alpha_t * MEAN)


def measured_order(solver, schedule, strength_from, strength_to):
    """Minus the slope of log error over log steps, between two noisy levels, in float64."""
    t, s = (schedule.time_of_strength(times(strength)) for strength in (strength_from, strength_to))
    x_t = MEAN + VARIANCE.sqrt() * torch.linspace(-2, 2, 16, dtype=torch.float64).view(1, 1, 4, 4)
    exact = trajectory(schedule, x_t, t, s)
    errors = []
    for steps in (32, 64):
        grid = torch.lerp(t[:, None], s[:, None], torch.linspace(0, 1, steps + 1, dtype=torch.float64)[None])
        errors.append((solve(gaussian(schedule), x_t, grid, solver) - exact).norm().item())
    return math.log2(errors[0] / errors[1])


ODE_SOLVERS = {"ddim": DDIM(), "heun": Heun(), "dpm++": DPMSolverPP()}
ORDERS = {"ddim": 1, "heun": 2, "dpm++": 2}
DOWN_AND_UP = [
    (name, *ends) for name in ODE_SOLVERS for ends in ((0.6, 0.1), (0.1, 0.6)) if (name, ends[0]) != ("dpm++", 0.1)
]


@pytest.mark.usefixtures("unchecked_shapes")
@each_schedule
@pytest.mark.parametrize(("name", "start", "stop"), DOWN_AND_UP)
def test_the_measured_order_is_that_of_the_paper(name, start, stop, schedule):
    # The slopes change by 0.02 to 0.13 from here to 256 steps, where they are within 0.02 of the order.
    assert measured_order(ODE_SOLVERS[name], schedule, start, stop) == pytest.approx(ORDERS[name], abs=0.15)


def without_memory(x_0, rho_t, rho, history, within):
    return x_0, (x_0, rho_t)


def test_the_order_check_sees_a_second_order_solver_without_its_second_estimate(monkeypatch):
    monkeypatch.setattr("nearfar.diffusion.solver.extrapolate", without_memory)
    assert measured_order(DPMSolverPP(), DDPM, 0.6, 0.1) == pytest.approx(1, abs=0.15)


# The rows


@each_solver
def test_a_row_that_repeats_a_time_rests_while_others_move(solver):
    x = stream(4).draw()
    grid = torch.stack([times(599, 599, 599), times(599, 299, 99), times(-1, -1, -1), times(999, 999, 499)])
    states = [x]
    out = solve(gaussian(DDPM, torch.float32), x, grid, solver, stream(4), lambda _, state: states.append(state))
    assert torch.equal(out[[0, 2]], x[[0, 2]])
    assert torch.equal(states[1][3], x[3])
    assert (out[[1, 3]] - x[[1, 3]]).abs().amin(dim=(1, 2, 3)).min() > 0  # every pixel of the others moved


@each_solver
@each_schedule
def test_a_batch_of_mixed_strengths_equals_one_by_one(schedule, solver):
    start = schedule.time_of_strength(times(0.02, 0.3, 0.35, 0.6, 0.7, 0.99))
    x = stream(7).draw()[1:]  # other numbers than the first draws of the solver's streams
    together = solve(gaussian(schedule, torch.float32), x, schedule.grid(start, 12), solver, stream(6))
    for row in range(6):
        only = NoiseStream([row.to_bytes(16, "little")], (3, 4, 4))
        grid = schedule.grid(start[row : row + 1], 12)
        alone = solve(gaussian(schedule, torch.float32), x[row : row + 1], grid, solver, only)
        # Coefficients are per row and kernels elementwise, so this is a margin; real networks add 1e-6.
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-6)


@each_solver
def test_a_row_that_rested_begins_without_a_past(solver):
    x = stream(1).draw()
    steps = DDPM.grid(times(599), 6)
    rested = torch.cat([steps[:, :1], steps[:, :1], steps], dim=1)
    shared = stream(1)
    later = stream(1)
    later.draw(), later.draw()  # resting draws too: noise belongs to the step, not to the row's progress
    torch.testing.assert_close(
        solve(gaussian(DDPM, torch.float32), x, rested, solver, shared),
        solve(gaussian(DDPM, torch.float32), x, steps, solver, later),
        rtol=0,
        atol=0,
    )


# Inversion


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("schedule", [SCHEDULES["variance preserving"], SCHEDULES["flow"]], ids=["ddpm", "flow"])
def test_inverting_and_returning_with_ddim_errs_as_one_over_the_steps(schedule):
    start = schedule.time_of_strength(times(0.3, 0.7))
    x = MEAN + VARIANCE.sqrt() * stream(2).draw().double()

    def error(steps):
        down = schedule.grid(start, steps)
        walk = partial(solve, gaussian(schedule), solver=DDIM())
        return (walk(walk(x, down.flip(1)), down) - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)

    coarse, fine = error(25), error(100)
    # 1/N, so a quarter at four times the steps; terms in 1/N^2 still make up 4 % of the error at 25 steps.
    torch.testing.assert_close(coarse / fine, torch.full((2,), 4.0, dtype=torch.float64), rtol=0.05, atol=0)
    assert fine.max() < 0.03  # first order in this step: a wrong inversion returns to another image


@pytest.mark.parametrize(
    ("solver", "named"),
    [
        (DDIM(0.7), "DDIM(eta=0.7)"),
        (DDIM(1.0), "DDIM(eta=1.0)"),
        (DPMSolverPP(), "DPMSolverPP()"),
        (DPMSolverPPSDE(), "DPMSolverPPSDE()"),
    ],
)
def test_only_deterministic_single_steps_may_run_toward_noise(solver, named):
    assert not solver.invertible
    one_row_rises = torch.stack([times(599, 299), times(299, 599)])
    with pytest.raises(UsageError) as error:
        solve(gaussian(DDPM), torch.zeros(2, 3, 4, 4).double(), one_row_rises, solver, stream(2))
    assert str(error.value) == f"{named} cannot run toward noise: invert with FixedPointDDIM, Heun or DDIM(eta=0)"


@pytest.mark.parametrize(("solver", "named"), [(DDIM(0.7), "DDIM(eta=0.7)"), (DPMSolverPPSDE(), "DPMSolverPPSDE()")])
def test_a_stochastic_solver_without_noise_is_refused(solver, named):
    with pytest.raises(UsageError) as error:
        solve(gaussian(DDPM), torch.zeros(1, 3, 4, 4).double(), DDPM.grid(times(599), 3), solver)
    assert str(error.value) == f"{named} draws noise at every step: give it a NoiseStream"


@pytest.mark.parametrize("solver", ODE_SOLVERS.values(), ids=ODE_SOLVERS)
def test_a_deterministic_solver_leaves_the_stream_alone(solver):
    untouched = stream(1)
    solve(gaussian(DDPM), torch.zeros(1, 3, 4, 4).double(), DDPM.grid(times(599), 3), solver, untouched)
    assert torch.equal(untouched.draw(), stream(1).draw())
