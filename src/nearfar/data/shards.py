"""WebDataset shards: tar files whose members belong together by key, the name up to its first dot.

A record is an image (`key.jpg`) and fields beside it (`key.cls`, `key.json`, `key.seg.png`). A copy has the key
`key~1`, all fields of its original, and one more, `key~1.inherited.json`, that says whose they are.
"""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from nearfar.errors import UsageError, first_line
from nearfar.io.listing import storable
from nearfar.io.pictures import SUFFIXES

MARK = "inherited.json"

Record = dict[str, bytes]
"""Field, such as `jpg` or `cls` -> content."""


def unpack_shard(shard: Path, folder: Path) -> None:
    """The images of a shard as files, and `metadata.jsonl` with their labels, from `cls` or `label` of `json`."""
    rows, seen = [], set[str]()
    for key, record in records(shard):
        name = f"{key}.{image_field(key, record)}"
        if not storable(name) or name.startswith("/") or ".." in name.split("/"):
            raise UsageError(f"{shard.name} has the key {key[:60]!r}, which is no safe file name: rename it")
        if key in seen:
            raise UsageError(f"{shard.name} has the key {key} twice: keys must differ")
        seen.add(key)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(record[posixpath.basename(name).partition(".")[2]])
        rows.append({"file_name": name} | label_of(key, record))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def pack_shard(shard: Path, made: Path, rows: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Write the shard of the images in `made`, in the order of their originals. The same images give the same bytes."""
    of_key: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        of_key.setdefault(key_of(row["inherited_from"] or row["file_name"])[0], []).append(row)
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for key, record in records(shard):
            for row in of_key.get(key, []):
                new_key, field = key_of(row["file_name"])
                marks = {name: value for name, value in row.items() if name not in ("file_name", "label")}
                more = {MARK: json.dumps(marks).encode()} if row["label_inherited"] else {}
                for name, content in (record | {field: (made / row["file_name"]).read_bytes()} | more).items():
                    add(tar, f"{new_key}.{name}", content)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def records(shard: Path) -> Iterator[tuple[str, Record]]:
    """The records of a shard one after the other, as WebDataset groups them."""
    with reading(shard), tarfile.open(shard) as tar:
        files = (member for member in tar if member.isfile() and not posixpath.basename(member.name).startswith("."))
        for key, members in groupby(files, lambda member: key_of(member.name)[0]):
            yield key, {key_of(each.name)[1]: content_of(tar, each) for each in members}


def content_of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


@contextmanager
def reading(shard: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UsageError(f"{shard} is no whole tar file ({first_line(error)}): restore it or move it away") from None


def key_of(name: str) -> tuple[str, str]:
    """`a/b.seg.png` -> (`a/b`, `seg.png`)."""
    folder, base = posixpath.split(name)
    stem, _, field = base.partition(".")
    return posixpath.join(folder, stem), field


def image_field(key: str, record: Record) -> str:
    """The field that is the image: the only one named after a format and nothing else."""
    found = [field for field in record if f".{field.lower()}" in SUFFIXES]
    if len(found) != 1:
        raise UsageError(f"record {key} must have one image such as {key}.jpg, got {', '.join(record) or 'nothing'}")
    return found[0]


def label_of(key: str, record: Record) -> dict[str, str]:
    try:
        if "cls" in record:
            return {"label": record["cls"].decode().strip()}
        content = json.loads(record.get("json", b"{}"))
    except ValueError as error:
        raise UsageError(f"record {key} has a label that cannot be read ({first_line(error)}): mend it") from None
    return {"label": str(content["label"])} if isinstance(content, dict) and "label" in content else {}
