"""How well a frozen model represents images: to strength 0.9 and back, by inverter and number of steps.

    OMP_WAIT_POLICY=passive python benchmarks/reconstruction.py [--sheet sheet.png]

Photographs that come with scikit-image, on the bundled face model: 16 faces, and 4 of other things, which it has never
seen. Network calls are counted, PSNR is over values in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from skimage import data
from torch import Tensor

from common import faces, write_result
from nearfar.denoiser import Network
from nearfar.inversion import denoise, invert
from nearfar.loading import load_model
from nearfar.model import FrozenModel
from nearfar.sheet import contact_sheet
from nearfar.solver import DDIM, FixedPointDDIM, Heun, Solver

STRENGTH, FACES = 0.9, 16
INVERTERS: dict[str, Solver] = {
    "DDIM": DDIM(),
    "Heun": Heun(),
    "fixed point 1e-3": FixedPointDDIM(),
    "fixed point 1e-4": FixedPointDDIM(tolerance=1e-4),
}


@dataclass
class Counter:
    """A network that counts its calls."""

    network: Network
    calls: int = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.network(x, t)


def photographs(size: int) -> Tensor:
    """The faces, then a cat, a coffee cup, a rocket and a retina."""
    things = [data.chelsea()[:300, 100:400], data.coffee()[:400, 100:500], data.rocket()[:400, 120:520], data.retina()]
    squares = [np.asarray(Image.fromarray(thing).resize((size, size), Image.Resampling.LANCZOS)) for thing in things]
    others = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.cat([faces(FACES, size), others])


def measure(model: FrozenModel, images: Tensor, solver: Solver, steps: int) -> tuple[Tensor, dict[str, Any]]:
    counter = Counter(model.denoiser.network)  # type: ignore[attr-defined]
    counted = replace(model, denoiser=replace(model.denoiser, network=counter))  # type: ignore[type-var]
    latents = invert(counted, images, strength=STRENGTH, steps=steps, solver=solver)
    up = counter.calls
    again = denoise(counted, latents, strength=STRENGTH, steps=steps, solver=solver)
    psnr = 10 * torch.log10(4 / (again - images).square().mean((1, 2, 3)))
    return again, {
        "calls_up": up,
        "calls_down": counter.calls - up,
        "psnr_faces": round(psnr[:FACES].mean().item(), 1),
        "psnr_others": round(psnr[FACES:].mean().item(), 1),
        "psnr_worst": round(psnr.min().item(), 1),
        "latent_std_faces": round(latents[:FACES].std().item(), 3),
    }


def picture(image: Tensor) -> Image.Image:
    pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((96, 96), Image.Resampling.NEAREST)


def main(sheet: Annotated[Path | None, typer.Option(help="A contact sheet to write.")] = None) -> None:
    model = load_model(device="cpu")
    images = photographs(model.image.size)
    columns, results = {"original": images}, {}
    for steps in (20, 40, 80):
        for name, solver in INVERTERS.items():
            again, results[f"{name}, {steps} steps"] = measure(model, images, solver, steps)
            columns |= {name: again} if steps == 20 else {}
            typer.echo(f"{name:17} {steps:3} steps: {results[f'{name}, {steps} steps']}")
    write_result("reconstruction", {"strength": STRENGTH, **results})
    if sheet:
        shown = (0, 1, 2, 3, *range(FACES, len(images)))
        contact_sheet([[picture(column[n]) for column in columns.values()] for n in shown], list(columns)).save(sheet)


if __name__ == "__main__":
    typer.run(main)
