"""New images of an unseen domain: every generator beside the baselines, in one table.

    python -m benchmarks.far.synthesis DATA --domain cells --shots 50 --draws 0,1 [--only collage,nearfar] [--fits DIR]

Reads the data packs, writes results/synthesis_DOMAIN_SHOTS_PART.json: a figure of every draw of the shots (which is the
seed of the outputs, too); a run of some generators or draws keeps what is there of the others. `contest.py` reads it.
--part report is for the last table alone: until then everything is looked at, and chosen, on *choose*.
Sheets hold images of the data packs, so they are written only where they are asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from benchmarks.far.baselines import Made, Make, collage, fine_tuned, forward_noised, locally_sampled, patch_denoised
from benchmarks.far.generators import far_generators
from benchmarks.far.looks import sensitivity
from benchmarks.far.set_distances import References, with_nearest
from benchmarks.support.common import RESULTS, write_result
from benchmarks.support.domains import load_domain, load_report, own_faces, symmetric_copies
from benchmarks.support.image_features import ImageSet, image_set
from nearfar.models.loading import load_model

STRENGTHS = (0.3, 0.5)
OWN, SHOWN = 200, 40
COLUMNS = {
    "kernel": "kernel_distance",
    "layout": "layout_distance",
    "bands": "band_distance",
    "area 8": "copied_area_8",
    "area 16": "copied_area_16",
    "area 24": "copied_area_24",
    "captured": "captured",
    "copies px": "copies_in_pixels",
    "copies ft": "copies_in_features",
    "precision": "precision",
    "recall": "recall",
}


def generators(domain: str, networks: Path | None, fits: Path | None) -> dict[str, Make]:
    """All of them by name, cheapest first."""
    made: dict[str, Make] = {"model's own faces": own_images}
    made |= {"collage": partial(collage, margin=1.0), "collage, kept": partial(collage, margin=1.0, kept=True)}
    made |= {"patch denoiser": partial(patch_denoised, domain=domain)}
    made |= {f"forward-noised {strength}": partial(forward_noised, strength=strength) for strength in STRENGTHS}
    made |= {f"locally sampled {strength}": partial(locally_sampled, strength=strength) for strength in STRENGTHS}
    if networks is not None:
        folders = sorted(networks.glob(f"{domain}-*"))
        made |= {f"fine-tuned {folder.name}": partial(fine_tuned, folder=folder) for folder in folders}
    return made | far_generators(domain, fits)


def own_images(model: Any, fit: Tensor, count: int, seed: int) -> Made:
    """What the model makes of nothing: the far end of every distance."""
    from nearfar.sampling.own_domain import own_domain

    return Made(own_domain(model, count), 0)


def chosen(made: Mapping[str, Make], only: str) -> Iterator[tuple[str, Make]]:
    """The generators whose names begin with one of the words in `only`, all if there are none."""
    starts = tuple(word for word in only.split(";") if word)
    return ((name, make) for name, make in made.items() if not starts or name.startswith(starts))


def described(made: Made, outputs: ImageSet, references: References, began: float) -> dict[str, Any]:
    """All that is kept of a set of outputs."""
    row = {"count": len(outputs), "calls": made.calls, "seconds": round(time.process_time() - began, 1)}
    acceptance = {} if made.acceptance is None else {"acceptance": made.acceptance}
    return row | acceptance | references.evaluate(outputs)


def line(name: str, row: Mapping[str, Any]) -> str:
    """One line of the table."""
    return f"{name:30}" + "".join(f"{plain(row[figure]):10.3f}" for figure in COLUMNS.values())


def plain(figure: Any) -> float:
    return float(figure["value"] if isinstance(figure, dict) else figure)


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
    shots: Annotated[int, typer.Option(help="Images to start from.")] = 50,
    count: Annotated[int, typer.Option(help="Outputs of each generator.")] = 100,
    draws: Annotated[str, typer.Option(help="Seeds of shots and outputs, with commas between.")] = "0",
    part: Annotated[str, typer.Option(help="choose, or report for the last table.")] = "choose",
    only: Annotated[
        str, typer.Option(help="Generators whose names begin so, or sensitivity, with semicolons between.")
    ] = "",
    networks: Annotated[Path | None, typer.Option(help="Where fine_tune.py wrote its snapshots.")] = None,
    fits: Annotated[Path | None, typer.Option(help="A folder where fitted domains are kept between runs.")] = None,
    sheets: Annotated[
        Path | None, typer.Option(help="A folder for sheets and outputs, outside the repository.")
    ] = None,
) -> None:
    """Make, measure, print a table and write the result."""
    model, name = load_model("faces"), f"synthesis_{domain}_{shots}_{part}"
    result = earlier(name)
    own = own_faces(data, model.image.size, OWN)
    for seed in map(int, draws.split(",")):
        images = load_domain(data, domain, model.image.size, shots, seed)
        held_out = load_report(data, domain, model.image.size) if part == "report" else images.held_out
        references = References.of(images.fit, held_out, own, symmetric_copies(images.fit, domain))
        of_draw = result["draws"].setdefault(str(seed), {"rows": {}} | references.described())
        of_draw["real"] = of_draw.get("real") or references.real()
        if "sensitivity" not in of_draw and (not only or "sensitivity" in only):
            of_draw["sensitivity"] = sensitivity(held_out, images.fit)
        print(" " * 30 + "".join(f"{column:>10}" for column in COLUMNS) + "\n" + line("real images", of_draw["real"]))
        for label, make in chosen(generators(domain, networks, fits), only):
            began = time.process_time()
            before = made_before(sheets, f"synthesis_{domain}_{shots}_choose {seed} {label}.pt", part)
            made = before or make(model, images.fit, count, seed)
            outputs = image_set(made.images)
            of_draw["rows"][label] = described(made, outputs, references, began)
            print(line(label, of_draw["rows"][label]), flush=True)
            write_result(name, {"model": model.provenance.sha256, "domain": domain, "part": part, **result})
            if sheets and not before:
                vectors = (outputs.pixels, references.fitted.pixels)
                torch.save(made.images, sheets / f"{name} {seed} {label}.pt")
                write_sheet(
                    with_nearest(made.images, images.fit, vectors)[:SHOWN], sheets / f"{name} {seed} {label}.png"
                )


def made_before(sheets: Path | None, name: str, part: str) -> Made | None:
    """For the last table, the very outputs that everything was chosen by, if they were written."""
    path = None if sheets is None or part != "report" else sheets / name
    return Made(torch.load(path, weights_only=True), 0) if path and path.exists() else None


def earlier(name: str) -> dict[str, Any]:
    """The draws that the result's file has already."""
    path = RESULTS / f"{name}.json"
    return {"draws": json.loads(path.read_text(encoding="utf-8"))["draws"] if path.exists() else {}}


if __name__ == "__main__":
    typer.run(main)
