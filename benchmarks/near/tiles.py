"""What `--tile` does to pictures larger than the model: seams, memory, and what a model of whole things makes of them.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python -m benchmarks.near.tiles seams
    ... picture FILE

* ratio: the step across tile borders of the last step's grid, over that beside them (`benchmarks.near.enhance.seam`);
  low, high: the middle 95 % of the same figure for as many other places. Within them there is no seam.
* bytes_per_pixel: how much the process grew at its peak since before, over the picture's pixels.

The real networks cost too much for large pictures on one core, so those are given to a model in closed form that is
like them in what makes seams: Gaussian pixels whose mean is a bright disk in the middle of the model's square. The
bundled models are measured on a smaller picture. `side by side` shows what a seam measures: tiles that share nothing.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from PIL import Image
from skimage import data
from torch import Tensor

from benchmarks.near.enhance import seam
from benchmarks.support.common import write_result
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import WARP, Level, NoiseSchedule
from nearfar.diffusion.solver import Sampling
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel
from nearfar.sampling.enhancement import mirrored
from nearfar.sampling.local_sampling import sample_near
from nearfar.sampling.tiling import TiledDenoiser, grid_at, over_tiles

STRENGTH, STEPS, BATCH = 0.35, 8, 16
SIDE = 64
DISK, VARIANCE = 0.4, 0.04
SHOWN = (0.2, 0.35, 0.5)


@dataclass(frozen=True)
class Disks:
    """The exact denoiser of Gaussian pixels around a bright disk in the middle of a square."""

    schedule: NoiseSchedule

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (part.to(x_t)[:, None, None, None] for part in self.schedule.coefficients(t))
        line = torch.linspace(-1, 1, x_t.shape[-1])
        mean = torch.where(line[:, None] ** 2 + line**2 < 0.5, DISK, -DISK)
        return mean + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x_t - alpha * mean)


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Tiles that share nothing, in the same places at every step."""

    denoiser: TiledDenoiser

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        result, side = x_t.clone(), self.denoiser.tile[0]
        for y in range(0, x_t.shape[2] - side + 1, side):
            for x in range(0, x_t.shape[3] - side + 1, side):
                place = (..., slice(y, y + side), slice(x, x + side))
                result[place] = self.denoiser.denoiser(x_t[place], t)
        return result


def disks(model: FrozenModel) -> FrozenModel:
    """A model in closed form, of the size of this one."""
    return replace(
        model,
        denoiser=Disks(model.schedule),
        latent_shape=(3, SIDE, SIDE),
        latent_space=load_model("faces").latent_space,
    )


def photograph(name: str, height: int, width: int) -> Tensor:
    """One that comes with scikit-image, at this size."""
    picture = Image.fromarray(getattr(data, name)()).resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float().div(127.5).sub(1)


def borders(model: FrozenModel, canvas: Tensor) -> tuple[list[int], list[int]]:
    """Rows and columns of pixels where tiles of the last step begin or end."""
    times = Level(STRENGTH).times(model.schedule, 1)
    last = model.schedule.grid(times, STEPS, WARP)[0, -2].item()
    factor, tile = model.latent_space.factor, model.latent_shape[1:]
    lengths = tuple(side // factor for side in canvas.shape[2:])
    found = []
    for begins, side, length in zip(grid_at(lengths, tile, last), tile, lengths, strict=True):
        ends = {place for begin in begins for place in (begin, begin + side) if 0 < place < length}
        found.append(sorted(factor * place for place in ends))
    return found[0], found[1]


def near(model: FrozenModel, picture: Tensor, strength: float = STRENGTH, apart: bool = False) -> Tensor:
    canvas = mirrored(picture, model, 1)
    large = over_tiles(model, canvas, BATCH)
    if apart:
        assert isinstance(large.denoiser, TiledDenoiser)
        large = replace(large, denoiser=SideBySide(large.denoiser))
    made = sample_near(large, canvas, Sampling(Level(strength), STEPS), SecretKey.from_seed(0))
    return made[:, :, : picture.shape[2], : picture.shape[3]]


def measured(name: str, model: FrozenModel, picture: Tensor, apart: bool = False) -> Iterator[dict[str, Any]]:
    """A row for columns and one for rows."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = near(model, picture, apart=apart)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / picture[0, 0].numel()
    rows, columns = borders(model, mirrored(picture, model, 1))
    if apart:
        side = model.image.size
        rows, columns = (list(range(side, length, side)) for length in picture.shape[2:])
    about = {"model": name, "tiles": "side by side" if apart else "overlapping", "picture": list(picture.shape[2:])}
    for along, image, places in (("columns", made[0], columns), ("rows", made[0].transpose(1, 2), rows)):
        yield {**about, "across": along, **seam(image, places, 1), "bytes_per_pixel": round(grown)}


app = typer.Typer(add_completion=False)


@app.command()
def seams() -> None:
    """Steps across the borders of tiles; writes results/tiles_seams.json."""
    faces64 = load_model("faces64")
    closed, square, wide = disks(faces64), photograph("astronaut", 1024, 1024), photograph("coffee", 2000, 3000)
    some = photograph("astronaut", 256, 256)
    cases = [
        ("disks", closed, some, False),
        ("disks", closed, square, True),
        ("disks", closed, square, False),
        ("disks", closed, wide, False),
        ("faces", load_model("faces"), some, False),
        ("faces", load_model("faces"), some, True),
        ("cells", load_model("cells"), some, False),
    ]
    rows = []
    for case in cases:
        for row in measured(*case):
            rows.append(row)
            typer.echo(str(row))
    write_result("tiles_seams", {"strength": STRENGTH, "steps": STEPS, "rows": rows})


@app.command()
def picture(path: Path, name: str = "astronaut", side: int = 256, model: str = "faces64") -> None:
    """A photograph, the same without tiles and with them at rising strength, beside each other."""
    loaded, given = load_model(model), photograph(name, side, side)
    size = loaded.image.size
    small = torch.nn.functional.interpolate(given, (size, size), mode="area")
    whole = sample_near(loaded, small, Sampling(Level(STRENGTH), STEPS), SecretKey.from_seed(0))
    shown = [given, torch.nn.functional.interpolate(whole, (side, side), mode="bicubic")]
    shown += [near(loaded, given, strength) for strength in SHOWN]
    sheet = torch.cat([torch.nn.functional.pad(each, (0, 8), value=1.0) for each in shown], dim=3)[0]
    Image.fromarray(sheet.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()).save(path)


if __name__ == "__main__":
    app()
