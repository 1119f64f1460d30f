"""Averages of a network's weights over the end of its training, and the choice of the best by what they draw."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import typer
from PIL import Image
from torch import Tensor
from torch.nn import Module

from nearfar import DPMSolverPP, SecretKey, load_model, local_sample
from nearfar.metrics.features import feature_network
from nearfar.metrics.sets import KernelDistance, kernel_distance
from training_data import Examples

BATCH = 64
CALLS = 25
"""Network calls an image; the deterministic solver, which adds no noise of its own to what is compared."""


@dataclass(frozen=True, eq=False)
class Average:
    """A running mean of weights over the last share of the run so far (Karras et al., arXiv 2312.02696, 3.1).

    The weight of step `i` after `n` steps grows as `(i / n)^(1 / reach - 1)`, however long the run is.
    """

    reach: float
    network: Module

    @classmethod
    def of(cls, network: Module, reach: float) -> Average:
        return cls(reach, copy.deepcopy(network).eval().requires_grad_(False))

    @torch.no_grad()
    def update(self, network: Module, step: int) -> None:
        """Take in the weights after `step`, counted from 1; the first replaces what was there."""
        fresh = 1 - (1 - 1 / step) ** (1 / self.reach)
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), fresh)


@dataclass(frozen=True)
class Choice:
    """Which of several models is kept, and the kernel distance of each to images that none was trained on."""

    best: Path
    distances: dict[Path, KernelDistance]

    def write(self, path: Path) -> None:
        rows = {folder.name: vars(distance) for folder, distance in self.distances.items()}
        path.write_text(json.dumps({"best": self.best.name, "kernel distance": rows}, indent=2))


def choose(folders: list[Path], kept: Examples, features: str, device: str, sheet: Path) -> Choice:
    """The folder whose samples are nearest to the `kept` images, as many samples as there are of these."""
    distances = {}
    for folder in folders:
        samples = draw(folder, kept, device)
        network = feature_network(features, load_model(folder, device, label=first_label(kept)))
        distances[folder] = kernel_distance(network(kept.images.cpu() / 127.5 - 1), network(samples))
        write_sheet(sheet.with_stem(f"{sheet.stem}-{folder.name}"), samples)
        typer.echo(f"{folder.name}: kernel distance {distances[folder].value:.4f} +- {distances[folder].deviation:.4f}")
    return Choice(min(folders, key=lambda folder: distances[folder].value), distances)


def draw(folder: Path, like: Examples, device: str) -> Tensor:
    """Samples of the model in `folder`, as many as there are images and of their classes, float32 in [-1, 1]."""
    if like.labels is None:
        return draw_class(folder, len(like), None, device)
    counts = torch.bincount(like.labels.cpu()).tolist()
    return torch.cat([draw_class(folder, count, label, device) for label, count in enumerate(counts) if count])


def draw_class(folder: Path, count: int, label: int | None, device: str) -> Tensor:
    precision = torch.bfloat16 if device == "cuda" else torch.float32
    model = load_model(folder, device, precision, label=label)
    shape = (model.image.channels, model.image.size, model.image.size)
    inputs = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    key = SecretKey.from_seed(0)
    rows = [
        local_sample(model, some, strength=1.0, key=key, steps=CALLS, solver=DPMSolverPP())
        for some in inputs.split(BATCH)
    ]
    return torch.cat(rows)


def first_label(examples: Examples) -> int | None:
    return None if examples.labels is None else int(examples.labels[0])


def write_sheet(path: Path, samples: Tensor, columns: int = 12) -> None:
    """The first samples as drawn, at most six rows."""
    count = min(len(samples) // columns, 6) * columns or len(samples)
    rows = [torch.cat(list(row), 2) for row in samples[:count].split(min(columns, count))]
    pixels = torch.cat(rows, 1).permute(1, 2, 0).add(1).mul(127.5).round().byte()
    Image.fromarray(pixels.numpy()).save(path)
