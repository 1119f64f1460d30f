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

import csv
import io
import json
import posixpath
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearfar.data.coco import Coco, read_coco, shape_of
from nearfar.data.labels import Labels, Layout, Made, check_there, csv_file, parsed_json, read_text, relative_name
from nearfar.data.yolo import read_yolo
from nearfar.errors import ModelWarning, UsageError
from nearfar.io.listing import original_name
from nearfar.io.manifest import write_whole, writing

SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "images")
LIST = "inherited.csv"


@dataclass(frozen=True)
class Annotations:
    """Everything that is known of a folder's images."""

    layouts: Sequence[Layout]

    @property
    def labels(self) -> Labels:
        """Those of the first layout that has any: metadata, COCO, YOLO, class folders."""
        return next((found for layout in self.layouts if any((found := layout.labels).values())), {})

    @property
    def shapes(self) -> dict[str, tuple[float, float] | None]:
        """Height and width of images as COCO files tell them."""
        files = [layout for layout in self.layouts if isinstance(layout, Coco)]
        return {name: shape_of(image) for file in files for name, image in file.images.items()}

    def write(self, out: Path, made: Sequence[Made]) -> None:
        """Write all annotation files of OUT, each whole; remove label files of images that are gone."""
        files = {LIST: inherited_list(made)}
        for layout in self.layouts:
            files |= layout.files(made)
        for name, content in files.items():
            with writing(out / name):
                write_whole(out / name, content)
        for path in out.rglob("labels/**/*.txt"):
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
    boxes: list[Layout] = [*read_coco(source, names), *read_yolo(source, names)]
    if others := [path.name for path in source.rglob("*.xml")]:
        text = f"{len(others)} .xml files such as {others[0]} are not carried over: convert annotations to COCO or YOLO"
        warnings.warn(text, ModelWarning, stacklevel=2)
    return Annotations([*metadata, *boxes] if boxes else [*metadata, ClassFolders(names)])


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
        return {name: (parent,) for name, parent in parents.items() if parent and parent.lower() not in SPLITS}

    def files(self, made: Sequence[Made]) -> dict[str, bytes]:
        """The folders say it all."""
        return {}


@dataclass(frozen=True)
class Metadata:
    """A `metadata.jsonl` or `metadata.csv` as Hugging Face's imagefolder reads it.

    path: its name below IN. rows: name of an image -> its row. column: the one with the label.
    """

    path: str
    rows: dict[str, dict[str, Any]]
    column: str

    @property
    def labels(self) -> Labels:
        given = {name: row.get(self.column) for name, row in self.rows.items()}
        return {name: (str(label),) for name, label in given.items() if label not in (None, "")}

    def files(self, made: Sequence[Made]) -> dict[str, bytes]:
        rows = [self.row_of(each) for each in made if each.origin in self.rows]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return {self.path: csv_file(rows, ["file_name"]) if self.path.endswith(".csv") else lines.encode()}

    def row_of(self, made: Made) -> dict[str, Any]:
        name = posixpath.relpath(made.name, posixpath.dirname(self.path) or ".")
        inherited = {"inherited_from": made.origin if made.inherited else "", "label_inherited": made.inherited}
        return {**self.rows[made.origin], "file_name": name, **inherited, **made.marks}


def read_metadata(source: Path, names: Collection[str], column: str) -> Iterator[Metadata]:
    for path in sorted(source.rglob("metadata.*")):
        place = path.relative_to(source).as_posix()
        if path.suffix == ".parquet":
            raise UsageError(f"{place} is not read: save it as metadata.jsonl")
        if path.suffix in (".jsonl", ".csv"):
            yield Metadata(place, rows_by_image(source, place, names), column)


def rows_by_image(source: Path, place: str, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """The rows of a metadata file by the name of their image below `source`."""
    rows: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(parsed_rows(source / place, place), 1):
        if not isinstance(row.get("file_name"), str):
            raise UsageError(f"{place} row {number} has no file_name: every row must name its image")
        given = relative_name(row["file_name"], source, names, f"{place} row {number}")
        folder = posixpath.dirname(place) if given in (row["file_name"], row["file_name"].replace("\\", "/")) else ""
        name = posixpath.normpath(posixpath.join(folder, given))
        check_there(source, name, names, f"{place} row {number}")
        if name in rows:
            raise UsageError(f"{place} row {number} names {row['file_name']} again: give each image one row")
        rows[name] = row
    return rows


def parsed_rows(path: Path, place: str) -> Iterator[dict[str, Any]]:
    text = read_text(path)
    if path.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        yield from (parsed_json(line, f"{place} line {number}") for number, line in lines)
        return
    for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 1):
        if None in row or None in row.values():
            raise UsageError(f"{place} row {number} has another number of fields than the header: mend it")
        yield row
