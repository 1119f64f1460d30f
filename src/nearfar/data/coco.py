"""COCO files: images, annotations and categories in one JSON file."""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nearfar.data.labels import Labels, Made, check_there, parsed_json, read_text, relative_name
from nearfar.errors import ImageError, UsageError

KINDS: dict[str, tuple[Any, str]] = {
    "file_name": (str, "text"),
    **dict.fromkeys(("image_id", "category_id"), (int, "a whole number")),
    **dict.fromkeys(("width", "height"), (int | float | None, "a number")),
}
"""What fields must be, where they are there."""

LARGEST = 1e9
"""Of the numbers of a box; NaN is not below it."""


@dataclass(frozen=True)
class Coco:
    """One COCO file: its name below IN, its content, and name of an image -> its entry."""

    path: str
    content: dict[str, Any]
    images: dict[str, dict[str, Any]]

    @cached_property
    def annotations(self) -> dict[int, list[dict[str, Any]]]:
        """Image id -> its annotations."""
        found: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self.images.values()}
        for each in self.content["annotations"]:
            found[each["image_id"]].append(each)
        return found

    @property
    def labels(self) -> Labels:
        names = {each["id"]: str(each["name"]) for each in self.content.get("categories", [])}
        return {
            name: tuple(dict.fromkeys(names[each["category_id"]] for each in self.annotations[image["id"]]))
            for name, image in self.images.items()
            if names
        }

    def files(self, made: Sequence[Made]) -> dict[str, bytes]:
        """Originals keep their ids; those of copies and of their annotations follow the largest there is."""
        images, annotations = [], []
        image_id = max(self.annotations, default=0)
        annotation_id = max((each["id"] for each in self.content["annotations"]), default=0)
        for each in (each for each in made if each.origin in self.images):
            image = self.images[each.origin]
            own = self.annotations[image["id"]]
            name = written_name(image["file_name"], each.name)
            if each.inherited:
                image_id += 1
                image = {
                    **image,
                    "id": image_id,
                    "inherited_from": written_name(image["file_name"], each.origin),
                    **each.marks,
                }
                own = [{**one, "id": annotation_id + n, "image_id": image_id} for n, one in enumerate(own, 1)]
                annotation_id += len(own)
            images.append({**image, "file_name": name})
            annotations += own
        content = {**self.content, "images": images, "annotations": annotations}
        return {self.path: json.dumps(content, ensure_ascii=False).encode()}


def written_name(file_name: str, name: str) -> str:
    """How an image of OUT is named in the way of IN's file; absolute paths would name IN's images, and are not kept."""
    plain = not file_name.startswith(("/", "file:")) and "\\" not in file_name and ":/" not in file_name
    return posixpath.join(posixpath.dirname(file_name), posixpath.basename(name)) if plain else name


def read_coco(source: Path, names: Collection[str]) -> Iterator[Coco]:
    """Every JSON file below `source` that has images and annotations, checked."""
    for path in sorted(source.rglob("*.json")):
        text = read_text(path)
        place = path.relative_to(source).as_posix()
        content = parsed_json(text, place) if text.lstrip().startswith("{") else {}
        if {"images", "annotations"} <= content.keys():
            yield coco_of(content, place, source, names)


def coco_of(content: dict[str, Any], place: str, source: Path, names: Collection[str]) -> Coco:
    """The content of one COCO file, checked."""
    check_entries(content, place)
    check_references(content, place)
    check_boxes(content, place)
    images = {place_of(image["file_name"], place, source, names): image for image in content["images"]}
    if len(images) < len(content["images"]):
        raise UsageError(f"{place} names an image twice: give each image one entry")
    return Coco(place, content, images)


def check_entries(content: dict[str, Any], place: str) -> None:
    """Every entry has its fields, and an id of its own."""
    needed = {"images": ("id", "file_name"), "annotations": ("id", "image_id"), "categories": ("id", "name")}
    for part, fields in needed.items():
        entries = content.get(part, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UsageError(f"{place}: {part} must be a list of objects")
        if any("segments_info" in entry for entry in entries):
            raise UsageError(f"{place} holds panoptic masks, which are not carried over: convert them to instances")
        if bad := next((entry for entry in entries if not entry.keys() >= set(fields)), None):
            raise UsageError(f"{place}: every entry of {part} needs {' and '.join(fields)}, got {str(bad)[:60]}")
        if not all(isinstance(entry.get("id"), int) for entry in entries):
            raise UsageError(f"{place}: ids of {part} must be whole numbers that differ")
        (number, times), *_ = Counter(entry["id"] for entry in entries).most_common(1) or [(0, 0)]
        if times > 1:
            raise UsageError(f"{place}: ids of {part} must be whole numbers that differ, got {number} {times} times")
        for name, (kind, text) in KINDS.items():
            if bad := next((entry for entry in entries if name in entry and not isinstance(entry[name], kind)), None):
                raise UsageError(f"{place}: {name} must be {text}, got {str(bad)[:80]}")


def check_references(content: dict[str, Any], place: str) -> None:
    """Annotations are of images and categories that are there."""
    for reference, part in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in content.get(part, [])}
        for each in content["annotations"] if part in content else []:
            if each.get(reference) not in known:
                wrong = f"annotation {each['id']} has {reference} {each.get(reference)}"
                raise UsageError(f"{place}: {wrong}, which is not among its {part}: mend or remove it")


def check_boxes(content: dict[str, Any], place: str) -> None:
    """Boxes, where there are any, are x, y, width, height. Flat ones pass: COCO's own files have some."""
    files = {image["id"]: image["file_name"] for image in content["images"]}
    for each in content["annotations"]:
        if not (box := each.get("bbox")):
            continue
        numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(one, int | float) for one in box)
        if not numbers or not all(abs(one) <= LARGEST for one in box) or min(box[2:]) < 0:
            rule = "a bbox of 4 numbers: x, y, width, height, the last two not negative"
            where = f"{place}: annotation {each['id']} of {files[each['image_id']]}"
            raise UsageError(f"{where} needs {rule}, got {str(box)[:60]}: mend or remove it")


def shape_of(image: dict[str, Any]) -> tuple[float, float] | None:
    """Height and width that an image's entry tells, if it does."""
    height, width = (image.get(name) or 0 for name in ("height", "width"))
    return (float(height), float(width)) if height > 0 and width > 0 else None


def check_shape(told: tuple[float, float] | None, height: int, width: int) -> None:
    """Refuse annotations of a resized copy, or of a photograph that was not turned upright."""
    if told is not None and told != (height, width):
        text = f"its annotations are of {told[1]:g} x {told[0]:g} pixels, but upright it has {width} x {height}"
        raise ImageError(f"{text}: annotate it as it is")


def place_of(file_name: str, place: str, source: Path, names: Collection[str]) -> str:
    """The image that a COCO file means: beside it, below IN, or the only one that ends so.

    Of several, the one in a folder that the file is named after: `train2017` for `instances_train2017.json`.
    """
    given = relative_name(file_name, source, names, place)
    absolute = given not in (file_name, file_name.replace("\\", "/"))
    folders = ("", "") if absolute else (posixpath.dirname(place), "")
    near = [posixpath.normpath(posixpath.join(folder, given)) for folder in folders]
    if found := next((name for name in near if name in names), None):
        return found
    ends = [name for name in names if name.endswith(f"/{given}")] if not absolute else []
    words = re.split(r"[^0-9A-Za-z]", posixpath.basename(place))
    meant = ends if len(ends) == 1 else [name for name in ends if name.split("/")[0] in words]
    if ends and len(meant) != 1:
        raise UsageError(f"{place} names {file_name}, which may be {ends[0]} or {ends[1]}: name its folder too")
    if not meant:
        check_there(source, near[1], names, place)
    return meant[0] if meant else near[1]
