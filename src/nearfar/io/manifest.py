"""The record of a run, JSON lines beside the output folder: first its settings, then one line per image.

It never holds the key, nor a plain hash of an original (which would confirm a suspected one), only keyed tags. Files
are written whole or not at all, and what a run has done so far is its `Progress`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

from filelock import lock_descriptor

from nearfar.errors import NearfarError, RunError, UsageError
from nearfar.structured import checked, json_object

Watch = Callable[[str, int, int], None]
"""Called with `(stage, done, total)` as a stage of the work goes on."""


@dataclass
class Progress:
    """How far a run has come; at its end, the summary. `reduced`: images larger than the model's, which lost detail.

    dropped: outputs that guards refused. network_seconds: spent in the transform, added up over the workers.
    step, steps: how far a batch has come. stopping: batches under way are given up at their next step.
    """

    total: int
    kept: int = 0
    done: int = 0
    ignored: int = 0
    reduced: int = 0
    failed: list[Record] = field(default_factory=list)
    dropped: list[Record] = field(default_factory=list)
    batches: int = 0
    batch_size: int = 0
    seconds: float = 0.0
    network_seconds: float = 0.0
    step: int = 0
    steps: int = 0
    stopping: bool = False

    def count(self, record: Record) -> None:
        if record.status == "done":
            self.done += 1
        else:
            (self.dropped if record.status == "dropped" else self.failed).append(record)


def unwatched(stage: str, done: int, total: int) -> None:
    """A `Watch` that does nothing."""


PART = ".nearfar-part"
CONFIDENTIAL = 0o600
"""Mode of files that show or describe originals, whatever the umask: theirs only, from the first byte on."""

OF_ITS_NAME = frozenset(
    {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP}
)
"""Errors that are one file's own: its name is too long or not allowed, or a folder or file stands in its way."""


def write_whole(target: Path, content: bytes, mode: int = 0o666) -> str:
    """Write to a part file, flush it to the disk, rename it into place; returns the content's SHA-256.

    Whatever happens in between, `target` is absent, its old self, or complete. mode: who may read it, umask permitting;
    `CONFIDENTIAL` whatever the umask.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16] + PART)
    try:
        part.unlink(missing_ok=True)
        with open(part, "xb", opener=lambda path, flags: os.open(path, flags, mode)) as file:
            if mode == CONFIDENTIAL:
                part.chmod(mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return hashlib.sha256(content).hexdigest()


def unwritable(error: OSError) -> str:
    """Why a file cannot be written under its name, for errors of this file alone."""
    return f"cannot be written under this name ({error.strerror}): give it a shorter or simpler one"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `RunError` that names the path and the way on."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror}): mend that, then go on with --resume") from None


def remove_parts(folder: Path) -> None:
    """Remove what a killed run left unfinished."""
    for part in folder.rglob("*" + PART):
        part.unlink()


def has_content(path: Path, sha256: str) -> bool:
    """Whether the file itself, not a link to it, is there with exactly this content."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


Status = Literal["done", "dropped", "failed"]
SPARSE = ("figures", "verdict", "parents")
"""Fields that a line leaves out where there is nothing in them."""


@dataclass(frozen=True)
class Record:
    """What became of one image. Of a failed one, only name and reason are of use; a dropped one was not written.

    source_tag: tells whether the source is still the same. batch_size: the shape that the network was called with.
    figures: what the job measured on this image. verdict: of a domain's guards on a sample.
    parents: the numbers of the fitted images that a sample mixes.
    """

    name: str
    status: Status
    reason: str = ""
    batch_size: int = 0
    target_sha256: str = ""
    source_tag: str = ""
    figures: dict[str, int | float] = field(default_factory=dict)
    verdict: str = ""
    parents: Sequence[int] = ()
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True)
class Earlier:
    """What an earlier run left: its header (nothing if it did not come so far) and the last record of every image."""

    header: dict[str, Any] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)

    def changed(self, now: Mapping[str, Any]) -> list[str]:
        """Names of the settings that were others; none where nothing stands."""
        return differing(now, self.header.get("run", now))


def differing(some: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Names of the settings in which two runs differ, those that one of them lacks among them."""
    return [name for name in {**some, **others} if some.get(name) != others.get(name)]


def manifest_path(out: Path) -> Path:
    """Beside the output folder, so that publishing the folder publishes no bookkeeping."""
    whole = out.resolve()
    return whole.with_name(whole.name + ".manifest.jsonl")


def salt_path(out: Path) -> Path:
    """Where the salt of a run without a key file lies until the run is complete."""
    return manifest_path(out).with_suffix(".salt")


def check_no_links(out: Path, *more: Path, error: type[NearfarError] = UsageError) -> None:
    """Refuse folders below `out`, its record and other places of a run that are links: files elsewhere would change."""
    inside = (Path(parent, name) for parent, folders, _ in os.walk(out) for name in folders)
    for path in (manifest_path(out), salt_path(out), *more, *inside):
        if path.is_symlink():
            raise error(f"{path} is a link, through which nothing is written: remove it, then go on with --resume")


def check_own_folder(out: Path, target: Path) -> None:
    """RunError where a file below `out` would be written through a link."""
    for folder in target.parents[: len(target.relative_to(out).parts)]:
        if folder.is_symlink():
            raise RunError(f"{folder} became a link while the run went on: remove it, then go on with --resume")


def read_manifest(path: Path) -> Earlier:
    """What a manifest says; lines that a killed run left incomplete are passed over. UsageError for a link."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UsageError(f"{path}, the record of a run, must be a file of its own, got a link or a folder: remove it")
    header: dict[str, Any] = {}
    records: dict[str, Record] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        content = parse(line)
        if isinstance(content.get("run"), dict):
            header = content
        elif record := to_record(content.get("image")):
            records[record.name] = record
    return Earlier(header, records)


def parse(line: str) -> dict[str, Any]:
    try:
        return json_object(line, "a line")
    except UsageError:
        return {}


def to_record(content: Any) -> Record | None:
    try:
        return checked(Record, content, "an image")
    except UsageError:
        return None


MODE = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)


class Manifest:
    """Appends to the record of a run, which it locks; what `commit` has returned from is on the disk."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self._path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = os.fdopen(os.open(path, MODE, CONFIDENTIAL), "a+b")
            lock(self._file, path)
            self._write("\n" if is_cut(self._file) else "")
            self._write(json.dumps(header, ensure_ascii=False) + "\n")

    def add(self, record: Record) -> None:
        content = {name: value for name, value in asdict(record).items() if value or name not in SPARSE}
        self._write(json.dumps({"image": content}, ensure_ascii=False) + "\n")

    def commit(self) -> None:
        """Onto the disk; RunError where the file is no longer there, or another one is."""
        self._flush()
        with writing(self._path):
            stands = os.path.lexists(self._path) and os.path.samestat(os.fstat(self._file.fileno()), self._path.lstat())
        if not stands:
            raise RunError(
                f"{self._path}, the record of this run, was removed or replaced while it ran: what it made cannot be "
                "resumed; keep other programs away and begin again in another output"
            )

    def _flush(self) -> None:
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def _write(self, text: str) -> None:
        with writing(self._path):
            self._file.write(text.encode())

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._flush()


def is_cut(file: IO[bytes]) -> bool:
    """Whether a killed run left the last line incomplete."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 1))
    return file.read(1) not in (b"", b"\n")


def lock(file: IO[bytes], path: Path) -> None:
    """Keep a second run from writing to the same output; the lock goes with the process."""
    if not lock_descriptor(file.fileno(), blocking=False):
        file.close()
        raise UsageError(f"another run holds {path}: wait for it, or choose another output")
