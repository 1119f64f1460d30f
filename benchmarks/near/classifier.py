"""A small convolutional classifier, trained from nothing on few images, and what it may be shown beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.near.few_labels import Labeled, Symmetry

STILL = Symmetry(mirror=False, turn=False, shift=0)
COPY_SHARE = 0.5


@dataclass(frozen=True)
class Training:
    """Optimizer steps, images a step, highest learning rate (AdamW, one cycle, weight decay 0.05)."""

    steps: int
    batch: int = 32
    rate: float = 3e-3


@dataclass(frozen=True, eq=False)
class Shown:
    """What training shows: labeled images, copies of each that stand in for it half of the time, and its symmetry.

    `copies`: float32 `(count, K, 3, size, size)`, or None. `usable`: bool `(count, K)`, the copies that may be shown.
    """

    known: Labeled
    copies: Tensor | None = None
    usable: Tensor | None = None
    symmetry: Symmetry = STILL

    def batch(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """One view of each of the images at `rows`, `(rows, 3, size, size)`."""
        images = self.known.images[rows]
        if self.copies is not None:
            drawn = torch.randint(self.copies.shape[1], (len(rows),), generator=generator)
            instead = torch.rand(len(rows), generator=generator) < COPY_SHARE
            if self.usable is not None:
                instead &= self.usable[rows, drawn]
            images = torch.where(instead[:, None, None, None], self.copies[rows, drawn], images)
        return symmetric_view(images, self.symmetry, generator)


def symmetric_view(images: Tensor, symmetry: Symmetry, generator: torch.Generator) -> Tensor:
    """Each image mirrored, turned and moved at random as its symmetry allows; what comes in at the edge repeats it."""
    count = len(images)
    if symmetry.mirror:
        mirrored = torch.rand(count, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if symmetry.turn:
        turns = torch.randint(4, (count,), generator=generator)
        images = torch.stack([image.rot90(int(k), (1, 2)) for image, k in zip(images, turns, strict=True)])
    return moved(images, symmetry.shift, generator) if symmetry.shift else images


def moved(images: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Each image moved by whole pixels, at most `shift` either way along both axes."""
    count, _, height, width = images.shape
    wide = nn.functional.pad(images, [shift] * 4, mode="replicate")
    top, left = torch.randint(2 * shift + 1, (2, count, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    picked = wide.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def network(classes: int) -> nn.Sequential:
    """Three convolutions with batch norm (about 77,000 weights), their mean over the image, one linear layer."""
    layers: list[nn.Module] = []
    for before, after, kernel, stride in ((3, 32, 5, 2), (32, 64, 3, 1), (64, 96, 3, 1)):
        layers += [nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)]
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if after == 64 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, classes))


def train(shown: Shown, classes: int, training: Training, seed: int) -> nn.Sequential:
    """A classifier in evaluation mode. Weights and the order of the images depend on `seed` alone, not on what else is
    shown, so that two trainings of one seed differ in that only."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = network(classes).to(memory_format=torch.channels_last)
    order, views = (torch.Generator().manual_seed(2 * seed + part) for part in (0, 1))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.rate, training.steps)
    for rows in batches(len(shown.known), training, order):
        predicted = model(shown.batch(rows, views).contiguous(memory_format=torch.channels_last))
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(predicted, shown.known.labels[rows]).backward()
        optimizer.step()
        cycle.step()
    return model.eval()


def batches(count: int, training: Training, generator: torch.Generator) -> Tensor:
    """Rows of each step, int64 `(steps, batch)`: passes over all images, each in a new order."""
    needed = training.steps * training.batch
    passes = [torch.randperm(count, generator=generator) for _ in range(-(-needed // count))]
    return torch.cat(passes)[:needed].reshape(training.steps, training.batch)


@torch.no_grad()
def predict(model: nn.Sequential, images: Tensor) -> Tensor:
    """The class that the classifier gives each image, int64 `(count,)`."""
    return torch.cat([model(part).argmax(1) for part in images.split(256)])


def accuracy(model: nn.Sequential, part: Labeled) -> float:
    """Share of a part's images whose class is found, the mean over classes (so that a rare class counts as much)."""
    right = (predict(model, part.images) == part.labels).double()
    return torch.stack([right[part.labels == number].mean() for number in part.labels.unique()]).mean().item()
