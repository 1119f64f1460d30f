"""The smallest strength that meets a target, with confidence, from the scores of a sample of images.

A score of an output (was it re-identified, how similar is it) rises or falls with strength in expectation. At each
strength the sample gives a mean and one-sided bounds. The strengths of a fixed grid are gone through from the safe end
up to the first whose bound misses the target; between it and the one before, equal parts are gone through in the same
way. If the expected score is monotone, each of the two walks takes a strength that misses the target only if the bound
at the first such strength is wrong (fixed sequence testing): 2 % and 3 %, together 5 %.

Of several eyes the worst counts. A calibration is kept in a file, JSON, for people too: what was measured, with what,
and the strength that came of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.audit.targets import KINDS, Kind, Point, Target, parse_target
from nearfar.errors import UsageError, printable
from nearfar.io.manifest import CONFIDENTIAL, differing, write_whole, writing
from nearfar.metrics.intervals import Groups, Scores, mean_bounds, rate_bounds
from nearfar.structured import checked, json_object, read_text

GRID = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
PARTS, LEAST_IMAGES = 8, 20
GRID_TAIL, PARTS_TAIL = 0.02, 0.03
"""How often a bound may be wrong in the walk over the grid, and in that over the parts between two of its strengths."""
CONFIDENCE = 0.95

BY = " by "
"""Between a measure and the eyes that it is taken with, where there are several."""

ScoresAt = Callable[[Sequence[float]], Mapping[str, Mapping[float, NDArray[np.float64]]]]
"""Strengths -> by measure (and eyes), by strength: one score for each image, at strength 0 of the original itself."""

FORMAT = 2


Curve = tuple[Point, ...]


@dataclass(frozen=True)
class Found:
    """Curves by measure, in the order of strengths, and what they say.

    limits: by target, the smallest strength that meets it, or the largest if only weak outputs meet it; None where none
    does. strength: the smallest that meets all of them, None where there is none.
    """

    curves: Mapping[str, Curve]
    limits: Mapping[str, float | None]
    strength: float | None


def search(
    scores_at: ScoresAt, targets: Sequence[Target], groups: Groups, grid: Sequence[float] = GRID, parts: int = PARTS
) -> Found:
    """Walk over the grid, then over equal `parts` of the interval in which each target begins to be met.

    grid: strengths, ascending. Cost: `scores_at` for the grid, and at most `parts - 1` times for one strength a target.
    Raises UsageError for fewer than 20 images.
    """
    if len(groups) < LEAST_IMAGES:
        raise UsageError(f"a calibration needs at least {LEAST_IMAGES} images, got {len(groups)}: give more")
    curves = with_points({}, scores_at(sorted(grid)), groups, GRID_TAIL)
    ends = {target: crossing(curves[target.measure], target) for target in targets}
    limits = {str(target): met for target, (met, _) in ends.items()}
    for part in range(1, parts):
        wanted = {target: between(met, missed, part / parts) for target, (met, missed) in ends.items()}
        asked = {target: at for target, at in wanted.items() if at is not None}
        scores = scores_at(sorted(set(asked.values()))) if asked else {}
        curves = with_points(curves, scores, groups, PARTS_TAIL)
        passed = {target: at for target, at in asked.items() if target.met_by(point_at(curves[target.measure], at))}
        limits |= {str(target): at for target, at in passed.items()}
        ends = {target: ends[target] for target in passed}
    return Found(curves, limits, smallest(targets, limits))


def with_points(
    curves: Mapping[str, Curve], scores: Mapping[str, Mapping[float, Scores]], groups: Groups, tail: float
) -> dict[str, Curve]:
    """The curves with a point for each strength that was scored."""
    more, seen = dict(curves), dict[tuple[str, float], list[Point]]()
    for view, by_strength in scores.items():
        name, _, eyes = view.partition(BY)
        for at, score in by_strength.items():
            point = replace(estimate(at, score, groups, KINDS[name].rate, tail), eyes=eyes)
            seen.setdefault((name, at), []).append(point)
    for (name, _), points in seen.items():
        new = worst(points, KINDS[name])
        more[name] = tuple(sorted((*more.get(name, ()), new), key=lambda point: point.strength))
    return more


def worst(points: Sequence[Point], kind: Kind) -> Point:
    """By the eyes that are furthest from any target: all of several must pass, so no test is wrong more often."""
    return min(points, key=lambda at: (at.low, at.value) if kind.at_least else (-at.high, -at.value))


def crossing(curve: Curve, target: Target) -> tuple[float | None, float | None]:
    """The last strength that meets the target, seen from the safe end, and the first that does not."""
    ordered = sorted(curve, key=lambda point: point.strength, reverse=target.kind.safe_when_strong)
    met = list(takewhile(target.met_by, ordered))
    missed = ordered[len(met) :]
    return met[-1].strength if met else None, missed[0].strength if missed else None


def between(met: float | None, missed: float | None, share: float) -> float | None:
    """So far on the way from the one to the other; nothing where the target is met everywhere or nowhere."""
    return None if met is None or missed is None else round(met + (missed - met) * share, 6)


def point_at(curve: Curve, strength: float) -> Point:
    return next(point for point in curve if point.strength == strength)


def smallest(targets: Sequence[Target], limits: Mapping[str, float | None]) -> float | None:
    """The smallest strength that meets all targets; the largest that does if none of them asks for strength."""
    found = {target: limits[str(target)] for target in targets}
    floors = [limit for target, limit in found.items() if target.kind.safe_when_strong and limit is not None]
    ceilings = [limit for target, limit in found.items() if not target.kind.safe_when_strong and limit is not None]
    if None in found.values() or (floors and ceilings and max(floors) > min(ceilings)):
        return None
    return max(floors) if floors else min(ceilings)


def estimate(strength: float, scores: Scores, groups: Groups, rate: bool, tail: float) -> Point:
    """Mean score with its bounds, one-sided each and wrong with the probability `tail`."""
    bounds = rate_bounds if rate else mean_bounds
    return Point(strength, float(scores.mean()), *bounds(scores, groups, tail))


def isotonic(values: Iterable[float], rises: bool) -> list[float]:
    """The monotone sequence with the least squared distance, by pooling adjacent violators (Ayer et al., 1955)."""
    sign = 1 if rises else -1
    blocks: list[tuple[float, int]] = []
    for value in values:
        total, count = sign * value, 1
        while blocks and blocks[-1][0] / blocks[-1][1] >= total / count:
            before = blocks.pop()
            total, count = total + before[0], count + before[1]
        blocks.append((total, count))
    return [sign * total / count for total, count in blocks for _ in range(count)]


@dataclass(frozen=True)
class Calibration:
    """method: the model's hash and how it is sampled; a strength means the same only with these. measuring: all else
    that decided the scores. images: in the sample, which rank1 was searched in. digest: of the file."""

    method: Mapping[str, Any]
    measuring: Mapping[str, Any]
    images: int
    confidence: float
    targets: tuple[Target, ...]
    found: Found
    digest: str = ""

    def strength_for(self, method: Mapping[str, Any]) -> float:
        """The strength that was found; UsageError if there is none, or if it was found for another method."""
        for name in differing(self.method, method):
            was, now = (str(each.get(name))[:20] for each in (self.method, method))
            raise UsageError(f"the calibration was made with {name} {was}, not {now}: calibrate again, or use that")
        if self.found.strength is None:
            raise UsageError(f"the calibration found no strength for {self.asked}: calibrate for another target")
        return self.found.strength

    @property
    def asked(self) -> str:
        return " and ".join(str(target) for target in self.targets)


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write it, whole or not at all, readable by the user only."""
    content = {"format": FORMAT, **asdict(calibration)}
    content["targets"] = [f"{target.measure}={target.value!r}" for target in calibration.targets]
    del content["digest"]
    with writing(path):
        write_whole(path, (json.dumps(content, indent=1) + "\n").encode(), CONFIDENTIAL)


@dataclass(frozen=True)
class Saved:
    """What a file holds."""

    method: Mapping[str, Any]
    measuring: Mapping[str, Any]
    images: int
    confidence: float
    targets: tuple[str, ...]
    found: Found


def load_calibration(path: Path) -> Calibration:
    """Read it back; `digest` is the SHA-256 of the file. Raises UsageError for what is none."""
    way = "make it with nearfar calibrate"
    text = read_text(path)
    content = json_object(text, str(path), way)
    if content.get("format") != FORMAT:
        came = printable(str(content.get("format")))
        raise UsageError(f"{path} is no calibration of this version (format {FORMAT}), got {came}: {way}")
    saved = checked(Saved, content, f"the calibration {path}", way)
    targets = tuple(parse_target(target) for target in saved.targets)
    check_found(saved.found, targets, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Calibration(saved.method, saved.measuring, saved.images, saved.confidence, targets, saved.found, digest)


def check_found(found: Found, targets: Sequence[Target], path: Path) -> None:
    """Refuse strengths that are none, curves of other measures, and targets without a limit."""
    points = [point for curve in found.curves.values() for point in curve]
    strengths = [found.strength, *found.limits.values(), *(point.strength for point in points)]
    known = all(name.partition(BY)[0] in KINDS for name in found.curves) and len(found.limits) >= len(targets) > 0
    if not (known and all(0 <= strength <= 1 for strength in strengths if strength is not None)):
        raise UsageError(f"{path} is a calibration that contradicts itself: make it with nearfar calibrate")
