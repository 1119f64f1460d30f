"""The report of `nearfar anonymize --regions`: every region before and after, and what an attacker makes of them.

Figures are of the regions as they lie in the files of OUT, seams included. The page shows originals: it stays beside
OUT, not in it, for its owner's eyes (mode 0600).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearfar.audit.view import View, pixels, reidentification
from nearfar.errors import ImageError
from nearfar.io.fitting import as_rgb
from nearfar.io.listing import Item
from nearfar.io.manifest import Record
from nearfar.io.pictures import Picture, read_picture
from nearfar.io.regions import Region, coverage, crop, face_landmarks, square_places, widen
from nearfar.jobs.job import Job
from nearfar.jobs.regions import Search
from nearfar.jobs.run import Plan
from nearfar.metrics.faces import FaceRecognizer
from nearfar.metrics.intervals import Figure, wilson
from nearfar.metrics.quality import psnr
from nearfar.reports.page import (
    Report,
    failures,
    groups,
    heading,
    paragraph,
    picture,
    records_of,
    section,
    table,
)

SHOWN, AUDITED, SIZE, AROUND = 60, 500, 112, 0.4
"""Regions on the sheet, those that are attacked, their size in pixels, and what is shown around them."""

ATTACKS = "What an attacker makes of them"


@dataclass(frozen=True, eq=False)
class Replaced:
    """One region before and after: (3, SIZE, SIZE) in [-1, 1], and the same with more around it.

    again: whether the same search finds something at its place in the result.
    """

    region: Region
    before: Tensor
    after: Tensor
    around: tuple[Tensor, Tensor]
    again: bool


def write_region_report(
    plan: Plan, job: Job, search: Search, source: Path, out: Path, path: Path, recognizer: FaceRecognizer | None = None
) -> dict[str, Any]:
    """Write the report of a run that is over; returns a sentence on its regions, and the report's place."""
    known = records_of(out, plan.names)
    some = list(replaced(known, search, source, out))
    found = attacked(some, search.settings["regions"], recognizer)
    content = {
        "regions": counted(known, job.image.size),
        "settings": job.settings,
        "figures": [asdict(figure) for figure in found],
        "images": [{"name": record.name, **record.figures} for record in known if record.status == "done"],
        "failed": failures(known),
    }
    report(content, found, some).write(path, content)
    secret = f"{path.name} shows originals: keep it with them"
    return {"regions": content["regions"], "report": str(path), "note": secret}


def counted(records: Sequence[Record], size: int) -> str:
    """What was replaced, in a sentence."""
    done = [record.figures for record in records if record.status == "done"]
    number, enlarged = (int(sum(figures.get(name, 0) for figures in done)) for name in ("regions", "enlarged"))
    copied = sum(not figures.get("regions") for figures in done)
    small = f"; {enlarged} smaller than the model's {size} pixels were enlarged" if enlarged else ""
    kept = f"; {copied} images without any were written as they are" if copied else ""
    return f"{number} replaced in {len(done) - copied} images{small}{kept}"


def replaced(records: Sequence[Record], search: Search, source: Path, out: Path) -> Iterator[Replaced]:
    """Regions of finished images, found and read again; what cannot be read is left out."""
    left = AUDITED
    for record in records:
        if left > 0 and record.status == "done" and record.figures.get("regions"):
            with suppress(ImageError, OSError):
                item = Item(source / record.name, record.name)
                before, after = read_picture(item.path), read_picture(out / record.name)
                regions = search.regions(item, before)[:left]
                left -= len(regions)
                found = search.find(item, after)
                yield from (compared(region, before, after, found) for region in regions)


def compared(region: Region, before: Picture, after: Picture, found: Sequence[Region]) -> Replaced:
    squares = [crop(each.pixels, region, SIZE, 3) for each in (before, after)]
    wide = [crop(each.pixels, widen(region, AROUND), SIZE, 3) for each in (before, after)]
    again = any(abs(complex(one.x - region.x, one.y - region.y)) < region.side / 2 for one in found)
    return Replaced(region, squares[0], squares[1], (wide[0], wide[1]), again)


def attacked(some: Sequence[Replaced], kind: str, recognizer: FaceRecognizer | None) -> list[Figure]:
    """How much regions changed, whether each leads back to its own original, and whether faces are found again."""
    if not some:
        return []
    before, after = torch.stack([each.before for each in some]), torch.stack([each.after for each in some])
    ratios = psnr(before, after)
    figures = [Figure("PSNR of regions, dB", ratios.mean().item(), len(some))]
    if kind == "faces":
        share = sum(each.again for each in some) / len(some)
        figures.append(Figure("faces that the detector finds again", share, len(some), *wilson(share, len(some))))
    if len(some) > 1:
        figures += reidentification(View("pixels", pixels(before), pixels(after)))
        inside = torch.stack([coverage(each.region, square_places(SIZE)) for each in some])[:, None] == 1
        figures += reidentification(View("pixels, all new", pixels(before * inside), pixels(after * inside)))
    if len(some) > 1 and recognizer is not None:
        figures += recognized(some, before, after, recognizer)
    return figures


def recognized(some: Sequence[Replaced], before: Tensor, after: Tensor, recognizer: FaceRecognizer) -> list[Figure]:
    """Re-identification by an attacker who recognizes faces and knows where they were."""
    places = [face_landmarks(each.region) * SIZE for each in some]
    vectors = [recognizer.embed(as_rgb(images), places) for images in (before, after)]
    return reidentification(View.of_network(recognizer.name, vectors[0], vectors[1]))


def report(content: dict[str, Any], figures: Sequence[Figure], some: Sequence[Replaced]) -> Report:
    settings = content["settings"]
    return Report(f"Replaced regions: {settings['regions']}").add(
        paragraph(f"{content['regions']}; {len(content['failed'])} images failed and were not written."),
        heading(f"Before and after, the first {min(SHOWN, len(some))}"),
        picture(groups([each.around for each in some[:SHOWN]], ["before", "after"]), "Regions before and after"),
        paragraph(
            f"Each was replaced by a local sample of itself at strength {settings['strength']:.4g} (noise to signal "
            f"{settings['sigma']:.4g}). All else is as it was: hair, clothes, surroundings and the rest of a face's "
            "outline may name a person whose face does not, and what was not found was not replaced: look the results "
            "through. This page shows originals: keep it with them."
        ),
        paragraph(
            f"Measured on {len(some)} regions, the first {AUDITED} at most, as they lie in the results, seams and all. "
            f"The first {SHOWN} at most are shown. Re-identified: how often the original that looks most like a "
            "replaced region is its own, among all originals here. By all pixels of its square, whose corners are old, "
            "and by those that are wholly new."
        ),
        section(ATTACKS, figures),
        heading("Images that failed"),
        table(["image", "reason"], [[each["name"], each["reason"]] for each in content["failed"]]),
    )
