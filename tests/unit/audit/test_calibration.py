"""The search for a strength: its statistics against other libraries, its answer against closed forms."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm, t
from sklearn.isotonic import IsotonicRegression

from nearfar.audit.calibration import (
    Calibration,
    Found,
    Point,
    Target,
    crossing,
    isotonic,
    load_calibration,
    parse_target,
    save_calibration,
    search,
    smallest,
    with_points,
)
from nearfar.audit.scorer import Eyes, Known, Scorer, check_labels, label, network_eyes, other_eyes, rank1
from nearfar.audit.view import unit
from nearfar.diffusion.solver import SOLVER
from nearfar.errors import RunError, UsageError
from nearfar.io.fitting import FitMode
from nearfar.io.manifest import manifest_path, read_manifest
from nearfar.jobs.calibrate import Measuring, Sample, calibrate, check_listing, drawn, take_sample
from nearfar.metrics.features import pixel_features
from nearfar.metrics.intervals import mean_bounds, rate_bounds
from oracle_domains import MEAN, SIDE, VARIANCE, oracle, own

ALONE = np.arange(100)
RANK1, SIMILARITY, LABEL = Target("rank1", 0.2), Target("similarity", 0.4), Target("label", 0.9)


@pytest.mark.parametrize("rises", [True, False])
def test_the_curve_is_that_of_scikit_learn(rises):
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=12).round(1)
        expected = IsotonicRegression(increasing=rises).fit_transform(np.arange(12), values)
        assert isotonic(values, rises) == pytest.approx(expected)


def simulated(random, people, shots, alike, expected):
    """Rank-1 of images each of which has a strength of its own from which on it is not found any more.

    alike: correlation of the normal variables behind those of one person's images.
    """
    own, shared = random.standard_normal((people, shots)), random.standard_normal((people, 1))
    last = norm.cdf(alike**0.5 * shared + (1 - alike) ** 0.5 * own).ravel()
    return lambda strengths: {"rank1": {at: (last < expected(at)).astype(float) for at in strengths}}


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
@pytest.mark.parametrize(("people", "shots", "alike"), [(20, 1, 0), (200, 1, 0), (10, 10, 0.5), (20, 5, 0.5)])
def test_a_strength_that_misses_the_target_is_found_as_rarely_as_promised(people, shots, alike, rate):
    """At most 5 % of calibrations, and 4 standard errors of a simulation of 100; the crossing lies off the grid."""
    target, groups, misses = Target("rank1", rate), np.repeat(np.arange(people), shots), 0
    random, middle = np.random.default_rng(0), 0.2101 + np.log(rate / (1 - rate)) / 14

    def expected(at):
        return 1 / (1 + np.exp(14 * (at - middle)))

    for _ in range(100):
        strength = search(simulated(random, people, shots, alike, expected), [target], groups).strength
        misses += strength is not None and expected(strength) > rate
    assert misses <= 100 * 0.05 + 4 * (100 * 0.05 * 0.95) ** 0.5


def test_the_search_closes_in_on_the_crossing():
    found = search(simulated(np.random.default_rng(0), 4000, 1, 0, lambda at: 1 - at), [RANK1], np.arange(4000))
    assert found.strength == pytest.approx(0.8 + 0.0125, abs=0.3 / 8)
    assert 7 + 1 <= len(found.curves["rank1"]) <= 7 + 7
    assert found.limits == {"rank1 at most 0.2": found.strength}


def test_two_targets_of_one_measure_walk_for_themselves():
    """What was measured for one target between its strengths of the grid decides nothing for the other."""
    scores = simulated(np.random.default_rng(0), 2000, 1, 0, lambda at: 1 - at)
    alone = search(scores, [RANK1], np.arange(2000)).limits
    both = search(scores, [RANK1, Target("rank1", 0.75)], np.arange(2000)).limits
    assert both == {**alone, "rank1 at most 0.75": pytest.approx(0.28, abs=0.03)}


def test_bounds_of_rates_are_those_of_scipy():
    """Without groups Clopper and Pearson's; of people fewer, as Student's t is wider for them."""
    scores = np.array([1.0] * 7 + [0.0] * 43)
    low, high = rate_bounds(scores, np.arange(50), 0.03)
    exact = binomtest(7, 50).proportion_ci(0.94, "exact")
    assert (low, high) == pytest.approx((exact.low, exact.high))
    assert rate_bounds(scores, np.arange(50) // 5, 0.03)[1] > high
    assert rate_bounds(np.zeros(50), np.zeros(50, int), 0.03) == (0, 1)
    assert rate_bounds(np.ones(50), np.arange(50), 0.03)[1] == 1


def test_bounds_of_means_are_students():
    scores = np.random.default_rng(0).normal(size=30)
    low, high = mean_bounds(scores, np.arange(30), 0.03)
    assert (low, high) == pytest.approx(t.interval(0.94, 29, scores.mean(), scores.std(ddof=1) / 30**0.5))


def curve(*values, width=0.02):
    return tuple(Point(n / 10, value, value - width, value + width) for n, value in enumerate(values))


def test_one_lucky_strength_is_not_taken():
    assert crossing(curve(1.0, 0.1, 0.5, 0.15, 0.1), RANK1) == (0.3, 0.2)
    assert crossing(curve(1.0, 0.95, 0.8, 0.95), LABEL) == (0.1, 0.2)
    assert crossing(curve(0.9, 0.5, 0.4), RANK1) == (None, 0.2)
    assert crossing(curve(0.1, 0.05), RANK1) == (0.0, None)


@pytest.mark.parametrize(
    ("limits", "strength"),
    [
        ({RANK1: 0.3, LABEL: 0.5}, 0.3),
        ({RANK1: 0.6, LABEL: 0.5}, None),
        ({RANK1: 0.3, SIMILARITY: 0.4}, 0.4),
        ({LABEL: 0.5}, 0.5),
        ({RANK1: None, LABEL: 0.5}, None),
        ({RANK1: 0.0, LABEL: 0.0}, 0.0),
    ],
)
def test_targets_that_pull_in_two_directions_are_both_met_or_none_is(limits, strength):
    assert smallest(list(limits), {str(target): limit for target, limit in limits.items()}) == strength


@pytest.mark.parametrize("text", ["rank1", "rank1=", "rank1=x", "rank1=1.2", "label=nan", "distance=-1", "beauty=1"])
def test_other_targets_are_refused(text):
    with pytest.raises(UsageError, match="target"):
        parse_target(text)


def known_as(vectors, groups, labels):
    unit = torch.nn.functional.normalize(torch.tensor(vectors, dtype=torch.float64), dim=1)
    return Known(network_eyes(pixel_features(8)), unit, torch.tensor(groups), torch.tensor(labels))


def test_a_person_is_looked_for_among_the_other_pictures():
    vectors = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]]
    people, alone = known_as(vectors, [0, 1, 0, 1], [0] * 4), known_as(vectors, [0, 1, 2, 3], [0] * 4)
    numbers = torch.arange(4)
    assert rank1(alone, alone.vectors, numbers).tolist() == [1, 1, 1, 1]
    assert rank1(people, people.vectors, numbers).tolist() == [0, 1, 0, 1]  # 0 is nearest to 1, and 2 to 3


def test_a_label_is_told_without_the_original_itself():
    known = known_as([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [0.95, 0.0]], [0] * 5, [0, 0, 1, 1, 1])
    assert label(known, known.vectors, torch.arange(5)).tolist() == [1, 1, 1, 1, 0]


def work_on(count=100, steps=5):
    model, network = oracle(), pixel_features(SIDE)
    sample = Sample([f"{n}.png" for n in range(count)], own(count), torch.arange(count) % 2)
    eyes = Eyes("deviations", lambda images, _: unit((images - MEAN).flatten(1)))
    known = Known.of(eyes, sample.images, sample.groups, sample.labels)
    return Measuring(model, sample, Scorer(["similarity", "rank1"], known, known, network), steps, SOLVER, 64)


def test_the_strength_is_the_one_of_the_closed_form(tmp_path):
    """Of Gaussian data an output keeps a share `r` of each deviation: their mean cosine is `r`, as variances stay."""
    work, targets = work_on(), [SIMILARITY]
    found = calibrate(work, targets, tmp_path / "c.json", settings={})
    schedule, denoiser = work.model.schedule, work.model.denoiser.denoiser
    strengths = torch.linspace(0.01, 1, 500, dtype=torch.float64)
    kept = denoiser.retention(schedule.time_of_strength(strengths))
    cosine = (VARIANCE * kept).mean((1, 2, 3)) / VARIANCE.mean()
    exact = strengths[(cosine < SIMILARITY.value).nonzero()[0]].item()
    assert exact - 0.01 < found.strength < exact + 0.03
    for point in found.curves["similarity"][1:]:
        expected = cosine[(strengths - point.strength).abs().argmin()].item()
        assert point.value == pytest.approx(expected, abs=0.02)


@pytest.mark.slow
def test_the_worst_of_the_eyes_counts_and_is_named(tmp_path):
    """Eyes that see nothing, eyes that see deviations, and eyes that see best at strong levels only."""
    work = work_on(40)
    alone = calibrate(work, [RANK1], tmp_path / "c.json", settings={})
    assert alone.strength is not None
    blind = Eyes("blind", lambda images, _: unit(torch.ones(len(images), 1, dtype=torch.float64)))
    some = work.sample
    unseeing = Known.of(blind, some.images, some.groups, some.labels)
    for known, others in ((unseeing, [work.scorer.attacker]), (work.scorer.attacker, [unseeing])):
        scorer = replace(work.scorer, measures=["rank1"], attacker=known, others=others)
        found = calibrate(replace(work, scorer=scorer), [RANK1], tmp_path / "c.json", settings={})
        assert found.strength == alone.strength
        weak = found.curves["rank1"][1]
        assert (weak.value, weak.eyes) == (
            alone.curves["rank1"][1].value,
            "deviations" if others[0] != unseeing else "",
        )


@pytest.mark.parametrize(("measure", "name"), [("rank1", "b"), ("similarity", "b"), ("label", "a"), ("distance", "a")])
def test_the_worst_is_what_is_furthest_from_the_target(measure, name):
    low, high = np.linspace(0, 0.1, 40), np.linspace(0.8, 1, 40)
    scores = {measure: {0.5: high}, f"{measure} by a": {0.5: low}, f"{measure} by b": {0.5: high + 0.1}}
    (point,) = with_points({}, scores, np.arange(40), 0.05)[measure]
    assert point.eyes == name


def test_a_strength_is_taken_only_where_all_eyes_meet_the_target():
    def scores_at(strengths):
        first = {at: np.full(100, float(at < 0.2)) for at in strengths}
        return {"rank1": first, "rank1 by other": {at: np.full(100, float(at < 0.5)) for at in strengths}}

    found = search(scores_at, [RANK1], ALONE)
    assert 0.5 <= found.strength < 0.55
    assert {point.eyes for point in found.curves["rank1"] if 0.2 <= point.strength < 0.5} == {"other"}


def test_the_eyes_at_hand_are_recognizer_features_and_pixels(model):
    network = pixel_features(8)
    face = Eyes("a recognizer", network_eyes(network).vectors)
    assert [eyes.name for eyes in other_eyes(face, network, model)] == ["pixels at 8x8", "pixels at 16x16"]
    assert [eyes.name for eyes in other_eyes(network_eyes(network), network, model)] == ["pixels at 16x16"]
    same = pixel_features(16)
    assert other_eyes(network_eyes(same), same, model) == []


@pytest.mark.slow
def test_what_it_costs_is_said_before(tmp_path):
    work = work_on()
    calibrate(work, [SIMILARITY, RANK1], tmp_path / "c.json", settings={})
    assert work.cost(2) // 2 < work.model.denoiser.calls <= work.cost(2)
    assert not manifest_path(tmp_path / "c.json").exists()


class StoppedError(Exception):
    """Stands for Ctrl-C."""


def test_what_cannot_be_measured_ends_the_search(tmp_path):
    work = work_on(20)
    blind = Eyes("blind", lambda images, _: torch.full((len(images), 1), torch.nan, dtype=torch.float64))
    known = Known(blind, work.scorer.attacker.vectors[:, :1], work.scorer.attacker.groups, work.scorer.attacker.labels)
    scorer = replace(work.scorer, measures=["similarity"], attacker=known)
    with pytest.raises(RunError, match=r"0\.png@0 cannot be measured: .* not finite"):
        calibrate(replace(work, scorer=scorer), [SIMILARITY], tmp_path / "c.json", settings={})


@pytest.mark.slow
def test_an_interrupted_search_goes_on(tmp_path):
    record, settings = tmp_path / "c.json", {"some": 1}
    whole = calibrate(work_on(), [SIMILARITY], record, settings=settings, parts=2)

    def stop(progress):
        if progress.total == 600 and progress.done >= 3 * 64:
            raise StoppedError

    with pytest.raises(StoppedError):
        calibrate(work_on(), [SIMILARITY], record, settings=settings, report=stop)
    standing = read_manifest(manifest_path(record)).records
    assert 100 + 3 * 64 <= len(standing) < 700
    assert not record.exists()
    with pytest.raises(UsageError, match="--resume"):
        calibrate(work_on(), [SIMILARITY], record, settings=settings)
    with pytest.raises(UsageError, match="other settings"):
        calibrate(work_on(), [SIMILARITY], record, settings={"some": 2}, resume=True)
    work = work_on()
    resumed = calibrate(work, [SIMILARITY], record, settings=settings, resume=True, parts=2)
    spared = (len(standing) - 100) // 64
    assert work.model.denoiser.calls == work_calls(whole) - 5 * spared
    assert resumed.strength == whole.strength
    for one, other in zip(resumed.curves["similarity"], whole.curves["similarity"], strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-6)


def work_calls(found):
    """Network calls of `work_on` for the strengths of this search: the grid in batches of 64, the others one by one."""
    others = len(found.curves["similarity"]) - 7
    return 5 * (-(-6 * 100 // 64) + others * -(-100 // 64))


def test_whole_people_are_drawn():
    folders = [f"person {number // 5}" for number in range(100)]
    places = drawn(folders, 32, people=True, seed=3)
    assert len(places) == 30
    assert {folders.count(folders[place]) for place in places} == {5}
    assert len({folders[place] for place in places}) == 6
    assert len(drawn(folders, 32, people=False, seed=3)) == 32


def test_too_few_images_are_refused_by_their_number_alone(tmp_path, write_pictures):
    write_pictures(tmp_path, 24)
    check_listing(tmp_path, 20)
    with pytest.raises(UsageError, match=r"20 images or more, .* gave 19: raise --sample"):
        check_listing(tmp_path, 19)
    write_pictures(tmp_path / "few", 12)
    with pytest.raises(UsageError, match=r"gave 12: give more"):
        check_listing(tmp_path / "few", 100)


def test_a_target_needs_a_value():
    with pytest.raises(UsageError, match=r"rank1 needs a value, like rank1=0\.05"):
        parse_target("rank1")


def test_the_sample_is_of_a_folder(tmp_path, write_pictures, model):
    names = write_pictures(tmp_path, 24)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    sample = take_sample(tmp_path, model, FitMode.PAD, 100, people=False)
    assert sample.names == names
    assert sample.images.shape == (24, 3, 16, 16)
    assert [entry.name for entry in sample.failed] == ["broken.png"]
    assert len(set(sample.labels.tolist())) == 4
    with pytest.raises(UsageError, match=r"20 images or more, .* gave 18: raise --sample"):
        take_sample(tmp_path, model, FitMode.PAD, 19, people=False)
    (tmp_path / names[-1]).unlink()
    with pytest.raises(UsageError, match="people must be top folders"):
        take_sample(tmp_path, model, FitMode.PAD, 100, people=True)


def test_a_person_is_a_top_folder(tmp_path, smooth, model):
    for number in range(24):
        path = tmp_path / ("ann", "bob")[number % 2] / ("home", "work")[number // 12] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth(number).save(path)
    sample = take_sample(tmp_path, model, FitMode.PAD, 100, people=True)
    assert [sample.groups[n].item() for n in range(24)] == [name.startswith("bob") for name in sample.names]
    with pytest.raises(UsageError, match=r"gave 0: raise --sample"):
        take_sample(tmp_path, model, FitMode.PAD, 11, people=True)
    for path in sorted((tmp_path / "ann").rglob("*.png"))[:8]:
        path.unlink()
    with pytest.raises(UsageError, match=r"gave 16: give more"):
        take_sample(tmp_path, model, FitMode.PAD, 100, people=True)


def test_labels_need_two_images_of_each_class():
    with pytest.raises(UsageError, match="in the sample: raise --sample, or give more folders or images"):
        check_labels(torch.tensor([0, 0, 1]))
    check_labels(torch.tensor([0, 0, 1, 1]))


METHOD = {"model": "abc", "steps": 20, "solver": "dpm++sde"}


def a_calibration(**changes):
    found = Found({"similarity": curve(1.0, 0.5, 0.2)}, {"similarity at most 0.4": 0.2}, 0.2)
    return Calibration(METHOD, {"people": 0}, 100, 0.95, (SIMILARITY,), found, **changes)


def test_a_calibration_is_what_it_was_when_it_is_read_back(tmp_path):
    path = tmp_path / "c.json"
    save_calibration(a_calibration(), path)
    assert path.stat().st_mode & 0o777 == 0o600
    read = load_calibration(path)
    assert read == a_calibration(digest=read.digest)
    assert read.strength_for(METHOD) == 0.2
    assert json.loads(path.read_text())["targets"] == ["similarity=0.4"]


@pytest.mark.parametrize("name", METHOD)
def test_another_model_or_method_is_refused(name):
    with pytest.raises(UsageError, match=f"was made with {name} "):
        a_calibration().strength_for(METHOD | {name: "another"})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9}', '{"format": 1}', '{"format": 2, "found": 3}', "{{"])
def test_other_files_are_no_calibrations(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(UsageError, match=r"make it with nearfar calibrate$"):
        load_calibration(tmp_path / "c.json")
    with pytest.raises(UsageError, match="cannot be read"):
        load_calibration(tmp_path / "absent.json")


LIMITS = {"similarity at most 0.4": 0.2}
WRONG = [
    ("measuring", [1e308, 1e308]),
    ("measuring", {"sample": "\ud800"}),
    ("method", "x"),
    ("images", "20"),
    ("images", 10**30),
    ("confidence", None),
    ("targets", []),
    ("targets", ["similarity"]),
    ("targets", ["rank1=nan"]),
    ("found", {"curves": {}, "limits": {}, "strength": 0.2}),
    ("found", {"curves": {}, "limits": LIMITS, "strength": 7}),
    ("found", {"curves": {}, "limits": LIMITS, "strength": float("nan")}),
    ("found", {"curves": {}, "limits": {"similarity at most 0.4": "0.2"}, "strength": 0.2}),
    ("found", {"curves": {"x": []}, "limits": LIMITS, "strength": 0.2}),
    ("found", {"curves": {"similarity": [{"strength": 0.1}]}, "limits": LIMITS, "strength": 0.2}),
]


@pytest.mark.parametrize(("part", "value"), WRONG)
def test_calibrations_with_wrong_parts_are_refused(tmp_path, part, value):
    save_calibration(a_calibration(), tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps(content | {part: value}))
    with pytest.raises(UsageError):
        load_calibration(tmp_path / "c.json")
