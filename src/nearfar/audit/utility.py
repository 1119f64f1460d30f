"""What outputs are still good for: a classifier that learns from them, tested on real images that it never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from nearfar.audit.choices import SEEDS
from nearfar.audit.pairs import read_images
from nearfar.data.annotations import read_annotations
from nearfar.errors import UsageError
from nearfar.io.manifest import Watch, unwatched
from nearfar.metrics.features import logistic_pipeline
from nearfar.metrics.intervals import Figure

TRAINED = 0.8
STEPS, BATCH, RATE, CNN_PIXELS = 300, 32, 2e-3, 32

Labels = Int64[Tensor, " images"]
Learner = Callable[[Tensor, Labels, Tensor, int], Tensor]
"""Inputs to learn from, their labels, inputs to be judged, seed -> a label for each of these."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs of a classifier, (image, ...), and their classes."""

    inputs: Tensor
    labels: Labels

    def __getitem__(self, chosen: Tensor) -> Examples:
        return Examples(self.inputs[chosen], self.labels[chosen])

    def with_more(self, others: Examples) -> Examples:
        pairs = ((self.inputs, others.inputs), (self.labels, others.labels))
        return Examples(*(torch.cat(both) for both in pairs))


@dataclass(frozen=True)
class Classifier:
    """name: as it stands beside figures. by_features: its inputs are a network's vectors, else images."""

    name: str
    by_features: bool
    learn: Learner


def classes_in(folder: Path, every: Sequence[str], names: Sequence[str]) -> list[str] | None:
    """The class of each named image: its folder, or what annotations say. Nothing unless each has one, and not all one.

    every: all images below the folder. Raises UsageError for annotations that contradict themselves.
    """
    labels = read_annotations(folder, every).labels
    found = [labels[name][0] for name in names if len(labels.get(name, ())) == 1]
    return found if len(found) == len(names) and len(set(found)) > 1 else None


def numbered(classes: Sequence[str], known: Sequence[str]) -> Labels:
    """Classes as numbers, in the order of the known ones."""
    numbers = {name: number for number, name in enumerate(sorted(set(known)))}
    strange = sorted(set(classes) - set(numbers))
    if strange:
        raise UsageError(f"test images have the class {strange[0]!r}, BEFORE has {', '.join(numbers)}: name them alike")
    return torch.tensor([numbers[name] for name in classes])


def read_test(folder: Path, size: int, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Test images and their classes, which BEFORE must have too."""
    items, images = read_images(folder, size, [])
    names = [item.name for item in items]
    tested = classes_in(folder, names, names)
    if tested is None:
        raise UsageError(f"{folder} must have a folder for each class, as BEFORE: cat/1.png, dog/2.png")
    return images, numbered(tested, classes)


@dataclass(frozen=True, eq=False)
class Lessons:
    """What classifiers learn from: originals, outputs, the number of each output's original; and what they are tested
    on, the originals that were not drawn unless given."""

    before: Examples
    after: Examples
    of: Int64[Tensor, " outputs"]
    test: Examples | None = None

    def accuracies(self, learner: Learner, seed: int) -> tuple[float, float, float, int, float]:
        """After learning from BEFORE, AFTER and both; number of test images; share of their largest class."""
        drawn = drawn_of_each_class(self.before.labels, seed)
        judged = self.test or self.before[~drawn]
        own, made = self.before[drawn], self.after[drawn[self.of]]
        first, second, third = (
            (learner(some.inputs, some.labels, judged.inputs, seed) == judged.labels).double().mean().item()
            for some in (own, made, own.with_more(made))
        )
        count = len(judged.labels)
        return first, second, third, count, (judged.labels.bincount().max() / count).item()


def utility(
    lessons: Lessons, kind: Classifier, *, network: str = "", seeds: int = SEEDS, watch: Watch = unwatched
) -> list[Figure]:
    """Accuracy on real images of a classifier that learned from BEFORE, from AFTER, from both, and the differences.

    For each seed it learns from 80 % of the originals of each class, drawn anew, and from the outputs of these.
    Intervals: Student's, over the seeds (for differences of the same seed); they hold for other draws of what is
    learned from, not for other test images. Chance: the largest class of the test images. Cost: three trainings for
    each seed.
    """
    rows = []
    for seed in range(seeds):
        rows.append(lessons.accuracies(kind.learn, seed))
        watch("classifiers", seed + 1, seeds)
    before, after, both, counts, chances = zip(*rows, strict=True)
    tested, floor = counts[0], fmean(chances)
    note = (
        f"{kind.name}; {tested} test images{'' if lessons.test else ', other originals for each seed'}; {seeds} seeds"
    )
    network = network if kind.by_features else ""
    figures = []
    for key, values in (("BEFORE", before), ("AFTER", after), ("both", both)):
        figures.append(figure(f"accuracy, learned from {key}", values, tested, floor, network, note))
    for key, values in (("AFTER", after), ("both", both)):
        gains = [one - own for one, own in zip(values, before, strict=True)]
        figures.append(figure(f"accuracy, {key} less BEFORE", gains, tested, 0.0, network, note, -1.0))
    return figures


def drawn_of_each_class(labels: Labels, seed: int) -> Tensor:
    """Whether each image is among the 80 % of its class that are drawn: at least one is, and one of several is not."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = (labels == label).nonzero()[:, 0]
        count = max(1, min(round(TRAINED * len(members)), len(members) - 1))
        drawn[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return drawn


def figure(
    name: str, values: Sequence[float], count: int, chance: float, network: str, note: str, least: float = 0.0
) -> Figure:
    """The mean over seeds; least: the smallest value that there can be."""
    low, high = student_interval(values)
    low, high = (None if end is None else min(max(end, least), 1.0) for end in (low, high))
    libraries = f"scikit-learn {version('scikit-learn')}, torch {torch.__version__}"
    return Figure(name, fmean(values), count, low, high, chance, network, libraries, note)


def student_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of the mean of normal values; nothing for one value."""
    from scipy.stats import t

    if len(values) < 2:
        return None, None
    reach = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return fmean(values) - reach, fmean(values) + reach


def logistic(inputs: Tensor, labels: Labels, judged: Tensor, seed: int) -> Tensor:
    """Logistic regression on standardized features."""
    learner = logistic_pipeline(max_iter=1000, random_state=seed)
    learner.fit(inputs.flatten(1).numpy(), labels.numpy())
    return torch.from_numpy(learner.predict(judged.flatten(1).numpy()))


def small_cnn(inputs: Tensor, labels: Labels, judged: Tensor, seed: int, steps: int = STEPS) -> Tensor:
    """A network of three convolutions that learns from scratch, at 32 pixels: images (image, 3, height, width).

    Adam with a cosine schedule; as many steps of 32 images whatever the count, so that more images are not more steps.
    """
    few, seen = (nn.functional.adaptive_avg_pool2d(images, CNN_PIXELS) for images in (inputs, judged))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = convolutions(int(labels.max()) + 1)
        optimizer = torch.optim.Adam(network.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            some = torch.randint(len(few), (BATCH,))
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(few[some]), labels[some]))
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        return torch.cat([network.eval()(some).argmax(1) for some in torch.split(seen, 256)])


def convolutions(classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for narrow, wide in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(narrow, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


CLASSIFIERS = {
    "logistic": Classifier("logistic regression on features", True, logistic),
    "cnn": Classifier("small CNN from scratch at 32 pixels", False, small_cnn),
}
