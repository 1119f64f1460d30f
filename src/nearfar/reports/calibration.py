"""The page of a calibration: the curve of every measure with its bounds, the targets, the strength that was found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from nearfar.audit.calibration import Calibration, Curve, Found, isotonic
from nearfar.audit.targets import KINDS, Target
from nearfar.jobs.calibrate import THINNED
from nearfar.reports.charts import drawing, plot
from nearfar.reports.page import Report, answers, folded, groups, heading, paragraph, picture, shown, table


def write_calibration_report(
    path: Path, calibration: Calibration, content: dict[str, Any], along: Sequence[Sequence[Tensor]]
) -> None:
    """The page at `path`, and `content` beside it as JSON. along: rows of images, one at each of `shown_strengths`."""
    strengths = [f"{at:g}" for at in shown_strengths(calibration.found)]
    report = Report("Which strength meets the target").add(
        answers([("Answer", verdict(calibration))]),
        picture(groups(along, strengths, 1), "Some of the images at rising strength"),
    )
    for measure, curve in calibration.found.curves.items():
        smooth = isotonic([point.value for point in curve], KINDS[measure].rises)
        rows = [
            [*map(shown, (at.strength, at.value, at.low, at.high, value)), at.eyes or eyes_of(measure, calibration)]
            for at, value in zip(curve, smooth, strict=True)
        ]
        report.add(
            heading(f"{measure}: {KINDS[measure].words}"),
            plot(curve_figure(measure, curve, calibration), f"{measure} by strength"),
            folded("Figures", table(["strength", "measured", "low", "high", "monotone curve", "seen by"], rows)),
        )
    report.add(paragraph(account(calibration))).write(path, content)


def shown_strengths(found: Found) -> list[float]:
    """Those that were measured, thinned to `THINNED`, and the one that was found."""
    measured, last = sorted({point.strength for curve in found.curves.values() for point in curve}), THINNED - 1
    thin = len(measured) > THINNED
    some = {measured[round(n * (len(measured) - 1) / last)] for n in range(THINNED)} if thin else {*measured}
    return sorted(some if found.strength is None else some | {found.strength})


def eyes_of(measure: str, calibration: Calibration) -> str:
    """The network that a measure is taken with where no other is worse."""
    return str(calibration.measuring.get("attacker" if measure in ("rank1", "similarity") else "content", ""))


def worst_eyes(calibration: Calibration) -> str:
    """Who finds most outputs at the strength that was found; empty where nobody looks, or none was found."""
    points = calibration.found.curves.get("rank1", ())
    there = [at.eyes for at in points if at.strength == calibration.found.strength]
    return (there[0] or eyes_of("rank1", calibration)) if there else ""


def verdict(calibration: Calibration) -> str:
    """What was found, in a sentence."""
    found, asked = calibration.found, calibration.asked
    if found.strength is None:
        reached = "; ".join(limit(target, found) for target in calibration.targets)
        return f"No strength meets {asked} ({reached}). More images would narrow the bounds."
    if found.strength == 0:
        return f"The originals themselves meet {asked}: nothing need be done for it."
    word = "Smallest" if any(target.kind.safe_when_strong for target in calibration.targets) else "Largest"
    by = f" The worst eyes for rank1 there: {eyes}." if (eyes := worst_eyes(calibration)) else ""
    return f"{word} strength that meets {asked}: {found.strength:g}.{by}"


def limit(target: Target, found: Found) -> str:
    """How far one target can be met, or how near the safest strength comes to it."""
    curve, at = found.curves[target.measure], found.limits[str(target)]
    if at is not None:
        return f"{target} {'from' if target.kind.safe_when_strong else 'up to'} {at:g}"
    safest = curve[-1 if target.kind.safe_when_strong else 0]
    bounds = f"{shown(safest.value)}, between {shown(safest.low)} and {shown(safest.high)}"
    return f"{target} nowhere: at strength {safest.strength:g} it is {bounds}"


def account(calibration: Calibration) -> str:
    """What it rests on."""
    measuring, people = calibration.measuring, calibration.measuring["people"]
    looked = "; ".join((measuring["attacker"], *measuring.get("others", ())))
    whose = f" of {people} people, who count as one each" if people else ""
    return (
        f"Measured on {calibration.images} images{whose}, which were also the ones that outputs were searched in; "
        f"similarity through {measuring['attacker']}, rank1 through the worst of {looked}, label and distance through "
        f"{measuring['content']}, at the model's size. Each bound holds with a confidence of "
        f"{calibration.confidence:.0%}, for images like these, these attackers and no others: a stronger one finds "
        f"more. In a smaller sample one is found more easily."
    )


def curve_figure(measure: str, curve: Curve, calibration: Calibration) -> Figure:
    """Measured scores with their bounds, the monotone curve through them, the target and the answer."""
    figure, (axes,) = drawing(8.0, 4.0)
    strengths, values = [point.strength for point in curve], [point.value for point in curve]
    off = [[point.value - point.low for point in curve], [point.high - point.value for point in curve]]
    axes.errorbar(strengths, values, [[max(each, 0) for each in side] for side in off], fmt="o", label="measured")
    axes.plot(strengths, isotonic(values, KINDS[measure].rises), label="monotone curve")
    for target in calibration.targets:
        if target.measure == measure:
            axes.axhline(target.value, color="black", linestyle=":", label=str(target))
    if calibration.found.strength is not None:
        axes.axvline(calibration.found.strength, color="tab:green", label=f"strength {calibration.found.strength:g}")
    axes.set(xlabel="strength", ylabel=measure)
    axes.legend()
    return figure
