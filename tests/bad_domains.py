"""Folders that cannot make a domain, or hardly: each must be answered with a clear error or a stated warning.

folder = BAD_DOMAINS["twins"](tmp_path / "in")           pictures
folder = BAD_ARRAY_DOMAINS["nan"](tmp_path / "in")       .npy arrays, to be read with a curve
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SHAPE = (16, 16)


def random_pixels(number: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*SHAPE, channels), dtype=np.uint8)


def pictures(folder: Path, *pixels: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(folder / f"{number}.png")
    return folder


def arrays(folder: Path, *values: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for number, each in enumerate(values):
        np.save(folder / f"{number}.npy", each)
    return folder


def fluxes(number: int) -> np.ndarray:
    """Noise about 0 and a few bright sources."""
    rng = np.random.default_rng(number)
    values = rng.normal(0, 0.1, SHAPE)
    values.flat[rng.integers(0, values.size, 5)] += rng.lognormal(3, 1, 5)
    return values


def with_nan(values: np.ndarray) -> np.ndarray:
    return np.where(np.arange(values.size).reshape(values.shape) == 7, math.nan, values)


BAD_DOMAINS: dict[str, Callable[[Path], Path]] = {
    "none": pictures,
    "one": lambda folder: pictures(folder, random_pixels(1)),
    "twins": lambda folder: pictures(folder, random_pixels(1), random_pixels(1)),
    "black": lambda folder: pictures(folder, *(np.zeros((*SHAPE, 3), np.uint8) for _ in range(4))),
    "truncated": lambda folder: cut(pictures(folder, random_pixels(1), random_pixels(2))),
}

BAD_ARRAY_DOMAINS: dict[str, Callable[[Path], Path]] = {
    "none": arrays,
    "one": lambda folder: arrays(folder, fluxes(1)),
    "twins": lambda folder: arrays(folder, fluxes(1), fluxes(1)),
    "black": lambda folder: arrays(folder, *(np.zeros(SHAPE) for _ in range(4))),
    "nan": lambda folder: arrays(folder, *(with_nan(fluxes(number)) for number in range(3))),
    "one_nan": lambda folder: arrays(folder, fluxes(1), with_nan(fluxes(2)), fluxes(3)),
    "mixed_channels": lambda folder: arrays(folder, fluxes(1), np.stack([fluxes(number) for number in range(3)])),
    "truncated": lambda folder: cut(arrays(folder, fluxes(1), fluxes(2))),
}


def cut(folder: Path) -> Path:
    """Keep the first half of every file."""
    for path in folder.iterdir():
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    return folder
