"""Writing of files: whole, or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nearfar.errors import RunError

PART = ".nearfar-part"


def write_whole(target: Path, content: bytes, mode: int = 0o666) -> str:
    """Write to a part file, flush it to the disk, rename it into place; returns the content's SHA-256.

    Whatever happens in between, `target` is absent, its old self, or complete. mode: who may read it, umask permitting.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16] + PART)
    try:
        part.unlink(missing_ok=True)
        with open(part, "wb", opener=lambda path, flags: os.open(path, flags, mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return hashlib.sha256(content).hexdigest()


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
    """Whether the file is there with exactly this content."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False
