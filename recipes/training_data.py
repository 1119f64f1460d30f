"""Images for training as one tensor, from a zip or a folder: some kept for choosing, their folders as classes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import typer
from PIL import Image, ImageOps
from torch import Tensor

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True, eq=False)
class Examples:
    """images: uint8 `(count, 3, size, size)`. labels: `(count,)`, the class of each, or None."""

    images: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: Tensor) -> Examples:
        return Examples(self.images[chosen], None if self.labels is None else self.labels[chosen])

    def to(self, device: str) -> Examples:
        return Examples(self.images.to(device), None if self.labels is None else self.labels.to(device))


def read_files(data: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of the image files below `split` in a zip or a folder, in the order of their names."""
    if data.suffix == ".zip":
        with zipfile.ZipFile(data) as archive:
            for name in sorted(archive.namelist()):
                if name.startswith(split) and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                    yield name, archive.read(name)
        return
    for path in sorted((data / split).rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            yield path.relative_to(data).as_posix(), path.read_bytes()


def square(raw: bytes, size: int) -> np.ndarray:
    """An image as uint8 `(size, size, 3)`: the center square, Lanczos."""
    image = Image.open(io.BytesIO(raw)).convert("RGB")
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))


def load_examples(data: Path, split: str, size: int, classes: bool = False) -> Examples:
    """All images below `split`; with `classes` the folder that holds an image is its class, numbered by name."""
    files = list(read_files(data, split))
    if not files:
        raise typer.BadParameter(f"no images below {split!r} in {data}")
    pixels = torch.from_numpy(np.stack([square(raw, size) for _, raw in files])).permute(0, 3, 1, 2).contiguous()
    if not classes:
        return Examples(pixels)
    folders = [str(PurePosixPath(name).parent) for name, _ in files]
    numbers = {folder: number for number, folder in enumerate(sorted(set(folders)))}
    return Examples(pixels, torch.tensor([numbers[folder] for folder in folders]))


def load_images(data: Path, split: str, size: int) -> Tensor:
    """All images as one uint8 tensor (count, 3, size, size), cropped to the center square."""
    return load_examples(data, split, size).images


def part(examples: Examples, keep: int, seed: int) -> tuple[Examples, Examples]:
    """(to train on, kept for choosing): `keep` images drawn by the seed are never trained on."""
    if keep >= len(examples):
        raise typer.BadParameter(f"--keep {keep} leaves nothing of {len(examples)} images to train on")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return examples[order[keep:]], examples[order[:keep]]
