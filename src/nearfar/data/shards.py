"""WebDataset shards: tar files whose members belong together by key, the name up to its first dot.

A record is an image (`key.jpg`) and fields beside it (`key.cls`, `key.json`, `key.seg.png`). A copy has the key
`key~1`, all fields of its original, and one more, `key~1.inherited.json`, that says whose they are.
"""

from __future__ import annotations

import io
import json
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from nearfar.errors import ImageError, UsageError, first_line, printable
from nearfar.io.listing import Rejected, storable
from nearfar.io.manifest import OF_ITS_NAME, unwritable
from nearfar.io.pictures import SUFFIXES
from nearfar.structured import parse_json

MARK = "inherited.json"
LARGEST = 1 << 28
"""Bytes of a member: it is held in memory."""
LONGEST = 60

Record = dict[str, bytes]
"""Field, such as `jpg` or `cls` -> content."""


def unpack_shard(shard: Path, folder: Path) -> list[Rejected]:
    """The images of a shard as files, and `metadata.jsonl` with their labels, from `cls` or `label` of `json`.

    Returns the records that cannot be used. Raises UsageError where none can.
    """
    rows, failed, seen = [], list[Rejected](), set[str]()
    for key, record in records(shard):
        check_order(shard, key, record, seen)
        seen.add(key)
        try:
            rows.append(unpack_record(key, record, folder))
        except (ImageError, OSError) as error:
            reason = unwritable(error) if isinstance(error, OSError) and error.errno in OF_ITS_NAME else str(error)
            failed.append(Rejected(printable(key)[:LONGEST], reason))
    if not rows:
        why = failed[0].reason if failed else "it has no members that are files"
        raise UsageError(f"{shard.name} has no record that can be used: {why}")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return failed


def unpack_record(key: str, record: Record, folder: Path) -> dict[str, str]:
    """Its image as a file, its row of metadata. ImageError or OSError where that cannot be."""
    name = f"{key}.{image_field(key, record)}"
    if not storable(name) or name.startswith("/") or ".." in name.split("/"):
        raise ImageError(f"has the key {key[:60]!r}, which is no safe file name: rename it")
    row = {"file_name": name} | label_of(key, record)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(record[posixpath.basename(name).partition(".")[2]])
    return row


def check_order(shard: Path, key: str, record: Record, seen: Collection[str]) -> None:
    """WebDataset reads members one after the other, and a key ends at the first dot of a name."""
    if key in seen:
        raise UsageError(
            f"{shard.name} has members of record {printable(key)} in several places, so no reader finds what belongs "
            "to it: sort the tar (tar --sort=name), or rename records that share a name"
        )
    dotted = [field for field in record if is_image(field.rpartition(".")[2])]
    if len(dotted) > 1 and not any(is_image(field) for field in record):
        name = printable(f"{posixpath.basename(key)}.{dotted[0]}")
        better = name.replace(".", "_", name.count(".") - 1)
        raise UsageError(
            f"{shard.name} has names with several dots such as {name}: a key ends at the first one, so {len(dotted)} "
            f"images look like one record; rename them like {better}"
        )


def pack_shard(shard: Path, made: Path, rows: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Write the shard of the images in `made`, in the order of their originals. The same images give the same bytes."""
    of_key: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        of_key.setdefault(key_of(row["inherited_from"] or row["file_name"])[0], []).append(row)
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for key, record in records(shard):
            for row in of_key.pop(key, []):
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
    if member.size > LARGEST or member.issparse():
        raise tarfile.ReadError(f"a member that is sparse or has more than {LARGEST:,} bytes")
    file = tar.extractfile(member)
    return file.read() if file else b""


@contextmanager
def reading(shard: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, OSError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise UsageError(f"{shard} is no whole tar file ({first_line(error)}): restore it or move it away") from None


def key_of(name: str) -> tuple[str, str]:
    """`a/b.seg.png` or `./a/b.seg.png` -> (`a/b`, `seg.png`)."""
    folder, base = posixpath.split(posixpath.normpath(name))
    stem, _, field = base.partition(".")
    return posixpath.join(folder, stem), field


def is_image(field: str) -> bool:
    """Whether a field is named after a format and nothing else."""
    return f".{field.lower()}" in SUFFIXES


def image_field(key: str, record: Record) -> str:
    """The field that is the image: the only one named after a format and nothing else."""
    found = [field for field in record if is_image(field)]
    if len(found) != 1:
        fields = printable(", ".join(record)) or "nothing"
        raise ImageError(f"record {key} must have one image such as {key}.jpg, got {fields}")
    return found[0]


def label_of(key: str, record: Record) -> dict[str, str]:
    try:
        if "cls" in record:
            return {"label": record["cls"].decode().strip()}
        content = parse_json(record.get("json", b"{}"), "its JSON")
    except (UsageError, ValueError) as error:
        raise ImageError(f"record {key} has a label that cannot be read ({first_line(error)}): mend it") from None
    return {"label": str(content["label"])} if isinstance(content, dict) and "label" in content else {}
