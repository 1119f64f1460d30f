"""Tests of Gaussianity: scipy's statistic, exact level on uneven Gaussian clouds, power against others."""

import pytest
import torch
from scipy.stats import anderson, binom

from nearfar.latents import normality as module
from nearfar.latents.normality import anderson_darling, gaussianity, holm, norm_dispersion, rotations, two_sided
from nearfar.latents.statistics import gram_matrix

COUNT, SHAPE, ROUNDS = 30, (1, 12, 20), 200
DEVIATIONS = torch.logspace(-1.5, 0.5, 240).reshape(SHAPE)
"""Variances over four decades: a few directions carry most."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def frames():
    return rotations(COUNT, generator())


def clouds(rounds, change=lambda x, noise: x):
    """Uneven Gaussian clouds about a common center, each changed with noise of its own."""
    for seed in range(rounds):
        source = generator(seed)
        x = torch.randn(COUNT, *SHAPE, generator=source) * DEVIATIONS
        yield 0.5 + change(x, torch.randn(COUNT, 1, 1, 1, generator=source))


def judged(latents, frames):
    return gaussianity(gram_matrix(latents), frames, generator())


def rejections(found, name, level=0.05):
    values = [getattr(one, name) for one in found]
    return sum((min(value) if isinstance(value, tuple) else value) <= level for value in values)


def test_the_level_is_kept_on_uneven_gaussian_clouds(frames):
    found = [judged(latents, frames) for latents in clouds(ROUNDS)]
    least, most = binom.interval(0.998, ROUNDS, 0.05)
    for name in ("norm_p", "direction_p", "p"):
        assert most >= rejections(found, name) >= (least if name == "norm_p" else 1), name
    dispersion = torch.tensor([one.norm_dispersion for one in found])
    assert abs(dispersion.mean() - 1) < 3 * dispersion.std() / ROUNDS**0.5 < 0.2


def scales(x, noise):
    return x * (0.5 * noise).exp()


def outliers(x, noise):
    return torch.where(noise > 1.5, 6 * x, x)


def two_groups(x, noise):
    """Half of them lie three standard deviations of the leading pixel to the side."""
    x[:, 0, -1, -1] += 3 * DEVIATIONS[0, -1, -1] * noise[:, 0, 0, 0].sign()
    return x


@pytest.mark.parametrize(
    ("change", "name"), [(scales, "norm_p"), (outliers, "norm_p"), (two_groups, "direction_p"), (scales, "p")]
)
def test_what_is_not_gaussian_is_found(frames, change, name):
    found = [judged(latents, frames) for latents in clouds(20, change)]
    assert rejections(found, name) >= 16


def test_equal_lengths_are_found():
    """Latents on a sphere are less spread than a Gaussian's lengths are."""
    x = torch.randn(60, 1, 6, 6, generator=generator())
    found = judged(x / x.flatten(1).norm(dim=1)[:, None, None, None], rotations(60, generator()))
    assert found.norm_dispersion < 0.5
    assert found.norm_p <= 0.02


def test_a_rotation_changes_nothing(frames):
    latents = next(clouds(1)).double()
    turn = torch.linalg.qr(torch.randn(240, 240, dtype=torch.float64, generator=generator(1))).Q
    one, other = judged(latents, frames), judged((latents.flatten(1) @ turn).reshape(latents.shape), frames)
    assert one.norm_p == other.norm_p
    assert one.norm_dispersion == pytest.approx(other.norm_dispersion)
    assert one.direction_p == pytest.approx(other.direction_p, abs=1e-6)


def test_of_many_latents_some_are_drawn(monkeypatch):
    monkeypatch.setattr(module, "CHOSEN", 20)
    gram = gram_matrix(next(clouds(1)))
    small = rotations(COUNT, generator())
    assert small.shape == (module.ROTATIONS, 20, 19)
    one, same, other = (gaussianity(gram, small, generator(seed)) for seed in (0, 0, 1))
    assert one == same != other


def test_frames_are_orthogonal_to_the_mean_and_of_unit_length():
    frames = rotations(9, generator())
    torch.testing.assert_close(frames.sum(1), torch.ones(module.ROTATIONS, 8, dtype=torch.float64))
    torch.testing.assert_close(frames.sum(2), torch.full((module.ROTATIONS, 9), 8 / 9, dtype=torch.float64))


def test_dispersion_is_1_on_average_over_rotations():
    values = torch.linspace(0.1, 9, 11, dtype=torch.float64).square()
    over = norm_dispersion(rotations(12, generator()) @ values, values)
    assert over.mean().item() == pytest.approx(1, abs=3 * over.std().item() / len(over) ** 0.5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "draw", [torch.randn, torch.rand, lambda *shape, generator: torch.randn(*shape, generator=generator) ** 3]
)
def test_p_values_are_those_of_scipys_statistic(draw):
    """By the table of critical values that scipy has, at 15, 10, 5, 2.5 and 1 per cent."""
    scores = draw(40, 200, generator=generator()).double()
    found = anderson_darling(scores)
    for column, p in zip(scores.T.numpy(), found, strict=True):
        expected = anderson(column, "norm")
        levels = expected.significance_level / 100
        for level, critical in zip(levels, expected.critical_values, strict=True):
            if abs(expected.statistic / critical - 1) > 0.03:
                assert (p.item() < level) == (expected.statistic > critical)


def test_p_values_of_gaussian_numbers_are_uniform():
    found = anderson_darling(torch.randn(12, 4000, dtype=torch.float64, generator=generator()))
    for level in (0.01, 0.05, 0.2, 0.5, 0.8):
        low, high = binom.interval(0.9999, 4000, level)
        assert 0.8 * low < (found <= level).sum() < 1.2 * high, level


def test_holm_by_hand():
    p = torch.tensor([0.04, 0.01, 0.03, 0.9], dtype=torch.float64)
    torch.testing.assert_close(holm(p), torch.tensor([0.09, 0.04, 0.09, 0.9], dtype=torch.float64))


def test_two_sided_p_values_by_hand():
    null = torch.arange(1, 20, dtype=torch.float64)
    assert two_sided(0.0, null) == pytest.approx(2 / 20)
    assert two_sided(18.5, null) == pytest.approx(2 * 2 / 20)
    assert two_sided(10.0, null) == 1
