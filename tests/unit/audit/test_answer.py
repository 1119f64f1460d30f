"""The answer of an audit: the worst attacker first, what was not measured said, limits that fail closed."""

import math

import pytest

from nearfar.audit.answer import FACES_FOUND, Limit, attackers, faces_left, headlines, what_is_learned, who_finds
from nearfar.errors import UsageError
from nearfar.metrics.intervals import Figure


def found(value, network="pixels at 32x32", name="own original, rank 1", **more):
    return Figure(f"re-identified, {name}", value, 100, value - 0.05, value + 0.05, 0.01, network, **more)


FIGURES = [
    found(0.3),
    found(0.9, name="own original, rank 5"),
    found(0.3, name="own original, rank 1, untrained attacker"),
    found(0.5, name="own original, rank 1, trained (distance) attacker"),
    found(0.2, "faces, some.onnx"),
    found(0.1, "middle block of m (sha256 1234)", note="n"),
    Figure("PSNR, dB", 20.0, 100, chance=11.0),
    Figure("SSIM", 0.5, 100, chance=0.1),
]


def test_attackers_come_by_their_success_and_none_twice():
    assert [(str(one), one.figure.value) for one in attackers(FIGURES)] == [
        ("pixels, trained (distance)", 0.5),
        ("pixels, nearest neighbor", 0.3),
        ("face recognizer, nearest neighbor", 0.2),
        ("features (middle block of m), nearest neighbor", 0.1),
    ]


def test_the_worst_attacker_is_told_with_chance_and_the_others_beside():
    assert who_finds(attackers(FIGURES)) == (
        "50 % (45 to 55 %) of 100 outputs lead back to their own original, by pixels, trained (distance); chance is "
        "1 %. Other eyes at their best: face recognizer 20 %, features (middle block of m) 10 %."
    )
    assert who_finds([]) == "not measured: no attacker could be asked."


def test_untouched_pictures_of_a_person_are_the_upper_end_where_they_were_measured():
    people = [
        found(0.4, name="same person, another picture, rank 1"),
        found(0.8, name="untouched: same person, another picture, rank 1"),
    ]
    (one,) = attackers(people)
    assert (one.whom, one.untouched) == ("same person, another picture", 0.8)
    assert attackers(people[:1])[0].untouched is None


def test_what_was_not_measured_is_said():
    assert (
        what_is_learned([], {"What a classifier learns": "left out: needs classes"}) == "not measured: needs classes."
    )
    assert faces_left([]) == "not measured: needs --detector and --recognizer."
    seen = Figure(FACES_FOUND, 0.25, 8, 0.1, 0.6, 1.0)
    assert faces_left([seen]) == "a face is found in 25 % (10 to 60 %) of 8 outputs; in the originals 100 %."


def test_headlines_are_the_figures_and_none_where_there_is_none():
    assert headlines(FIGURES) == {
        "rank1": 0.5, "psnr": 20.0, "ssim": 0.5, "faces": None, "accuracy": None, "key": None, "mu": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("rank1>0.2", "rank1 > 0.2: it is 0.5"),
        ("rank1 > 0.5", ""),
        ("rank1>=0.5", "rank1 >= 0.5: it is 0.5"),
        ("psnr<15", ""),
        ("SSIM<0.6", "SSIM < 0.6: it is 0.5"),
        ("re-identified, own original, rank 1>0.25", "re-identified, own original, rank 1 > 0.25: it is 0.3"),
        ("faces>0", "faces was not measured, so the limit faces > 0 cannot be held"),
        ("no such figure>0", "no such figure was not measured, so the limit no such figure > 0 cannot be held"),
    ],
)
def test_limits_hold_or_are_told_and_fail_where_nothing_was_measured(text, broken):
    assert Limit.parse(text).broken_by(FIGURES) == broken


def test_a_figure_that_is_no_number_breaks_a_limit():
    assert "was not measured" in Limit.parse("SSIM<0.6").broken_by([Figure("SSIM", math.nan, 2)])


@pytest.mark.parametrize("text", ["", "rank1", "rank1>", ">0.2", "rank1=0.2", "rank1>much"])
def test_what_is_no_limit_is_refused(text):
    with pytest.raises(UsageError, match=r"like 'rank1>0\.2'"):
        Limit.parse(text)
