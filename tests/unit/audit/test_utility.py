"""Classifiers that learn from outputs: known accuracies, honest splits, intervals of the t distribution."""

import pytest
import torch
from scipy import stats

from nearfar.audit.utility import (
    Classifier,
    Examples,
    Lessons,
    classes_in,
    drawn_of_each_class,
    logistic,
    numbered,
    small_cnn,
    student_interval,
    utility,
)
from nearfar.data.labels import top_folders
from nearfar.errors import UsageError


def clouds(count, seed, gap=2.0):
    """Two classes of Gaussian vectors, `gap` apart."""
    labels = torch.arange(count) % 2
    noise = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Examples(noise + gap * labels[:, None] * torch.eye(5, dtype=torch.float64)[0], labels)


def figures(before, after, of, test, **options):
    found = utility(Lessons(before, after, of, test), Classifier("logistic", True, logistic), **options)
    return {figure.name: figure for figure in found}


def test_outputs_without_their_class_teach_nothing_and_good_ones_teach_all():
    before, test = clouds(200, 0, gap=4.0), clouds(400, 1, gap=4.0)
    noise = Examples(
        torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), before.labels
    )
    good, bad = (figures(before, after, torch.arange(200), test) for after in (before, noise))
    best = stats.norm.cdf(2.0)
    assert good["accuracy, learned from BEFORE"].value == pytest.approx(best, abs=0.03)
    assert good["accuracy, AFTER less BEFORE"].value == 0
    assert bad["accuracy, learned from AFTER"].value < 0.75
    assert bad["accuracy, AFTER less BEFORE"].high < 0
    assert good["accuracy, learned from both"].chance == 0.5
    assert good["accuracy, learned from both"].count == 400


def test_without_test_images_those_that_were_not_drawn_are_asked():
    """Outputs that give away each original: an attacker's best case, and of no use for those that were not drawn."""
    seen = []

    def learner(inputs, labels, judged, seed):
        seen.append((set(inputs[:, 0].tolist()), set(judged[:, 0].tolist())))
        return torch.zeros(len(judged), dtype=torch.int64)

    numbers = torch.arange(20.0)[:, None]
    before, of = Examples(numbers, torch.arange(20) % 2), torch.arange(20).repeat_interleave(2)
    found = utility(
        Lessons(before, Examples(numbers[of], before.labels[of]), of), Classifier("none", True, learner), seeds=3
    )
    assert len(seen) == 9
    assert all(not learned & judged and len(learned) == 16 and len(judged) == 4 for learned, judged in seen)
    assert found[0].count == 4
    assert found[0].value == found[0].chance == 0.5
    assert len({frozenset(judged) for _, judged in seen}) > 1


def test_each_class_is_drawn_from():
    labels = torch.tensor([0] * 10 + [1] * 2 + [2])
    drawn = drawn_of_each_class(labels, 0)
    assert torch.bincount(labels[drawn]).tolist() == [8, 1, 1]


def test_people_are_the_top_folders():
    assert top_folders(["ann/x/1.png", "bob/2.png"]) == ["ann", "bob"]
    assert top_folders(["ann/1.png", "ann/2.png"]) is None
    assert top_folders(["ann/1.png", "2.png"]) is None


def test_classes_are_folders_or_what_metadata_say(tmp_path):
    names = ["cat/1.png", "dog/2.png", "cow/3.png"]
    assert classes_in(tmp_path, names, names[:2]) == ["cat", "dog"]
    assert classes_in(tmp_path, names, names[:1]) is None
    assert classes_in(tmp_path, ["1.png", "2.png"], ["1.png", "2.png"]) is None
    (tmp_path / "1.png").touch()
    (tmp_path / "2.png").touch()
    (tmp_path / "metadata.csv").write_text("file_name,label\n1.png,hen\n2.png,owl\n")
    assert classes_in(tmp_path, ["1.png", "2.png"], ["2.png", "1.png"]) == ["owl", "hen"]


def test_classes_are_numbered_and_strange_ones_refused():
    assert numbered(["dog", "cat"], ["cat", "dog", "dog"]).tolist() == [1, 0]
    with pytest.raises(UsageError, match="test images have the class 'cow', BEFORE has cat, dog"):
        numbered(["cow"], ["dog", "cat"])


def test_the_interval_is_students():
    values = [0.7, 0.8, 0.75, 0.9]
    low, high = student_interval(values)
    expected = stats.t.interval(0.95, 3, loc=0.7875, scale=stats.sem(values))
    assert (low, high) == pytest.approx(expected)
    assert student_interval([0.5]) == (None, None)


@pytest.mark.slow
def test_the_small_network_learns_and_repeats_itself():
    shapes = torch.zeros(40, 3, 16, 16)
    shapes[::2, :, 4:12, 7:9] = 1.0
    shapes[1::2, :, 7:9, 4:12] = 1.0
    images = shapes + 0.3 * torch.randn(shapes.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 2
    found = small_cnn(images[:28], labels[:28], images[28:], 0, steps=40)
    assert torch.equal(found, labels[28:])
    one, two = (small_cnn(images[:4], labels[:4], images, 1, steps=2) for _ in range(2))
    assert torch.equal(one, two)


def test_intervals_of_accuracies_stay_among_accuracies():
    found = figures(clouds(20, 0), clouds(20, 0), torch.arange(20), clouds(9, 1), seeds=2)
    assert all(figure.high <= 1 for figure in found.values())
    assert found["accuracy, learned from AFTER"].low >= 0
