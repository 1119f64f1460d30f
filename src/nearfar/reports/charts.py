"""Charts as SVG within a page: text that can be selected, told apart without color, in the page's own ink."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

from cycler import cycler
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLE = {
    "svg.hashsalt": "nearfar",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "axes.prop_cycle": cycler(color=["#4c7fc0", "#d07b2c", "#4f9d69", "#9a6fb5"], linestyle=["-", "--", "-.", ":"]),
    "axes.spines.top": False,
    "axes.spines.right": False,
}
INK = ("#000000", "currentColor")
"""Black of a drawing, and what stands for it in the page."""


def plot(figure: Figure, alt: str = "") -> Markup:
    """A figure of matplotlib as SVG within the page; equal figures give equal text."""
    content = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(content, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    drawing = content.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(*INK)
    return Markup(drawing.replace("<svg", Markup('<svg class="plot" role="img" aria-label="{}"').format(alt), 1))


def drawing(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure in the style of all charts, so many inches large, and its axes row by row."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


@dataclass(frozen=True)
class Bar:
    """A share in [0, 1] under a name. low, high: its interval. chance, best: marks of what guessing and what the most
    that is possible give."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    best: float | None = None


BAR = Markup(
    '<span>{name}</span><b>{value:.0f} %</b><svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
    'aria-label="{told}"><rect class="track" width="100" height="10"/>'
    '<rect class="share" width="{value:.2f}" height="10"/>{marks}</svg>'
)
MARK = Markup('<line x1="{:.2f}" y1="{}" x2="{:.2f}" y2="{}" stroke-width="{}" stroke-dasharray="{}"/>')
KEY = "Whisker: 95 % interval. Dashed mark: chance. Thick mark: untouched images."


def bars(rows: Iterable[Bar], meaning: str) -> Markup:
    """One line for each share, in the order given, and below what bars and marks mean."""
    lines = Markup("\n").join(bar(row) for row in rows)
    return Markup('<div class="bars">\n{}\n</div>\n<p class="key">{} {}</p>').format(lines, meaning, KEY)


def bar(row: Bar) -> Markup:
    marks = []
    if row.low is not None and row.high is not None:
        ends = 100 * row.low, 100 * row.high
        marks = [upright(end, 2.5, 7.5, 1.5) for end in ends] + [MARK.format(ends[0], 5, ends[1], 5, 1.5, "none")]
    if row.chance is not None:
        marks.append(upright(100 * row.chance, -1.0, 11.0, 1.5, "2 2"))
    if row.best is not None:
        marks.append(upright(100 * row.best, -1.0, 11.0, 4.0))
    return BAR.format(name=row.name, value=100 * row.value, told=told(row), marks=Markup("").join(marks))


def upright(x: float, top: float, bottom: float, width: float, dashes: str = "none") -> Markup:
    return MARK.format(x, top, x, bottom, width, dashes)


def told(row: Bar) -> str:
    """The line in words, for those who do not see it."""
    marks = {"interval from": row.low, "to": row.high, "chance": row.chance, "untouched": row.best}
    parts = [f"{name} {100 * value:.0f} %" for name, value in marks.items() if value is not None]
    return ", ".join([f"{row.name}: {100 * row.value:.0f} %", *parts])
