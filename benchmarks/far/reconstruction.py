"""How well a frozen model represents images: to strength 0.9 and back, by inverter and number of steps.

    OMP_WAIT_POLICY=passive python -m benchmarks.far.reconstruction [--data DATA] [--count 64] [--sheet sheet.png]

Photographs that come with scikit-image, on the bundled face model: 16 faces, and 4 of other things, which it has never
seen. With --data, `count` held-out images of each domain of `domains.py` besides, by the papers' inverter and the
default one. Network calls are those of the whole batch, PSNR is over values in [-1, 1], of each image of its own.
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

from benchmarks.support.common import faces, write_result
from benchmarks.support.domains import DOMAINS, as_tensor, choose, pools_of
from nearfar.diffusion.bdia import BDIA
from nearfar.diffusion.denoiser import Network
from nearfar.diffusion.fixed_point import FixedPointDDIM
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import DDIM, Heun, Sampling, Solver
from nearfar.metrics.quality import psnr, ssim
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel
from nearfar.reports.page import contact_sheet
from nearfar.sampling.inversion import denoise, invert, reconstruct, traced_inversion

STRENGTH, FACES = 0.9, 16
INVERTERS: dict[str, tuple[Solver, tuple[int, ...]]] = {
    "DDIM": (DDIM(), (20, 40, 80)),
    "Heun": (Heun(), (20, 40)),  # two calls a step
    "fixed point": (FixedPointDDIM(), (20, 40, 80)),
    "BDIA": (BDIA(), (20,)),  # exact at any number
}
IN_DOMAINS = ("DDIM", "fixed point")


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


def measure(model: FrozenModel, groups: dict[str, Tensor], solver: Solver, steps: int) -> tuple[Tensor, dict[str, Any]]:
    """All groups in one batch: what comes back, and the figures of each group."""
    counter, images = Counter(model.denoiser.network), torch.cat(list(groups.values()))  # type: ignore[attr-defined]
    counted = replace(model, denoiser=replace(model.denoiser, network=counter))  # type: ignore[type-var]
    way: dict[str, Any] = {"strength": STRENGTH, "steps": steps, "solver": solver}
    figures: dict[str, Any] = {}
    if isinstance(solver, BDIA):
        again = reconstruct(counted, images, **way)
    elif isinstance(solver, FixedPointDDIM):
        traced = traced_inversion(counted, images, Sampling(Level(STRENGTH), steps, solver))
        figures |= {"calls_up": counter.calls, "steps_fell_back": int(traced.fell_back.sum())}
        again, figures["worst_residual"] = denoise(counted, traced.latents, **way), traced.residuals.max().item()
    else:
        latents = invert(counted, images, **way)
        figures["calls_up"], again = counter.calls, denoise(counted, latents, **way)
    figures["calls"] = counter.calls
    sizes = [len(group) for group in groups.values()]
    for name, decibel, likeness in zip(
        groups, psnr(images, again).split(sizes), ssim(images, again).split(sizes), strict=True
    ):
        figures[name] = {
            "psnr": round(decibel.mean().item(), 1),
            "psnr_worst": round(decibel.min().item(), 1),
            "ssim": round(likeness.mean().item(), 5),
        }
    return again, figures


def held_out(folder: Path, size: int, count: int) -> dict[str, Tensor]:
    """Up to `count` images of each unseen domain, of the part *choose*."""
    pools = {name: pools_of(folder, name).choose for name in DOMAINS}
    return {name: as_tensor(choose(pool, min(count, len(pool)), seed=0), size) for name, pool in pools.items()}


def picture(image: Tensor) -> Image.Image:
    pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((96, 96), Image.Resampling.NEAREST)


def table(
    model: FrozenModel, groups: dict[str, Tensor], names: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What comes back at 20 steps, and the figures of every inverter and number of steps."""
    columns, results = {"original": torch.cat(list(groups.values()))}, {}
    for name in names:
        solver, numbers = INVERTERS[name]
        for steps in numbers:
            again, results[f"{name}, {steps} steps"] = measure(model, groups, solver, steps)
            columns |= {name: again} if steps == 20 else {}
            typer.echo(f"{name:12} {steps:3} steps: {results[f'{name}, {steps} steps']}")
    return columns, results


def main(
    sheet: Annotated[Path | None, typer.Option(help="A contact sheet to write.")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder of the unseen domains' images.")] = None,
    count: Annotated[int, typer.Option(help="Images of each of them, at most.")] = 64,
) -> None:
    model = load_model("bundled/faces", "cpu")
    photos = photographs(model.image.size)
    groups = {"faces": photos[:FACES], "others": photos[FACES:]}
    columns, results = table(model, groups, tuple(INVERTERS))
    result = {"strength": STRENGTH, "photographs": results}
    if data:
        unseen = held_out(data, model.image.size, count)
        result["images"] = {name: len(images) for name, images in unseen.items()}
        more, result["unseen"] = table(model, unseen, IN_DOMAINS)
        columns = {name: torch.cat([columns[name], images]) for name, images in more.items()}
    write_result("reconstruction", result)
    if sheet:
        step = max(1, (len(columns["original"]) - FACES) // 16)
        shown = (0, 1, 2, 3, *range(FACES, len(columns["original"]), step))
        contact_sheet([[picture(column[n]) for column in columns.values()] for n in shown], list(columns)).save(sheet)


if __name__ == "__main__":
    typer.run(main)
