"""What enlarging with a frozen face model gives: faces, photographs that it does not know, and seams.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python -m benchmarks.near.enhance levels DATA
    ... compare DATA [--sheets FOLDER]
    ... photographs DATA [--sheets FOLDER]
    ... seams

Images are shrunk by the mean over squares and enlarged again; DATA holds faces_utk64.zip and sr_sets.zip. Faces have
the size of the model, so each is one tile.

* psnr, ssim: against the original (scikit-image, 8-bit colors).
* perceptual: `metrics.features.perceptual_distance` in EfficientNet-Lite0, unweighted and so not LPIPS.
* kernel: kernel distance of its pooled features to 200 other test faces, and its deviation; faces only.
* consistency_error: the largest difference, in gray levels, between the small image and the 8-bit result shrunk again.

The bundled model has seen nothing but faces: Set5 and Set14 are out of its domain, and their figures say what it does
there. Deep Image Prior takes seconds for an image, so it is measured on the first 16 faces, with the others beside it.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from skimage import data
from skimage.metrics import structural_similarity
from torch import Tensor

from benchmarks.near.deep_image_prior import deep_image_prior
from benchmarks.support.common import faces as lfw_faces
from benchmarks.support.common import write_result
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import WARP, NoiseSchedule
from nearfar.metrics.features import efficientnet_features, perceptual_distance
from nearfar.metrics.sets import kernel_distance
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel
from nearfar.reports.page import contact_sheet
from nearfar.sampling import tiling
from nearfar.sampling.back_projection import AreaDownsampling
from nearfar.sampling.enhancement import enhance, proposed_strength
from nearfar.sampling.tiling import grid_at
from nearfar.web.figures import ASTRONAUT_FACE

FACES, OTHERS, CROP, FEW = 64, 200, 64, 16
CANVAS, SEAM_SCALE = (256, 1024), 8
LEVELS = {
    8: (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 15.0, 100.0),
    4: (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 15.0, 100.0),
    2: (0.125, 0.25, 0.5, 1.0, 2.0, 5.0),
}
"""Of the sweep, as noise to signal; above 5 with consistency only, for nothing of the image is left."""

Method = Callable[[Tensor, int], Tensor]
"""Small images `(batch, 3, height, width)` and a scale -> large images."""


def as_tensor(pictures: Sequence[Any]) -> Tensor:
    """Pictures of one size as float32 (count, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def faces(folder: Path, size: int) -> tuple[Tensor, Tensor]:
    """Test faces of people whom the model has not seen, and other test faces, at `size` pixels."""
    with zipfile.ZipFile(folder / "faces_utk64.zip") as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("labels.csv"), "utf-8")))
        names = [row["file"] for row in rows if row["split"] == "test" and float(row["nn_train_cos"]) < 0.6]
        arrays = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names[: FACES + OTHERS]]
    found = as_tensor([array.resize((size, size), Image.Resampling.LANCZOS) for array in arrays])
    return found[:FACES], found[FACES:]


def photographs(folder: Path) -> Tensor:
    """The middle `CROP` pixels of Set5 and Set14."""
    with zipfile.ZipFile(folder / "sr_sets.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        return as_tensor([middle(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names])


def middle(picture: Image.Image) -> Image.Image:
    left, top = ((length - CROP) // 2 for length in picture.size)
    return picture.crop((left, top, left + CROP, top + CROP))


def gray_levels(images: Tensor) -> Tensor:
    return images.add(1).mul(127.5).round().clamp(0, 255)


def pillow(filter_: Image.Resampling, small: Tensor, scale: int) -> Tensor:
    """Pillow's resize of 8-bit images."""
    arrays = gray_levels(small).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    size = (small.shape[3] * scale, small.shape[2] * scale)
    large = np.stack([np.array(Image.fromarray(array).resize(size, filter_)) for array in arrays])
    return as_tensor(large)


def bicubic_back_projected(small: Tensor, scale: int) -> Tensor:
    """What `enhance` starts from, made to fit."""
    area = AreaDownsampling(scale)
    return area.settle(area.enlarge(small), small)


BASELINES: dict[str, Method] = {
    **{each.name.lower(): partial(pillow, each) for each in (
        Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)},
    "bicubic, back-projected": bicubic_back_projected,
}  # fmt: skip


def enhanced(model: FrozenModel, steps: int, small: Tensor, scale: int, **options: Any) -> Tensor:
    return enhance(model, small, scale=scale, steps=steps, key=SecretKey.from_seed(0), **{"batch_size": 32, **options})


def measure(output: Tensor, original: Tensor, scale: int, others: Tensor | None) -> dict[str, float]:
    """All figures of a set of results. others: features of other faces."""
    network, rounded, wanted = efficientnet_features(), gray_levels(output), gray_levels(original)
    error = (rounded - wanted).square().mean(dim=(1, 2, 3))
    pairs = zip(rounded.numpy(), wanted.numpy(), strict=True)
    similarity = [structural_similarity(a, b, channel_axis=0, data_range=255.0) for a, b in pairs]
    left = AreaDownsampling(scale).shrink(rounded) - gray_levels(small_of(original, scale))
    figures = {
        "psnr": (20 * np.log10(255) - 10 * error.log10()).mean().item(),
        "ssim": float(np.mean(similarity)),
        "perceptual": perceptual_distance(network, output, original).mean().item(),
        "consistency_error": left.abs().max().item(),
    }
    if others is not None:
        distance = kernel_distance(others, network(output))
        figures |= {"kernel": distance.value, "kernel_deviation": distance.deviation}
    return {name: round(value, 4) for name, value in figures.items()}


def small_of(original: Tensor, scale: int) -> Tensor:
    """The mean over squares, in whole gray levels as a file would hold it."""
    return gray_levels(AreaDownsampling(scale).shrink(original)) / 127.5 - 1


class Table:
    """Results of one set of originals at one scale, measured, shown and kept."""

    def __init__(self, name: str, original: Tensor, scale: int, others: Tensor | None) -> None:
        self.name, self.original, self.scale, self.others = name, original, scale, others
        self.small = small_of(original, scale)
        self.rows: list[dict[str, Any]] = []
        self.outputs: dict[str, Tensor] = {}

    def add(self, method: str, output: Tensor, count: int | None = None, **more: Any) -> None:
        chosen = slice(count)
        figures = measure(output[chosen], self.original[chosen], self.scale, self.others)
        images = len(output[chosen])
        row = {"set": self.name, "scale": self.scale, "method": method, "images": images, **more, **figures}
        self.rows.append(row)
        self.outputs.setdefault(method, output)
        typer.echo(str(row))


def strength_at(model: FrozenModel, sigma: float) -> float:
    schedule = model.schedule
    return schedule.strength_of_time(schedule.time_of_sigma(torch.tensor([sigma], dtype=torch.float64))).item()


def add_level(
    table: Table, model: FrozenModel, steps: int, sigma: float | None, cascade: int, consistency: bool
) -> None:
    strength = proposed_strength(model, table.scale, consistency) if sigma is None else strength_at(model, sigma)
    options = {"strength": strength, "cascade": cascade, "consistency": consistency}
    output = enhanced(model, steps, table.small, table.scale, **options)
    level = "proposed" if sigma is None else f"sigma {sigma:g}"
    kind = "consistent" if consistency else "as the paper"
    table.add(f"{level}, {kind}, cascade {cascade}", output, steps=steps, **options)


def compare(table: Table, model: FrozenModel, steps: int, cascades: dict[bool, Sequence[int]]) -> None:
    """The baselines, and the level proposed with every cascade, with and without data consistency."""
    for name, method in BASELINES.items():
        table.add(name, method(table.small, table.scale))
    for consistency, passes in cascades.items():
        for cascade in passes:
            add_level(table, model, steps, None, cascade, consistency)


def compare_few(table: Table) -> None:
    """Deep Image Prior, and the others on the same images."""
    few, images = dict(table.outputs), FEW
    small = table.small[:FEW]
    table.add("deep image prior", torch.stack([deep_image_prior(image, table.scale) for image in small]), images)
    for method, output in few.items():
        table.add(method, output, images)


def sheet(table: Table, path: Path, count: int = 8) -> None:
    """The first results of every method beside the original, enlarged without smoothing."""
    columns = {"original": table.original, **table.outputs}
    rows = [[as_picture(images[number]) for images in columns.values()] for number in range(count)]
    contact_sheet(rows, [name[:22] for name in columns], 144).save(path)


def as_picture(image: Tensor) -> Image.Image:
    picture = Image.fromarray(gray_levels(image).to(torch.uint8).permute(1, 2, 0).numpy())
    return picture.resize((144, 144), Image.Resampling.NEAREST)


def side_by_side(model: FrozenModel) -> FrozenModel:
    """The same model, whose tiles share nothing when `enhance` uses it: made to show what a seam measures."""
    side = model.latent_shape[1]

    def cut(x_t: Tensor, t: Tensor) -> Tensor:
        batch, channels, height, width = x_t.shape
        cells = x_t.reshape(batch, channels, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
        tiles = cells.reshape(-1, channels, side, side)
        found = torch.cat([model.denoiser(some, t[:1].expand(len(some))) for some in tiles.split(32)])
        return found.reshape(cells.shape).permute(0, 3, 1, 4, 2, 5).reshape(x_t.shape)

    return replace(model, denoiser=Cut(model.denoiser.schedule, cut), latent_shape=(3, *CANVAS))


@dataclass(frozen=True, eq=False)
class Cut:
    """One canvas at a time, in tiles that share nothing."""

    schedule: NoiseSchedule
    cut: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.cut(x_t, t)


def seam(image: Tensor, borders: Sequence[int], scale: int, draws: int = 1000) -> dict[str, float]:
    """The step across tile borders, each over its mean at the four places one and two squares beside it, averaged.

    low, high: the middle 95 % of the same figure for as many other places, drawn at random.
    """
    steps = image.diff(dim=-1).abs().mean(dim=(0, 1))
    places = range(2 * scale + 1, image.shape[-1] - 2 * scale)
    ratios = {x: steps[x - 1] / torch.stack([steps[x - 1 + k * scale] for k in (-2, -1, 1, 2)]).mean() for x in places}
    across = torch.stack([ratios[x] for x in borders if x in ratios])
    elsewhere = torch.stack([ratio for x, ratio in ratios.items() if x not in borders])
    generator = torch.Generator().manual_seed(0)
    chosen = [
        elsewhere[torch.randperm(len(elsewhere), generator=generator)[: len(across)]].mean() for _ in range(draws)
    ]
    low, high = torch.stack(chosen).quantile(torch.tensor([0.025, 0.975])).tolist()
    figures = {"borders": len(across), "ratio": across.mean().item(), "low": low, "high": high}
    return {name: round(value, 4) for name, value in figures.items()}


def last_borders(model: FrozenModel, steps: int) -> list[int]:
    """Columns where tiles begin or end at the last step, which decides most of what is seen."""
    strength = torch.tensor([proposed_strength(model, SEAM_SCALE)], dtype=torch.float64)
    last = model.schedule.grid(model.schedule.time_of_strength(strength), steps, WARP)[0, -2].item()
    side = model.latent_shape[1]
    _, columns = grid_at(CANVAS, (side, side), max(last, model.schedule.first_time))
    return sorted({x for begin in columns for x in (begin, begin + side) if 0 < x < CANVAS[1]})


app = typer.Typer(add_completion=False)
Data = Annotated[Path, typer.Argument(help="Folder of faces_utk64.zip and sr_sets.zip.")]
Sheets = Annotated[Path | None, typer.Option(help="Folder for sheets; they hold images that may not be shared.")]


@app.command()
def levels(folder: Data, steps: int = 12, images: int = FACES) -> None:
    """Which level is best at each scale; writes results/enhance_levels.json."""
    model = load_model("bundled/faces")
    original, others = faces(folder, model.image.size)
    known, rows = efficientnet_features()(others), []
    for scale, sigmas in LEVELS.items():
        table = Table("faces", original[:images], scale, known)
        for sigma in sigmas:
            for consistency in (True, False) if sigma <= 5 else (True,):
                add_level(table, model, steps, sigma, 1, consistency)
        rows += table.rows
    write_result("enhance_levels", {"model": model.provenance.sha256, "rows": rows})


@app.command("compare")
def compare_faces(folder: Data, steps: int = 20, sheets: Sheets = None) -> None:
    """Every method on faces, at 8 and 4 times; writes results/enhance_faces.json."""
    model = load_model("bundled/faces")
    original, others = faces(folder, model.image.size)
    known, rows = efficientnet_features()(others), []
    for scale in (8, 4):
        table = Table("faces", original, scale, known)
        compare(table, model, steps, {True: (1, 2), False: (1, 2, 3)})
        compare_few(table)
        rows += table.rows
        if sheets:
            sheet(table, sheets / f"faces_{scale}.png")
    write_result("enhance_faces", {"model": model.provenance.sha256, "rows": rows})


@app.command("photographs")
def compare_photographs(folder: Data, steps: int = 10, sheets: Sheets = None) -> None:
    """Every method on Set5 and Set14, which the model does not know; writes results/enhance_photographs.json."""
    model, original, rows = load_model("bundled/faces"), photographs(folder), []
    for scale in (8, 4):
        table = Table("Set5 and Set14", original, scale, None)
        compare(table, model, steps, {True: (1,), False: (1,)})
        rows += table.rows
        if sheets:
            sheet(table, sheets / f"photographs_{scale}.png")
    write_result("enhance_photographs", {"model": model.provenance.sha256, "rows": rows})


@app.command()
def seams(steps: int = 8, sheets: Sheets = None) -> None:
    """Steps across the borders of tiles, in an image 1,024 pixels wide; writes results/enhance_seams.json.

    Three kinds of tiles: as they are; with the same grid at every step; side by side.
    """
    model, rows = load_model("bundled/faces"), []
    band = as_tensor([Image.fromarray(data.astronaut()).crop((0, 40, 512, 168))])
    small, moving = AreaDownsampling(band.shape[3] * SEAM_SCALE // CANVAS[1]).shrink(band), tiling.SHIFTS
    for kind, shifts in (("overlapping", moving), ("one grid", (0.0, 0.0)), ("side by side", (0.0, 0.0))):
        tiling.SHIFTS = shifts
        cut = kind == "side by side"
        borders = list(range(32, CANVAS[1], 32)) if cut else last_borders(model, steps)
        used, together = (side_by_side(model), 1) if cut else (model, 32)
        large = enhanced(used, steps, small, SEAM_SCALE, batch_size=together)
        rows.append({"tiles": kind, "steps": steps, **seam(large[0], borders, SEAM_SCALE)})
        typer.echo(str(rows[-1]))
        if sheets:
            Image.fromarray(gray_levels(large[0]).to(torch.uint8).permute(1, 2, 0).numpy()).save(sheets / f"{kind}.png")
    write_result("enhance_seams", {"model": model.provenance.sha256, "rows": rows})


@app.command()
def picture(path: Path, scale: int = 4, count: int = 6) -> None:
    """Photographs that come with scikit-image, enlarged: the picture of docs/enhance.md."""
    model = load_model("bundled/faces")
    size = (model.image.size, model.image.size)
    astronaut = Image.fromarray(data.astronaut()).crop(ASTRONAUT_FACE).resize(size, Image.Resampling.LANCZOS)
    table = Table("scikit-image", torch.cat([as_tensor([astronaut]), lfw_faces(count - 1, size[0])]), scale, None)
    table.outputs = {"given": pillow(Image.Resampling.NEAREST, table.small, scale)}
    table.outputs["bicubic"] = pillow(Image.Resampling.BICUBIC, table.small, scale)
    table.outputs["as in the paper"] = enhanced(model, 20, table.small, scale, consistency=False)
    for seed in (0, 1):
        key = SecretKey.from_seed(seed)
        table.outputs[f"nearfar, seed {seed}"] = enhance(model, table.small, scale=scale, key=key)
    sheet(table, path, count)


if __name__ == "__main__":
    app()
