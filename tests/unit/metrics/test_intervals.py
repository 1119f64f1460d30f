"""Confidence intervals against those of scipy, and what images are worth that belong together."""

import numpy as np
import pytest
from scipy import stats

from nearfar.audit.calibration import estimate
from nearfar.metrics.intervals import NORMAL, bootstrap, independent, wilson

ALONE, PEOPLE = np.arange(100), np.arange(200) // 10


def normal(count, seed=0):
    return np.random.default_rng(seed).normal(size=count)


@pytest.mark.parametrize("hits", [0, 1, 20, 99, 100])
@pytest.mark.parametrize(("confidence", "quantile"), [(0.95, NORMAL), (0.9, 1.6448536269514722)])
def test_wilson_is_that_of_scipy(hits, confidence, quantile):
    known = stats.binomtest(hits, 100).proportion_ci(confidence_level=confidence, method="wilson")
    assert wilson(hits / 100, 100, quantile) == pytest.approx((known.low, known.high), abs=1e-9)
    assert wilson(float("nan"), 0) == (0, 1)


@pytest.mark.parametrize("count", [10, 12, 17, 100, 7.3])
def test_wilson_ends_at_0_and_1_exactly(count):
    assert wilson(0.0, count)[0] == 0
    assert wilson(1.0, count)[1] == 1


def test_the_bootstrap_is_that_of_scipy():
    scores = np.random.default_rng(1).gamma(2, size=100)
    known = stats.bootstrap((scores,), np.mean, confidence_level=0.9, method="percentile", rng=2, n_resamples=20_000)
    assert bootstrap(scores, ALONE, 0.05, 4000) == pytest.approx(tuple(known.confidence_interval), abs=0.02)
    copies, means = ALONE % 10, normal(10)
    assert bootstrap(means[copies], copies, 0.05, 4000) == pytest.approx(bootstrap(means, ALONE[:10], 0.05, 4000))


def test_pictures_of_one_person_that_are_alike_count_as_one():
    groups, own = np.arange(200) // 5, (normal(40) > 0).astype(float)
    assert independent(own[groups], groups) == pytest.approx(39, abs=0.1)  # one less: the variance between few groups
    assert independent((normal(200) > 0).astype(float), groups) == pytest.approx(200, rel=0.25)
    assert independent(own, ALONE[:40]) == 40
    assert independent(own[:0], ALONE[:0]) == 0


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_where_all_scores_are_equal_there_are_as_many_trials_as_people(score):
    assert independent(np.full(200, score), PEOPLE) == 20
    assert independent(np.full(10, score), PEOPLE[:10]) == 1
    point = estimate(0.5, np.full(200, score), PEOPLE, rate=True, tail=0.05)
    trials = 20 * (stats.t.ppf(0.05, 199) / stats.t.ppf(0.05, 19)) ** 2  # Korn and Graubard's correction for people
    reach = 1 - 0.05 ** (1 / trials)  # Clopper and Pearson's bound where none or all of the trials succeed
    assert (point.low, point.high) == pytest.approx((1 - reach, 1) if score else (0, reach), abs=1e-9)
