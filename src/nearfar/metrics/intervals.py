"""Measured numbers, and confidence intervals of means over images: those that belong together count as fewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float64, Int

NORMAL = NormalDist().inv_cdf(0.975)
"""Of a 95 % interval with both ends."""

Scores = Float64[np.ndarray, " images"]
Groups = Int[np.ndarray, " images"]
"""Images that belong together (of one person, say) have one number."""


def wilson(rate: float, count: float | int, normal: float = NORMAL) -> tuple[float, float]:
    """Wilson's interval (JASA 22, 1927) of a rate of `count` independent trials; [0, 1] for none."""
    if count == 0:
        return 0.0, 1.0
    weight = normal**2 / count
    center = (rate + weight / 2) / (1 + weight)
    reach = normal / (1 + weight) * (rate * (1 - rate) / count + weight / (4 * count)) ** 0.5
    return 0.0 if rate == 0 else max(center - reach, 0.0), 1.0 if rate == 1 else min(center + reach, 1.0)


def independent(scores: Scores, groups: Groups) -> float:
    """How many independent images tell as much of the mean of scores in [0, 1] (Kish, Survey Sampling, 1965, 8.2).

    The variance of one trial over that of the mean, as the groups show it; as many as there are groups where all scores
    are equal, which does not say how alike a group's images are.
    """
    sums, counts = totals(scores, groups)
    if len(counts) in (0, 1, len(scores)) or np.ptp(scores) == 0:
        return float(len(counts))
    rate = float(scores.mean())
    between = float(np.square(sums - rate * counts).sum()) * len(counts) / (len(counts) - 1) / len(scores) ** 2
    return rate * (1 - rate) / max(between, rate * (1 - rate) / len(scores))


def rate_bounds(scores: Scores, groups: Groups, tail: float) -> tuple[float, float]:
    """One-sided bounds of a rate, each wrong with this probability at most: Clopper and Pearson's for `independent`.

    These are fewer still by how much wider Student's t is for the groups than for the images (Korn and Graubard, Survey
    Methodology 24, 1998). Of one group nothing is known: [0, 1].
    """
    from scipy.special import betaincinv, stdtrit

    among = len(np.unique(groups))
    if among < 2:
        return 0.0, 1.0
    fewer = (stdtrit(len(scores) - 1, tail) / stdtrit(among - 1, tail)) ** 2
    count = independent(scores, groups) * fewer
    right = float(scores.mean()) * count
    low = 0.0 if right == 0 else float(betaincinv(right, count - right + 1, tail))
    return low, 1.0 if right == count else float(betaincinv(right + 1, count - right, 1 - tail))


def mean_bounds(scores: Scores, groups: Groups, tail: float) -> tuple[float, float]:
    """One-sided bounds of a mean by Student's t over groups, each wrong with about this probability."""
    from scipy.special import stdtrit

    sums, counts = totals(scores, groups)
    if len(sums) < 2:
        return -np.inf, np.inf
    value, among = float(scores.mean()), len(sums)
    error = float(np.square(sums - value * counts).sum() * among / (among - 1)) ** 0.5 / len(scores)
    reach = float(stdtrit(among - 1, 1 - tail)) * error
    return value - reach, value + reach


def bootstrap(scores: Scores, groups: Groups, tail: float, resamples: int) -> tuple[float, float]:
    """Percentile bounds of a mean, each with this tail, over resamples of the groups (Efron, 1979); always the same."""
    sums, counts = totals(scores, groups)
    drawn = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), resamples)
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), (tail, 1 - tail))
    return float(low), float(high)


def totals(scores: Scores, groups: Groups) -> tuple[Float64[np.ndarray, " groups"], Float64[np.ndarray, " groups"]]:
    """Sum of the scores and number of the images of each group."""
    _, places = np.unique(groups, return_inverse=True)
    return np.bincount(places, scores).astype(float), np.bincount(places).astype(float)


@cache
def own_library() -> str:
    return f"nearfar {version('nearfar')}, torch {torch.__version__}"


@dataclass(frozen=True)
class Figure:
    """A number that was measured, never a verdict.

    name: what it is, in words and with its unit. count: of images or pairs it was measured on.
    low, high: of a 95 % confidence interval, where there is one. chance: what the same measurement gives where there
    is nothing to find. network: whose features it is in. library: that computed it, with its version, this package
    unless given. note: anything else that a reader needs.
    """

    name: str
    value: float
    count: int
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    network: str = ""
    library: str = field(default_factory=own_library)
    note: str = ""


def grouped(figures: Sequence[Figure]) -> dict[str, list[Figure]]:
    """Figures by network, in the order in which they come."""
    found: dict[str, list[Figure]] = {}
    for figure in figures:
        found.setdefault(figure.network, []).append(figure)
    return found
