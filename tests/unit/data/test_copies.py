"""Which images get copies, how many, and how far each goes."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import kstest

from nearfar.data.copies import Strengths, check_classes, copies_of_each
from nearfar.diffusion.noise import SecretKey
from nearfar.errors import UsageError
from nearfar.io.listing import copy_name, original_name

KEY = SecretKey.from_seed(0)
SIZES = {"a": 10, "b": 3, "c": 5}
NAMES = [f"{label}/{number}.png" for label, count in SIZES.items() for number in range(count)]
LABELS = {name: (name[0],) for name in NAMES}


def chosen(select, copies=2, share=0.4, own=None, labels=LABELS, names=NAMES):
    return copies_of_each(names, labels, copies, select, share, KEY, own or {})


def test_the_suffix_is_kept():
    assert copy_name("cat.v2/a.b.JPG", 3) == "cat.v2/a.b~3.JPG"
    assert original_name("cat.v2/a.b~3.JPG") == original_name("cat.v2/a.b.JPG") == "cat.v2/a.b.JPG"
    for name in ("a~b.png", "a~1/b.png", "a/~1.png", "a~.png"):
        assert original_name(name) == name


def test_strengths_are_read():
    assert Strengths.parse([]).general == (0.3, 0.3)
    assert Strengths.parse(["0.2-0.4", "cat=.3", "a=b=0.1-1"]) == Strengths(
        (0.2, 0.4), {"cat": (0.3, 0.3), "a=b": (0.1, 1)}
    )
    assert str(Strengths.parse(["cat=0.2-0.4", "0.1"])) == "0.1, cat=0.2-0.4"


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["much"], "strength must look like 0.3, 0.2-0.4, cat=0.3 or cat=0.2-0.4, got 'much'"),
        (["0.4-0.2"], "the lower end of a range first"),
        (["0"], "above 0 to 1"),
        (["cat=1.5"], "above 0 to 1"),
        (["0.2", "0.3"], "each class, and what holds for all, has one --strength"),
    ],
)
def test_a_strength_that_cannot_be_is_refused(texts, sentence):
    with pytest.raises(UsageError, match=sentence):
        Strengths.parse(texts)


def test_drawn_strengths_are_uniform_and_the_mildest_class_decides():
    strengths = Strengths((0.2, 0.4), {"cat": (0.1, 0.1)})
    drawn = [strengths.of(f"{number}.png", (), KEY) for number in range(500)]
    assert kstest((np.array(drawn) - 0.2) / 0.2, "uniform").pvalue > 0.01
    assert drawn == [strengths.of(f"{number}.png", (), KEY) for number in range(500)]
    assert strengths.of("0.png", ("dog", "cat"), KEY) == 0.1


def test_classes_must_be_there():
    check_classes(["a"], LABELS)
    with pytest.raises(UsageError, match="names the class x, which no image has: a, b, c"):
        check_classes(["x"], LABELS)
    with pytest.raises(UsageError, match="options by class need labels"):
        check_classes(["x"], {})


def test_all_images_get_the_same_number():
    assert chosen("all") == dict.fromkeys(NAMES, 2)


@pytest.mark.parametrize(("share", "classes"), [(0.01, "b"), (0.4, "b"), (0.45, "bc"), (1.0, "abc")])
def test_the_rarest_classes_are_whole(share, classes):
    assert chosen("rarest", share=share) == {name: 2 for name in NAMES if name[0] in classes}


def test_the_hardest_are_those_whose_label_is_least_likely():
    own = {name: number / len(NAMES) for number, name in enumerate(NAMES)}
    assert list(chosen("hardest", share=0.25, own=own)) == NAMES[:5]


def test_balanced_classes_level_out():
    added = Counter(name[0] for name, count in chosen("balance", copies=3).items() for _ in range(count))
    assert added == {"b": 7, "c": 5}
    assert max(chosen("balance", copies=3).values()) == 3
    capped = Counter(name[0] for name, count in chosen("balance", copies=1).items() for _ in range(count))
    assert capped == {"b": 3, "c": 5}


@pytest.mark.parametrize(
    ("select", "changes", "sentence"),
    [
        ("all", {"copies": 0}, "copies must be at least 1, got 0"),
        ("rarest", {"share": 0.0}, "share must be above 0 to 1, got 0"),
        ("balance", {"labels": {}}, "--select balance needs labels"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(select, changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        chosen(select, **changes)
