"""Contact sheets: many small images beside one another, with captions."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN, CAPTION = 4, 18


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
