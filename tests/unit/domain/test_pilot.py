"""The trial run: the first way of mixing that copies no more than is wanted, and what is said when none does."""

from dataclasses import replace

import pytest
import torch

from nearfar.domain.guards import rates
from nearfar.domain.pilot import CANDIDATES, pilot
from nearfar.domain.synthesis import synthesize
from nearfar.errors import ModelWarning, UsageError
from oracle_domains import fitted, oracle

pytestmark = pytest.mark.filterwarnings("ignore::nearfar.errors.ModelWarning")
ONE, TWO, MANY = ({"parents": number, "reach": 0.13} for number in (1, 2, 99))


def test_the_first_candidate_that_keeps_the_limit_is_taken():
    """One parent is the fitted image itself."""
    chosen, trials = pilot(oracle(), fitted(), count=12, limit=0.99, candidates=(ONE, TWO, CANDIDATES[2]))
    assert [trial.mixing for trial in trials] == [ONE, TWO]
    assert trials[0].copies == 1
    assert trials[1].copies <= 0.99
    assert chosen.mixing == TWO
    assert torch.equal(chosen.latents, fitted().latents)


def test_what_is_tried_is_what_the_guards_say_of_such_outputs():
    _, (trial,) = pilot(oracle(), fitted(), count=12, limit=0.99, candidates=(TWO,), seed=3)
    made = synthesize(oracle(), fitted(), 12, seed=3, **TWO).images
    assert trial.rates == rates(fitted().guards.judge(oracle(), made))


def test_outputs_are_mixed_as_the_domain_says_unless_told_otherwise():
    mixed = replace(fitted(), mixing=TWO)
    made = synthesize(oracle(), mixed, 3)
    assert [len(start.parents) for start in made.starts] == [2, 2, 2]
    assert torch.equal(made.images, synthesize(oracle(), fitted(), 3, **TWO).images)
    assert len(synthesize(oracle(), mixed, 1, parents=4).starts[0].parents) == 4


def test_candidates_with_more_parents_than_images_are_passed_over():
    _, trials = pilot(oracle(), fitted(), count=4, limit=1e-9, candidates=(ONE, MANY))
    assert [trial.mixing for trial in trials] == [ONE]


def test_candidates_that_no_mixture_can_meet_are_passed_over(monkeypatch):
    """No mixture of images that are all equally far apart is farther from its parents than these are."""
    monkeypatch.setattr("nearfar.domain.synthesis.MOST_ATTEMPTS", 20)
    far = {"parents": 2, "margin": 100.0}
    _, trials = pilot(oracle(), fitted(), count=4, limit=1e-9, candidates=(ONE, far, TWO))
    assert [trial.mixing for trial in trials] == [ONE, TWO]
    with pytest.raises(UsageError, match="none of 20 mixtures is 100 from the fitted images"):
        pilot(oracle(), fitted(), count=4, candidates=(far, ONE))


def test_a_limit_that_cannot_be_kept_is_told():
    with pytest.warns(ModelWarning, match=r"^however images are mixed, more than 0% of the outputs are copies \(100%"):
        chosen, _ = pilot(oracle(), fitted(), count=4, limit=1e-9, candidates=(ONE,))
    assert chosen.mixing == ONE


def test_a_candidate_is_left_when_too_many_are_copies_for_any_rest():
    """One parent is a copy always: 4 of 12 are seen, as 12 may have one copy at most."""
    _, trials = pilot(oracle(), fitted(), count=12, limit=0.1, candidates=(ONE, TWO), batch_size=4)
    made = synthesize(oracle(), fitted(), 4, seed=1, batch_size=4, **ONE).images
    assert trials[0].rates == rates(fitted().guards.judge(oracle(), made, 4))


def test_outputs_that_begin_where_earlier_ones_did_are_made_once():
    """No mixture is nearer than 0 by so little, so both candidates begin at the same places."""
    steps = []
    near, same = {**TWO, "margin": 0.0}, {**TWO, "margin": 1e-9}
    _, trials = pilot(
        oracle(), fitted(), count=6, limit=1e-9, candidates=(near, same), on_step=lambda step, _: steps.append(step)
    )
    assert len(trials) == 2
    assert trials[0].rates == trials[1].rates
    assert len(steps) == fitted().steps
