"""YOLO: a tree `labels/` beside `images/`, for each image a file of lines "class x y width height" or of polygons."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from os.path import exists
from pathlib import Path
from typing import Any

from nearfar.data.labels import Labels, Made, read_text
from nearfar.errors import UsageError
from nearfar.structured import yaml_object

CONFIG = "data.yaml"
NUMBER = r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?"


@dataclass(frozen=True)
class Yolo:
    """config: `data.yaml` for OUT, where there is one. classes: their names. texts: image -> content of its labels.

    told: what `data.yaml` says that lines mean, as `Meaning.of` reads it.
    """

    config: dict[str, bytes]
    classes: dict[int, str]
    texts: dict[str, str]
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def places(self) -> set[str]:
        """The files that were read."""
        return {label_place(name) for name in self.texts} | set(self.config)

    @property
    def labels(self) -> Labels:
        lines = {name: [line for line in text.splitlines() if line.strip()] for name, text in self.texts.items()}
        return {name: tuple(dict.fromkeys(self.name_of(line) for line in found)) for name, found in lines.items()}

    def name_of(self, line: str) -> str:
        number = int(float(line.split()[0]))
        return self.classes.get(number, str(number))

    def files(self, made: Sequence[Made]) -> dict[str, bytes]:
        inheriting = [each for each in made if each.origin in self.texts]
        return self.config | {label_place(each.name): self.texts[each.origin].encode() for each in inheriting}


def label_place(name: str) -> str:
    """`train/images/a.jpg` -> `train/labels/a.txt`, by the last folder called images."""
    head, _, tail = f"/{name}".rpartition("/images/")
    return f"{head}/labels/{posixpath.splitext(tail)[0]}.txt".lstrip("/")


def read_yolo(source: Path, names: Collection[str]) -> Iterator[Yolo]:
    """The label files of these images, checked; nothing where there are none."""
    places = {name: source / label_place(name) for name in names if "/images/" in f"/{name}"}
    texts = {name: read_text(path) for name, path in places.items() if path.is_file()}
    for name, text in texts.items():
        check_lines(text, label_place(name))
    place, config = config_of(source)
    if texts or config:
        classes = class_names(config)
        yield Yolo({place: inward(config, source, place)} if config else {}, classes, texts, told_by(config))


def config_of(source: Path) -> tuple[str, str]:
    """Name and content of the file that names the classes: `data.yaml`, or one such as `dataset.yaml`."""
    found = [path for path in sorted(source.glob("*.y*ml")) if path.suffix in (".yaml", ".yml")]
    texts = {path.name: text for path in found if re.search(r"(?m)^names\s*:", text := read_text(path))}
    if CONFIG in texts or (not texts and (source / CONFIG).is_file()):
        return CONFIG, read_text(source / CONFIG)
    if len(texts) > 1:
        raise UsageError(f"{' and '.join(list(texts)[:2])} both name classes: keep one of them")
    return next(iter(texts.items()), (CONFIG, ""))


def inward(config: str, source: Path, place: str) -> bytes:
    """The file for OUT: folders as they lie below it, so that nothing points back at IN."""
    import yaml

    content = yaml_object(config, place)
    base = str(content.pop("path", "") or "")
    for split in [split for split in ("train", "val", "valid", "test", "minival") if content.get(split)]:
        given = content[split]
        inside = [below(source, base, str(one), place) for one in (given if isinstance(given, list) else [given])]
        content[split] = inside if isinstance(given, list) else inside[0]
    kept = re.sub(r"(?m)^path:.*\n?", "", config)
    with suppress(UsageError):  # where `path` has several lines, the rest of it is left
        if yaml_object(kept, place) == content:
            return kept.encode()
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True)).encode()


def below(source: Path, base: str, given: str, place: str) -> str:
    """Where a folder of IN lies below it, by the longest end of its path that is there."""
    for path in (posixpath.join(base, given), given):
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        if found := next((end for end in ends if exists(source / end)), None):  # noqa: PTH110
            return found
    whole = (source / base / given).resolve()
    if whole == source.resolve():
        return "."
    if posixpath.isabs(given) or ":" in given or ".." in given.split("/"):
        rule = "copies cannot stand in for it; name a folder below, or remove the line"
        raise UsageError(f"{place} names {given}, which is not in {source}: {rule}")
    return given


def is_yolo(line: str) -> bool:
    """Whether a line is a class and at least 4 numbers."""
    return re.fullmatch(rf"\s*\d{{1,9}}(\.0*)?(\s+{NUMBER}){{4,}}\s*", line, re.ASCII) is not None


def check_lines(text: str, place: str) -> None:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not re.fullmatch(rf"\s*\d{{1,9}}(\.0*)?(\s+{NUMBER}){{4,}}\s*", line, re.ASCII):
            raise UsageError(f"{place} line {number} must be a class and at least 4 numbers, got {line[:40]!r}")
        values = [float(value) for value in line.split()[1:]]
        if len(values) in (4, 5) and not (all(0 <= value <= 1 for value in values[:2]) and min(values[2:4]) > 0):
            rule = "must have its center in [0, 1] and a width and height above 0, as shares of the image"
            raise UsageError(f"{place} line {number} {rule}, got {line[:40]!r}: mend or remove it")


def told_by(config: str) -> dict[str, Any]:
    """What a readable `data.yaml` says that the numbers of a line mean."""
    content = yaml_object(config, CONFIG)
    return {name: content[name] for name in ("kpt_shape", "task") if content.get(name) is not None}


def class_names(config: str) -> dict[int, str]:
    """What `data.yaml` calls the classes."""
    content = yaml_object(config, CONFIG)
    names = content.get("names") or {}
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(numbered, dict) or not all(str(number).isdecimal() for number in numbered):
        raise UsageError(f"{CONFIG} must name classes as a list or by number, got names {str(names)[:40]!r}: mend it")
    classes = {int(number): str(name) for number, name in numbered.items()}
    if lists := [content[split] for split in ("train", "val", "test") if str(content.get(split)).endswith(".txt")]:
        raise UsageError(f"{CONFIG} names the list {lists[0]}, which is not carried over: name folders of images")
    return classes
