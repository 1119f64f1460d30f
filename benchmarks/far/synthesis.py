"""New images of an unseen domain: every generator beside the baselines, in one table.

    python -m benchmarks.far.synthesis DATA --domain cells --shots 200 [--only fine-tuned,forward] [--sheets DIR]

Reads the data packs, writes results/synthesis_DOMAIN_SHOTS.json; a run of some generators keeps the figures of the
others there. Sheets show outputs above the fitted image that is nearest in pixels; they hold images of the data
packs, so they are written only where they are asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from benchmarks.far.baselines import (
    Made,
    Make,
    collage,
    fine_tuned,
    forward_noised,
    locally_sampled,
    paper_draws,
    paper_slerps,
)
from benchmarks.far.generators import far_generators
from benchmarks.far.set_distances import References, with_nearest
from benchmarks.support.common import RESULTS, write_result
from benchmarks.support.domains import load_domain, own_faces, symmetric_copies
from benchmarks.support.image_features import ImageSet, image_set
from nearfar.models.loading import load_model

STRENGTHS, PAPER_TIMES = (0.3, 0.5, 0.7, 0.8), (500, 900)
OWN, SHOWN = 300, 40
COLUMNS = {
    "kernel": "kernel_distance",
    "frechet": "frechet_distance",
    "precision": "precision",
    "recall": "recall",
    "copies px": "copies_in_pixels",
    "copies ft": "copies_in_features",
    "turned px": "turned_copies_in_pixels",
    "turned ft": "turned_copies_in_features",
    "close px": "close_copies_in_pixels",
    "close ft": "close_copies_in_features",
    "captured": "captured",
    "as it is": "captured_as_it_is",
}


@dataclass(frozen=True)
class Study:
    """What a generator was made for: the domain, its number of images, and where fine-tuned networks lie."""

    domain: str
    shots: int
    networks: Path | None


def generators(study: Study) -> dict[str, Make]:
    """All of them by name, cheapest first."""
    made: dict[str, Make] = {"collage, no network": partial(collage, margin=1.0)}
    made |= {
        f"fine-tuned {folder.name.rpartition('-')[2]}": partial(fine_tuned, folder=folder) for folder in tuned(study)
    }
    made |= {f"forward-noised {strength}": partial(forward_noised, strength=strength) for strength in STRENGTHS}
    made |= {f"locally sampled {strength}": partial(locally_sampled, strength=strength) for strength in STRENGTHS}
    made |= {f"paper's slerps {t}": partial(paper_slerps, time=t) for t in PAPER_TIMES}
    made |= {f"paper's draws {t}": partial(paper_draws, time=t) for t in PAPER_TIMES}
    return made | far_generators(study.domain)


def tuned(study: Study) -> list[Path]:
    """Snapshots of the fine-tune, the shortest first."""
    if study.networks is None:
        return []
    found = study.networks.glob(f"{study.domain}-{study.shots}-*")
    return sorted(found, key=lambda folder: int(folder.name.rpartition("-")[2]))


def chosen(study: Study, only: str) -> Iterator[tuple[str, Make]]:
    """The generators whose names begin with one of the words in `only`, all if there are none."""
    starts = tuple(word for word in only.split(",") if word)
    return ((name, make) for name, make in generators(study).items() if not starts or name.startswith(starts))


def described(made: Made, outputs: ImageSet, references: References, began: float) -> dict[str, Any]:
    """All that is kept of a set of outputs."""
    row = {"count": len(outputs), "calls": made.calls, "seconds": round(time.monotonic() - began, 1)}
    acceptance = {} if made.acceptance is None else {"acceptance": made.acceptance}
    return row | acceptance | references.evaluate(outputs)


def line(name: str, row: dict[str, Any]) -> str:
    """One line of the table."""
    found = {column: row[figure] for column, figure in COLUMNS.items()}
    values = (figure["value"] if isinstance(figure, dict) else figure for figure in found.values())
    return f"{name:22}" + "".join(f"{value:10.3f}" for value in values)


def write_sheet(pairs: Tensor, path: Path, columns: int = 20, zoom: int = 2) -> None:
    """Each output above its nearest fitted image; `pairs` is `(count, 2, 3, size, size)`."""
    columns = min(columns, len(pairs))
    count, size = len(pairs) // columns * columns, pairs.shape[-1]
    rows = pairs[:count].unflatten(0, (-1, columns)).permute(0, 2, 4, 1, 5, 3).reshape(-1, columns * size, 3)
    pixels = rows.add(1).mul(127.5).round().to(torch.uint8).numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).resize((columns * size * zoom, len(pixels) * zoom), 0).save(path)


def main(
    data: Annotated[Path, typer.Argument(help="The folder of the data packs.")],
    domain: Annotated[str, typer.Option(help="cells, galaxies, animals or garments.")] = "cells",
    shots: Annotated[int, typer.Option(help="Images to start from.")] = 200,
    count: Annotated[int, typer.Option(help="Outputs of each generator.")] = 200,
    seed: Annotated[int, typer.Option(help="Of shots and outputs.")] = 0,
    only: Annotated[str, typer.Option(help="Generators whose names begin so, with commas between.")] = "",
    networks: Annotated[Path | None, typer.Option(help="Where fine_tune.py wrote its snapshots.")] = None,
    sheets: Annotated[
        Path | None, typer.Option(help="A folder for sheets and outputs, outside the repository.")
    ] = None,
) -> None:
    """Make, measure, print a table and write the result."""
    model, study = load_model("bundled/faces"), Study(domain, shots, networks)
    images = load_domain(data, domain, model.image.size, shots, seed)
    turned, own = symmetric_copies(images.fit, domain), own_faces(data, model.image.size, OWN)
    references, name = References.of(images.fit, images.held_out, own, turned), f"synthesis_{domain}_{shots}"
    real, rows = references.real(), earlier_rows(name)
    print(" " * 22 + "".join(f"{column:>10}" for column in COLUMNS) + "\n" + line("real images", real), flush=True)
    for label, make in chosen(study, only):
        began = time.monotonic()
        made = make(model, images.fit, count, seed)
        outputs = image_set(made.images)
        rows[label] = described(made, outputs, references, began)
        print(line(label, rows[label]), flush=True)
        settings = {"model": model.provenance.sha256, "domain": domain, "seed": seed}
        write_result(name, settings | references.described() | {"real": real, "rows": rows})
        if sheets:
            vectors = (outputs.pixels, references.fitted.pixels)
            torch.save(made.images, sheets / f"{name} {label}.pt")
            write_sheet(with_nearest(made.images, images.fit, vectors)[:SHOWN], sheets / f"{name} {label}.png")


def earlier_rows(name: str) -> dict[str, Any]:
    """What the result's file says already."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}


if __name__ == "__main__":
    typer.run(main)
