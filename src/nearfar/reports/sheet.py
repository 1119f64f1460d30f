"""Contact sheets: many small images beside one another, with captions."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nearfar.io.fitting import to_integer

MARGIN, CAPTION = 4, 18

CELL = 96
"""Pixels of a side of a small image."""

ABREAST = 4
"""Groups in each row of a sheet."""


def contact_sheet(rows: Sequence[Sequence[Image.Image]], captions: Sequence[str], cell: int = 96) -> Image.Image:
    """One row of images a line, one caption above each column; every image is shown `cell` pixels high and wide."""
    step = cell + MARGIN
    width, height = MARGIN + step * len(captions), CAPTION + MARGIN + step * len(rows)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions):
        left = MARGIN + column * step
        draw.text((left + cell / 2, CAPTION / 2 + 1), caption, "black", ImageFont.load_default(12), anchor="mm")
        for line, row in enumerate(rows):
            small = row[column].convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS)
            sheet.paste(small, (left, CAPTION + MARGIN + line * step))
    return sheet


def to_pil(image: Tensor) -> Image.Image:
    """From (1 or 3, height, width) in [-1, 1]."""
    return Image.fromarray(to_integer(image.permute(1, 2, 0).numpy(), 8).squeeze())


def grid(images: Sequence[Image.Image], abreast: int, captions: Sequence[str]) -> Image.Image:
    """Images in rows, the last one filled up with white."""
    blank = Image.new("RGB", (1, 1), "white")
    rows = [list(images[first : first + abreast]) for first in range(0, len(images), abreast)]
    whole = [row + [blank] * (abreast - len(row)) for row in rows]
    return contact_sheet(whole, [*captions] * (abreast // len(captions)), CELL)


def sheet(cells: Sequence[Sequence[Tensor]], captions: Sequence[str]) -> Image.Image:
    """Groups of images, several abreast."""
    blank = [Image.new("RGB", (1, 1), "white")] * len(captions)
    groups = [[to_pil(image) for image in some] for some in cells]
    abreast = max(1, min(ABREAST, len(groups)))
    groups += [blank] * (-len(groups) % abreast)
    rows = [[image for group in groups[n : n + abreast] for image in group] for n in range(0, len(groups), abreast)]
    return contact_sheet(rows, [*captions] * abreast, cell=96)
