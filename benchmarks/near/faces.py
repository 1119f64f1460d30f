"""Faces and their local samples at every strength, kept in a folder so that attacks can be redone.

    OMP_WAIT_POLICY=passive python -m benchmarks.near.faces --data DATA --cache /tmp/near_faces [--model faces64]

DATA holds faces_orl.zip (400 gray faces, 40 people x 10) and faces_utk64.zip (color; the first of the test faces that
are nobody's in the training set: `nn_train_cos` below 0.6). As `nearfar anonymize` does it: a bundled model at its
size (`faces` unless told otherwise), 20 steps, 8 bits; `pictures` gives them the sizes of their
originals. Cost: 20 calls for each.
"""

from __future__ import annotations

import csv
import zipfile
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nearfar.diffusion.noise import SecretKey
from nearfar.io.fitting import fit, unfit
from nearfar.io.pictures import Frame, Picture
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel
from nearfar.sampling.local_sampling import local_sample

STRENGTHS = (0.5, 0.3, 0.7, 0.2, 0.4, 0.1, 0.6, 0.9, 0.8)
AVERAGED, VARIANTS = (0.3, 0.5, 0.7), 5
COUNT, BATCH = 200, 32


@dataclass(frozen=True, eq=False)
class Faces:
    """pictures: uint8 (height, width, channels). people: one number for each picture."""

    pictures: list[NDArray[np.uint8]]
    people: list[int]


def orl(data: Path) -> Faces:
    with zipfile.ZipFile(data / "faces_orl.zip") as archive:
        rows = list(csv.DictReader(TextIOWrapper(archive.open("labels.csv"))))
        pictures = [np.asarray(Image.open(archive.open(row["file"])).convert("L"))[..., None] for row in rows]
    return Faces(pictures, [int(row["identity"]) for row in rows])


def utk(data: Path, count: int = COUNT, split: str = "test") -> Faces:
    """The first test faces that are nobody's in the training set, or the first of the training set ("train")."""
    with zipfile.ZipFile(data / "faces_utk64.zip") as archive:
        rows = csv.DictReader(TextIOWrapper(archive.open("labels.csv")))
        kept = (row["file"] for row in rows if row["split"] == split and float(row["nn_train_cos"] or 0) < 0.6)
        names = list(islice(kept, count))
        pictures = [np.asarray(Image.open(archive.open(name)).convert("RGB")) for name in names]
    return Faces(pictures, list(range(len(names))))


SETS = {"orl": orl, "utk": utk}


def framed(pixels: NDArray[np.uint8]) -> Picture:
    return Picture(pixels, Frame(*pixels.shape, 8, None, "PNG", {}))


def squares(faces: Faces, size: int) -> Tensor:
    """What the model is shown: float32 (count, 3, size, size) in [-1, 1]."""
    return torch.stack([fit(framed(pixels), size, 3) for pixels in faces.pictures])


def pictures(outputs: Tensor, faces: Faces) -> list[NDArray[np.uint8]]:
    """The model's squares as they are published: in the frames of their originals."""
    return [unfit(output, framed(pixels).frame).pixels for output, pixels in zip(outputs, faces.pictures, strict=True)]


def cached(cache: Path, name: str, strength: float, variant: int = 0) -> Tensor:
    """Kept outputs, float32 in [-1, 1]; FileNotFoundError if they were not made."""
    return torch.from_numpy(np.load(cache / f"{name}-{strength}-{variant}.npy")).float() / 127.5 - 1


def make(model: FrozenModel, cache: Path, name: str, images: Tensor, strength: float, variant: int = 0) -> None:
    file = cache / f"{name}-{strength}-{variant}.npy"
    if file.exists():
        return
    key = SecretKey.from_seed(5)
    parts = [local_sample(model, some, strength=strength, key=key, variant=variant) for some in images.split(BATCH)]
    np.save(file, torch.cat(parts).add(1).mul(127.5).round().to(torch.uint8).numpy())
    typer.echo(file.name)


def main(
    data: Annotated[Path, typer.Option()],
    cache: Annotated[Path, typer.Option(help="One for each model.")],
    model: Annotated[str, typer.Option()] = "bundled/faces",
) -> None:
    """Make all outputs that are not there yet, the middle strengths first."""
    cache.mkdir(parents=True, exist_ok=True)
    frozen = load_model(model)
    sets = {name: squares(read(data), frozen.image.size) for name, read in SETS.items()}
    for strength in STRENGTHS:
        for name, images in sets.items():
            make(frozen, cache, name, images, strength)
        for variant in range(1, VARIANTS) if strength in AVERAGED else ():
            make(frozen, cache, "orl-first", sets["orl"][::10], strength, variant)


if __name__ == "__main__":
    typer.run(main)
