"""Contact sheets: many small images beside one another, with captions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nearfar.io.fitting import to_integer

MARGIN, CAPTION = 4, 18

CELL, ABREAST = 96, 4
"""Pixels of a side of a small image, and groups in each row at most, unless told otherwise."""


def groups(
    cells: Sequence[Sequence[Tensor]], captions: Sequence[str], abreast: int | None = None, cell: int = CELL
) -> Image.Image:
    """Groups of images (1 or 3, height, width) in [-1, 1], several in each row, the last row filled up with white.

    captions: of the images of a group. abreast: groups in a row, as many as there are and 4 at most unless given.
    """
    abreast = abreast or max(1, min(ABREAST, len(cells)))
    blank = [Image.new("RGB", (1, 1), "white")] * len(captions)
    pictures = [[to_pil(image) for image in group] for group in cells]
    pictures += [blank] * (-len(pictures) % abreast)
    rows = [list(chain(*pictures[first : first + abreast])) for first in range(0, len(pictures), abreast)]
    return contact_sheet(rows, [*captions] * abreast, cell)


def contact_sheet(rows: Sequence[Sequence[Image.Image]], captions: Sequence[str], cell: int = CELL) -> Image.Image:
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
