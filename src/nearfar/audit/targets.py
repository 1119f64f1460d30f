"""What a calibration aims at, as it is typed: loads nothing that computes."""

from __future__ import annotations

from dataclasses import dataclass

from nearfar.errors import UsageError


@dataclass(frozen=True)
class Point:
    """The score at one strength. low, high: bounds, each wrong with at most 2 % on the grid and 3 % between.

    eyes: who saw it so, the worst of several; empty for the calibration's attacker.
    """

    strength: float
    value: float
    low: float
    high: float
    eyes: str = ""


@dataclass(frozen=True)
class Kind:
    """What can be asked of a measure. rate: its scores are 0 or 1. at_least: the target is a floor, not a ceiling.
    rises: with strength. chance: its value where nothing of the image is left, in words."""

    words: str
    rate: bool
    at_least: bool
    rises: bool

    @property
    def safe_when_strong(self) -> bool:
        """Whether it is strong enough outputs that meet the target, and not weak enough ones."""
        return self.at_least == self.rises


KINDS = {
    "rank1": Kind("share of outputs that are re-identified", rate=True, at_least=False, rises=False),
    "similarity": Kind("mean cosine of an output and its original", rate=False, at_least=False, rises=False),
    "label": Kind("share of outputs that keep their label", rate=True, at_least=True, rises=False),
    "distance": Kind("mean perceptual distance from an output to its original", rate=False, at_least=True, rises=True),
}


@dataclass(frozen=True)
class Target:
    """What the mean score of a measure shall be: at most `value`, or at least, as its kind has it."""

    measure: str
    value: float

    @property
    def kind(self) -> Kind:
        return KINDS[self.measure]

    def met_by(self, point: Point) -> bool:
        return point.low >= self.value if self.kind.at_least else point.high <= self.value

    def __str__(self) -> str:
        return f"{self.measure} at {'least' if self.kind.at_least else 'most'} {self.value:g}"


def parse_target(text: str) -> Target:
    """`rank1=0.05` and the like; UsageError for what is none."""
    name, given, number = text.partition("=")
    if name not in KINDS:
        raise UsageError(f"target must be one of {', '.join(KINDS)} with a value, like rank1=0.05, got {text!r}")
    if not given:
        raise UsageError(f"target {name} needs a value, like {name}=0.05")
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    least, most = (0, 1) if KINDS[name].rate else (0, 2) if KINDS[name].rises else (-1, 1)
    if not least <= value <= most:
        raise UsageError(f"the target's value must be in [{least}, {most}] for {name}, got {number!r}")
    return Target(name, value)
