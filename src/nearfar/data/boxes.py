"""Boxes of objects in pictures, from annotations: COCO and YOLO files below the folder, or a COCO file elsewhere."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from nearfar.data.coco import LARGEST, Coco, check_shape, coco_of, read_coco, shape_of
from nearfar.data.labels import parsed_json, read_text
from nearfar.data.lines import Meaning
from nearfar.data.unread import check_all_read
from nearfar.data.yolo import CONFIG, Yolo, label_place, read_yolo
from nearfar.errors import ImageError, UsageError

ANGLES = ("rotation", "angle", "theta")
"""Fields that turn a box. Only CVAT's `attributes.rotation` is understood."""

AS_BOX = (1, "XYWH_ABS", "BoxMode.XYWH_ABS")
"""Detectron2's names for what COCO's boxes are."""

LONGEST = 4
"""How long a turned box may be, in heights and widths of its picture: it is not cut at the border."""

OUTSIDE = 2
"""Pixels, and per cent of its side, by which an outline may leave its box."""

CONTENT = "bbox", "segmentation", "keypoints"
"""Of these an annotation of an object has one; a caption has none."""


@dataclass(frozen=True)
class Told:
    """What the user says of boxes.

    kinds: names of the classes to replace, all of them unless given. line_format: of YOLO's lines, one of
    `nearfar.data.lines.FORMATS`. upright: boxes are of pictures turned by their EXIF data. copying: images without
    boxes are written as they are.
    """

    kinds: Collection[str] = ()
    line_format: str = ""
    upright: bool = False
    copying: bool = False


@dataclass(frozen=True)
class Box:
    """Upper left corner and size, in pixels, or as shares of the picture where `relative`; kind: the class's name.

    shape: height and width of the picture that the box was drawn in, where its annotation tells. turn: degrees,
    clockwise, about its center. upright: whether it is known to be of the picture as its EXIF data turn it.
    """

    x: float
    y: float
    width: float
    height: float
    kind: str = ""
    relative: bool = False
    shape: tuple[float, float] | None = None
    turn: float = 0.0
    upright: bool = False

    def within(self, height: int, width: int, orientation: int = 1) -> tuple[float, float, float, float]:
        """Left, upper, width and height in pixels of what lies in a picture of this shape, turned by its EXIF data.

        A turned box is not cut at the border. ImageError if nothing of it lies in the picture, less than one pixel is
        covered, it was drawn in a picture of another shape, or perhaps in the picture before it was turned.
        """
        check_shape(self.shape, height, width)
        self.check_turned(height, width, orientation)
        across, down = (width, height) if self.relative else (1, 1)
        whole = self.x * across, self.y * down, self.width * across, self.height * down
        left, right, top, bottom = cut(enclosing(*whole, self.turn), height, width)
        sound = right - left > 0 and bottom - top > 0 and max(whole[2:]) >= 1
        if not sound or (self.turn and max(whole[2:]) > LONGEST * (height + width)):
            place = f"({self.x:g}, {self.y:g}, {self.width:g}, {self.height:g})"
            raise ImageError(f"its box {place} covers nothing of {width} x {height} pixels: mend the annotation")
        return whole if self.turn else (left, top, right - left, bottom - top)

    def check_turned(self, height: int, width: int, orientation: int) -> None:
        """Refuse a box that fits the stored pixels as well as the upright ones, where these are not the same."""
        told = self.shape is not None and orientation > 4 and height != width
        if orientation != 1 and not (told or self.upright):
            unknown = "nothing says whether its boxes are of the turned picture or of the stored pixels"
            way_out = "give --boxes-upright if they are of the turned one, else save it upright and annotate that"
            raise ImageError(f"its EXIF data turn it (orientation {orientation}), and {unknown}: {way_out}")


Boxes = Mapping[str, Sequence[Box]]
"""Name of an image below the folder -> its boxes."""


def enclosing(x: float, y: float, width: float, height: float, turn: float) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of what encloses a turned box."""
    cosine, sine = abs(math.cos(math.radians(turn))), abs(math.sin(math.radians(turn)))
    half, high = (width * cosine + height * sine) / 2, (width * sine + height * cosine) / 2
    across, down = x + width / 2, y + height / 2
    return (across - half, across + half, down - high, down + high) if turn else (x, x + width, y, y + height)


def cut(sides: Sequence[float], height: int, width: int) -> list[float]:
    """Left, right, top and bottom, not beyond the picture's border."""
    ends = (width, width, height, height)
    return [min(max(side, 0.0), float(end)) for side, end in zip(sides, ends, strict=True)]


def read_boxes(source: Path, names: Collection[str], path: Path | None = None, told: Told | None = None) -> Boxes:
    """The boxes of these images: of COCO and YOLO files below `source`, or of the COCO file `path`.

    A box that several files hold is one box. Raises UsageError where there is no box to use, a line or a box is not
    understood, or a file below `source` may hold boxes and was not read.
    """
    told = told or Told()
    boxes_of = below(source, names, told) if path is None else of_file(path, source, names)
    known = sorted({box.kind for boxes in boxes_of.values() for box in boxes})
    if not known:
        place = f"{path} holds" if path else f"COCO and YOLO files below {source} hold"
        raise UsageError(f"{place} no boxes of these images: name a file with --boxes")
    if unknown := [kind for kind in told.kinds if kind not in known]:
        raise UsageError(f"no box is of class {unknown[0]!r}: choose from {', '.join(known)}")
    if told.kinds and "" in known:
        raise UsageError("some boxes are of no class: give them categories, or leave --box-classes out")
    return {name: chosen(boxes, told) for name, boxes in boxes_of.items()}


def chosen(boxes: Iterable[Box], told: Told) -> list[Box]:
    """Those of the classes that are wanted, each place once: COCO's persons have keypoints in a file of their own."""
    wanted = [box for box in boxes if not told.kinds or box.kind in told.kinds]
    return [replace(box, upright=told.upright) for box in {replace(box, kind=""): box for box in wanted}.values()]


def digest(boxes: Boxes) -> str:
    """Tells boxes apart, for the settings of a run."""
    content = json.dumps({name: [astuple(box) for box in boxes[name]] for name in sorted(boxes)})
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def below(source: Path, names: Collection[str], told: Told) -> dict[str, list[Box]]:
    cocos, yolos = list(read_coco(source, names)), list(read_yolo(source, names))
    others = [path for path in source.rglob(CONFIG) if path.parent != source]
    if others and any(yolo.told for yolo in yolos):
        others_place = others[0].relative_to(source).as_posix()
        raise UsageError(f"{others_place} and {CONFIG} may say different things of lines: give each set by itself")
    boxes_of: dict[str, list[Box]] = {}
    for layout in (*map(of_coco, cocos), *(of_yolo(yolo, told.line_format) for yolo in yolos)):
        for name, boxes in layout.items():
            boxes_of.setdefault(name, []).extend(boxes)
    read = {coco.path for coco in cocos} | {label_place(name) for yolo in yolos for name in yolo.texts}
    copied = [name for name in names if not boxes_of.get(name)] if told.copying else []
    check_all_read(source, names, read, copied)
    return boxes_of


def of_file(path: Path, source: Path, names: Collection[str]) -> dict[str, list[Box]]:
    if not path.is_file():
        raise UsageError(f"{path} is not there: name a COCO file with --boxes")
    content = parsed_json(read_text(path), str(path))
    if not {"images", "annotations"} <= content.keys():
        raise UsageError(f"{path} must be a COCO file, with images and annotations: name one with --boxes")
    return of_coco(coco_of(content, path.name, source, names))


def of_coco(coco: Coco) -> dict[str, list[Box]]:
    kinds = {kind["id"]: str(kind["name"]) for kind in coco.content.get("categories", [])}
    return {
        name: [
            coco_box(annotation, kinds, coco.path, shape_of(image))
            for annotation in coco.annotations[image["id"]]
            if "caption" not in annotation or any(field in annotation for field in CONTENT)
        ]
        for name, image in coco.images.items()
    }


def coco_box(annotation: dict[str, Any], kinds: dict[int, str], place: str, shape: tuple[float, float] | None) -> Box:
    kind = kinds.get(annotation.get("category_id", 0), "")
    try:
        x, y, width, height = map(float, annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        text = f"{place}: annotation {annotation['id']} needs a bbox of 4 numbers: x, y, width, height"
        raise UsageError(f"{text}; mend it, or name another COCO file with --boxes") from None
    turn = turn_of(annotation, f"{place}: annotation")
    if not turn:
        check_outline(annotation, (x, y, width, height), place)
    return Box(x, y, width, height, kind, shape=shape, turn=turn)


def check_outline(annotation: dict[str, Any], box: Sequence[float], place: str) -> None:
    """Refuse a box that its object's polygons leave: it may be another kind of box, such as one with its center."""
    polygons = [each for each in as_list(annotation.get("segmentation")) if isinstance(each, list) and each]
    for axis, polygon in ((axis, polygon) for polygon in polygons for axis in (0, 1)):
        numbers = [each for each in polygon[axis::2] if isinstance(each, int | float)]
        room = OUTSIDE + OUTSIDE / 100 * box[axis + 2]
        if numbers and not box[axis] - room <= min(numbers) <= max(numbers) <= box[axis] + box[axis + 2] + room:
            rule = "its bbox (x, y, width, height) must hold its segmentation"
            raise UsageError(f"{place}: annotation {annotation['id']}: {rule}, got {str(list(box))[:60]}: mend it")


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def turn_of(annotation: dict[str, Any], place: str) -> float:
    """Degrees by which a box is turned. UsageError for an angle or a kind of box that is not understood."""
    attributes = annotation.get("attributes")
    parts = annotation, attributes if isinstance(attributes, dict) else {}
    turns = [(part, name, part[name]) for part in parts for name in ANGLES if part.get(name) not in (None, 0)]
    if annotation.get("bbox_mode", 1) not in AS_BOX:
        turns.append((annotation, "bbox_mode", annotation["bbox_mode"]))
    for part, name, value in turns:
        known = part is attributes and name == "rotation" and type(value) in (int, float) and abs(value) <= LARGEST
        if not known or len(turns) > 1:
            rule = "only attributes.rotation in degrees is read: give it upright boxes (x, y, width, height)"
            raise UsageError(f"{place} {annotation['id']} has {name} {str(value)[:40]}, but {rule}")
    return float(turns[0][2]) if turns else 0.0


def of_yolo(yolo: Yolo, line_format: str) -> dict[str, list[Box]]:
    meaning = Meaning.of(yolo.told, line_format, CONFIG)
    lines = {
        name: [line for line in enumerate(text.splitlines(), 1) if line[1].strip()] for name, text in yolo.texts.items()
    }
    return {
        name: [
            Box(*meaning.box(line, f"{label_place(name)} line {number}"), yolo.name_of(line), relative=True)
            for number, line in some
        ]
        for name, some in lines.items()
    }
