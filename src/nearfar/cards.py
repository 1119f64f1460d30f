"""What is known of published models: terms, training data, range of values and known defects."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

CARDS = Path(__file__).with_name("cards.toml")
CACHED = re.compile(r"(?:^|/)models--([^/]+?)--([^/]+)(?:/|$)")
NONCOMMERCIAL = re.compile(
    r"\bnc\b|non.?commercial|research(?: use| purposes?)? only|stability.?ai|flux.?1.*dev|apple-amlr|deepfloyd-if",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Card:
    """One published model; None is not known.

    also: further names. trust: where the facts come from. checkpoint: what an original file does not say, as options of
    `convert`.
    """

    name: str
    family: str
    size: int
    source: str
    trust: str
    licence: str | None = None
    commercial: bool | None = None
    trained_on: str | None = None
    range: str | None = None
    defects: str | None = None
    distilled: bool = False
    also: tuple[str, ...] = ()
    checkpoint: dict[str, Any] = field(default_factory=dict)


@cache
def read_cards() -> tuple[Card, ...]:
    """The cards of the package."""
    entries = tomllib.loads(CARDS.read_text(encoding="utf-8"))["card"]
    return tuple(Card(**entry | {"also": tuple(entry.get("also", ()))}) for entry in entries)


def card_of(source: str) -> Card | None:
    """The card of a hub name, a folder or a file, by name alone: a renamed model has none, a namesake has another's."""
    name = "/" + hub_name(source).casefold()
    return next((card for card in read_cards() if any(name.endswith(end) for end in endings(card))), None)


def hub_name(source: str) -> str:
    """`owner/name` of a snapshot in the hub's cache, otherwise the path with plain slashes."""
    path = source.replace("\\", "/").rstrip("/")
    found = CACHED.search(path)
    return f"{found.group(1)}/{found.group(2)}" if found else path


def endings(card: Card) -> tuple[str, ...]:
    """What a source may end with to be the card's model: the last part of its name, or a further name."""
    return tuple(f"/{name.casefold()}" for name in (card.name.rpartition("/")[2], *card.also))


def is_noncommercial(licence: str) -> bool:
    """Whether a licence's name or text restricts commercial use; one that says nothing about it does not."""
    return bool(NONCOMMERCIAL.search(licence))
