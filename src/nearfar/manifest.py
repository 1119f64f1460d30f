"""The record of a run, JSON lines beside the output folder: one line of settings, then one per image.

It never holds the key, nor a plain hash of an original (which would confirm a suspected one), only keyed tags.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nearfar.sinks import write_whole, writing

Status = Literal["done", "failed"]


@dataclass(frozen=True)
class Record:
    """What became of one image. `target_sha256` and `source_tag` are empty unless it is done."""

    name: str
    status: Status
    reason: str = ""
    settings: str = ""
    key: str = ""
    batch_size: int = 0
    target_sha256: str = ""
    source_tag: str = ""


def digest(settings: dict[str, Any]) -> str:
    """Identifies settings: 128 bits of SHA-256 over their canonical JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def manifest_path(out: Path) -> Path:
    """Beside the output folder, so that publishing the folder publishes no bookkeeping."""
    whole = out.resolve()
    return whole.with_name(whole.name + ".manifest.jsonl")


def read_records(path: Path) -> dict[str, Record]:
    """The last record of every image; lines that a killed run left incomplete are passed over."""
    records: dict[str, Record] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            record = parse(line)
            if record:
                records[record.name] = record
    return records


def parse(line: str) -> Record | None:
    try:
        return Record(**json.loads(line)["image"])
    except (ValueError, TypeError, KeyError):
        return None


class Manifest:
    """Appends records; what `commit` has returned from survives a power cut."""

    def __init__(self, path: Path, settings: dict[str, Any], kept: list[Record]) -> None:
        lines = [json.dumps({"run": settings}), *(as_line(record) for record in kept)]
        self._path = path
        with writing(path):
            write_whole(path, ("\n".join(lines) + "\n").encode())
            self._file = path.open("a", encoding="utf-8")

    def add(self, record: Record) -> None:
        with writing(self._path):
            self._file.write(as_line(record) + "\n")

    def commit(self) -> None:
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        with writing(self._path), self._file:
            self.commit()


def as_line(record: Record) -> str:
    return json.dumps({"image": asdict(record)}, ensure_ascii=False)
