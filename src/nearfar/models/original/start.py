"""Whether a file begins as a checkpoint does, seen without anything that computes."""

from __future__ import annotations

from pathlib import Path

from nearfar.errors import UsageError

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
ZIP_START = b"PK\x03\x04"
LEGACY_START = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch.save wrote first until version 1.6


def check_start(path: Path) -> None:
    """Refuse what is no file, an empty one, and one that neither torch.save nor safetensors wrote."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"{path} {found}: give a checkpoint file ({', '.join(CHECKPOINT_SUFFIXES)})")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise UsageError(f"{path} is empty: get it again")
    legacy = start[:1] == b"\x80" and start[2:].startswith(LEGACY_START)
    if path.suffix != ".safetensors" and not legacy and not start.startswith(ZIP_START):
        raise UsageError(f"{path} is no checkpoint (neither of torch.save nor safetensors): give the .pt or .ckpt file")
