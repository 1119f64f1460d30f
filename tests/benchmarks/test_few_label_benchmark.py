"""The benchmark of augmentation: what the arms are shown, and how their accuracies are compared."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats

from benchmarks.near import augment, classifier
from benchmarks.near.few_labels import Labeled, Symmetry, Task, digits, few, unlabeled
from nearfar.errors import UsageError


def ramp(count, size=8):
    """Images of which every pixel tells its own place and its image."""
    values = torch.arange(count * size * size).reshape(count, 1, size, size) / (count * size * size)
    return values.expand(-1, 3, -1, -1).contiguous()


def known(count, classes=2):
    return Labeled(ramp(count), torch.arange(count) % classes)


def test_fewer_labels_are_a_part_of_more_and_every_class_has_as_many():
    pool = known(30, classes=3)
    small, large = few(pool, 2, seed=4), few(pool, 7, seed=4)
    assert set(small.tolist()) < set(large.tolist())
    assert pool.labels[large].bincount().tolist() == [7, 7, 7]
    with pytest.raises(UsageError, match="must be 1 to 10, got 11"):
        few(pool, 11, seed=4)


def test_the_parts_of_the_digits_are_apart():
    task = digits(Path())
    assert [len(part) for part in (task.pool, task.validation, task.test)] == [897, 300, 600]
    assert task.pool.images.shape[1:] == (3, 16, 16)
    assert task.classes == 10


def test_a_model_sees_all_training_images_turned_where_nothing_is_upright():
    task = Task(known(4), known(3), known(2), Symmetry(mirror=True, turn=True, shift=1))
    assert len(unlabeled("cells", task)) == 16
    upright = replace(task, symmetry=Symmetry(mirror=True, turn=False, shift=1))
    assert torch.equal(unlabeled("cifar", upright), torch.cat([task.pool.images, task.validation.images]))


def test_a_move_shifts_the_whole_image_and_repeats_its_edge():
    images = ramp(40)
    out = classifier.moved(images, 1, torch.Generator().manual_seed(0))
    wide = torch.nn.functional.pad(images, [1] * 4, mode="replicate")
    places = [
        [torch.equal(out[n], wide[n, :, y : y + 8, x : x + 8]) for y in range(3) for x in range(3)] for n in range(40)
    ]
    assert all(sum(found) == 1 for found in places)
    assert all(any(found[place] for found in places) for place in range(9))


def test_a_symmetric_view_is_one_of_the_eight_and_all_of_them_come():
    images = ramp(1).expand(200, -1, -1, -1)
    views = classifier.symmetric_view(
        images, Symmetry(mirror=True, turn=True, shift=0), torch.Generator().manual_seed(0)
    )
    eight = [side.rot90(k, (1, 2)) for side in (images[0], images[0].flip(2)) for k in range(4)]
    counts = [sum(torch.equal(view, one) for view in views) for one in eight]
    assert sum(counts) == 200
    assert min(counts) > 0


def test_half_of_the_images_are_replaced_by_usable_copies_of_their_own():
    images = known(400)
    copies = images.images[:, None] + torch.tensor([2.0, 4.0]).reshape(1, 2, 1, 1, 1)
    usable = torch.tensor([True, False]).expand(400, 2)
    batch = classifier.Shown(images, copies, usable).batch(torch.arange(400), torch.Generator().manual_seed(0))
    offset = (batch - images.images).mean(dim=(1, 2, 3)).round()
    assert set(offset.tolist()) == {0.0, 2.0}
    assert (offset == 2).double().mean().item() == pytest.approx(0.25, abs=0.07)


def test_every_arm_starts_from_the_same_weights_and_meets_the_same_images():
    training = classifier.Training(steps=3, batch=4)
    images, twins = known(8), known(8).images[:, None]
    plain = classifier.train(classifier.Shown(images), 2, training, seed=3)
    same = classifier.train(classifier.Shown(images, twins), 2, training, seed=3)
    other = classifier.train(classifier.Shown(images), 2, training, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), same.parameters(), strict=True))
    assert not torch.equal(plain[0].weight, other[0].weight)


def test_a_classifier_learns_what_sets_two_kinds_apart():
    labels = torch.arange(40) % 2
    images = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - labels.reshape(-1, 1, 1, 1).float()
    model = classifier.train(classifier.Shown(Labeled(images, labels)), 2, classifier.Training(40, 16), seed=0)
    assert classifier.accuracy(model, Labeled(images, labels)) == 1.0
    assert augment.agreeing(model, images[:, None], 1 - labels).sum() == 0


def test_accuracy_is_the_mean_over_classes():
    always_first = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    torch.nn.init.zeros_(always_first[1].weight)
    always_first[1].bias.data = torch.tensor([1.0, 0.0])
    assert classifier.accuracy(always_first, Labeled(ramp(10), torch.tensor([0] * 9 + [1]))) == 0.5


def test_the_noise_control_is_as_far_from_the_image_as_the_local_sample():
    images = torch.zeros(2, 3, 32, 32)
    copies = images[:, None] + torch.tensor([0.1, 0.2]).reshape(1, 2, 1, 1, 1)
    noisy = augment.noise_like(copies, images, seed=0)
    size = (noisy - images[:, None]).square().mean(dim=(2, 3, 4)).sqrt()
    assert size.flatten().tolist() == pytest.approx([0.1, 0.2, 0.1, 0.2], rel=0.05)


def test_a_paired_difference_has_the_interval_of_the_paired_t_test():
    pairs = [(0.5, 0.4), (0.7, 0.65), (0.6, 0.63), (0.9, 0.8)]
    runs = [{"accuracy": {"both": a, "moves": b}} for a, b in pairs]
    found = augment.difference(runs, "both", "moves")
    interval = stats.ttest_rel(*zip(*pairs, strict=True)).confidence_interval(0.95)
    assert [found["low"], found["high"]] == pytest.approx([100 * interval.low, 100 * interval.high])
    assert found["mean"] == pytest.approx(5.5)
