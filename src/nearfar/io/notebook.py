"""How objects draw themselves in a notebook: a small table, a sheet of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from io import BytesIO

from PIL import Image

from nearfar.io.fitting import as_rgb
from nearfar.tensors import Images

SIDE, GAP, MOST = 96, 4, 64
"""Pixels of an image in a sheet, at least, and between two; images that are shown."""


def summary(kind: str, facts: Mapping[str, object]) -> str:
    """One line, as `repr` has it."""
    return f"{kind}({', '.join(f'{name} {value}' if name else str(value) for name, value in facts.items())})"


def html_table(kind: str, facts: Mapping[str, object]) -> str:
    """The same for a notebook; names from files are escaped."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in facts.items())
    return f"<table><caption>{escape(kind)}</caption>{rows}</table>"


def sheet_png(images: Images) -> bytes:
    """The first 64 images (batch, 1 or 3, height, width) in [-1, 1] as one PNG, pixels of small ones enlarged."""
    shown = as_rgb(images[:MOST])
    if not shown:
        return b""
    height, width = shown[0].shape[:2]
    scale = max(1, round(SIDE / max(height, width)))
    columns = min(8, len(shown))
    size = (columns * (scale * width + GAP) - GAP, math.ceil(len(shown) / columns) * (scale * height + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    for number, pixels in enumerate(shown):
        image = Image.fromarray(pixels).resize((scale * width, scale * height), Image.Resampling.NEAREST)
        row, column = divmod(number, columns)
        sheet.paste(image, (column * (scale * width + GAP), row * (scale * height + GAP)))
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
