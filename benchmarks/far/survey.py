"""Where the latents of unseen domains lie beside the bundled face model's own, by level and by number of images.

    OMP_WAIT_POLICY=passive python -m benchmarks.far.survey --data FOLDER [--shots 10 --shots 50] [--figures FOLDER]

Each domain is inverted once, with as many images as the largest number; smaller numbers are the first of them. The last
"domain" is a control: further samples of the model itself, which nothing should tell apart from its own domain.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.support.common import write_result
from benchmarks.support.domains import DOMAINS, load_domain
from nearfar.domain.survey import LevelStatistics, Survey, climb, compare, propose, segments
from nearfar.latents.normality import rotations
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel
from nearfar.reports.survey import distances_figure, separation_figure, spectrum_figure
from nearfar.sampling.local_sampling import own_samples

STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FIGURES = {"separation": separation_figure, "distances": distances_figure, "spectrum": spectrum_figure}


def latents(model: FrozenModel, images: Tensor, steps: int) -> list[Tensor]:
    """At every level."""
    return [level.clone() for level in climb(model, images, segments(STRENGTHS, steps), batch_size=32)]


def surveyed(model: FrozenModel, unseen: Sequence[Tensor], own: Sequence[Tensor], count: int, steps: int) -> Survey:
    """Of the first `count` latents of both."""
    generator = torch.Generator().manual_seed(0)
    frames = rotations(count, generator)
    levels = [
        compare(torch.cat([domain[:count], base[:count]]), count, strength, model.schedule, frames, generator)
        for strength, domain, base in zip(STRENGTHS, unseen, own, strict=True)
    ]
    return Survey(model.provenance.sha256, count, steps, 0, tuple(levels), *propose(levels))


def figures_of(level: LevelStatistics) -> dict[str, Any]:
    unseen, own, apart = level.unseen, level.own, level.separation
    pairs = {
        name: [round(getattr(cloud.geometry, name).mean, 2) for cloud in (unseen, own)]
        for name in ("norm", "distance", "origin_angle")
    }
    shape = {
        name: [round(getattr(cloud.geometry, name), 4) for cloud in (unseen, own)]
        for name in ("roundness", "shrinkage")
    }
    gaussian = {
        "norm_dispersion": [round(cloud.gaussianity.norm_dispersion, 2) for cloud in (unseen, own)],
        "gaussian_p": [float(f"{cloud.gaussianity.p:.2g}") for cloud in (unseen, own)],
    }
    return {
        "strength": level.strength,
        **pairs,
        **shape,
        **gaussian,
        "accuracy": round(apart.accuracy, 3),
        "accuracy_p": apart.accuracy_p,
        "centers": round(apart.quarter_power, 2),
        "centers_p": apart.distance_p,
        "separable": level.separable,
    }


def main(
    data: Annotated[Path, typer.Option(help="The project's data folder.")],
    shots: Annotated[list[int], typer.Option(help="Numbers of images.")] = [10, 50],  # noqa: B006
    steps: int = 12,
    figures: Annotated[Path | None, typer.Option(help="Where to write the figures of the largest number.")] = None,
) -> None:
    model, most, results = load_model("bundled/faces", "cpu"), max(shots), {}
    begun = time.perf_counter()
    own = latents(model, own_samples(model, most), steps)
    for name in (*DOMAINS, "own"):
        images = own_samples(model, most, seed=1) if name == "own" else load_domain(data, name, 32, most, 0).fit
        unseen = latents(model, images, steps)
        for count in sorted(shots):
            found = surveyed(model, unseen, own, count, steps)
            levels = [figures_of(level) for level in found.levels]
            results[f"{name}, {count} images"] = {"proposed": found.proposed, "reason": found.reason, "levels": levels}
            typer.echo(
                f"{time.perf_counter() - begun:5.0f} s  {name}, {count} images: {found.proposed}, {found.reason}"
            )
        for kind, figure in FIGURES.items() if figures else ():
            figure(found).savefig(figures / f"{name}_{kind}.png", dpi=60)  # type: ignore[operator]
    write_result("survey", {"steps": steps, "pairs": "unseen, own", **results})


if __name__ == "__main__":
    typer.run(main)
