"""`anonymize --regions`: in every image its faces, or the boxes of its annotations, are replaced, and nothing else."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from nearfar.data.boxes import Boxes, digest
from nearfar.errors import ImageError
from nearfar.io.fitting import as_rgb, rgb_of
from nearfar.io.listing import Item
from nearfar.io.marks import IN_PART, MARKED, Marking
from nearfar.io.pictures import Picture, Pixels, encode, read_picture
from nearfar.io.regions import Region, box_region, changed_share, crop, face_region, match_colors, paste, widen
from nearfar.jobs.job import Job, Reading, Results, refuse_text
from nearfar.metrics.faces import FaceDetector
from nearfar.tensors import ImageContract

FACE_MARGIN, BOX_MARGIN = 0.0, 0.25
"""What a region's square has more on each side: faces fill it as the bundled model knows them, boxes need a border."""

LEAST_CHANGED = 0.5
"""The share of a region's pixels that must be others than before: where less changed, the region stayed."""

EXPECTED = 8
"""Regions of an image for which the batch is made large enough, if there are few images."""

LOOKS, LOOK_SIZE, AROUND, ENOUGH, ASTRAY = 4, 240, 0.5, 0.1, 0.25
"""How often a tilted face is looked at again, at how many pixels, with what around it; radians that need no look; from
how far off its first place, in sides, what is seen is another face."""


@dataclass(frozen=True)
class Search:
    """What is looked for in pictures.

    find: the regions of a picture. settings: all that decides them. missing: what is said of an image without any.
    keep_unmatched: whether such an image is written as it is.
    """

    find: Callable[[Item, Picture], Sequence[Region]]
    settings: dict[str, Any]
    missing: str
    keep_unmatched: bool = False

    def regions(self, item: Item, picture: Picture) -> list[Region]:
        """Large ones first, so that small ones are pasted over them. Raises ImageError where there are none."""
        found = sorted(self.find(item, picture), key=lambda region: (-region.side, region.y, region.x))
        if not found and not self.keep_unmatched:
            raise ImageError(f"{self.missing}: not written; --keep-unmatched would copy it as it is")
        return found


@dataclass(frozen=True)
class Found:
    """Where the regions of a picture are; the picture itself, of this checksum, is read again when they are pasted.

    changed: then it gets the share of each region that is another than before.
    """

    item: Item
    regions: Sequence[Region]
    checksum: int
    changed: list[float] = field(default_factory=list)


def face_search(
    path: Path, least_score: float = 0.6, margin: float = FACE_MARGIN, keep_unmatched: bool = False
) -> Search:
    """Every face that the detector in an ONNX file finds with at least this score, in [0, 1]."""
    detector = FaceDetector.load(path, least_score)

    def find(_: Item, picture: Picture) -> list[Region]:
        faces = detector.find(rgb_of(picture))
        found = [face_region(face.landmarks, face.score) for face in faces]
        return [widen(upright(picture.pixels, region, detector), margin) for region in found]

    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    settings = {"regions": "faces", "detector": sha256, "least_score": least_score, "margin": margin}
    missing = f"no face was found with a score of {least_score:g} or more"
    return Search(find, settings | {"keep_unmatched": keep_unmatched}, missing, keep_unmatched)


def upright(pixels: Pixels, region: Region, detector: FaceDetector) -> Region:
    """A face's region with the tilt that it has when it is looked at again with its head up, a few times.

    YuNet sees tilted faces, but calls a tilt of 45 degrees 28; looked at again it becomes 38, and 75 becomes 69.
    """
    turn, first = region.tilt, region
    for _ in range(LOOKS):
        wide = widen(region, AROUND)
        faces = detector.find(as_rgb(crop(pixels, wide, LOOK_SIZE, 3)[None])[0]) if abs(turn) > ENOUGH else []
        if not faces:
            break
        places = [face.landmarks @ (1, 1j) / LOOK_SIZE - (0.5 + 0.5j) for face in faces]
        nearest = min(places, key=lambda each: abs(each.mean()))
        seen = nearest * wide.side * np.exp(1j * wide.tilt) + complex(wide.x, wide.y)
        straight = face_region(np.stack([seen.real, seen.imag], axis=1), region.score)
        if abs(complex(straight.x - first.x, straight.y - first.y)) > ASTRAY * first.side:
            break
        turn, region = straight.tilt - region.tilt, straight
    return region


def box_search(boxes: Boxes, margin: float = BOX_MARGIN, keep_unmatched: bool = False) -> Search:
    """The boxes of annotations."""

    def find(item: Item, picture: Picture) -> list[Region]:
        shape = picture.frame.height, picture.frame.width, picture.frame.orientation
        return [
            box_region(*box.within(*shape), margin, box.kind, math.radians(box.turn))
            for box in boxes.get(item.name, ())
        ]

    settings = {"regions": "boxes", "boxes": digest(boxes), "margin": margin, "keep_unmatched": keep_unmatched}
    return Search(find, settings, "its annotations hold no box", keep_unmatched)


def region_job(
    job: Job, search: Search, keep_metadata: bool = False, marking: Marking = MARKED, burned_in: bool = False
) -> Job:
    """A job that makes local samples, such as `anonymize_job`, on regions of every image instead of the whole.

    Each region has noise of its own, from the key and its content. Cost: the job's network calls for each batch of
    regions, and what the search takes.
    """
    return replace(
        job,
        read=partial(read_regions, search=search, contract=job.image, burned_in=burned_in),
        encode=partial(picture_with, keep_metadata=keep_metadata, marking=marking),
        measure=figures,
        squares=EXPECTED,
        settings=job.settings | search.settings,
    )


def read_regions(item: Item, search: Search, contract: ImageContract, burned_in: bool = False) -> Reading:
    """The regions of one picture as the model's squares."""
    picture = read_picture(item.path)
    refuse_text(picture.frame, burned_in)
    regions = search.regions(item, picture)
    squares = [crop(picture.pixels, region, contract.size, contract.channels) for region in regions]
    empty = torch.zeros(0, contract.channels, contract.size, contract.size)
    found = Found(item, regions, crc32(picture.pixels.tobytes()))
    reduced = any(region.side > contract.size for region in regions)
    return Reading(torch.stack(squares) if squares else empty, picture.frame, found, reduced)


def picture_with(outputs: Tensor, reading: Reading, keep_metadata: bool, marking: Marking = MARKED) -> bytes:
    """The picture with its regions replaced, in its own format."""
    picture = read_again(reading)
    pixels = picture.pixels
    for square, output, region in zip(reading.squares, outputs, reading.context.regions, strict=True):
        pixels = paste(pixels, match_colors(output.cpu().float(), square, region), region)
    reading.context.changed[:] = [share_of(picture.pixels, pixels, region) for region in reading.context.regions]
    return encode(Picture(pixels, picture.frame), keep_metadata, IN_PART if len(outputs) else "", marking)


def share_of(before: Pixels, after: Pixels, region: Region) -> float:
    """Which share of a region changed. Raises ImageError where its inside stayed."""
    share = changed_share(before, after, region)
    if share < LEAST_CHANGED:
        place = f"the region around ({region.x:.4g}, {region.y:.4g}) stayed: {share:.0%} of it changed"
        raise ImageError(f"{place}, at least {LEAST_CHANGED:.0%} must, so it is not written: raise the strength")
    return share


def read_again(reading: Reading) -> Picture:
    """The picture, read anew: many of them wait for their results, and the memory need not hold them all."""
    item: Item = reading.context.item
    try:
        picture = read_picture(item.path)
    except ImageError as error:
        raise ImageError(f"was changed while it was processed ({error}): go on with --resume") from None
    if crc32(picture.pixels.tobytes()) != reading.context.checksum:
        raise ImageError("was changed while it was processed: go on with --resume")
    return picture


def figures(results: Results, reading: Reading) -> dict[str, float]:
    """Number of regions, how many of them were enlarged for the model, least side, score and share, PSNR in dB."""
    regions = reading.context.regions
    if not regions:
        return {"regions": 0.0}
    error = (results.images - reading.squares).square().mean().item()
    return {
        "regions": float(len(regions)),
        "enlarged": float(sum(region.side < reading.squares.shape[-1] for region in regions)),
        "least_side": min(region.side for region in regions),
        "least_score": min(region.score for region in regions),
        "least_changed": min(reading.context.changed),
        "psnr": 10 * math.log10(4 / max(error, 1e-12)),
    }
