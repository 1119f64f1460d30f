"""What holds for every noise schedule: any table, any family, any level, any grid."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.diffusion.schedule import NoiseSchedule

same_examples_each_time = settings(derandomize=True, deadline=None, max_examples=60)


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def steps_of(smallest, largest):
    return st.lists(st.floats(smallest, largest), min_size=2, max_size=30)


def preserving(betas):
    return NoiseSchedule.variance_preserving(torch.cumprod(1 - times(*betas), 0))


def exploding(rises):
    return NoiseSchedule.variance_exploding(torch.cumsum(times(*rises), 0))


# Betas as in public tables: from the first of DDPM to the cap of the cosine table.
vp_schedules = steps_of(1e-4, 0.999).map(preserving)
ve_schedules = steps_of(1e-3, 10).map(exploding)
flow_schedules = st.floats(0.5, 2000).map(NoiseSchedule.flow)
schedules = st.one_of(vp_schedules, ve_schedules, flow_schedules)
strengths = st.floats(0, 1)


@same_examples_each_time
@given(schedules, strengths, strengths)
def test_more_strength_is_more_noise_to_signal(schedule, one, other):
    less, more = sorted((one, other))
    ratio = schedule.ratio(schedule.time_of_strength(times(less, more)))
    assert ratio[0] <= ratio[1]
    if more - less > 1e-9:  # closer ones may round to one level
        assert ratio[0] < ratio[1]


@same_examples_each_time
@given(schedules, strengths)
def test_coefficients_lie_between_clean_and_the_noisiest(schedule, strength):
    alpha, sigma = schedule.coefficients(schedule.time_of_strength(times(0, strength, 1)))
    assert (alpha.diff() <= 0).all()
    assert (sigma.diff() >= 0).all()
    assert (alpha[0], sigma[0]) == (1, 0)
    assert alpha[2] >= 0


@same_examples_each_time
@given(vp_schedules, strengths)
def test_variance_preserving_preserves_variance(schedule, strength):
    alpha, sigma = schedule.coefficients(schedule.time_of_strength(times(strength)))
    assert abs(alpha**2 + sigma**2 - 1) < 1e-15  # a few roundings


@same_examples_each_time
@given(steps_of(1e-4, 0.999))
def test_every_entry_of_any_table_is_met(betas):
    table = torch.cumprod(1 - times(*betas), 0)
    alpha, sigma = NoiseSchedule.variance_preserving(table).coefficients(torch.arange(len(betas)).double())
    torch.testing.assert_close(alpha**2, table, rtol=0, atol=4e-16)  # to the angle and back: two roundings below 1
    torch.testing.assert_close(sigma**2, 1 - table, rtol=0, atol=4e-16)


@same_examples_each_time
@given(schedules, strengths)
def test_time_and_strength_are_each_others_inverse(schedule, strength):
    time = schedule.time_of_strength(times(strength))
    assert abs(schedule.strength_of_time(time) - strength) < 1e-14  # rounding of times up to 2000


@same_examples_each_time
@given(schedules, strengths)
def test_the_time_of_a_sigma_has_that_ratio(schedule, strength):
    ratio = schedule.ratio(schedule.time_of_strength(times(strength)))
    found = schedule.ratio(schedule.time_of_sigma(ratio))
    # Compared as angles between clean and pure noise: a tangent near its pole magnifies the rounding of its argument.
    assert abs(found.atan() - ratio.atan()) < 1e-14


@same_examples_each_time
@given(schedules, st.lists(st.floats(0.001, 1), min_size=1, max_size=4), st.integers(1, 100), st.floats(1, 3))
def test_a_grid_goes_from_exactly_the_start_to_exactly_clean_without_a_pause(schedule, strengths, steps, warp):
    start = schedule.time_of_strength(times(*strengths))
    grid = schedule.grid(start, steps, warp)
    assert grid.shape == (len(strengths), steps + 1)
    assert torch.equal(grid[:, 0], start)
    assert (grid[:, -1] == schedule.clean_time).all()
    assert (grid.diff(dim=1) < 0).all()


@same_examples_each_time
@given(schedules, st.integers(1, 100))
def test_the_number_of_steps_never_changes_the_level(schedule, steps):
    start = schedule.time_of_strength(times(0.37))
    noisiest = [schedule.ratio(schedule.grid(start, count)[:, 0]) for count in (1, steps)]
    assert torch.equal(*noisiest)


@same_examples_each_time
@given(schedules, st.floats(-1e6, 1e6))
def test_strength_1_forgets_the_image_and_strength_0_keeps_it(schedule, value):
    x_0, noise = torch.full((2, 1, 2, 2), value), torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    clean, forgotten = schedule.add_noise(x_0, schedule.time_of_strength(times(0, 1)), noise)
    assert torch.equal(clean, x_0[0])
    _, sigma = schedule.coefficients(times(schedule.noisiest_time))
    assert torch.equal(forgotten, sigma.float() * noise[1])
