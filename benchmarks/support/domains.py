"""Real images of domains that the bundled face model has never seen, from the project's data folder.

    cells       white blood cells, one in each picture; the parts are of different microscope fields
    galaxies    crops of the Hubble eXtreme Deep Field; crops overlap, so the parts are of three regions of the sky
    animals     birds, cats and horses of CIFAR-10: *fit* from its training part, the others from its test part
    garments    gray pictures of clothes (Fashion-MNIST): two thirds of each class, one sixth, one sixth

Three parts of each: *fit* is what generators see, on *choose* every default is chosen, and *report* is read by the
table of `far/synthesis.py --part report` alone, after everything was chosen. No picture is in two of them, by its
pixels.

Most of the images are for research only: none of them goes into the repository or into a release.
"""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nearfar.errors import UsageError

ANIMALS = ("bird", "cat", "horse")
NO_UPRIGHT = ("cells", "galaxies")
"""Domains whose images have no up and down, so that a turned one is one more."""
Pictures = list[Image.Image]
BORDER = 450
"""The row of the sky that parts galaxies of *choose* from those of *report*; crops that reach across are left out."""


@dataclass(frozen=True)
class Pools:
    """The pictures of the three parts."""

    fit: Pictures
    choose: Pictures
    report: Pictures


@dataclass(frozen=True, eq=False)
class DomainImages:
    """What may be fitted to, and what outputs are compared with: float32 `(count, 3, size, size)` in [-1, 1]."""

    fit: Tensor
    held_out: Tensor


def load_domain(folder: Path, name: str, size: int, shots: int, seed: int) -> DomainImages:
    """`shots` images of the part *fit*, drawn by `seed` without replacement, and all images of the part *choose*.

    A smaller number of shots of the same seed is a part of the larger.
    """
    pools = pools_of(folder, name)
    return DomainImages(as_tensor(choose(pools.fit, shots, seed), size), as_tensor(pools.choose, size))


def load_report(folder: Path, name: str, size: int) -> Tensor:
    """All images of the part *report*, which nothing is chosen by: for the last table, and nothing else."""
    return as_tensor(pools_of(folder, name).report, size)


def pools_of(folder: Path, name: str) -> Pools:
    """The three parts of a domain. A picture that is in an earlier part, to the pixel, is left out of the later."""
    if name not in DOMAINS:
        raise UsageError(f"domain must be one of {', '.join(DOMAINS)}, got {name}")
    fit, *others = DOMAINS[name](folder)
    seen, kept = {digest(image) for image in fit}, []
    for part in others:
        kept.append([image for image in part if digest(image) not in seen])
        seen |= {digest(image) for image in part}
    return Pools(fit, *kept)


def digest(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def own_faces(folder: Path, size: int, count: int, seed: int = 0) -> Tensor:
    """`count` of the faces that the bundled model was trained on, float32 `(count, 3, size, size)` in [-1, 1]."""
    with zipfile.ZipFile(folder / "faces_utk64.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("train/") and not name.endswith("/"))
        return as_tensor(read(archive, choose(names, count, seed)), size)


def symmetric_copies(images: Tensor, domain: str) -> Tensor:
    """The images and those that the domain's symmetry makes of them: mirrored, and turned where nothing is upright.

    `(2 * count, ...)`, or `(8 * count, ...)`; the first `count` are the images themselves.
    """
    turns = range(4 if domain in NO_UPRIGHT else 1)
    return torch.cat(
        [turned for image in (images, images.flip(3)) for turned in (image.rot90(k, (2, 3)) for k in turns)]
    )


def cells(folder: Path) -> Parts:
    """214, 87 and 71 white cells; the split is one of microscope fields."""
    white = {"class": "WBC"}
    return tuple(labeled(folder / "bloodcells.zip", white, split) for split in ("train", "val", "test"))


def galaxies(folder: Path) -> Parts:
    """201, 39 and 34 crops; those that reach into two of the three regions are left out."""
    path, half = folder / "galaxies.zip", 32
    return (
        labeled(path, {}, "train"),
        labeled(path, {}, "test", lambda name: row_of(name) + half <= BORDER),
        labeled(path, {}, "test", lambda name: row_of(name) - half >= BORDER),
    )


def row_of(name: str) -> int:
    """The row of the sky in the middle of a crop, from its file's name: `..._y108.png`."""
    return int(Path(name).stem.rpartition("_y")[2])


def animals(folder: Path) -> Parts:
    """2,100, 150 and 150 pictures of 32 x 32 pixels."""
    path = folder / "cifar10.zip"
    test = [labeled(path, {"class": animal}, "test") for animal in ANIMALS]
    train = [image for animal in ANIMALS for image in labeled(path, {"class": animal}, "train")]
    return train, *([image for some in test for image in some[start::2]] for start in (0, 1))


def garments(folder: Path) -> Parts:
    """600, 150 and 150 gray pictures of 28 x 28 pixels, in three equal channels."""
    with np.load(folder / "fashion_mnist_900.npz") as data:
        images = [Image.fromarray(image).convert("RGB") for image in data["images"]]
        order = np.argsort(data["labels"], kind="stable")
    rank = range(len(order))
    return [images[order[n]] for n in rank if n % 3], *([images[order[n]] for n in rank if n % 6 == k] for k in (0, 3))


Parts = tuple[Pictures, ...]
DOMAINS: dict[str, Callable[[Path], Parts]] = {
    "cells": cells,
    "galaxies": galaxies,
    "animals": animals,
    "garments": garments,
}


def labeled(path: Path, wanted: dict[str, str], split: str, within: Callable[[str], bool] = bool) -> Pictures:
    """The images of a zip with a `labels.csv` that have the wanted labels and the split, in the order of the file.

    within: of a file's name, whether it is wanted.
    """
    with zipfile.ZipFile(path) as archive:
        rows = csv.DictReader(io.StringIO(archive.read("labels.csv").decode()))
        asked = {"split": split, **wanted}
        names = [row["file"] for row in rows if asked.items() <= row.items() and within(row["file"])]
        return read(archive, names)


def read(archive: zipfile.ZipFile, names: Iterable[str]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]


def choose(pool: Sequence[Any], count: int, seed: int) -> list[Any]:
    """`count` members of the pool in random order, without replacement."""
    if not 0 < count <= len(pool):
        raise UsageError(f"there are 1 to {len(pool)} images to take, got {count}: take fewer")
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    return [pool[n] for n in order[:count]]


def as_tensor(images: Sequence[Image.Image], size: int) -> Tensor:
    """Float32 `(count, 3, size, size)` in [-1, 1]; resized with an antialiased Lanczos filter."""
    resized = [np.asarray(image.resize((size, size), Image.Resampling.LANCZOS)) for image in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()
