"""Whether a solver's images are distributed as those of the exact return, and in how many network calls.

    python -m benchmarks.near.sampler reference --data DATA --out REF [--device cuda --tf32]    # 2 minutes on an H100
    OMP_WAIT_POLICY=passive python -m benchmarks.near.sampler compare --data DATA --reference REF [--calls 10,20]

DATA holds faces_utk64.zip (color; test faces that are nobody's in the training set) and faces_orl.zip (gray). The
reference is the ancestral step (Ho et al., arXiv 2006.11239) with 1,000 steps from the level to the clean end; `own`
starts from pure noise. Noise of the level is the same in both, that of the steps is not.

* power: mean square of the cosine transform's coefficients, over that of the reference, for each band of half cycles
* retention: slope on the original for each band, less the reference's
* detail: energy of the Laplacian over the reference's; kernel: distance in the model's own features to the reference
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.near import faces
from benchmarks.support.common import write_result
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import DDIM, SOLVERS, Sampling, Solver, solve
from nearfar.metrics.features import FeatureNetwork, model_features
from nearfar.metrics.sets import kernel_distance
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel

STRENGTHS = (0.2, 0.35, 0.5, 0.7)
REFERENCE_STEPS = 1000
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
class Group:
    """Images of one set to be sampled at one strength; the noise of the level is drawn on the CPU from `seed`."""

    name: str
    images: Tensor
    strength: float
    seed: int

    def noise(self, shape: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(len(self.images), *shape, generator=generator)


@dataclass(frozen=True)
class DeviceNoise:
    """Noise of a statistical reference: one generator on the device for a whole batch."""

    like: Tensor
    generator: torch.Generator

    def draw(self) -> Tensor:
        return torch.randn(self.like.shape, generator=self.generator, device=self.like.device)


def groups_of(data: Path, size: int, count: int, own: int) -> list[Group]:
    """Both sets at every strength, and `own` from pure noise. Images (count, 3, size, size) in [-1, 1]."""
    orl = faces.orl(data)
    half = faces.Faces(orl.pictures[::2][:count], orl.people[::2][:count])
    sets = {"utk": faces.squares(faces.utk(data, count), size), "orl": faces.squares(half, size)}
    groups = [
        Group(name, images, strength, 100 * number + place)
        for number, (name, images) in enumerate(sets.items())
        for place, strength in enumerate(STRENGTHS)
    ]
    return [*groups, Group("own", torch.zeros(own, 3, size, size), 1.0, 77)]


def noisy(model: FrozenModel, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """The noised latents of all groups and the strength of each, (count,)."""
    strengths = torch.cat([torch.full((len(g.images),), g.strength, dtype=torch.float64) for g in groups])
    latents = torch.cat([model.latent_space.encode(g.images) for g in groups])
    first = torch.cat([g.noise(model.latent_shape) for g in groups])
    return model.schedule.add_noise(latents, Level(strengths).times(model.schedule, len(latents)), first), strengths


def chunks(count: int, batch: int) -> Iterator[slice]:
    return (slice(at, at + batch) for at in range(0, count, batch))


@torch.inference_mode()
def returned(model: FrozenModel, group: Group, solver: Solver, steps: int, batch: int) -> Tensor:
    """Outputs of a group, float32 on the CPU. Cost: `solver.calls(steps)` network calls for each batch."""
    start, strengths = noisy(model, [group])
    made = []
    for part in chunks(len(start), batch):
        x, sampling = start[part].to(model.device), Sampling(Level(strengths[part]), steps, solver)
        noise = DeviceNoise(x, torch.Generator(model.device).manual_seed(group.seed + 1000 + part.start))
        grid = sampling.grid(model.schedule, len(x))
        made.append(solve(model.denoiser, x, grid, solver, noise).cpu())  # type: ignore[arg-type]
    return model.latent_space.decode(torch.cat(made))


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


def compared(images: Tensor, reference: Tensor, group: Group, features: FeatureNetwork) -> dict[str, Any]:
    """All figures of a group."""
    originals = group.images[: len(images)]
    ours, theirs = Moments.of(images, originals), Moments.of(reference, originals)
    power, power_error = excess(ours.power, theirs.power)
    detail, detail_error = excess(ours.detail[:, None], theirs.detail[:, None])
    given = Moments.of(originals, originals).product.mean(0)
    kept = (ours.product - theirs.product) / given if group.strength < 1 else torch.zeros_like(ours.product)
    seen = [features.look(x.clamp(-1, 1)).vectors for x in (reference, images)]
    kernel = kernel_distance(*seen)
    return {
        "power": power,
        "power_error": power_error,
        "retention": kept.mean(0).tolist(),
        "retention_error": (kept.std(0) / len(kept) ** 0.5).tolist(),
        "detail": [detail[0], detail_error[0]],
        "kernel": [kernel.value, kernel.deviation],
    }


def line(figures: dict[str, Any]) -> str:
    """Excess of power by band and retention beyond the lowest bands, in percent."""
    power = " ".join(f"{100 * value:+5.1f}" for value in figures["power"])
    kept = max(map(abs, figures["retention"][1:]))
    return (
        f"{power}  detail {100 * figures['detail'][0]:+5.1f}  retention {kept:.3f}  kernel {figures['kernel'][0]:.4f}"
    )


app = typer.Typer()
DATA = Annotated[Path, typer.Option(help="Folder of the zips.")]


@app.command()
def reference(
    data: DATA,
    out: Annotated[Path, typer.Option(help="Folder for one .npz a group.")],
    model: str = "faces",
    device: str = "auto",
    count: int = 200,
    own: int = 512,
    steps: int = REFERENCE_STEPS,
    batch: int = 1024,
    tf32: Annotated[bool, typer.Option(help="Power within 1.2e-4, at twice the speed.")] = False,
) -> None:
    """Make the reference: float16 outputs of every group."""
    out.mkdir(parents=True, exist_ok=True)
    frozen = load_model(model, device=device, dtype=None if tf32 else torch.float32)
    for group in groups_of(data, frozen.image.size, count, own):
        images = returned(frozen, group, DDIM(eta=1.0), steps, batch)
        np.savez_compressed(out / f"{group.name}-{group.strength}.npz", images=images.half().numpy())
        typer.echo(f"{group.name} {group.strength}: {len(images)} images")


@app.command()
def compare(
    data: DATA,
    reference: Annotated[Path, typer.Option(help="Folder that `reference` wrote.")],
    model: str = "faces",
    device: str = "auto",
    count: int = 200,
    calls: str = "10,20",
    solvers: str = "local-prior,dpm++sde,ancestral",
    batch: int = 48,
    name: Annotated[str, typer.Option(help="Of the file in results/.")] = "sampler",
) -> None:
    """Compare solvers with the reference and write results/NAME.json."""
    frozen = load_model(model, device=device)
    features, rows = model_features(frozen), []
    for group in groups_of(data, frozen.image.size, count, count):
        with np.load(reference / f"{group.name}-{group.strength}.npz") as file:
            known = torch.from_numpy(file["images"][: len(group.images)]).float()
        for solver, steps in product(solvers.split(","), map(int, calls.split(","))):
            images = returned(frozen, group, SOLVERS[solver], steps, batch)
            figures = compared(images, known, group, features)
            rows.append({"set": group.name, "strength": group.strength, "solver": solver, "calls": steps, **figures})
            typer.echo(f"{group.name} {group.strength:4} {solver:11} {steps:3}  {line(figures)}")
        write_result(name, {"model": frozen.provenance.sha256, "count": count, "bands": EDGES[:-1], "rows": rows})


if __name__ == "__main__":
    app()
