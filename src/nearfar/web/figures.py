"""What the page shows as HTML of its own: pictures with captions, sentences, shell lines. All text is escaped."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

from nearfar.reports.page import as_data

ASTRONAUT_FACE = (166, 67, 284, 185)
"""In scikit-image's portrait of an astronaut: left, upper, right, lower of the face, as large and as high in the square
as the bundled model knows faces."""


@dataclass(frozen=True, eq=False)
class Card:
    """A picture with a title and lines below it. struck: it is shown struck through, and why."""

    image: Image.Image
    title: str
    lines: Sequence[str] = field(default_factory=list)
    struck: str = ""


def cards(some: Sequence[Card], label: str) -> str:
    """Pictures side by side, as many abreast as the screen has room for."""
    return f'<ul class="cards" aria-label="{escape(label)}">{"".join(map(card, some))}</ul>'


def card(one: Card) -> str:
    text = "".join(f"<span>{escape(line)}</span>" for line in one.lines)
    why = f'<span class="why">{escape(one.struck)}</span>' if one.struck else ""
    mark = ' class="struck"' if one.struck else ""
    source, name = as_data(one.image, compress_level=1), escape(f"{one.title} {one.struck}".strip())
    return f'<li{mark}><img src="{source}" alt="{name}"><b>{escape(one.title)}</b>{why}{text}</li>'


def said(text: str, kind: str = "note") -> str:
    """A sentence. kind: note, warning or error; the last two are announced."""
    role = "status" if kind == "note" else "alert"
    return f'<p class="{kind}" role="{role}">{escape(text)}</p>' if text else ""


def shell(*words: object) -> str:
    """A shell line, quoted, for the reader to copy."""
    return shlex.join(str(word) for word in words if word != "")


def framed(page: str, title: str) -> str:
    """A whole page within this one, which may run nothing."""
    return f'<iframe class="report" sandbox title="{escape(title)}" srcdoc="{escape(page)}"></iframe>'


def small(image: Image.Image, most: int) -> Image.Image:
    """At most so many pixels a side."""
    image = image.copy()
    image.thumbnail((most, most), Image.Resampling.LANCZOS)
    return image


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by the names that the page shows: of their paths only the last part, numbered if need be."""
    names: dict[str, Path] = {}
    for folder in folders:
        name, number = folder.name, 2
        while name in names:
            name, number = f"{folder.name} ({number})", number + 1
        names[name] = folder
    return names
