"""What votes cost, against a library's accountant and the Gaussian mechanism."""

from math import inf

import pytest
from dp_accounting.pld.privacy_loss_distribution import from_discrete_gaussian_mechanism

from nearfar.audit.model_attacks import epsilon
from nearfar.errors import UsageError
from nearfar.evolution.accounting import deviation_for, epsilon_of, rate_of


@pytest.mark.parametrize(
    ("deviation", "rounds", "delta"), [(4.5, 5, 1e-5), (1.1, 5, 1e-5), (0.6, 1, 1e-6), (12.0, 10, 1e-5), (2.0, 3, 1e-3)]
)
def test_epsilon_is_that_of_a_librarys_accountant(deviation, rounds, delta):
    loss = from_discrete_gaussian_mechanism(deviation, sensitivity=1, value_discretization_interval=1e-4)
    theirs = loss.self_compose(rounds).get_epsilon_for_delta(delta)
    assert epsilon_of(deviation, rounds, delta) == pytest.approx(theirs, rel=1e-3, abs=1e-4 * rounds)


@pytest.mark.parametrize(("deviation", "rounds"), [(20.0, 1), (20.0, 7), (60.0, 4)])
def test_much_noise_costs_what_the_gaussian_mechanism_of_the_same_rate_does(deviation, rounds):
    assert epsilon_of(deviation, rounds) == pytest.approx(epsilon(rate_of(deviation, rounds)), rel=2e-4)


@pytest.mark.parametrize("wanted", [0.05, 0.5, 1.0, 2.0, 10.0, 50.0])
@pytest.mark.parametrize("rounds", [1, 5])
def test_the_noise_of_a_budget_is_the_least_that_keeps_it(wanted, rounds):
    deviation = deviation_for(wanted, 1e-5, rounds)
    assert epsilon_of(deviation, rounds) <= wanted
    assert epsilon_of(deviation - 1e-3, rounds) > wanted


def test_an_infinite_budget_needs_no_noise():
    assert deviation_for(inf, 1e-5, 5) == 0
    assert epsilon_of(0.0, 5) == inf
    assert rate_of(0.0, 5) == inf


@pytest.mark.parametrize("wanted", [0.0, -1.0, float("nan")])
def test_a_budget_is_above_zero(wanted):
    with pytest.raises(UsageError, match=r"epsilon must be above 0, got .*: 1 is strong, 10 is weak"):
        deviation_for(wanted, 1e-5, 5)


@pytest.mark.parametrize("delta", [0.0, 1.0, 2.0, -1e-5, float("nan")])
def test_a_delta_is_a_small_chance(delta):
    with pytest.raises(UsageError, match="delta must be from 1e-10 to below 1, got"):
        deviation_for(1.0, delta, 5)


def test_a_budget_that_no_vote_bears_is_refused():
    with pytest.raises(UsageError, match="needs more noise than any vote bears"):
        deviation_for(1e-6, 1e-9, 100)
