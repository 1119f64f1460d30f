"""One self-contained HTML page: text, tables, pictures and plots, with nothing to fetch beside it.

Every function returns HTML. What is not HTML yet (titles, sentences, cells, descriptions) is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

STYLE = """body { font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
img, svg { max-width: 100%; height: auto; display: block; margin: 1rem 0 } img { image-rendering: pixelated }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
td, th { padding: .1rem 1.2rem .1rem 0; text-align: left; white-space: nowrap }"""


def page(title: str, *sections: str) -> str:
    """A whole document; sections: HTML, as the other functions return it, in reading order."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title>\n<style>{STYLE}</style>'
    body = "\n".join([f"<h1>{escape(title)}</h1>", *sections])
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Cells are shown as `str` shows them: round numbers before."""
    lines = [line("th", header), *(line("td", row) for row in rows)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def line(tag: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


def picture(image: Image.Image, alt: str) -> str:
    """An image as PNG within the page; alt: what it shows, for those who do not see it."""
    content = io.BytesIO()
    image.save(content, "PNG")
    encoded = base64.b64encode(content.getvalue()).decode("ascii")
    return f'<img src="data:image/png;base64,{encoded}" width="{image.width}" alt="{escape(alt)}">'


def plot(figure: Figure, alt: str = "") -> str:
    """A figure as SVG within the page; equal figures give equal text."""
    content = io.StringIO()
    with rc_context({"svg.hashsalt": "nearfar"}):
        figure.savefig(content, format="svg", bbox_inches="tight", metadata={"Date": None})
    drawing = content.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    return drawing.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)
