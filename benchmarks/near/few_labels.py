"""Labeled real images in three parts: a pool from which few labels are drawn, a validation and a test part.

    digits   8 x 8 scans that come with scikit-learn, at 16 x 16 pixels; the parts follow the order of the file, so
             the last people who wrote are not among the first
    cells    single blood cells of three kinds at 32 x 32 pixels, split by microscope field as the data folder has it
    cifar    CIFAR-10: 6,000 of the data folder's training part, its other 1,000, and its test part

    python -m benchmarks.near.few_labels TASK OUT [DATA]    the images that a model of the task is trained on, as files

Images are float32 `(count, 3, size, size)` in [-1, 1]. Cells and CIFAR-10 are for research only: none of them goes into
the repository or into a release.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from benchmarks.support.domains import as_tensor, read
from nearfar.errors import UsageError

DIGITS_POOL, DIGITS_TRAIN = 897, 1197
CIFAR_VALIDATION = 100


@dataclass(frozen=True, eq=False)
class Labeled:
    """Images, float32 `(count, 3, size, size)` in [-1, 1], and their classes, int64 `(count,)` from 0."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: Tensor | slice) -> Labeled:
        return Labeled(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class Symmetry:
    """Changes that keep the class: mirrored left to right, turned by quarters, moved by up to `shift` pixels."""

    mirror: bool
    turn: bool
    shift: int


@dataclass(frozen=True, eq=False)
class Task:
    """What is learned (`pool`), what settings are chosen on (`validation`), what the result is measured on (`test`)."""

    pool: Labeled
    validation: Labeled
    test: Labeled
    symmetry: Symmetry

    @property
    def classes(self) -> int:
        return int(self.pool.labels.max()) + 1


def few(pool: Labeled, each: int, seed: int) -> Tensor:
    """Rows of `each` images of every class, drawn by `seed`, int64; of one seed a smaller number is part of a larger.

    Raises UsageError where a class has fewer.
    """
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    rows = [order[pool.labels[order] == number] for number in range(int(pool.labels.max()) + 1)]
    least = min(len(row) for row in rows)
    if not 0 < each <= least:
        raise UsageError(f"labels for each class must be 1 to {least}, got {each}: take fewer")
    return torch.cat([row[:each] for row in rows])


def digits(folder: Path) -> Task:
    """897, 300 and 600 digits."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    scans = [Image.fromarray((scan / 16 * 255).round().astype(np.uint8)) for scan in bunch.images]
    images = [scan.resize((16, 16), Image.Resampling.BICUBIC).convert("RGB") for scan in scans]
    both = Labeled(as_tensor(images, 16), torch.from_numpy(bunch.target).long())
    parts = (slice(DIGITS_POOL), slice(DIGITS_POOL, DIGITS_TRAIN), slice(DIGITS_TRAIN, None))
    return Task(*(both.at(part) for part in parts), Symmetry(mirror=False, turn=False, shift=2))


def cells(folder: Path) -> Task:
    """911, 358 and 323 cells: platelets, red and white."""
    rows = [row for row in table(folder / "bloodcells.zip") if row["file"].startswith("cells64/")]
    parts = [pictures(folder / "bloodcells.zip", rows, split, 32) for split in ("train", "val", "test")]
    return Task(*parts, Symmetry(mirror=True, turn=True, shift=3))


def cifar(folder: Path) -> Task:
    """6,000, 1,000 and 1,000 pictures of ten classes."""
    rows = table(folder / "cifar10.zip")
    train, test = (pictures(folder / "cifar10.zip", rows, split, 32) for split in ("train", "test"))
    chosen = torch.zeros(len(train), dtype=torch.bool)
    chosen[few(train, CIFAR_VALIDATION, seed=0)] = True
    return Task(train.at(~chosen), train.at(chosen), test, Symmetry(mirror=True, turn=False, shift=4))


TASKS: dict[str, Callable[[Path], Task]] = {"digits": digits, "cells": cells, "cifar": cifar}


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a zip's `labels.csv`."""
    with zipfile.ZipFile(path) as archive:
        return list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))


def pictures(path: Path, rows: list[dict[str, str]], split: str, size: int) -> Labeled:
    """The images of one split, with the class's place among the sorted names of all classes."""
    names = sorted({row["class"] for row in rows})
    wanted = [row for row in rows if row["split"] == split]
    with zipfile.ZipFile(path) as archive:
        images = as_tensor(read(archive, [row["file"] for row in wanted]), size)
    return Labeled(images, torch.tensor([names.index(row["class"]) for row in wanted]))


def unlabeled(name: str, task: Task) -> Tensor:
    """What a model of the task may see: the pool, of digits and CIFAR-10 the validation part too, in all quarter turns
    where nothing is upright."""
    images = task.pool.images if name == "cells" else torch.cat([task.pool.images, task.validation.images])
    return torch.cat([images.rot90(k, (2, 3)) for k in range(4 if task.symmetry.turn else 1)])


def main(
    task: Annotated[str, typer.Argument(help="digits, cells or cifar.")],
    out: Annotated[Path, typer.Argument(help="The folder to write into.")],
    data: Annotated[Path, typer.Argument(help="The folder with bloodcells.zip and cifar10.zip.")] = Path(),
) -> None:
    """Write a task's training images, without their labels, for recipes/train_ddpm.py."""
    out.mkdir(parents=True, exist_ok=True)
    levels = unlabeled(task, TASKS[task](data)).add(1).mul(127.5).round().to(torch.uint8)
    for number, image in enumerate(levels.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(out / f"{number:05}.png")


if __name__ == "__main__":
    typer.run(main)
