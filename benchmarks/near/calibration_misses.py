"""How often does a calibration find a strength that misses its target, where the truth is known?

    python -m benchmarks.near.calibration_misses [--calibrations 1000]

Simulated images are found up to a strength of their own; those of one person are correlated. For each number of images,
each target and each place of the crossing: the share of calibrations whose strength misses. No network is called.
"""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any

import numpy as np
import typer
from scipy.stats import norm

from benchmarks.support.common import write_result
from nearfar.audit.calibration import search
from nearfar.audit.targets import Target

SHAPES = ((20, 1), (50, 1), (100, 1), (200, 1), (10, 10), (20, 5))
"""People, and images of each."""
ALIKE, RATES, CROSSINGS, SLOPE = (0.0, 0.3, 0.6), (0.05, 0.1, 0.2, 0.5), (0.1001, 0.1501, 0.2101, 0.26), 14.0


def misses(people: int, shots: int, alike: float, rate: float, crossing: float, calibrations: int) -> dict[str, Any]:
    """Of calibrations for a rate that the expected score falls to at `crossing`."""
    random, groups = np.random.default_rng(0), np.repeat(np.arange(people), shots)
    middle = crossing + np.log(rate / (1 - rate)) / SLOPE

    def expected(at: float) -> float:
        return float(1 / (1 + np.exp(SLOPE * (at - middle))))

    def once() -> float | None:
        shared, own = random.standard_normal((people, 1)), random.standard_normal((people, shots))
        last = norm.cdf(alike**0.5 * shared + (1 - alike) ** 0.5 * own).ravel()
        scored = lambda strengths: {"rank1": {at: (last < expected(at)).astype(float) for at in strengths}}  # noqa: E731
        return search(scored, [Target("rank1", rate)], groups).strength

    strengths = [once() for _ in range(calibrations)]
    missed = [strength is not None and expected(strength) > rate for strength in strengths]
    return {"missed": float(np.mean(missed)), "none": strengths.count(None) / calibrations}


def main(calibrations: Annotated[int, typer.Option(help="Of each kind.")] = 1000) -> None:
    """Simulate, print, and write results/calibration_misses.json."""
    rows = []
    for (people, shots), alike, rate in product(SHAPES, ALIKE, RATES):
        if shots == 1 and alike:
            continue
        for crossing in CROSSINGS:
            row = {"people": people, "shots": shots, "alike": alike, "rate": rate, "crossing": crossing}
            rows.append(row | misses(people, shots, alike, rate, crossing, calibrations))
        worst = max(row["missed"] for row in rows[-len(CROSSINGS) :])
        typer.echo(f"{people} x {shots}, alike {alike}, rate {rate}: at most {worst:.1%} missed")
    typer.echo(f"worst of all {max(row['missed'] for row in rows):.1%}")
    write_result("calibration_misses", {"calibrations": calibrations, "rows": rows})


if __name__ == "__main__":
    typer.run(main)
