"""What a domain file says of itself, read without anything that computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nearfar.errors import UsageError, first_line, printable
from nearfar.structured import json_object, safetensors_header

KEY, FORMAT, AGAIN = "nearfar domain", 4, "fit it again"


def read_about(path: Path) -> dict[str, Any]:
    """The header's own part. UsageError for what is no domain file of this format."""
    if not path.is_file():
        raise UsageError(f"{path} must be a domain file, got {'a folder' if path.is_dir() else 'nothing'} there")
    try:
        words = safetensors_header(path).get("__metadata__")
    except UsageError as error:
        raise UsageError(f"{path} is no domain file, or a damaged one ({first_line(error)}): {AGAIN}") from None
    text = words.get(KEY) if isinstance(words, dict) else None
    about = json_object(text if isinstance(text, str) else "{}", f"{path} is no domain file: its header", AGAIN)
    if about.get("format") != FORMAT:
        came = printable(str(about.get("format")))
        raise UsageError(f"{path} is no domain file of format {FORMAT}, got {came}: {AGAIN}")
    return about
