"""One measured number, with all that is needed to read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch


@dataclass(frozen=True)
class Figure:
    """A number that was measured, never a verdict.

    name: what it is, in words and with its unit. count: of images or pairs it was measured on.
    low, high: of a 95 % confidence interval, where there is one. chance: what the same measurement gives where there
    is nothing to find. network: whose features it is in. library: that computed it, with its version.
    note: anything else that a reader needs.
    """

    name: str
    value: float
    count: int
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    network: str = ""
    library: str = ""
    note: str = ""


def grouped(figures: Sequence[Figure]) -> dict[str, list[Figure]]:
    """Figures by network, in the order in which they come."""
    found: dict[str, list[Figure]] = {}
    for figure in figures:
        found.setdefault(figure.network, []).append(figure)
    return found


def library() -> str:
    return f"nearfar {version('nearfar')}, torch {torch.__version__}"


def with_library(figures: Sequence[Figure]) -> list[Figure]:
    """Figures that name no library were computed by this package."""
    own = library()
    return [figure if figure.library else replace(figure, library=own) for figure in figures]
