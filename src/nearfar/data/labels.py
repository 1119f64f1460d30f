"""What all layouts of annotations share: labels by image, the copies that inherit them, files read with care.

Names of images are those below the folder, with `/`.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import isfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol, runtime_checkable
from unicodedata import normalize
from urllib.parse import unquote, urlsplit

from nearfar import structured
from nearfar.errors import UsageError

Labels = dict[str, tuple[str, ...]]
"""Name of an image -> its labels; no entry or an empty one where it has none."""


@dataclass(frozen=True)
class Made:
    """An image of OUT, the original that its labels come from, and what else is noted (strength, label_agrees)."""

    name: str
    origin: str
    marks: dict[str, Any] = field(default_factory=dict)

    @property
    def inherited(self) -> bool:
        """Whether it is a copy, not the original itself."""
        return self.name != self.origin


@runtime_checkable
class Layout(Protocol):
    """Annotations as they were found in IN, in one of the ways of writing them."""

    @property
    def labels(self) -> Labels: ...

    def files(self, made: Sequence[Made]) -> Mapping[str, bytes | Path]:
        """Annotation files for these images: name below OUT -> content, or the file that has it."""


def read_text(path: Path) -> str:
    return structured.read_text(path, structured.MOST_ANNOTATIONS)


def parsed_json(text: str, place: str) -> dict[str, Any]:
    return structured.json_object(text, place)


def csv_file(rows: Sequence[dict[str, Any]], first: Sequence[str]) -> bytes:
    """Rows of any columns, these first; truth values as `true` and `false`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys([*first, *(column for row in rows for column in row)])))
    writer.writeheader()
    for row in rows:
        writer.writerow({name: str(value).lower() if isinstance(value, bool) else value for name, value in row.items()})
    return text.getvalue().encode()


def relative_name(file_name: str, source: Path, names: Collection[str], place: str) -> str:
    """The name that an annotation gives an image, relative: of an absolute path what lies below `source`.

    UsageError for a path elsewhere: an image that ends alike may be another one.
    """
    path = unquote(urlsplit(file_name).path) if file_name.startswith("file:") else file_name
    path = path if path in names else path.replace("\\", "/")
    if not (path.startswith("/") or PureWindowsPath(path).is_absolute()):
        return path
    whole = Path(os.path.normpath(path))
    for each in (whole, whole.parent.resolve() / whole.name):
        for folder in (Path(os.path.normpath(source.absolute())), source.resolve()):
            if each.is_relative_to(folder):
                return each.relative_to(folder).as_posix()
    raise UsageError(f"{place} names {file_name}, which is not in {source}: name images relative to that folder")


def check_there(source: Path, name: str, names: Collection[str], place: str) -> None:
    """Refuse an annotation of an image that is not below `source`, or whose name is too long to be anywhere."""
    if name not in names and (name.startswith("..") or not isfile(source / name)):  # noqa: PTH113
        alike = [one for one in names if normalize("NFC", one) == normalize("NFC", name)]
        if alike:
            raise UsageError(
                f"{place} names {name} in one Unicode spelling, but the file's name is in another (composed and "
                "decomposed letters, NFC and NFD): rename the file, or write its name anew"
            )
        raise UsageError(f"{place} names {name}, which is not in {source}: bring the image or remove the entry")


def top_folders(names: Sequence[str]) -> list[str] | None:
    """The top folder of each image. Nothing if some lie in none, or all in one."""
    parts = [PurePosixPath(name).parts for name in names]
    found = [each[0] for each in parts if len(each) > 1]
    return found if len(found) == len(parts) and len(set(found)) > 1 else None
