"""Labels and boxes beside images: read from IN, written for the copies in OUT, marked as inherited.

    layout           in IN                                        labels             the mark in OUT
    class folders    cat/0001.png                                 the folder's name  inherited.csv
    metadata         metadata.jsonl or metadata.csv, `file_name`  column `label`     inherited_from, label_inherited
    COCO             *.json with images, annotations, categories  categories         image field inherited_from
    YOLO             images/x.jpg, labels/x.txt, data.yaml        classes            inherited.csv

A copy looks like its original, but nobody has looked at it: its labels are inherited, and every layout says so. OUT
always has `inherited.csv`, a line for each copy.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nearfar.data.coco import Coco, read_coco, shape_of
from nearfar.data.companions import Companions, hidden, label_pictures, read_companions, renamed
from nearfar.data.labels import Labels, Layout, Made, check_there, csv_file, parsed_json, read_text, relative_name
from nearfar.data.yolo import read_yolo
from nearfar.errors import RunError, UsageError
from nearfar.io.listing import original_name
from nearfar.io.manifest import check_no_links, has_content, write_whole, writing
from nearfar.structured import csv_rows

SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "images")
LIST = "inherited.csv"


@dataclass(frozen=True)
class Annotations:
    """Everything that is known of a folder's images. pictures: those that are labels of others."""

    layouts: Sequence[Layout]
    pictures: Collection[str] = ()

    @property
    def labels(self) -> Labels:
        """Those of the first layout that has any: metadata, COCO, YOLO, class folders."""
        return next((found for layout in self.layouts if any((found := layout.labels).values())), {})

    @cached_property
    def companions(self) -> Mapping[str, Sequence[str]]:
        """Image -> files that are carried over beside its copies, masks among them."""
        carried = (each.of for each in self.layouts if isinstance(each, Companions))
        return {name: places for of in carried for name, places in of.items()}

    @cached_property
    def shapes(self) -> dict[str, tuple[float, float] | None]:
        """Height and width of images as COCO files tell them."""
        files = [layout for layout in self.layouts if isinstance(layout, Coco)]
        return {name: shape_of(image) for file in files for name, image in file.images.items()}

    def write(self, out: Path, made: Sequence[Made]) -> None:
        """Write all annotation files of OUT, each whole; remove label files of images that are gone."""
        check_no_links(out, error=RunError)
        files: dict[str, bytes | Path] = {}
        for layout in self.layouts:
            files |= layout.files(made)
        files[LIST] = inherited_list(made)
        sums: dict[str, str] = {}
        for name, content in files.items():
            with writing(out / name):
                sums[name] = write_whole(out / name, content if isinstance(content, bytes) else content.read_bytes())
        if gone := [name for name, tag in sums.items() if not has_content(out / name, tag)]:
            raise RunError(f"{out / gone[0]} was removed or changed just after it was written: go on with --resume")
        for path in out.rglob("[Ll]abels/**/*.txt"):
            name = path.relative_to(out).as_posix()
            if name not in files and original_name(name) != name:
                path.unlink()


def read_annotations(source: Path, names: Collection[str], column: str | None = None) -> Annotations:
    """Find and check every annotation file below `source`.

    names: the images. column: of metadata, the one with the label ("label" unless given). Raises UsageError for a file
    that is malformed, contradicts itself or names an image that is not there.
    """
    metadata = list(read_metadata(source, names, column or "label"))
    if column and not any(column in row for each in metadata for row in each.rows.values()):
        raise UsageError(f"no metadata in {source} has the column {column}: give --label-column one that it has")
    cocos, yolos = list(read_coco(source, names)), list(read_yolo(source, names))
    pictures = label_pictures(source, names) | {place: name for each in metadata for place, name in each.linked.items()}
    names = [name for name in names if name not in pictures]
    read = (
        {each.path for each in metadata}
        | {each.path for each in cocos}
        | {place for yolo in yolos for place in yolo.places}
        | {LIST}
    )
    classes = {number: name for yolo in yolos for number, name in yolo.classes.items()}
    more = read_companions(source, names, read | set(pictures), pictures, classes)
    boxes: list[Layout] = [*cocos, *yolos, *([more] if more.of or more.lists or more.once else [])]
    told = any(any(layout.labels.values()) for layout in boxes)
    return Annotations([*metadata, *boxes] if told else [*metadata, *boxes, ClassFolders(names)], frozenset(pictures))


def inherited_list(made: Sequence[Made]) -> bytes:
    """`inherited.csv`: the name of every copy, its original's, and what was noted of it."""
    copies = [{"file_name": each.name, "inherited_from": each.origin, **each.marks} for each in made if each.inherited]
    return csv_file(copies, ["file_name", "inherited_from"])


@dataclass(frozen=True)
class ClassFolders:
    """The folder of an image is its label, unless it is a split such as `train`."""

    names: Collection[str]

    @property
    def labels(self) -> Labels:
        parents = {name: posixpath.basename(posixpath.dirname(name)) for name in self.names}
        named = {name: parent for name, parent in parents.items() if parent and not hidden(name)}
        return {name: (parent,) for name, parent in named.items() if parent.lower() not in SPLITS}

    def files(self, made: Sequence[Made]) -> dict[str, bytes]:
        """The folders say it all."""
        return {}


@dataclass(frozen=True)
class Metadata:
    """A `metadata.jsonl` or `metadata.csv` as Hugging Face's imagefolder reads it.

    path: its name below IN. rows: name of an image -> its row. column: the one with the label. key: the one that names
    the image. links: others that name files.
    """

    path: str
    rows: dict[str, dict[str, Any]]
    column: str
    key: str = "file_name"
    links: Sequence[str] = ()

    @property
    def linked(self) -> dict[str, str]:
        """Files that rows name beside their image -> the image."""
        return {place: name for name, row in self.rows.items() for place in self.links_of(row).values()}

    def links_of(self, row: dict[str, Any]) -> dict[str, str]:
        """Column -> the file that it names, below IN."""
        given = {link: row.get(link) for link in self.links}
        return {link: self.place_of(value) for link, value in given.items() if value and isinstance(value, str)}

    def place_of(self, value: str) -> str:
        return posixpath.normpath(posixpath.join(posixpath.dirname(self.path), value))

    @property
    def labels(self) -> Labels:
        given = {name: row.get(self.column) for name, row in self.rows.items()}
        return {name: (str(label),) for name, label in given.items() if label not in (None, "")}

    def files(self, made: Sequence[Made]) -> dict[str, bytes]:
        rows = [self.row_of(each) for each in made if each.origin in self.rows]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return {self.path: csv_file(rows, [self.key]) if self.path.endswith(".csv") else lines.encode()}

    def row_of(self, made: Made) -> dict[str, Any]:
        row, folder = self.rows[made.origin], posixpath.dirname(self.path) or "."
        links = self.links_of(row).items()
        own = {link: posixpath.relpath(renamed(place, made), folder) for link, place in links}
        name = posixpath.relpath(made.name, folder)
        if not posixpath.splitext(str(row[self.key]))[1]:
            name = posixpath.splitext(name)[0]
        inherited = {"inherited_from": made.origin if made.inherited else "", "label_inherited": made.inherited}
        return {**row, **own, self.key: name, **inherited, **made.marks}


def read_metadata(source: Path, names: Collection[str], column: str) -> Iterator[Metadata]:
    for path in sorted(source.rglob("metadata.*")):
        place = path.relative_to(source).as_posix()
        if path.suffix == ".parquet":
            raise UsageError(f"{place} is not read: save it as metadata.jsonl")
        if path.suffix in (".jsonl", ".csv"):
            parsed = list(parsed_rows(path, place))
            key, links = keys_of(parsed)
            strict = Metadata(place, rows_by_image(source, place, names, parsed, key), column, key, links)
            for link in strict.linked:
                check_there(source, link, names, place)
            yield strict
    for path in sorted(source.rglob("*.csv")):
        place = path.relative_to(source).as_posix()
        if path.name != "metadata.csv" and place != LIST and (found := table_of(source, place, names, column)):
            yield found


def keys_of(rows: Sequence[dict[str, Any]]) -> tuple[str, list[str]]:
    """The column that names the image, and others that name files, as imagefolder calls them."""
    columns = [column for column in (rows[0] if rows else {}) if column and column.endswith("file_name")]
    key = next((name for name in ("file_name", "image_file_name") if name in columns), "file_name")
    return key, [column for column in columns if column != key]


def table_of(source: Path, place: str, names: Collection[str], column: str) -> Metadata | None:
    """A table of images, such as `train.csv`: one column names them, with their suffix or without."""
    by_name = {alias: name for name in names for alias in (name, posixpath.splitext(name)[0])}
    for name in names:
        for alias in (posixpath.basename(name), posixpath.splitext(posixpath.basename(name))[0]):
            by_name[alias] = by_name.get(alias, name)
    try:
        rows = list(parsed_rows(source / place, place))
    except UsageError:
        return None
    keys = [key for key in (rows[0] if rows else {}) if all(str(row[key]).lstrip("./") in by_name for row in rows)]
    keys.sort(key=lambda key: not posixpath.splitext(str(rows[0][key]))[1])  # numbers may be labels, too
    images = [by_name[str(row[keys[0]]).lstrip("./")] for row in rows] if keys else []
    if not keys or len(set(images)) < len(images):
        return None  # whoever reads what is left refuses it where it speaks of images
    return Metadata(place, dict(zip(images, rows, strict=True)), column, keys[0])


def rows_by_image(
    source: Path, place: str, names: Collection[str], parsed: Sequence[dict[str, Any]], key: str
) -> dict[str, dict[str, Any]]:
    """The rows of a metadata file by the name of their image below `source`."""
    rows: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(parsed, 1):
        if not isinstance(row.get(key), str):
            raise UsageError(f"{place} row {number} has no file_name: every row must name its image")
        given = relative_name(row[key], source, names, f"{place} row {number}")
        folder = posixpath.dirname(place) if given in (row[key], row[key].replace("\\", "/")) else ""
        name = posixpath.normpath(posixpath.join(folder, given))
        check_there(source, name, names, f"{place} row {number}")
        if name in rows:
            raise UsageError(f"{place} row {number} names {row[key]} again: give each image one row")
        rows[name] = row
    return rows


def parsed_rows(path: Path, place: str) -> Iterator[dict[str, Any]]:
    text = read_text(path)
    if path.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        yield from (parsed_json(line, f"{place} line {number}") for number, line in lines)
        return
    yield from csv_rows(text, place)
