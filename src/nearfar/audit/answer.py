"""The answer of an audit in five sentences: who is found, what was lost, what is learned, faces left, the key.

Every sentence is made of figures that were measured, or says what was not measured; none is a verdict.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nearfar.errors import UsageError
from nearfar.metrics.intervals import Figure

if TYPE_CHECKING:
    from nearfar.audit.audit import Audit

FOUND = re.compile(r"re-identified, (own original|same person, another picture), rank 1(?:, (.+?))?(?: attacker)?$")
SAME_AGAIN = ("untrained", "one output")
"""Attackers that repeat another's question on a part of the outputs."""
FACES_FOUND = "outputs in which a face is found"

NAMED = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "faces": FACES_FOUND,
    "accuracy": "accuracy, learned from AFTER",
    "key": "correlation of pixels with the original, walked back with its noise",
    "mu": "Gaussian mechanism, mu at the greatest distance",
}
"""Which figure each of these is; `rank1` is the worst attacker's."""
HEADLINES = ("rank1", *NAMED)


@dataclass(frozen=True)
class Attacker:
    """Who looks for originals. eyes: the network, for people. way: what it does with them. whom: what counts as found.

    untouched: what the same eyes find of untouched images, None where it was not measured.
    """

    eyes: str
    way: str
    whom: str
    figure: Figure
    untouched: float | None

    def __str__(self) -> str:
        return f"{self.eyes}, {self.way}"


def attackers(figures: Sequence[Figure]) -> list[Attacker]:
    """All that asked for one original of each output, the most successful first."""
    found = []
    for figure in figures:
        match = FOUND.match(figure.name)
        if match and match[2] not in SAME_AGAIN and not math.isnan(figure.value):
            untouched = 1.0 if match[1] == "own original" else untouched_rate(figures, figure.network)
            found.append(Attacker(eyes_of(figure.network), match[2] or "nearest neighbor", match[1], figure, untouched))
    return sorted(found, key=lambda one: -one.figure.value)


def untouched_rate(figures: Sequence[Figure], network: str) -> float | None:
    name = "re-identified, untouched: same person, another picture, rank 1"
    return next((one.value for one in figures if (one.name, one.network) == (name, network)), None)


def eyes_of(network: str) -> str:
    """Short, for people: pixels, face recognizer, or whose features."""
    if network.startswith("faces, "):
        return "face recognizer"
    return (
        "pixels" if network.startswith("pixels") else "features (" + re.sub(r"\S*/", "", network.split(" (")[0]) + ")"
    )


def answer(audit: Audit) -> list[tuple[str, str]]:
    """Five sentences, each with a word before it that says of what."""
    figures = audit.figures
    return [
        ("found", who_finds(attackers(figures))),
        ("lost", what_is_lost(figures)),
        ("learned", what_is_learned(figures, audit.remarks)),
        ("faces", faces_left(figures)),
        ("key", what_the_key_gives(figures, audit.remarks)),
    ]


def who_finds(some: Sequence[Attacker]) -> str:
    """The worst attacker, then the best way of the other eyes."""
    if not some:
        return "not measured: no attacker could be asked."
    worst, figure = some[0], some[0].figure
    what = "their own original" if worst.whom == "own original" else "another picture of the same person"
    best = {one.eyes: one.figure.value for one in reversed(some) if one.eyes != worst.eyes}
    others = ", ".join(f"{eyes} {percent(value)}" for eyes, value in sorted(best.items(), key=lambda pair: -pair[1]))
    return (
        f"{percent(figure.value)}{within(figure)} of {figure.count} outputs lead back to {what}, by {worst}"
        f"{'' if figure.chance is None else f'; chance is {percent(figure.chance)}'}."
        f"{f' Other eyes at their best: {others}.' if others else ''}"
    )


def what_is_lost(figures: Sequence[Figure]) -> str:
    psnr, ssim = named(figures, NAMED["psnr"]), named(figures, NAMED["ssim"])
    if psnr is None or ssim is None:
        return "not measured."
    stranger = f"somebody else's original has {psnr.chance or 0:.1f} dB and {ssim.chance or 0:.2f}"
    return f"PSNR {psnr.value:.1f} dB, SSIM {ssim.value:.2f} beside the own original; {stranger}."


def what_is_learned(figures: Sequence[Figure], remarks: dict[str, str]) -> str:
    after, before = named(figures, NAMED["accuracy"]), named(figures, "accuracy, learned from BEFORE")
    if after is None or before is None:
        return f"not measured: {why_not('What a classifier learns', remarks)}."
    return (
        f"a classifier that learned from the outputs has {percent(after.value)} of real images right, from originals "
        f"{percent(before.value)}; the largest class is {percent(after.chance or 0)}."
    )


def faces_left(figures: Sequence[Figure]) -> str:
    seen = named(figures, FACES_FOUND)
    if seen is None:
        return "not measured: needs --detector and --recognizer."
    before = "" if seen.chance is None else f"; in the originals {percent(seen.chance)}"
    return f"a face is found in {percent(seen.value)}{within(seen)} of {seen.count} outputs{before}."


def what_the_key_gives(figures: Sequence[Figure], remarks: dict[str, str]) -> str:
    told = named(figures, NAMED["key"])
    start = "correlation of pixels with the original, "
    others = [named(figures, start + way) for way in ("walked back with other noise", "as published")]
    if told is None or any(one is None for one in others):
        return f"not measured: {why_not('Walked back with the key', remarks, 'needs --key-file')}."
    wrong, published = (one.value for one in others if one is not None)
    return (
        f"walked back with it, pixels correlate {told.value:.2f} with the original, with another key {wrong:.2f}, "
        f"as published {published:.2f}."
    )


def why_not(name: str, remarks: dict[str, str], otherwise: str = "it was left out") -> str:
    return remarks.get(name, otherwise).removeprefix("left out: ").removeprefix("nothing: ")


def named(figures: Sequence[Figure], name: str) -> Figure | None:
    return next((figure for figure in figures if figure.name == name), None)


def percent(share: float) -> str:
    return f"{100 * share:.2g} %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def within(figure: Figure) -> str:
    return "" if figure.low is None or figure.high is None else f" ({100 * figure.low:.0f} to {percent(figure.high)})"


def headlines(figures: Sequence[Figure]) -> dict[str, float | None]:
    """The figures that limits can be set for by a short name; None where not measured."""
    some = [one.figure for one in attackers(figures)[:1]]
    found = {"rank1": some[0] if some else None} | {name: named(figures, whole) for name, whole in NAMED.items()}
    return {name: None if one is None else one.value for name, one in found.items()}


COMPARED = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}
LIMIT = re.compile(r"\s*(.+?)\s*(>=|<=|>|<)\s*([-+0-9.eE]+)\s*$")


@dataclass(frozen=True)
class Limit:
    """A condition on a figure that must not hold. name: a headline, or a figure's whole name (then by any network)."""

    name: str
    sign: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """From `rank1>0.2`; UsageError for anything else."""
        match = LIMIT.match(text)
        try:
            return cls(match[1], match[2], float(match[3]))  # type: ignore[index]
        except (TypeError, ValueError):
            known = ", ".join(HEADLINES)
            raise UsageError(
                f"--fail-if must be a figure, one of > < >= <= and a number, like 'rank1>0.2', got {text!r}: figures "
                f"are {known}, or any name in the JSON"
            ) from None

    def broken_by(self, figures: Sequence[Figure]) -> str:
        """In words, where the condition holds, or the figure was not measured; empty otherwise."""
        values = [headlines(figures).get(self.name)] if self.name in HEADLINES else []
        values += [figure.value for figure in figures if figure.name == self.name]
        measured = [value for value in values if value is not None and not math.isnan(value)]
        if not measured:
            return f"{self.name} was not measured, so the limit {self} cannot be held"
        broken = [value for value in measured if COMPARED[self.sign](value, self.value)]
        return f"{self}: it is {max(broken, key=lambda value: abs(value - self.value)):.4g}" if broken else ""

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.value:g}"
