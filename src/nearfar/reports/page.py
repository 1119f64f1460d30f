"""One self-contained HTML page: text, tables, sheets of pictures and plots, with nothing to fetch beside it.

`Report(title).add(heading(...), paragraph(...)).write(path, content)`. Parts are HTML, as the functions here return it;
what is not HTML yet (titles, sentences, cells, descriptions) is escaped.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nearfar.io.fitting import to_integer
from nearfar.io.manifest import CONFIDENTIAL, Record, manifest_path, read_manifest, write_whole, writing
from nearfar.metrics.intervals import Figure as Measured
from nearfar.metrics.intervals import grouped

MARGIN, CAPTION = 4, 18
IMAGE = Markup('<div class="wide"><img src="{}" width="{}" alt="{}"></div>')

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


def records_of(out: Path, names: Iterable[str]) -> list[Record]:
    """The records of those of the named outputs that have one."""
    records = read_manifest(manifest_path(out)).records
    return [records[name] for name in names if name in records]


def failures(records: Sequence[Record]) -> list[dict[str, str]]:
    return [{"name": record.name, "reason": record.reason} for record in records if record.status == "failed"]


PAGE = Environment(loader=PackageLoader("nearfar.reports", "."), autoescape=True).get_template


class Report:
    """A page under one title, to which parts (HTML) are added in reading order."""

    def __init__(self, title: str) -> None:
        self._title, self._parts = title, list[Markup]()

    def add(self, *parts: Markup) -> Report:
        self._parts += parts
        return self

    def html(self) -> str:
        """The whole document."""
        return PAGE("page.html").render(title=self._title, parts=Markup("\n").join(self._parts)) + "\n"

    def write(self, path: Path, content: dict[str, Any]) -> None:
        """The page at `path`, and `content` beside it as .json, each whole or not at all, readable by the user only."""
        whole, numbers = self.html(), json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        with writing(path):
            write_whole(path.with_suffix(".json"), numbers.encode(), CONFIDENTIAL)
            write_whole(path, whole.encode(), CONFIDENTIAL)


def heading(text: str) -> Markup:
    return Markup("<h2>{}</h2>").format(text)


def paragraph(text: str) -> Markup:
    return Markup("<p>{}</p>").format(text)


def answers(lines: Iterable[tuple[str, str]]) -> Markup:
    """What a page is opened for: sentences, each with a word before it."""
    terms = Markup("\n").join(Markup("<dt>{}</dt><dd>{}</dd>").format(*line) for line in lines)
    return Markup("<dl>\n{}\n</dl>").format(terms)


def folded(summary: str, *parts: Markup) -> Markup:
    """What few readers need, shown when they ask for it."""
    inside = Markup("\n").join(parts)
    return Markup("<details><summary>{}</summary>\n{}\n</details>").format(summary, inside)


def table(header: Sequence[object], rows: Iterable[Iterable[object]]) -> Markup:
    """Cells are shown as `str` shows them: round numbers before."""
    lines = Markup("\n").join([line("th", header), *(line("td", row) for row in rows)])
    return Markup('<div class="wide"><table>\n{}\n</table></div>').format(lines)


def line(tag: str, cells: Iterable[object]) -> Markup:
    cell = Markup(f"<{tag}>{{}}</{tag}>")
    return Markup("<tr>{}</tr>").format(Markup("").join(cell.format(str(one)) for one in cells))


def picture(image: Image.Image, alt: str) -> Markup:
    """An image as PNG within the page; alt: what it shows, for those who do not see it."""
    return IMAGE.format(as_data(image), image.width, alt)


def as_data(image: Image.Image, **options: Any) -> str:
    """A PNG as an address that holds it whole, so that no file is needed. options: of Pillow's writer."""
    content = io.BytesIO()
    image.save(content, "PNG", **options)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


def linked(file: str, alt: str) -> Markup:
    """A picture that lies beside the page."""
    return Markup('<div class="wide"><img src="{}" alt="{}"></div>').format(file, alt)


def shown(value: float) -> str:
    return f"{value:.4g}"


def section(name: str, figures: Sequence[Measured]) -> Markup:
    """A table for each network, with what measured it below, all folded."""
    header, parts = ["", "value", "95 % interval", "chance", "n", "note"], []
    for network, some in grouped(figures).items():
        libraries = sorted({figure.library for figure in some})
        by = f"By {network}; measured" if network else "Measured"
        parts += [table(header, [row(figure) for figure in some]), paragraph(f"{by} by {'; '.join(libraries)}.")]
    return folded(name, *parts)


def row(figure: Measured) -> list[object]:
    interval = "" if figure.low is None or figure.high is None else f"{figure.low:.4g} to {figure.high:.4g}"
    chance = "" if figure.chance is None else f"{figure.chance:.4g}"
    return [figure.name, f"{figure.value:.4g}", interval, chance, figure.count, figure.note]
