"""Populations: strengths, weights, parents, variant numbers and what a run costs."""

from dataclasses import replace
from math import inf

import pytest
import torch

from gaussian_models import gaussian
from nearfar.errors import UsageError
from nearfar.evolution.population import (
    Evolution,
    drawn,
    first_population,
    looked_at,
    next_population,
    numbers_of,
    rounds_of,
    varied,
    weights_of,
)
from nearfar.io.fitting import from_8_bit
from nearfar.metrics.features import pixel_features

FREE = Evolution(10, inf, candidates=4, steps=2, rounds=3)


def test_strengths_fall_evenly_and_images_are_shared_out():
    assert [FREE.strength(number) for number in (1, 2, 3)] == pytest.approx(
        [FREE.first, 0.5 * (FREE.first + FREE.last), FREE.last]
    )
    assert Evolution(1, inf, rounds=1).strength(1) == FREE.last
    assert FREE.shares(3) == [4, 3, 3]


def test_votes_below_the_threshold_count_nothing():
    evolution = Evolution(1, 2.0, candidates=4, threshold=2.0)
    edge = 2 * evolution.deviation
    weights = weights_of([int(edge) + 11, int(edge) - 1, -5, int(edge) + 31], evolution)
    assert weights.sum() == pytest.approx(1)
    assert (weights > 0).tolist() == [True, False, False, True]
    assert weights_of([-3, -1, 0, 0], evolution).tolist() == [0.25] * 4


def test_a_candidate_is_drawn_as_often_as_its_weight_says():
    weights = torch.tensor([0.5, 0.0, 0.21, 0.29], dtype=torch.float64)
    for seed in range(20):
        counts = torch.bincount(drawn(weights, 10, seed), minlength=4)
        assert counts[1] == 0
        assert (counts - 10 * weights).abs().max() < 1


def test_no_two_variations_of_a_run_have_one_number():
    looking = Evolution(10, inf, candidates=4, rounds=3, looks=2)
    numbers = [one for number in (1, 2, 3) for one in numbers_of(looking, number, 0, 4)]
    numbers += [one for number in (1, 2, 3) for one in numbers_of(looking, number, 4, 8)]
    numbers.remove(numbers[0])
    assert len(set(numbers)) == len(numbers)
    assert 0 not in numbers


class Counting:
    """A denoiser that notes how many images it was asked for."""

    def __init__(self, denoiser):
        self.denoiser, self.asked = denoiser, 0

    def __getattr__(self, name):
        return getattr(self.denoiser, name)

    def __call__(self, x, times):
        self.asked += len(x)
        return self.denoiser(x, times)


@pytest.mark.parametrize("looks", [0, 2])
def test_a_run_costs_the_network_calls_that_it_says(looks):
    evolution = Evolution(6, inf, candidates=4, steps=2, rounds=2, looks=looks)
    denoiser = Counting(gaussian().denoiser)
    model = replace(gaussian(), denoiser=denoiser)
    vary, network = varied(model, evolution, 3), pixel_features(model.image.size, model.image.channels)

    def vote(number, population):
        looked_at(population, network, vary, evolution, number)
        return [1, 0, 0, 5]

    def first():
        return first_population(model, evolution, 0, 3)

    rounds = list(rounds_of(first, vote, vary, evolution, lambda _, make: make()))
    vary(rounds[-1].population[[0, 1, 2, 3, 0, 1]], evolution.last, range(100, 106))
    assert denoiser.asked == evolution.calls(1)
    assert [one.number for one in rounds] == [1, 2]


def test_candidates_come_from_those_that_are_voted_for():
    model, evolution = gaussian(), Evolution(6, inf, candidates=4, steps=2, rounds=2, first=0.02, last=0.01)
    first = first_population(model, evolution, 0, 4)
    after = next_population(first, [0, 7, 0, 0], varied(model, evolution, 4), evolution, 1)
    distance = (from_8_bit(after)[:, None] - from_8_bit(first)[None]).flatten(2).norm(dim=2)
    assert distance.argmin(1).tolist() == [1] * 4
    assert len(after.flatten(1).unique(dim=0)) == 4


def test_classes_begin_with_other_samples():
    model = gaussian()
    one, two = (first_population(model, FREE, place, 4) for place in (0, 1))
    assert len(torch.cat([one, two]).flatten(1).unique(dim=0)) == 8


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"looks": -1}, "looks and threshold must be 0 or more, got -1"),
        ({"first": 0.2, "last": 0.4}, r"strengths must fall within \(0, 1\], got 0.2 to 0.4"),
        ({"last": 0.0}, r"strengths must fall within \(0, 1\]"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        Evolution(**{"count": 1, "epsilon": 1.0, **options})


def test_the_number_of_voters_that_would_do():
    evolution = Evolution(1, 1.0, candidates=10)
    assert evolution.needed() == int(20 * evolution.deviation) + 1
    assert FREE.needed() == 0
