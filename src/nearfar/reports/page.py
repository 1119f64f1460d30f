"""One self-contained HTML page: text, tables, sheets of pictures and plots, with nothing to fetch beside it.

`Report(title).add(heading(...), paragraph(...)).write(path, content)`. Parts are HTML, as the functions here return it;
what is not HTML yet (titles, sentences, cells, descriptions) is escaped.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Sequence
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nearfar.errors import UsageError
from nearfar.io.fitting import to_integer
from nearfar.io.manifest import CONFIDENTIAL, Record, manifest_path, read_manifest, write_whole, writing
from nearfar.jobs.run import Plan
from nearfar.metrics.intervals import Figure as Measured
from nearfar.metrics.intervals import grouped

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


def names_of(plan: Plan) -> list[str]:
    """The images of a run, those that were made before it among them."""
    return [*(item.name for item in plan.todo), *(record.name for record in plan.kept)]


def records_of(out: Path, names: Iterable[str]) -> list[Record]:
    """The records of those of the named outputs that have one."""
    records = read_manifest(manifest_path(out)).records
    return [records[name] for name in names if name in records]


def failures(records: Sequence[Record]) -> list[dict[str, str]]:
    return [{"name": record.name, "reason": record.reason} for record in records if record.status == "failed"]


STYLE = """body { font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
img, svg { max-width: 100%; height: auto; display: block; margin: 1rem 0 } img { image-rendering: pixelated }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
td, th { padding: .1rem 1.2rem .1rem 0; text-align: left; white-space: nowrap }"""


class Report:
    """A page under one title, to which parts (HTML) are added in reading order."""

    def __init__(self, title: str) -> None:
        self._title, self._parts = title, [f"<h1>{escape(title)}</h1>"]

    def add(self, *parts: str) -> Report:
        self._parts += parts
        return self

    def html(self) -> str:
        """The whole document."""
        head = f'<meta charset="utf-8"><title>{escape(self._title)}</title>\n<style>{STYLE}</style>'
        body = "\n".join(self._parts)
        return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'

    def write(self, path: Path, content: dict[str, Any]) -> None:
        """The page at `path`, and `content` beside it as .json, each whole or not at all, readable by the user only."""
        whole, numbers = self.html(), json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        with writing(path):
            write_whole(path.with_suffix(".json"), numbers.encode(), CONFIDENTIAL)
            write_whole(path, whole.encode(), CONFIDENTIAL)


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def table(header: Sequence[object], rows: Iterable[Iterable[object]]) -> str:
    """Cells are shown as `str` shows them: round numbers before."""
    lines = [line("th", header), *(line("td", row) for row in rows)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def line(tag: str, cells: Iterable[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


def picture(image: Image.Image, alt: str) -> str:
    """An image as PNG within the page; alt: what it shows, for those who do not see it."""
    content = io.BytesIO()
    image.save(content, "PNG")
    encoded = base64.b64encode(content.getvalue()).decode("ascii")
    return f'<img src="data:image/png;base64,{encoded}" width="{image.width}" alt="{escape(alt)}">'


def linked(file: str, alt: str) -> str:
    """A picture that lies beside the page."""
    return f'<img src="{escape(file)}" alt="{escape(alt)}">'


def plot(figure: Figure, alt: str = "") -> str:
    """A figure as SVG within the page; equal figures give equal text."""
    content = io.StringIO()
    with rc_context({"svg.hashsalt": "nearfar"}):
        figure.savefig(content, format="svg", bbox_inches="tight", metadata={"Date": None})
    drawing = content.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    return drawing.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)


def page_beside(report: Path | None, out: Path, *sources: Path, keep: Sequence[Path] = ()) -> Path:
    """Where a page on what is in `out` goes: beside it unless told, and never among images or over files to keep."""
    whole = out.resolve()
    path = report or whole.with_name(whole.name + ".report.html")
    check_page(path, [*sources, out], keep)
    return path


def check_page(path: Path, folders: Sequence[Path], keep: Sequence[Path] = ()) -> None:
    """Refuse a page that is none, that would lie among images, or that would replace a file to keep with its JSON."""
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise UsageError(f"the report is a page, got {path}: give a file that ends in .html")
    for folder in folders:
        if folder.resolve() in path.resolve().parents:
            raise UsageError(f"report {path} must not lie in {folder}, which holds images: keep it elsewhere")
    written = {each.resolve() for each in (path, path.with_suffix(".json"))}
    if lost := next((file for file in keep if file.resolve() in written), None):
        raise UsageError(f"report {path} and the JSON beside it would replace {lost}: give the report another name")


def shown(value: float) -> str:
    return f"{value:.4g}"


def section(name: str, figures: Sequence[Measured]) -> list[str]:
    """A table for each network, with what measured it below."""
    header = ["", "value", "95 % interval", "chance", "n", "note"]
    parts = [heading(name)]
    for network, some in grouped(figures).items():
        libraries = sorted({figure.library for figure in some})
        by = f"By {network}; measured" if network else "Measured"
        parts += [table(header, [row(figure) for figure in some]), paragraph(f"{by} by {'; '.join(libraries)}.")]
    return parts


def row(figure: Measured) -> list[object]:
    interval = "" if figure.low is None or figure.high is None else f"{figure.low:.4g} to {figure.high:.4g}"
    chance = "" if figure.chance is None else f"{figure.chance:.4g}"
    return [figure.name, f"{figure.value:.4g}", interval, chance, figure.count, figure.note]
