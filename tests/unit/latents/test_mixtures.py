"""Mixtures of parents: mean and covariance by algebra for fixed weights, and by simulation."""

import math

import pytest
import torch

from nearfar.errors import UsageError
from nearfar.latents.mixtures import combine, mix, mix_on_sphere
from nearfar.latents.shell import slerp

SHAPE = (3, 4, 6)
COUNT = math.prod(SHAPE)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count, seed=0):
    return torch.randn(count, *SHAPE, dtype=torch.float64, generator=generator(seed))


def coefficients(count, mean_of, weights):
    """What each of `count` latents is multiplied with in a mixture of the first ones: latents are the unit vectors."""
    units = torch.eye(count, dtype=torch.float64).view(count, 1, 1, count)
    parents = torch.arange(weights.shape[1]).expand(weights.shape)
    return combine(units, mean_of(units), parents, weights).flatten(1)


WEIGHTS = torch.tensor([[0.5, 0.3, 0.2], [1, 0, 0], [0.9, 0.05, 0.05], [2, 2, 2]], dtype=torch.float64)


def test_with_a_known_mean_a_mixture_has_the_domains_law_at_all_weights():
    mean = torch.full((1, 1, 9), 7.0, dtype=torch.float64)
    parents = torch.arange(3).expand(4, 3)
    at_mean = combine(mean.expand(9, 1, 1, 9), mean, parents, WEIGHTS)
    torch.testing.assert_close(at_mean, mean.expand(4, 1, 1, 9))
    shares = coefficients(9, lambda units: torch.zeros(1, 1, 9, dtype=torch.float64), WEIGHTS)
    torch.testing.assert_close(shares.square().sum(1), torch.ones(4, dtype=torch.float64))


def test_about_the_fitted_mean_the_covariance_falls_short_as_documented():
    """A linear combination of independent latents has the sum of its squared coefficients times their covariance."""
    found = coefficients(9, lambda units: units.mean(0), WEIGHTS)
    a, b = WEIGHTS.sum(1), WEIGHTS.square().sum(1)
    torch.testing.assert_close(found.sum(1), torch.ones(4, dtype=torch.float64))  # the right mean
    torch.testing.assert_close(found.square().sum(1), 1 - (a**2 / b - 1) / 9)


@pytest.mark.slow
def test_mixtures_of_many_latents_have_the_mean_and_covariance_of_the_domain():
    mixing = torch.randn(COUNT, COUNT, dtype=torch.float64, generator=generator(9)) / COUNT**0.5
    exact, mean, count = mixing.T @ mixing, torch.full(SHAPE, 3.0, dtype=torch.float64), 6000
    latents = mean + (noise(count).flatten(1) @ mixing).view(-1, *SHAPE)
    x = mix(latents, mean, count, generator(1), parents=3).latents - mean
    # Latents and draws are as many. Squared errors of the mean: tr S / N from the draws, at most 3 tr S / N from the
    # latents, a / sqrt b being at most sqrt(3). Of the covariance: (tr S^2 + (tr S)^2) / N from each.
    assert x.mean(0).square().sum() < 1.2 * 4 * exact.trace() / count
    error = (x.flatten(1).T @ x.flatten(1) / count - exact).square().sum()
    assert error < 1.2 * 2 * (exact.square().sum() + exact.trace() ** 2) / count


def test_mixtures_say_what_they_are_made_of():
    latents, mean = noise(8).float(), torch.zeros(SHAPE)
    mixtures = mix(latents, mean, 50, generator(3), parents=4, concentration=0.5)
    assert mixtures.latents.dtype == torch.float32
    assert all(len(set(row)) == 4 for row in mixtures.parents.tolist())
    assert set(mixtures.parents.flatten().tolist()) == set(range(8))
    torch.testing.assert_close(mixtures.weights.sum(1), torch.ones(50, dtype=torch.float64))
    again = combine(latents, mean, mixtures.parents, mixtures.weights)
    assert torch.equal(again, mixtures.latents)
    by_hand = sum(
        w * latents[p] for p, w in zip(mixtures.parents[0].tolist(), mixtures.weights[0].tolist(), strict=True)
    )
    torch.testing.assert_close(again[0], by_hand / mixtures.weights[0].square().sum().sqrt().float())


def test_weights_are_dirichlets():
    weights = mix(noise(5), noise(1)[0], 4000, generator(), parents=3, concentration=2.0).weights
    # Mean 1/3, variance (1/3)(2/3) / (3 * 2 + 1) = 0.0317; deviations of the averages 0.003 and 0.0006.
    torch.testing.assert_close(weights.mean(0), torch.full((3,), 1 / 3, dtype=torch.float64), rtol=0, atol=0.014)
    torch.testing.assert_close(weights.var(0), torch.full((3,), 2 / 63, dtype=torch.float64), rtol=0, atol=0.003)


def test_one_parent_is_a_copy_and_draws_repeat_with_their_seed():
    latents = noise(5)
    copies = mix(latents, latents.mean(0), 6, generator(2), parents=1)
    torch.testing.assert_close(copies.latents, latents[copies.parents[:, 0]])
    assert torch.equal(mix(latents, latents.mean(0), 6, generator(2), parents=1).latents, copies.latents)
    assert not torch.equal(mix(latents, latents.mean(0), 6, generator(3), parents=1).latents, copies.latents)


def test_spherical_mixtures_are_the_papers_slerp():
    latents = noise(5)
    mixtures = mix_on_sphere(latents, 7, generator())
    first, second = latents[mixtures.parents[:, 0]], latents[mixtures.parents[:, 1]]
    torch.testing.assert_close(mixtures.latents, slerp(first, second, mixtures.weights[:, 1]))
    assert (mixtures.parents[:, 0] != mixtures.parents[:, 1]).all()


@pytest.mark.parametrize("parents", [0, 6])
def test_numbers_of_parents_that_cannot_be_had_are_refused(parents):
    with pytest.raises(UsageError, match=f"parents must be from 1 to the 5 latents there are, got {parents}"):
        mix(noise(5), noise(1)[0], 2, generator(), parents=parents)


@pytest.mark.parametrize("concentration", [0.0, -1.0, math.nan])
def test_concentrations_that_are_none_are_refused(concentration):
    with pytest.raises(UsageError, match="concentration must be above 0"):
        mix(noise(5), noise(1)[0], 2, generator(), concentration=concentration)
