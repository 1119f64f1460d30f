"""Real images of domains that the bundled face model has never seen, from the project's data folder.

    cells       white blood cells, one in each picture: shots from the training fields, held out from the others
    galaxies    crops of the Hubble eXtreme Deep Field; crops overlap, so shots and held out lie in two parts of the sky
    animals     birds, cats and horses of CIFAR-10: shots from its training part, held out from its test part
    garments    gray pictures of clothes (Fashion-MNIST), every third of a class held out

Most of the images are for research only: none of them goes into the repository or into a release.
"""

from __future__ import annotations

import csv
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
Pools = tuple[list[Image.Image], list[Image.Image]]


@dataclass(frozen=True, eq=False)
class DomainImages:
    """What may be fitted to, and what outputs are compared with: float32 `(count, 3, size, size)` in [-1, 1]."""

    fit: Tensor
    held_out: Tensor


def load_domain(folder: Path, name: str, size: int, shots: int, seed: int) -> DomainImages:
    """`shots` images of a domain, drawn by `seed` without replacement, and all of its held-out images.

    A smaller number of shots of the same seed is a part of the larger.
    """
    if name not in DOMAINS:
        raise UsageError(f"domain must be one of {', '.join(DOMAINS)}, got {name}")
    pool, held_out = DOMAINS[name](folder)
    return DomainImages(as_tensor(choose(pool, shots, seed), size), as_tensor(held_out, size))


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


def cells(folder: Path) -> Pools:
    """372 white cells of 358 microscope fields; the split is one of fields."""
    return labeled(folder / "bloodcells.zip", lambda row: row["class"] == "WBC", {"train"}, {"val", "test"})


def galaxies(folder: Path) -> Pools:
    """300 crops, of which the 18 that reach into both parts are left out."""
    return labeled(folder / "galaxies.zip", lambda row: True, {"train"}, {"test"})


def animals(folder: Path) -> Pools:
    """2,100 and 300 pictures of 32 x 32 pixels."""
    return labeled(folder / "cifar10.zip", lambda row: row["class"] in ANIMALS, {"train"}, {"test"})


def garments(folder: Path) -> Pools:
    """600 and 300 gray pictures of 28 x 28 pixels, in three equal channels."""
    with np.load(folder / "fashion_mnist_900.npz") as data:
        images = [Image.fromarray(image).convert("RGB") for image in data["images"]]
        order = np.argsort(data["labels"], kind="stable")
    rank = range(len(order))
    return [images[order[n]] for n in rank if n % 3], [images[order[n]] for n in rank if n % 3 == 0]


DOMAINS: dict[str, Callable[[Path], Pools]] = {
    "cells": cells,
    "galaxies": galaxies,
    "animals": animals,
    "garments": garments,
}


def labeled(path: Path, wanted: Callable[[dict[str, str]], bool], fit: set[str], held_out: set[str]) -> Pools:
    """The wanted images of a zip with a `labels.csv`, by their split, in the order of the file."""
    with zipfile.ZipFile(path) as archive:
        rows = [row for row in csv.DictReader(io.StringIO(archive.read("labels.csv").decode())) if wanted(row)]
        pools = ([row["file"] for row in rows if row["split"] in splits] for splits in (fit, held_out))
        return tuple(read(archive, names) for names in pools)  # type: ignore[return-value]


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
