"""Whether a solver's images are distributed as those of the exact return, and in how many network calls.

    OMP_WAIT_POLICY=passive python -m benchmarks.near.sampler make --data DATA --cache CACHE [--sets utk,orl ...]
    python -m benchmarks.near.sampler table --data DATA --cache CACHE [--weights WEIGHTS]

DATA holds faces_utk64.zip (color) and faces_orl.zip (gray). `train` are photographs that the bundled model was trained
on, to choose by; `utk` (test faces that are nobody's in the training set) and `orl` are reported. The reference is the
ancestral step (Ho et al., arXiv 2006.11239) with 400 steps from the level to the cleanest time that the network knows,
and then its clean image; `bias` says how far that is off on Gaussians of the bands' own powers. All solvers share the
noise of the level and one path of noise for their steps (`support/noise_path.py`), but for EDM's, which has its own.

* power: mean square of the cosine transform's coefficients, over that of the reference, for each band of half cycles
* retention: slope on the original for each band, less the reference's
* detail: energy of the Laplacian over the reference's; kernel: distance in the model's own features to the reference
* likeness: cosine of a face recognizer's vectors of output and original, less the reference's

`make` keeps every 32 outputs in CACHE and goes on where it stopped; cost: 8 ms for each call and image on one core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.near import faces, rivals
from benchmarks.support.common import write_result
from benchmarks.support.noise_path import NoisePath
from nearfar.diffusion.schedule import Level, NoiseSchedule
from nearfar.diffusion.solver import DDIM, SOLVERS, Sampling, Solver, solve
from nearfar.io.fitting import rgb_of
from nearfar.metrics.faces import Faces
from nearfar.metrics.features import FeatureNetwork, model_features
from nearfar.metrics.sets import kernel_distance
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel

STRENGTHS, CALLS = (0.2, 0.35, 0.5, 0.7), (10, 20, 50, 100)
REFERENCE, REFERENCE_STEPS = "reference", 400
OURS = ("local-prior", "dpm++sde", "ancestral")
PART = 32
EDGES = (0.0, 0.5, 1.5, 2.5, 4, 6, 8, 11.3, 16, 22.6, 32, 1e9)
"""Bands of half cycles along a side: half octaves, but for the lowest."""
COLORS = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])


def cosine_matrix(size: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II), float64 (frequency, place)."""
    place, frequency = torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64)[:, None]
    matrix: Tensor = (torch.pi * (place + 0.5) * frequency / size).cos() * (2 / size) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


def bands(size: int) -> Tensor:
    """The band of each frequency, (size, size)."""
    along = torch.arange(size, dtype=torch.float64)
    radius = torch.hypot(along[:, None], along[None])
    return torch.bucketize(radius, torch.tensor(EDGES[1:-1], dtype=torch.float64), right=True)


def spectra(images: Tensor) -> Tensor:
    """Cosine transform of gray and two color differences, orthonormal; same shape as the images."""
    matrix = cosine_matrix(images.shape[-1]).to(images)
    mix = (COLORS / COLORS.norm(dim=1, keepdim=True)).to(images)
    spectrum: Tensor = matrix @ torch.einsum("dc,bchw->bdhw", mix, images) @ matrix.T
    return spectrum


def by_band(values: Tensor) -> Tensor:
    """Means over the frequencies of each band: (batch, 3, size, size) -> (batch, 3, bands)."""
    index = bands(values.shape[-1]).flatten().to(values.device)
    sums = values.new_zeros(*values.shape[:2], len(EDGES) - 1).index_add_(2, index, values.flatten(2))
    return sums / torch.bincount(index, minlength=len(EDGES) - 1).to(sums)


@dataclass(frozen=True, eq=False)
class Part:
    """Up to 32 images of a set at one strength."""

    images: Tensor
    strength: float
    seed: int
    folder: Path

    def file(self, method: str, calls: int) -> Path:
        return self.folder / f"{method}-{calls}.npy"


def read_set(data: Path, name: str, count: int) -> faces.Faces:
    """The first faces of a set; of each person of `orl` every other picture."""
    if name == "orl":
        known = faces.orl(data)
        return faces.Faces(known.pictures[::2][:count], known.people[::2][:count])
    return faces.utk(data, count, split="train" if name == "train" else "test")


def parts_of(images: Tensor, cache: Path, name: str, strength: float) -> Iterator[Part]:
    for number, some in enumerate(images.split(PART)):
        seed = 1000 * ("train", "utk", "orl").index(name) + 100 * STRENGTHS.index(strength) + number
        yield Part(some, strength, seed, cache / f"{name}-{strength}" / str(number))


def reference_grid(schedule: NoiseSchedule, strength: float, steps: int) -> list[float]:
    """Times as a solver's, but none below the first that the network knows; the clean end last."""
    start, first = schedule.time_of_strength(torch.tensor([strength]).double()).item(), schedule.first_time
    shares = torch.linspace(1, 0, steps, dtype=torch.float64) ** 2
    return [*(first + (start - first) * shares).tolist(), schedule.clean_time]


def solver_grid(schedule: NoiseSchedule, strength: float, steps: int) -> list[float]:
    times: list[float] = Sampling(Level(strength=strength), steps).grid(schedule, 1)[0].tolist()
    return times


def path_of(model: FrozenModel, part: Part) -> NoisePath:
    """The path of all solvers; fixed by part, strength and the constants above."""
    schedule, strength = model.schedule, part.strength
    grids = [reference_grid(schedule, strength, REFERENCE_STEPS)]
    grids += [solver_grid(schedule, strength, calls) for calls in CALLS]
    grids += [times for calls in CALLS if (times := rivals.times_of(strength, calls))]
    like = torch.empty(len(part.images), *model.latent_shape)
    return NoisePath.drawn(schedule, grids, like, part.seed)


def noisy(model: FrozenModel, part: Part) -> Tensor:
    """The images at their level; its noise is of the part's seed."""
    latents = model.latent_space.encode(part.images)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(part.seed + 50_000))
    return model.schedule.add_noise(latents, Level(part.strength).times(model.schedule, len(latents)), noise)


@torch.inference_mode()
def walked(model: FrozenModel, x: Tensor, solver: Solver, grid: Sequence[float], path: NoisePath) -> Tensor:
    """Clean states, by way of the times of a grid."""
    times = torch.tensor(grid, dtype=torch.float64).expand(len(x), -1)
    return solve(model.denoiser, x, times, solver, path.along(grid))  # type: ignore[arg-type]


def output(model: FrozenModel, part: Part, path: NoisePath, method: str, calls: int) -> Tensor | None:
    """What a method makes of a part; None where diffusers has no such times."""
    x = noisy(model, part)
    if method == REFERENCE:
        return walked(model, x, DDIM(eta=1.0), reference_grid(model.schedule, part.strength, calls), path)
    if method in SOLVERS:
        return walked(model, x, SOLVERS[method], solver_grid(model.schedule, part.strength, calls), path)
    times = rivals.times_of(part.strength, calls)
    return rivals.run(model, method, x, times, path) if times else None


def make_part(model: FrozenModel, part: Part, wanted: Sequence[tuple[str, int]]) -> None:
    """Write the outputs that are not there yet."""
    missing = [one for one in wanted if not part.file(*one).exists()]
    if not missing:
        return
    part.folder.mkdir(parents=True, exist_ok=True)
    path = path_of(model, part)
    for method, calls in missing:
        made = output(model, part, path, method, calls)
        if made is not None:
            np.save(part.file(method, calls), model.latent_space.decode(made).half().numpy())
            typer.echo(part.file(method, calls))


@dataclass(frozen=True, eq=False)
class Moments:
    """Of each image of a group: power and product with the original by band, (count, bands), and detail, (count,)."""

    power: Tensor
    product: Tensor
    detail: Tensor

    @classmethod
    def of(cls, images: Tensor, originals: Tensor) -> Moments:
        made, given = spectra(images.double()), spectra(originals.double())
        centered = (made - made.mean(0)) * (given - given.mean(0))
        return cls(by_band(made.square()).mean(1), by_band(centered).mean(1), laplacian(images))


def laplacian(images: Tensor) -> Tensor:
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(3, 1, 3, 3)
    return torch.nn.functional.conv2d(images, kernel, groups=3).square().mean((1, 2, 3))


def excess(values: Tensor, reference: Tensor) -> tuple[list[float], list[float]]:
    """Relative excess of a mean over the reference's, and its standard error over the same images."""
    ratio = values.mean(0) / reference.mean(0)
    error = (values - ratio * reference).std(0) / reference.mean(0) / len(values) ** 0.5
    return (ratio - 1).flatten().tolist(), error.flatten().tolist()


@dataclass(frozen=True, eq=False)
class Seen:
    """A set at one strength: originals, the parts that were made, and a recognizer where one is at hand."""

    parts: list[Part]
    originals: faces.Faces
    recognizer: Faces | None

    def all_of(self, method: str, calls: int) -> Tensor:
        """The outputs of the first parts, as many as there are without a gap; float32 in [-1, 1]."""
        made = []
        for part in self.parts:
            if not part.file(method, calls).exists():
                break
            made.append(torch.from_numpy(np.load(part.file(method, calls))).float())
        return torch.cat(made) if made else torch.empty(0)

    @cached_property
    def images(self) -> Tensor:
        return torch.cat([part.images for part in self.parts])

    @cached_property
    def known(self) -> tuple[Tensor, list[Any]]:
        """Vectors and landmarks of the originals."""
        assert self.recognizer is not None
        found = self.recognizer.embed([rgb_of(faces.framed(pixels)) for pixels in self.originals.pictures])
        return found.vectors, found.landmarks

    def likeness(self, images: Tensor) -> Tensor:
        """Cosine of each output with its original, aligned by the original's landmarks."""
        assert self.recognizer is not None
        vectors, landmarks = self.known
        some = faces.Faces(self.originals.pictures[: len(images)], [])
        pictures = [rgb_of(faces.framed(pixels)) for pixels in faces.pictures(images, some)]
        seen = self.recognizer.recognizer.embed(pictures, landmarks[: len(images)])
        return (seen * vectors[: len(images)]).sum(1)


def compared(seen: Seen, images: Tensor, reference: Tensor, features: FeatureNetwork) -> dict[str, Any]:
    """All figures of one method."""
    originals = seen.images[: len(images)]
    ours, theirs = Moments.of(images, originals), Moments.of(reference, originals)
    power, power_error = excess(ours.power, theirs.power)
    detail, detail_error = excess(ours.detail[:, None], theirs.detail[:, None])
    kept = (ours.product - theirs.product) / Moments.of(originals, originals).product.mean(0)
    kernel = kernel_distance(*(features(x.clamp(-1, 1)) for x in (reference, images)))
    like = seen.likeness(images) - seen.likeness(reference) if seen.recognizer else torch.zeros(0)
    return {
        "images": len(images),
        "power": power,
        "power_error": power_error,
        "retention": kept.mean(0).tolist(),
        "retention_error": (kept.std(0) / len(kept) ** 0.5).tolist(),
        "detail": [detail[0], detail_error[0]],
        "kernel": [kernel.value, kernel.deviation],
        "likeness": [like.mean().item(), (like.std() / len(like) ** 0.5).item()] if len(like) else None,
    }


def line(figures: dict[str, Any]) -> str:
    """Excess of power by band in percent, and the other figures."""
    power = " ".join(f"{100 * value:+5.1f}" for value in figures["power"])
    kept = max(map(abs, figures["retention"][1:]))
    like = "" if figures["likeness"] is None else " likeness {:+.3f} +- {:.3f}".format(*figures["likeness"])
    kernel = " kernel {:+.4f} +- {:.4f}".format(*figures["kernel"])
    return f"{power}  detail {100 * figures['detail'][0]:+5.1f} retention {kept:.3f}{kernel}{like}"


def gaussian_bias(schedule: NoiseSchedule, powers: Tensor, strength: float) -> list[float]:
    """Relative error of the reference's power, band by band, if images were Gaussian with these variances.

    Started with the right variance at the level; exact moments of its linear steps.
    """
    times = torch.tensor(reference_grid(schedule, strength, REFERENCE_STEPS), dtype=torch.float64)
    ratios = schedule.ratio(times)
    variance = powers + ratios[0] ** 2
    for before, after in pairwise(ratios):
        kept = (after / before) ** 2
        gain = (1 - kept) * powers / (powers + before**2) + kept
        variance = gain**2 * variance + after**2 * (1 - kept)
    return (variance / powers - 1).tolist()


app = typer.Typer()
DATA = Annotated[Path, typer.Option(help="Folder of the zips.")]
CACHE = Annotated[Path, typer.Option(help="Folder for the outputs.")]
SETS = Annotated[str, typer.Option(help="Of train, utk and orl.")]


@app.command()
def make(
    data: DATA,
    cache: CACHE,
    sets: SETS = "utk,orl",
    strengths: str = "0.5",
    calls: str = "20",
    methods: Annotated[str, typer.Option(help="reference (400 calls), solvers, diffusers' samplers.")] = ",".join(OURS),
    count: Annotated[int, typer.Option(help="Images of each set.")] = 96,
    model: str = "faces",
) -> None:
    """Make the outputs that CACHE lacks."""
    torch.set_num_threads(1)
    frozen = load_model(model)
    pairs = list(product(methods.split(","), map(int, calls.split(","))))
    wanted = [(m, REFERENCE_STEPS if m == REFERENCE else n) for m, n in pairs]
    for name, strength in product(sets.split(","), map(float, strengths.split(","))):
        images = faces.squares(read_set(data, name, count), frozen.image.size)
        for part in parts_of(images, cache, name, strength):
            make_part(frozen, part, list(dict.fromkeys(wanted)))


@app.command()
def table(
    data: DATA,
    cache: CACHE,
    sets: SETS = "utk,orl",
    count: int = 96,
    model: str = "faces",
    weights: Annotated[Path | None, typer.Option(help="Folder of YuNet's and a recognizer's ONNX files.")] = None,
    name: Annotated[str, typer.Option(help="Of the file in results/.")] = "sampler",
) -> None:
    """Compare all that CACHE holds with the reference, and write results/NAME.json."""
    torch.set_num_threads(1)
    frozen = load_model(model)
    known = None if weights is None else Faces.load(*(next(weights.glob(f)) for f in ("yunet*", "mobileface*")))
    features, rows = model_features(frozen), []
    for which, strength in product(sets.split(","), STRENGTHS):
        pictures = read_set(data, which, count)
        images = faces.squares(pictures, frozen.image.size)
        seen = Seen(list(parts_of(images, cache, which, strength)), pictures, known)
        reference = seen.all_of(REFERENCE, REFERENCE_STEPS)
        if not len(reference):
            continue
        bias = gaussian_bias(frozen.schedule, by_band(spectra(images.double()).square()).mean((0, 1)), strength)
        typer.echo(f"{which} {strength:4} bias {' '.join(f'{100 * value:+5.1f}' for value in bias)}")
        rows.append({"set": which, "strength": strength, "method": REFERENCE, "bias": bias, "images": len(reference)})
        for method, calls in product((*OURS, *rivals.SCHEDULERS), CALLS):
            made = seen.all_of(method, calls)[: len(reference)]
            if len(made) > 1:
                figures = compared(seen, made, reference[: len(made)], features)
                rows.append({"set": which, "strength": strength, "method": method, "calls": calls, **figures})
                typer.echo(f"{which} {strength:4} {method:26} {calls:3} {len(made):3} {line(figures)}")
    write_result(name, {"model": frozen.provenance.sha256, "bands": EDGES[:-1], "rows": rows})


if __name__ == "__main__":
    app()
