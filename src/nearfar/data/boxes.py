"""Boxes of objects in pictures, from annotations: COCO and YOLO files below the folder, or a COCO file elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from nearfar.data.coco import Coco, check_shape, coco_of, read_coco, shape_of
from nearfar.data.labels import parsed_json, read_text
from nearfar.data.yolo import Yolo, read_yolo
from nearfar.errors import ImageError, UsageError


@dataclass(frozen=True)
class Box:
    """Upper left corner and size, in pixels, or as shares of the picture where `relative`; kind: the class's name.

    shape: height and width of the picture that the box was drawn in, where its annotation tells.
    """

    x: float
    y: float
    width: float
    height: float
    kind: str = ""
    relative: bool = False
    shape: tuple[float, float] | None = None

    def within(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Left, upper, width and height in pixels of what lies in a picture of this shape, turned by its EXIF data.

        ImageError if nothing does, or if the box was drawn in a picture of another shape.
        """
        check_shape(self.shape, height, width)
        across, down = (width, height) if self.relative else (1, 1)
        left, right = (min(max(x * across, 0.0), float(width)) for x in (self.x, self.x + self.width))
        top, bottom = (min(max(y * down, 0.0), float(height)) for y in (self.y, self.y + self.height))
        if not (right - left > 0 and bottom - top > 0):
            place = f"({self.x:g}, {self.y:g}, {self.width:g}, {self.height:g})"
            raise ImageError(f"its box {place} covers nothing of {width} x {height} pixels: mend the annotation")
        return left, top, right - left, bottom - top


Boxes = Mapping[str, Sequence[Box]]
"""Name of an image below the folder -> its boxes."""


def read_boxes(source: Path, names: Collection[str], path: Path | None = None, kinds: Collection[str] = ()) -> Boxes:
    """The boxes of these images: of COCO and YOLO files below `source`, or of the COCO file `path`.

    kinds: names of classes; all of them unless given. Raises UsageError where there is no box to use.
    """
    boxes_of = below(source, names) if path is None else of_file(path, source, names)
    known = sorted({box.kind for boxes in boxes_of.values() for box in boxes})
    if not known:
        place = f"{path} holds" if path else f"COCO and YOLO files below {source} hold"
        raise UsageError(f"{place} no boxes of these images: name a file with --boxes")
    if unknown := [kind for kind in kinds if kind not in known]:
        raise UsageError(f"no box is of class {unknown[0]!r}: choose from {', '.join(known)}")
    return {name: [box for box in boxes if not kinds or box.kind in kinds] for name, boxes in boxes_of.items()}


def digest(boxes: Boxes) -> str:
    """Tells boxes apart, for the settings of a run."""
    content = json.dumps({name: [astuple(box) for box in boxes[name]] for name in sorted(boxes)})
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def below(source: Path, names: Collection[str]) -> dict[str, list[Box]]:
    boxes_of: dict[str, list[Box]] = {}
    for layout in (*map(of_coco, read_coco(source, names)), *map(of_yolo, read_yolo(source, names))):
        for name, boxes in layout.items():
            boxes_of.setdefault(name, []).extend(boxes)
    return boxes_of


def of_file(path: Path, source: Path, names: Collection[str]) -> dict[str, list[Box]]:
    if not path.is_file():
        raise UsageError(f"{path} is not there: name a COCO file with --boxes")
    content = parsed_json(read_text(path), str(path))
    if not {"images", "annotations"} <= content.keys():
        raise UsageError(f"{path} must be a COCO file, with images and annotations")
    return of_coco(coco_of(content, path.name, source, names))


def of_coco(coco: Coco) -> dict[str, list[Box]]:
    kinds = {kind["id"]: str(kind["name"]) for kind in coco.content.get("categories", [])}
    return {
        name: [coco_box(annotation, kinds, coco.path, shape_of(image)) for annotation in coco.annotations[image["id"]]]
        for name, image in coco.images.items()
    }


def coco_box(annotation: dict[str, Any], kinds: dict[int, str], place: str, shape: tuple[float, float] | None) -> Box:
    kind = kinds.get(annotation.get("category_id", 0), "")
    try:
        x, y, width, height = map(float, annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        text = f"{place}: annotation {annotation['id']} needs a bbox of 4 numbers: x, y, width, height"
        raise UsageError(text) from None
    return Box(x, y, width, height, kind, shape=shape)


def of_yolo(yolo: Yolo) -> dict[str, list[Box]]:
    lines = {name: [line for line in text.splitlines() if line.strip()] for name, text in yolo.texts.items()}
    return {name: [yolo_box(line, yolo.name_of(line)) for line in some] for name, some in lines.items()}


def yolo_box(line: str, kind: str) -> Box:
    """A line's box, or what encloses its polygon."""
    numbers = [float(number) for number in line.split()[1:]]
    if len(numbers) > 6 and len(numbers) % 2:
        raise UsageError(f"{line[:40]!r} is neither a box nor a polygon of pairs of numbers: keypoints are not read")
    if len(numbers) < 6:  # center, size, and in predictions a confidence
        x, y, width, height = numbers[:4]
        return Box(x - width / 2, y - height / 2, width, height, kind, relative=True)
    across, down = numbers[::2], numbers[1::2]
    return Box(min(across), min(down), max(across) - min(across), max(down) - min(down), kind, relative=True)
