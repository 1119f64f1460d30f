"""Which generator of `synthesis.py` becomes the default: the contest's rules, and what they say of a result.

    python -m benchmarks.far.contest                     reads results/synthesis_*.json, prints points, frontier, winner

The rules were fixed before the first idea was tried:

1.  Model: the bundled `faces` (32 pixels). Fields: cells and galaxies, from 200 and from 50 images (`FIELDS`).
    100 outputs of each generator in each field and draw, as they come: nothing is rejected by a guard.
2.  Three parts of every data set (`benchmarks/support/domains.py`): generators see *fit*; everything is decided on
    *choose*; *report* is read once, by the table of the page, when the default stands.
3.  Two faults. Copied area: the largest over the scales of 8, 16 and 24 of 32 pixels (`nearfar.metrics.copied_area`;
    real images have 0.05). Captured: the share taken for faces, faces in the domain's colors among them.
4.  One score: how far the outputs are on the way from real images to faces. Each of three distances (kernel, layout,
    bands), less that of the fitted images, over that of the model's own faces, less the same; averaged over distances
    and fields: 0 is as good as real images, 1 is as far as faces.
5.  Admitted is who has at most 0.10 of copied area and at most 0.10 captured, as the mean over the fields. Among the
    admitted the least score wins.
6.  If none is admitted, the frontier (nobody else has less of copied area and of the score, with at most 0.10
    captured) is told on the page, and the default is the point with the least copied area whose score is at most 1.25
    times that of the default before.
7.  Ideas are tried in the order of the issue, first on 200 images. Progress is a copied area that falls by 0.05 with a
    score within rule 6, or a score that falls by twice its standard error at no more copied area. After two ideas in a
    row without progress the contest ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Annotated, Any

import typer

from benchmarks.far.synthesis import plain
from benchmarks.support.common import RESULTS
from nearfar.metrics.copied_area import SCALES

LIMIT, SLACK = 0.10, 1.25
FIELDS = (("cells", 200), ("galaxies", 200), ("cells", 50), ("galaxies", 50))
DISTANCES = ("kernel_distance", "layout_distance", "band_distance")
BEFORE, OWN = "mosaic, before", "model's own faces"


@dataclass(frozen=True)
class Point:
    """A generator's place: means over the fields that it was measured in."""

    name: str
    area: float
    captured: float
    score: float
    fields: int

    @property
    def admitted(self) -> bool:
        return max(self.area, self.captured) <= LIMIT


def area_of(row: Mapping[str, Any]) -> float:
    return max(plain(row[f"copied_area_{size}"]) for size in SCALES)


def score_of(row: Mapping[str, Any], real: Mapping[str, Any], own: Mapping[str, Any]) -> float:
    """How far a row is on the way from the fitted images to faces, as the mean of the three distances."""
    shares = [(plain(row[d]) - plain(real[d])) / (plain(own[d]) - plain(real[d])) for d in DISTANCES]
    return mean(shares)


def points(results: list[Mapping[str, Any]]) -> list[Point]:
    """One for each generator that every result has, from results of fields, draws averaged first."""
    places: dict[str, list[tuple[float, float, float]]] = {}
    for result in results:
        found: dict[str, list[tuple[float, float, float]]] = {}
        for draw in result["draws"].values():
            rows, real = draw["rows"], draw["real"]
            for name, row in rows.items():
                place = (area_of(row), plain(row["captured"]), score_of(row, real, rows[OWN]))
                found.setdefault(name, []).append(place)
        for name, draws in found.items():
            places.setdefault(name, []).append(tuple(map(mean, zip(*draws, strict=True))))  # type: ignore[arg-type]
    return [Point(name, *map(mean, zip(*found, strict=True)), len(found)) for name, found in places.items()]


def frontier(found: list[Point]) -> list[Point]:
    """Those with at most 0.10 captured that no other has less of both area and score than."""
    kept = [one for one in found if one.captured <= LIMIT]
    return [one for one in kept if not any(o.area < one.area and o.score < one.score for o in kept)]


def winner(found: list[Point]) -> Point:
    """By rules 5 and 6."""
    if admitted := [one for one in found if one.admitted]:
        return min(admitted, key=lambda one: one.score)
    most = SLACK * next(one.score for one in found if one.name == BEFORE)
    fine = [one for one in found if one.captured <= LIMIT and one.score <= most]
    return min(fine, key=lambda one: one.area)


def main(part: Annotated[str, typer.Option(help="choose or report.")] = "choose") -> None:
    """Print every generator that was measured in all fields there are, and what the rules say."""
    paths = [RESULTS / f"synthesis_{domain}_{shots}_{part}.json" for domain, shots in FIELDS]
    results = [json.loads(path.read_text("utf-8")) for path in paths if path.exists()]
    found = points(results)
    for one in sorted(found, key=lambda one: one.score):
        typer.echo(f"{one.name:30}{one.area:8.3f}{one.captured:8.3f}{one.score:8.3f}  in {one.fields} fields")
    everywhere = [one for one in found if one.fields == len(results)]
    typer.echo(f"frontier: {', '.join(one.name for one in frontier(everywhere))}; winner: {winner(everywhere).name}")


if __name__ == "__main__":
    typer.run(main)
