"""What people see of a set of images, and a kernel distance of features hardly: color, layout, strength of detail.

    python -m benchmarks.far.looks DATA           how each distance answers to known changes of real images

Both distances are of two sets of images, float32 `(count, 3, size, size)` in [-1, 1]; 0 is the same, and what real
images have among themselves stands in the table. `sensitivity` is the row of known changes in every table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, pad

from benchmarks.support.domains import load_domain
from benchmarks.support.image_features import features
from nearfar.latents.statistics import fourier_power, radius
from nearfar.metrics.sets import kernel_distance

GRID, DIRECTIONS, LEVELS = 4, 256, 127.5
OPPONENT = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
OPPONENT /= OPPONENT.square().sum(1, keepdim=True).sqrt()
"""Light, blue to red, green to purple."""


def layout_distance(real: Tensor, others: Tensor) -> float:
    """Sliced Wasserstein distance of colors in a coarse layout, in gray levels.

    Of the means of 4 x 4 parts in three channels, along 256 directions that are always the same; in each the mean
    distance of the sorted values, of which sets of unequal size are read at the same quantiles (Bonneel et al., 2015).
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(GRID**2 * 3, DIRECTIONS, generator=generator, dtype=torch.float64)
    directions /= directions.square().sum(0).sqrt()
    places = torch.linspace(0, 1, 201, dtype=torch.float64)[1::2]
    seen = [adaptive_avg_pool2d(some.double(), GRID).flatten(1) @ directions for some in (real, others)]
    first, second = (one.quantile(places, dim=0) for one in seen)
    return LEVELS * (first - second).abs().mean().item()


def band_distance(real: Tensor, others: Tensor) -> float:
    """Root mean square difference of the mean power in dB, over the bands of frequencies and three opponent colors."""
    return (band_powers(real) - band_powers(others)).square().mean().sqrt().item()


def band_powers(images: Tensor) -> Tensor:
    """Mean power by frequency in cycles per image, from 1 up to half the side, in dB: `(3, bands)`.

    A tenth of a gray level is added, without which a gray set's colors would be infinitely weak.
    """
    colors = torch.einsum("dc,nchw->ndhw", OPPONENT, images.double())
    power, side = fourier_power(colors).mean(0).flatten(1), images.shape[-1]
    bands = radius(side, side).flatten()
    sums = torch.zeros(3, int(bands.max()) + 1, dtype=torch.float64).index_add_(1, bands, power)
    mean = sums / bands.bincount()
    return 10 * (mean[:, 1 : side // 2 + 1] + (0.1 / LEVELS) ** 2).log10()


def mean_gray(images: Tensor) -> Tensor:
    return images.mean(1, keepdim=True)


def noisy(images: Tensor, levels: float) -> Tensor:
    return images + torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * levels / LEVELS


CHANGES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda x: x,
    "noise of 2 levels": lambda x: noisy(x, 2),
    "noise of 4 levels": lambda x: noisy(x, 4),
    "noise of 8 levels": lambda x: noisy(x, 8),
    "blur of 3 pixels, half": lambda x: 0.5 * x + 0.5 * avg_pool2d(pad(x, [1] * 4, mode="reflect"), 3, 1),
    "saturation 1.2": lambda x: mean_gray(x) + 1.2 * (x - mean_gray(x)),
    "contrast 1.1": lambda x: 1.1 * (x - x.mean((1, 2, 3), keepdim=True)) + x.mean((1, 2, 3), keepdim=True),
    "yellow-green cast of 8 levels": lambda x: x + torch.tensor([0, 8, -8])[:, None, None] / LEVELS,
    "upper and lower half exchanged": lambda x: x.roll(x.shape[2] // 2, 2),
}


def distances_of(real: Tensor, others: Tensor, seen: Tensor | None = None) -> dict[str, float]:
    """The three distances of two sets. seen: the features of the first, if they are known."""
    vectors = features(real) if seen is None else seen
    return {
        "kernel": kernel_distance(vectors, features(others)).value,
        "layout": layout_distance(real, others),
        "bands": band_distance(real, others),
    }


def sensitivity(real: Tensor, others: Tensor) -> dict[str, dict[str, float]]:
    """The distances of real images from others of their domain, which were changed in a known way."""
    seen = features(real)
    return {name: distances_of(real, change(others).clamp(-1, 1), seen) for name, change in CHANGES.items()}


def main(
    data: Annotated[Path, typer.Argument(help="The folder of the data packs.")],
    shots: Annotated[int, typer.Option(help="Images that are changed.")] = 50,
) -> None:
    """Print what the distances see."""
    for domain in ("cells", "galaxies"):
        images = load_domain(data, domain, 32, shots, 0)
        for name, found in sensitivity(images.held_out, images.fit).items():
            typer.echo(f"{domain:10}{name:32}" + "".join(f"{value:9.3f}" for value in found.values()))


if __name__ == "__main__":
    typer.run(main)
