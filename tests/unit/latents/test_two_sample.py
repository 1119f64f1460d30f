"""Separation of two clouds: closed forms, a classifier trained anew, level and power of the permutations."""

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from nearfar.latents import two_sample as two_clouds
from nearfar.latents.statistics import gram_matrix
from nearfar.latents.two_sample import balanced_folds, center_distances, held_out_scores, permuted_labels, separation

SHAPE, DIMENSION = (1, 10, 30), 300
DEVIATIONS = torch.logspace(-1, 0.5, DIMENSION).reshape(SHAPE)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def two(first, second, seed, shift=0.0, stretch=1.0):
    """A cloud, and one that is shifted in every pixel by a share of its deviation, and stretched."""
    noise = torch.randn(first + second, *SHAPE, generator=generator(seed))
    noise[first:] *= stretch
    noise[:first] += shift
    return 2 + noise * DEVIATIONS


def separated(latents, first, seed=0):
    return separation(gram_matrix(latents), first, DIMENSION, generator(seed))


@pytest.fixture
def fewer_permutations(monkeypatch):
    monkeypatch.setattr(two_clouds, "PERMUTATIONS", 99)


@pytest.mark.parametrize(("first", "second", "stretch"), [(12, 12, 1.0), (10, 25, 1.0), (15, 15, 2.0)])
@pytest.mark.usefixtures("fewer_permutations")
def test_the_level_is_kept(first, second, stretch):
    """Equal centers: also where one cloud is twice as wide, if both have one size."""
    rounds = 100
    found = [separated(two(first, second, seed, stretch=stretch), first, seed) for seed in range(rounds)]
    most = binom.ppf(0.999, rounds, 0.05)
    assert sum(one.distance_p <= 0.05 for one in found) <= most
    assert sum(one.accuracy_p <= 0.05 for one in found) <= most
    assert min(one.distance_p for one in found) < 0.1
    distances = torch.tensor([one.squared_distance for one in found])
    assert abs(distances.mean()) < 3.3 * distances.std() / rounds**0.5


@pytest.mark.parametrize(("count", "shift"), [(10, 0.7), (30, 0.5)])
@pytest.mark.usefixtures("fewer_permutations")
def test_a_shift_is_found(count, shift):
    found = [separated(two(count, count, seed, shift), count, seed) for seed in range(20)]
    assert sum(one.distance_p <= 0.05 for one in found) >= 18
    assert sum(one.accuracy_p <= 0.05 for one in found) >= 18
    expected = (shift * DEVIATIONS).square().sum()
    distances = torch.tensor([one.squared_distance for one in found])
    assert abs(distances.mean() - expected) < 3 * distances.std() / 20**0.5 < 0.5 * expected


def test_far_clouds_are_told_apart_without_an_error():
    found = separated(two(20, 20, 0, shift=3.0), 20)
    assert found.accuracy == 1
    assert found.accuracy_p == found.distance_p == 1 / (1 + two_clouds.PERMUTATIONS)
    assert found.distance_z > 10
    expected = 3 * DEVIATIONS.square().sum().sqrt() / (DEVIATIONS.square().sum().sqrt() * DIMENSION**-0.25)
    assert found.quarter_power == pytest.approx(expected.item(), rel=0.05)


def test_clouds_that_differ_in_width_alone_differ_in_norm():
    found = separated(two(40, 40, 0, stretch=0.5) - 2, 40)
    assert found.norm_gap > 3
    assert found.distance_p > 0.01


def test_distances_are_those_of_the_means_without_bias():
    x = two(6, 9, 0).double()
    labels = torch.tensor([[1.0] * 6 + [-1.0] * 9], dtype=torch.float64)
    first, second = x[:6].flatten(1), x[6:].flatten(1)
    plain = (first.mean(0) - second.mean(0)).square().sum()
    bias = first.var(0).sum() / 6 + second.var(0).sum() / 9
    torch.testing.assert_close(center_distances(gram_matrix(x), labels), (plain - bias)[None])


def test_scores_are_those_of_scikit_learns_ridge():
    """The dual form against a ridge regression of the pixels, with the penalty that leaves the least squared error."""
    x = two(14, 11, 3, shift=0.3).double()
    signs = torch.tensor([1.0] * 14 + [-1.0] * 11, dtype=torch.float64)
    held = torch.zeros(25, dtype=torch.bool)
    held[[0, 5, 16, 22]] = True
    found = held_out_scores(gram_matrix(x), signs[None], held)[0]
    train, test = (x[part].flatten(1).numpy() for part in (~held, held))
    targets = signs[~held].numpy()
    scale = ((train - train.mean(0)) ** 2).sum() / len(train)
    ridges = [Ridge(alpha=scale * ridge.item()) for ridge in two_clouds.RIDGES]
    left_out = [cross_val_predict(ridge, train, targets, cv=LeaveOneOut()) for ridge in ridges]
    best = int(np.argmin([((one - targets) ** 2).sum() for one in left_out]))
    middle = (left_out[best][targets > 0].mean() + left_out[best][targets < 0].mean()) / 2
    expected = ridges[best].fit(train, targets).predict(test) - middle
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-6, atol=1e-8)


def test_a_rotation_and_a_shift_of_both_change_nothing():
    x = two(12, 12, 0, shift=0.4).double()
    turn = torch.linalg.qr(torch.randn(DIMENSION, DIMENSION, dtype=torch.float64, generator=generator(1))).Q
    one, other = separated(x, 12), separated((x.flatten(1) @ turn).reshape(x.shape), 12)
    assert vars(one) == pytest.approx(vars(other))
    shifted = separated(x + 1, 12)
    assert (shifted.distance_p, shifted.accuracy) == (one.distance_p, one.accuracy)


def test_permutations_keep_the_balance_of_every_fold():
    folds = balanced_folds(13, 22, generator())
    labels = permuted_labels(folds, 13, generator())
    assert labels.shape == (1 + two_clouds.PERMUTATIONS, 35)
    assert labels[0].tolist() == [1] * 13 + [-1] * 22
    for fold in range(two_clouds.FOLDS):
        assert (labels[:, folds == fold].sum(1) == labels[0, folds == fold].sum()).all()
        assert 2 <= (folds[:13] == fold).sum() <= 3
        assert 4 <= (folds[13:] == fold).sum() <= 5
    assert len(labels.unique(dim=0)) > 0.99 * len(labels)
