"""Data sets of Hugging Face's `datasets`: folders of `save_to_disk`, and Parquet files.

Rows of copies are their original's with another image and three more columns: `inherited_from` (the original's number
and split, empty for an original), `label_inherited` and `strength`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from nearfar.errors import ImageError, UsageError, first_line, printable
from nearfar.io.listing import Rejected
from nearfar.io.pictures import FORMATS

COLUMNS = {"inherited_from": "string", "label_inherited": "bool", "strength": "float64"}
CHECKED = {"label_probability": "float64", "label_agrees": "bool"}


def library() -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError("data sets are read by the library datasets: pip install 'nearfar[data]'") from None
    datasets.disable_progress_bars()
    return datasets


def open_data_set(path: Path) -> Any:
    """The rows of a saved folder or a Parquet file, images as they are stored."""
    datasets = library()
    try:
        if path.suffix == ".parquet":
            from pyarrow.parquet import read_table

            rows = datasets.Dataset(datasets.table.InMemoryTable(read_table(path)))
        else:
            rows = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever Arrow and the library raise
        raise UsageError(f"{path} cannot be read as a data set ({first_line(error)}): save it anew") from None
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def image_columns(rows: Any) -> list[str]:
    return [name for name, feature in rows.features.items() if isinstance(feature, library().Image)]


def image_column(rows: Any, path: Path) -> str:
    images = image_columns(rows)
    if len(images) != 1 and "image" not in images:
        raise UsageError(f"{path} must have one column of images, or one called image, got {images or 'none'}")
    return "image" if "image" in images else str(images[0])


def unpack_data_set(path: Path, folder: Path, column: str | None = None) -> list[Rejected]:
    """The images of a data set as files 00000000.png, ..., and `metadata.jsonl` with their labels.

    Returns the rows that have no image. Raises UsageError where none has.
    """
    rows = open_data_set(path)
    image, label = image_column(rows, path), column or "label"
    named, none = getattr(rows.features.get(label), "int2str", str), (None, -1)  # -1: a ClassLabel's unknown
    if column and column not in rows.features:
        raise UsageError(f"{path} has no column {column}: it has {', '.join(rows.features)[:200]}")
    lines, failed = [], []
    for number, row in enumerate(rows):
        given = row.get(label)
        try:
            for other in image_columns(rows):  # packing reads them all
                stored(row[other], path, number, needed=other == image)
            content, text = stored(row[image], path, number), {} if given in none else {label: named(given)}
        except (ImageError, ValueError) as error:
            failed.append(Rejected(f"{number:08}", str(error)))
            continue
        name = f"{number:08}{suffix_of(content)}"
        (folder / name).write_bytes(content)
        lines.append({"file_name": name} | text)
    if not lines:
        raise UsageError(f"{path} has no row that can be used: {failed[0].reason if failed else 'it is empty'}")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return failed


def stored(value: Mapping[str, Any] | None, path: Path, number: int, needed: bool = True) -> bytes:
    """The bytes of an image's file: in the data set, or where it points to."""
    if value and value.get("bytes"):
        return bytes(value["bytes"])
    if value and value.get("path") and (file := own_file(value["path"], path, number)).is_file():
        return file.read_bytes()
    if not needed and not value:
        return b""
    raise ImageError(f"{path} has no image in row {number}: remove the row, or save the data set with its images")


def own_file(name: str, path: Path, number: int) -> Path:
    """The file that a row names, which must lie in the data set's own folder, links followed."""
    folder = (path if path.is_dir() else path.parent).resolve()
    try:
        file = (folder / name).resolve()
    except (OSError, ValueError, RuntimeError):
        file = folder.parent
    if not file.is_relative_to(folder):
        text = f"{path} names {printable(name)} in row {number}, which is not in {folder}"
        raise ImageError(f"{text}: save the data set with its images")
    return file


def suffix_of(content: bytes) -> str:
    """By what the file holds; `.png` where nothing is known, so that it is read, refused and listed."""
    forms = (form for form in FORMATS.values() if re.match(form.signature, content, re.DOTALL))
    return next((form.suffixes[0] for form in forms), ".png")


def pack_data_set(path: Path, made: Path, rows: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Write the rows of the images in `made`, in the kind and with the features of the data set at `path`."""
    datasets = library()
    before = open_data_set(path)
    image = image_column(before, path)
    extra = COLUMNS | (CHECKED if any("label_agrees" in row for row in rows) else {})
    features = datasets.Features({**before.features, **{name: datasets.Value(kind) for name, kind in extra.items()}})
    stored_images = [name for name, feature in before.features.items() if isinstance(feature, datasets.Image)]
    features |= dict.fromkeys(stored_images, datasets.Image())

    def copies() -> Iterator[dict[str, Any]]:
        for row in rows:
            number = int(Path(row["inherited_from"] or row["file_name"]).stem)
            content = {"bytes": (made / row["file_name"]).read_bytes(), "path": row["file_name"]}
            row_before = before[number]
            others = {name: stored(row_before[name], path, number, False) for name in stored_images}
            kept = {name: {"bytes": held, "path": None} if held else None for name, held in others.items()}
            yield {**row_before, **kept, image: content, **{name: row.get(name) for name in extra}}

    cache, tag = str(target.with_name("cache")), sha256(json.dumps(rows).encode()).hexdigest()[:16]
    try:
        done = datasets.Dataset.from_generator(copies, features=features, cache_dir=cache, fingerprint=tag)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, OSError):  # the library's own error hides that a file is gone or the disk full
            raise error.__cause__ from None
        raise
    if target.suffix == ".parquet":
        done.to_parquet(str(target))
    else:
        done.save_to_disk(str(target))
