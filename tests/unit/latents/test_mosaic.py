"""Mosaics of latents: moments by algebra for fixed weights, and the fields that the weights are made of."""

import math

import pytest
import torch

from nearfar.errors import UsageError
from nearfar.latents.mixtures import (
    Blend,
    as_likeness,
    choose_alike,
    combine,
    combine_mosaics,
    evenly,
    mix_mosaics,
    neighbors,
    others,
    smooth_fields,
    togetherness,
)

SHAPE = (3, 6, 8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count, seed=0, shape=SHAPE):
    return torch.randn(count, *shape, dtype=torch.float64, generator=generator(seed))


def positive(mixtures, parents, seed=1):
    return torch.rand(mixtures, parents, *SHAPE[1:], dtype=torch.float64, generator=generator(seed)) + 0.05


def shares(count, mean_of, weights):
    """What each of `count` latents is multiplied with in each place: `combine_mosaics` is linear in them.

    (mixtures, count, rows, columns): one latent after another is 1 everywhere, and the others are 0.
    """
    units = torch.eye(count, dtype=torch.float64)[..., None, None].expand(count, count, *SHAPE[1:])
    parents = torch.arange(weights.shape[1]).expand(weights.shape[:2])
    return combine_mosaics(units, mean_of(units), parents, weights)


def test_with_a_known_mean_every_place_has_the_domains_mean_and_covariance():
    weights, mean = positive(5, 3), noise(1, seed=2)[0]
    parents = torch.arange(3).expand(5, 3)
    at_mean = combine_mosaics(mean.expand(7, *SHAPE), mean, parents, weights)
    torch.testing.assert_close(at_mean, mean.expand(5, *SHAPE))  # the expectation: all else is linear
    found = shares(7, lambda units: torch.zeros_like(units[0]), weights)
    # Of independent latents with covariance S the sum has the sum of squared shares times S.
    torch.testing.assert_close(found.square().sum(1), torch.ones(5, *SHAPE[1:], dtype=torch.float64))


def test_covariance_between_places_is_multiplied_with_the_cosine_of_their_weights():
    weights = positive(1, 3)
    found = shares(3, lambda units: torch.zeros_like(units[0]), weights)[0].flatten(1)
    directions = torch.nn.functional.normalize(weights[0].flatten(1), dim=0)
    torch.testing.assert_close(found.T @ found, directions.T @ directions)
    assert (found.T @ found).min() < 0.9  # places differ


def test_about_the_fitted_mean_the_covariance_falls_short_as_documented():
    weights = positive(4, 3)
    found = shares(9, lambda units: units.mean(0), weights)
    a, b = weights.sum(1), weights.square().sum(1)
    torch.testing.assert_close(found.sum(1), torch.ones_like(a))  # the right mean
    torch.testing.assert_close(found.square().sum(1), 1 - (a**2 / b - 1) / 9)


def test_weights_that_are_alike_everywhere_make_the_mixtures_of_whole_latents():
    latents, mean = noise(6), noise(1, seed=3)[0]
    parents, whole = torch.tensor([[0, 3, 5], [4, 1, 2]]), positive(2, 3)[..., 0, 0]
    by_place = combine_mosaics(latents, mean, parents, whole[..., None, None].expand(2, 3, *SHAPE[1:]))
    torch.testing.assert_close(by_place, combine(latents, mean, parents, whole))


def test_without_sharpness_all_parents_count_alike():
    latents, mean = noise(6), noise(1, seed=3)[0]
    mixtures = mix_mosaics(latents, mean, 4, generator(), Blend(sharpness=0.0))
    expected = torch.stack([latents[row].sum(0) / 3**0.5 + (1 - 3**0.5) * mean for row in mixtures.parents])
    torch.testing.assert_close(mixtures.latents, expected)


@pytest.mark.slow
def test_drawn_mixtures_have_the_mean_and_the_covariance_of_the_domain():
    """Latents of N(mean, S), S of 3 channels and equal in all places, seen through many draws of many latents."""
    count, mean = 4000, torch.full(SHAPE, 2.0, dtype=torch.float64)
    colors = torch.tensor([[1.0, 0, 0], [0.8, 0.5, 0], [-0.3, 0.2, 0.4]], dtype=torch.float64)
    latents = mean + torch.einsum("cd,ndhw->nchw", colors, noise(count, seed=5))
    x = mix_mosaics(latents, mean, count, generator(1)).latents - mean
    exact = colors @ colors.T
    places = x[:, :, ::5, ::7]  # the corners
    covariance = torch.einsum("nchw,ndhw->hwcd", places, places) / count
    # Deviation of a variance v of 4000 draws: v sqrt(2/4000) = 0.022 v; as much again from 4000 latents.
    assert (covariance - exact).abs().max() < 5 * 0.032
    # Deviation of a mean: sqrt(v / 4000) = 0.016 from the draws, sqrt(3) times as much at most from the latents.
    assert x.mean(0)[:, ::5, ::7].abs().max() < 4 * 0.032


def test_fields_have_unit_variance_in_every_place():
    fields = smooth_fields((3000, 2), 5, 9, 0.2, generator())
    assert fields.shape == (3000, 2, 5, 9)
    # 6000 draws for each place; deviation of a variance sqrt(2/6000) = 0.018, of a mean 0.013.
    assert (fields.square().mean((0, 1)) - 1).abs().max() < 5 * 0.018
    assert fields.mean((0, 1)).abs().max() < 5 * 0.013
    assert abs((fields[:, 0] * fields[:, 1]).mean().item()) < 0.02  # and parents are independent


@pytest.mark.parametrize("reach", [0.05, 0.1])
def test_fields_have_the_stated_correlation_length(reach):
    side = 64
    fields = smooth_fields((400, 3), side, 1, reach, generator(7))[..., 0].flatten(0, 1)
    for step in (2, 4, 8):
        found = (fields[:, 24 : 40 - step] * fields[:, 24 + step : 40]).mean().item()
        assert found == pytest.approx(math.exp(-((step / side / reach) ** 2) / 4), abs=0.06)


def test_sharper_weights_leave_one_parent_to_rule_each_place():
    latents, mean = noise(6), noise(1)[0]
    strongest = [
        mix_mosaics(latents, mean, 200, generator(), Blend(sharpness=sharpness)).weights.amax(1).mean().item()
        for sharpness in (0.0, 1.0, 3.0, 1000.0)
    ]
    assert strongest == sorted(strongest)
    assert strongest[0] == pytest.approx(1 / 3)
    assert strongest[-1] > 0.99


def test_every_parent_rules_somewhere_alike_in_the_long_run():
    weights = mix_mosaics(noise(6), noise(1)[0], 2000, generator()).weights
    torch.testing.assert_close(weights.sum(1), torch.ones(2000, *SHAPE[1:], dtype=torch.float64))
    # A share has a deviation below 0.47; 2000 draws of it 0.0105.
    assert (weights.mean(0) - 1 / 3).abs().max() < 5 * 0.0105


def test_one_parent_is_given_back():
    latents = noise(5).float()
    copies = mix_mosaics(latents, latents.mean(0), 6, generator(2), Blend(parents=1))
    assert copies.latents.dtype == torch.float32
    torch.testing.assert_close(copies.latents, latents[copies.parents[:, 0]])


def test_mixtures_say_what_they_are_made_of():
    latents, mean = noise(8), noise(1, seed=3)[0]
    mixtures = mix_mosaics(latents, mean, 50, generator(3), Blend(parents=4))
    assert all(len(set(row)) == 4 for row in mixtures.parents.tolist())
    assert set(mixtures.parents.flatten().tolist()) == set(range(8))
    assert torch.equal(combine_mosaics(latents, mean, mixtures.parents, mixtures.weights), mixtures.latents)
    weights = mixtures.weights[0, :, 2, 5]
    by_hand = weights @ latents[mixtures.parents[0], :, 2, 5] + (weights.square().sum().sqrt() - 1) * mean[:, 2, 5]
    torch.testing.assert_close(mixtures.latents[0, :, 2, 5], by_hand / weights.square().sum().sqrt())


def test_draws_repeat_with_their_seed():
    latents = noise(5)
    one, same, other = (mix_mosaics(latents, latents.mean(0), 3, generator(seed)).latents for seed in (2, 2, 3))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("wrong", [{"reach": 0.0}, {"reach": math.nan}, {"sharpness": -1.0}, {"sharpness": math.inf}])
def test_fields_that_cannot_be_had_are_refused(wrong):
    with pytest.raises(UsageError, match="reach must be above 0 and sharpness at least 0, got"):
        mix_mosaics(noise(5), noise(1)[0], 2, generator(), Blend(**wrong))


@pytest.mark.parametrize("parents", [0, 6])
def test_numbers_of_parents_that_cannot_be_had_are_refused(parents):
    with pytest.raises(UsageError, match=f"parents must be from 1 to the 5 latents there are, got {parents}"):
        mix_mosaics(noise(5), noise(1)[0], 2, generator(), Blend(parents=parents))


def test_neighbors_are_the_nearest_in_coarse_averages():
    """Fine noise that averages out does not count: each of 9 gray levels has the next ones as neighbors."""
    levels, signs = torch.tensor([5.0, 1, 8, 2, 0, 7, 3, 6, 4]), torch.tensor([1.0, -1]).repeat(4)
    fine = 50 * signs * signs[:, None] * torch.tensor([1.0, -1, 1, 1, -1, 1, -1, -1, 1])[:, None, None]
    latents = (levels[:, None, None] + fine)[:, None]
    for number, row in enumerate(neighbors(latents, 2)):
        assert (levels[row] - levels[number]).abs().sum() == (3 if levels[number] in (0, 8) else 2)
    assert neighbors(latents, 99).shape == (9, 8)


def test_the_others_of_each_latent_are_all_but_itself():
    assert others(3).tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]


def test_parents_alike_are_different_and_all_met():
    near = torch.tensor([[1, 2, 3], [2, 3, 4], [3, 4, 0], [4, 0, 1], [0, 1, 2]])
    chosen = choose_alike(as_likeness(near), 600, 3, generator())
    assert all(row[1] != row[2] and set(row[1:].tolist()) < set(near[row[0]].tolist()) for row in chosen)
    pairs = torch.stack([chosen[:, 0], chosen[:, 1]], 1).unique(dim=0, return_counts=True)[1]
    assert len(pairs) == 15
    assert pairs.min() > 20  # 40 are expected


def uneven(count=120):
    """Images of very different strength, as those of faint and of bright galaxies are."""
    return noise(count, 3) * torch.logspace(-1, 1, count, dtype=torch.float64)[:, None, None, None]


def test_latents_are_mixed_in_evenly_however_near_to_all_some_are():
    near = neighbors(uneven(), 12)
    likeness = evenly(near)
    assert torch.allclose(likeness, likeness.T)
    assert likeness.sum(0).tolist() == pytest.approx([1] * 120, abs=1e-6)
    assert as_likeness(near).sum(0).max() > 36  # three times its share
    assert (likeness > 0).logical_or(as_likeness(near) == 0).all()


def test_mixtures_of_parents_alike_vary_as_the_latents_do():
    """Of neighbors drawn alike they vary by less than half."""
    latents = uneven() + 2 * noise(1, 9)
    mean, near = latents.mean(0), neighbors(latents, 12)

    def variance(likeness, together):
        mixed = mix_mosaics(latents, mean, 3000, generator(), alike=likeness, together=together)
        return ((mixed.latents - mean).square().mean() / (latents - mean).square().mean()).item()

    even = evenly(near)
    assert variance(as_likeness(near), None) < 0.75
    assert variance(even, togetherness(latents, even)) == pytest.approx(1, abs=0.08)


def test_the_variance_of_parents_that_correlate_is_kept_in_each_place():
    """Parents `sqrt(c) a + sqrt(1 - c) b_i` correlate by c in every place."""
    c, count = 0.6, 4000
    shared, own = noise(count, 5), noise(2 * count, 6)
    parents = (c**0.5 * shared.repeat(2, 1, 1, 1) + (1 - c) ** 0.5 * own).reshape(2 * count, *SHAPE)
    weights = positive(1, 2).expand(count, -1, -1, -1)
    pairs = torch.stack([torch.arange(count), torch.arange(count) + count], 1)
    together = torch.full(SHAPE[1:], c, dtype=torch.float64)
    mixed = combine_mosaics(parents, torch.zeros(SHAPE), pairs, weights, together)
    assert mixed.square().mean().item() == pytest.approx(1, abs=0.02)
    some, partners = torch.cat([parents[:200], parents[count : count + 200]]), torch.eye(400).roll(200, 1).double()
    assert togetherness(some, partners).mean().item() == pytest.approx(c, abs=0.05)
