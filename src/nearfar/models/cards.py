"""What is known of published models: terms, training data, range of values and known defects.

They decide what a model's user is warned of, and which models are refused unless forced.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from nearfar.errors import UsageError
from nearfar.models.lookup import DiffusersFolder, Part
from nearfar.models.model import FrozenModel

CARDS = Path(__file__).with_name("cards.toml")
CACHED = re.compile(r"(?:^|/)models--([^/]+?)--([^/]+)(?:/|$)")
NONCOMMERCIAL = re.compile(
    r"\bnc\b|non.?commercial|research(?: use| purposes?)? only|stability.?ai|flux.?1.*dev|apple-amlr|deepfloyd-if",
    re.IGNORECASE,
)

DISTILLED_SCHEDULERS = ("LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler", "FlowMatchLCMScheduler")
DISTILLED_WORDS = ("turbo", "lightning", "lcm", "schnell", "distilled")


@dataclass(frozen=True)
class Card:
    """One published model; None is not known.

    subject: what it draws: faces, animals, churches, bedrooms or anything; other things are not named. commit: of its
    repository on the hub, and sha256 of files there, where a source states them. also: further names.
    trust: where the facts come from. checkpoint: what an original file does not say, as options of `convert`.
    """

    name: str
    family: str
    size: int
    source: str
    trust: str
    license: str | None = None
    commercial: bool | None = None
    trained_on: str | None = None
    range: str | None = None
    defects: str | None = None
    distilled: bool = False
    subject: str | None = None
    commit: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)
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
    snapshot = CACHED.search(path)
    return f"{snapshot.group(1)}/{snapshot.group(2)}" if snapshot else path


def endings(card: Card) -> tuple[str, ...]:
    """What a source may end with to be the card's model: the last part of its name, or a further name.

    A bundled model's name is taken whole: many folders are called `cells`.
    """
    last = card.name if card.name.startswith("bundled/") else card.name.rpartition("/")[2]
    return tuple(f"/{name.casefold()}" for name in (last, *card.also))


def is_noncommercial(license: str) -> bool:
    """Whether a license's name or text restricts commercial use; one that says nothing about it does not."""
    return bool(NONCOMMERCIAL.search(license))


def refuse_distilled(folder: DiffusersFolder, source: str, network: Part, scheduler: Part, force: bool) -> str:
    """Refuse what looks distilled to a few steps; what to say of it when it is forced, empty for others."""
    reason = distilled_reason(folder, source, network, scheduler)
    if reason and not force:
        raise UsageError(
            f"{source} looks like a distilled few-step model ({reason}), which jumps to the end from a few fixed "
            "levels, so a strength between them means nothing: take the model it was made from, or --force"
        )
    return (
        f"{source} is used by force ({reason}): between a distilled model's levels results mean little"
        if reason
        else ""
    )


def distilled_reason(folder: DiffusersFolder, source: str, network: Part, scheduler: Part) -> str:
    """What shows that a model was distilled to a few steps; empty when nothing does."""
    if scheduler.kind in DISTILLED_SCHEDULERS:
        return f"its scheduler is a {scheduler.kind}"
    if network.config.get("time_cond_proj_dim"):
        return "its network takes the guidance as an input, time_cond_proj_dim"
    if is_turbo(scheduler):
        return "its scheduler is the one of SDXL-Turbo"
    card = card_of(source)
    if card is not None and card.distilled:
        return f"its card, {card.name}"
    names = (source, *(str(part.get("_name_or_path", "")) for part in (folder.index, network.config)))
    words = {word for name in names for word in re.split("[^a-z]+", hub_name(name).rpartition("/")[2].lower())}
    return next((f'"{word}" in its name' for word in DISTILLED_WORDS if word in words), "")


def is_turbo(scheduler: Part) -> bool:
    config = scheduler.config
    trailing = config.get("timestep_spacing") == "trailing" and not config.get("rescale_betas_zero_snr")
    return trailing and scheduler.kind == "EulerAncestralDiscreteScheduler"


def notes_on(model: FrozenModel) -> list[str]:
    """What a user should know before using the model."""
    notes, provenance = [], model.provenance
    card = card_of(provenance.source)
    if is_noncommercial(provenance.license) or (card is not None and card.commercial is False):
        notes.append(f"the license of {provenance.source} restricts commercial use: {provenance.license}")
    if model.settings.get("guidance", 1) > 1:
        notes.append(
            f"guidance {model.settings['guidance']:g} sharpens the model's distribution: results follow the prompt "
            "more, vary less, and are no longer samples of the model; 1 is the model's own"
        )
    return notes
