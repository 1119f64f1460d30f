"""Strengths of the images' own, on the oracle: tested outputs, the smallest strengths, no influence of neighbors."""

from pathlib import Path

import pytest
import torch

from nearfar.audit.calibration import Calibration, Found
from nearfar.audit.scorer import Eyes, network_eyes
from nearfar.audit.targets import Point, Target
from nearfar.audit.view import unit
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import SOLVER, Sampling
from nearfar.errors import UsageError
from nearfar.io.fitting import as_written
from nearfar.io.listing import Item
from nearfar.jobs.anonymize import HALVINGS, Need, need_of, objection, only_as_far, similarity, told
from nearfar.jobs.job import Results
from nearfar.metrics.features import FeatureNetwork, Look, pixel_features
from nearfar.sampling.local_sampling import local_sample
from oracle_domains import MEAN, SIDE, oracle, own

KEY, STEPS, STEP = SecretKey.from_seed(1), 4, 1 / 2**HALVINGS
SAMPLING = Sampling(Level(1.0), STEPS)
EYES = Eyes("deviations", lambda images, _: unit((images - MEAN).flatten(1)))


def score(originals):
    return similarity(EYES, originals)


def go(images, value=0.4, most=1.0, ticks=lambda *_: None):
    need = Need(Target("similarity", value), score, most)
    return only_as_far(oracle(), KEY, need, SAMPLING)(images, [Item(Path(), "")] * len(images), ticks)


def score_at(images, strengths):
    sampled = local_sample(oracle(), images, strength=strengths, key=KEY, steps=STEPS, solver=SOLVER)
    return score(images)(as_written(sampled))


def test_the_output_meets_the_target_and_one_step_less_does_not():
    images, ticks = own(12), []
    results = go(images, ticks=lambda step, _: ticks.append(step))
    strengths, scores = results.figures["strength"].double(), results.figures["similarity"].double()
    assert torch.allclose(score(images)(as_written(results.images)), scores, atol=1e-6)
    assert (scores <= 0.4).all()
    assert (score_at(images, (strengths.sqrt() - STEP) ** 2) > 0.4).all()
    assert len(strengths.unique()) > 1
    assert ticks == list(range(1, STEPS * (1 + HALVINGS) + 1))


@pytest.mark.parametrize("measure", ["similarity", "distance"])
def test_originals_are_looked_at_once(measure):
    looked = []

    def look(images):
        looked.append(len(images))
        return Look((images - MEAN).flatten(1), [images])

    network = FeatureNetwork("counting", SIDE, 3, look)
    need = need_of(a_calibration(Target(measure, 0.3), eyes="counting"), network_eyes(network), network)
    only_as_far(oracle(), KEY, need, SAMPLING)(own(3), [Item(Path(), "")] * 3, lambda *_: None)
    assert looked == [3] * (1 + 1 + HALVINGS)


def test_neighbors_do_not_matter():
    images = own(6)
    together, turned = go(images), Results.joined(go(images.flip(0)).rows(6)[::-1])
    assert torch.equal(together.figures["strength"], turned.figures["strength"])
    assert torch.allclose(together.figures["similarity"], turned.figures["similarity"], atol=1e-5)
    assert torch.allclose(together.images, turned.images, atol=1e-5)


def test_an_image_that_never_meets_its_target_is_not_written():
    images = own(2)
    results = go(images, value=0.1, most=0.05)
    need = Need(Target("similarity", 0.1), score, 0.05)
    assert (results.figures["strength"] < 0).all()
    (first,) = results.rows(1)
    sentence = objection(images[:1], first, need)
    assert sentence.startswith("even at strength 0.05 its similarity is 0.59")
    assert sentence.endswith("asked was similarity at most 0.1")
    expected = score(images[:1])(as_written(first.images)).item()
    assert told(first)["similarity"] == pytest.approx(expected, abs=1e-5)


def a_calibration(*targets, eyes="deviations"):
    curve = (Point(0.5, 0.2, 0.1, 0.3), Point(0.9, 0.1, 0.0, 0.2))
    found = Found({target.measure: curve for target in targets}, {}, 0.5)
    return Calibration({}, {"attacker": eyes, "content": eyes}, 40, 0.95, targets, found)


def test_the_target_of_every_image_is_that_of_the_calibration():
    need = need_of(a_calibration(Target("similarity", 0.3)), EYES, pixel_features(SIDE))
    assert (need.target.value, need.most) == (0.3, 0.9)
    images = own(3)
    assert need.score(images)(images).tolist() == pytest.approx([1.0] * 3)


def test_other_eyes_and_targets_of_many_images_are_refused():
    network = pixel_features(SIDE)
    with pytest.raises(UsageError, match="looked through deviations, not pixels at 8x8"):
        need_of(a_calibration(Target("similarity", 0.3)), network_eyes(network), network)
    for targets in ([Target("rank1", 0.1)], [Target("similarity", 0.3), Target("distance", 0.3)]):
        with pytest.raises(
            UsageError,
            match=r"needs one target.*: calibrate with such a target alone",
        ):
            need_of(a_calibration(*targets), EYES, network)
