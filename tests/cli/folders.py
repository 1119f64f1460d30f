"""What folders hold, for comparing them."""

import os
import stat
from pathlib import Path

from nearfar.io.manifest import PART


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finished(folder: Path) -> dict[str, bytes]:
    """Every file below a folder that has its final name."""
    return {name: content for name, content in contents(folder).items() if not name.endswith(PART)}


def state(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything about every entry below a folder that an honest reader leaves as it is: all but the access time."""
    return {os.fsdecode(path): entry_state(path) for path in folder.rglob("*")}


def entry_state(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    content: object = None
    if path.is_symlink():
        content = path.readlink()
    elif stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK):
        content = path.read_bytes()
    return (
        status.st_mode,
        status.st_ino,
        status.st_nlink,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        content,
    )
