"""A survey as figures and as sections of a page. Pure functions; nothing is kept between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from nearfar.domain.survey import ROUND, SIGNIFICANT, TOLD_APART, CloudStatistics, LevelStatistics, Survey
from nearfar.latents.statistics import MeanStd, RadialSpectrum
from nearfar.reports.charts import drawing, plot
from nearfar.reports.page import answers, folded, heading, paragraph, table

UNSEEN, OWN = "tab:orange", "tab:blue"
SHOWN = 3


def distances_figure(survey: Survey) -> Figure:
    """Norms, pair distances and angles by level, for both clouds; bands: one standard deviation to each side."""
    panels: dict[str, Callable[[CloudStatistics], MeanStd]] = {
        "norm": lambda cloud: cloud.geometry.norm,
        "distance of a pair": lambda cloud: cloud.geometry.distance,
        "angle at the origin (degrees)": lambda cloud: cloud.geometry.origin_angle,
        "angle of a triple (degrees)": lambda cloud: cloud.geometry.triple_angle,
    }
    figure, four = drawing(10.0, 6.0, rows=2, columns=2)
    for axes, (title, value) in zip(four, panels.items(), strict=True):
        band(axes, survey, [value(level.unseen) for level in survey.levels], UNSEEN, "unseen")
        band(axes, survey, [value(level.own) for level in survey.levels], OWN, "the model's own")
        label(axes, survey, title)
    return figure


def spectrum_figure(survey: Survey) -> Figure:
    """Variance of the latents by frequency, over all channels, at a low, a middle and a high level."""
    levels = some_of(survey.levels)
    figure, row = drawing(10.0, 3.5, columns=len(levels))
    for axes in row[1:]:
        axes.sharey(row[0])
    for axes, level in zip(row, levels, strict=True):
        for cloud, color, name in ((level.unseen, UNSEEN, "unseen"), (level.own, OWN, "the model's own")):
            axes.loglog(cloud.spectrum.frequencies[1:], channel_mean(cloud.spectrum)[1:], color=color, label=name)
        axes.set_title(f"strength {level.strength:g}")
        axes.set_xlabel("cycles per image")
    figure.axes[0].set_ylabel("variance of a coefficient")
    figure.axes[0].legend()
    return figure


def separation_figure(survey: Survey) -> Figure:
    """What the proposal rests on: accuracy, center distance, roundness, p-values. Gray: threshold; dotted: proposal."""
    figure, (accuracy, centers, roundness, p_values) = drawing(10.0, 6.0, rows=2, columns=2)
    apart = [level.separation for level in survey.levels]
    curve(accuracy, survey, [one.accuracy for one in apart], TOLD_APART)
    accuracy.set_ylim(0, 1.05)
    curve(centers, survey, [one.quarter_power for one in apart], 1.0)
    centers.set_ylim(bottom=0)
    shapes(roundness, survey)
    for name, values in p_values_of(survey.levels).items():
        curve(p_values, survey, values, SIGNIFICANT, label=name, color=None)
    p_values.set_yscale("log")
    label(accuracy, survey, "accuracy of a linear classifier")
    label(centers, survey, "center distance / separable distance")
    label(roundness, survey, "roundness, shrinkage")
    label(p_values, survey, "p-value")
    return figure


def shapes(axes: Any, survey: Survey) -> None:
    """Roundness of both clouds, and Ledoit and Wolf's intensity, dashed."""
    for cloud, color, name in (("unseen", UNSEEN, "unseen"), ("own", OWN, "the model's own")):
        found = [getattr(level, cloud).geometry for level in survey.levels]
        curve(axes, survey, [shape.roundness for shape in found], ROUND, color=color, label=name)
        curve(axes, survey, [shape.shrinkage for shape in found], ROUND, "--", color=color, label=f"{name}, shrinkage")
    axes.set_ylim(0, 1.05)


def curve(axes: Any, survey: Survey, values: Sequence[float], threshold: float, style: str = "o-", **line: Any) -> None:
    axes.plot([level.strength for level in survey.levels], values, style, **{"color": UNSEEN, **line})
    axes.axhline(threshold, color="gray", lw=1)


def p_values_of(levels: Sequence[LevelStatistics]) -> dict[str, list[float]]:
    """P-values by level; those of permutations end at 0.002, so smaller ones of other tests are shown as 0.001."""
    least = 1e-3
    return {
        "centers differ": [max(level.separation.distance_p, least) for level in levels],
        "classes differ": [max(level.separation.accuracy_p, least) for level in levels],
        "unseen is Gaussian": [max(level.unseen.gaussianity.p, least) for level in levels],
        "own is Gaussian": [max(level.own.gaussianity.p, least) for level in levels],
    }


def band(axes: Any, survey: Survey, values: Sequence[MeanStd], color: str, name: str) -> None:
    strengths = [level.strength for level in survey.levels]
    low, high = [one.mean - one.std for one in values], [one.mean + one.std for one in values]
    axes.plot(strengths, [one.mean for one in values], "o-", color=color, label=name)
    axes.fill_between(strengths, low, high, color=color, alpha=0.2, lw=0)


def label(axes: Any, survey: Survey, title: str) -> None:
    """The title, the axis of strengths, and a dotted line where work is proposed."""
    if survey.proposed is not None:
        axes.axvline(survey.proposed, color="black", ls=":", lw=1)
    axes.set_title(title)
    axes.set_xlabel("strength")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")


def some_of(levels: Sequence[LevelStatistics]) -> list[LevelStatistics]:
    """At most three of the levels, both ends among them."""
    count = min(SHOWN, len(levels))
    last = len(levels) - 1
    return [levels[round(number * last / max(count - 1, 1))] for number in range(count)]


def channel_mean(spectrum: RadialSpectrum) -> list[float]:
    return [sum(column) / len(column) for column in zip(*spectrum.variance, strict=True)]


def survey_sections(survey: Survey) -> list[Markup]:
    """The survey for a page: the proposal and why, what was found at each level, the figures with what they show."""
    return [
        heading("Latents by level"),
        paragraph(proposal(survey)),
        paragraph(
            f"{survey.count} unseen images beside {survey.count} of the model's own domain, inverted in {survey.steps} "
            "steps and one more for each level. A cloud passes as Gaussian if neither the spread of its distances from "
            "the mean nor its leading directions contradict that: not every deviation shows there."
        ),
        plot(separation_figure(survey), "Separability, roundness and p-values by strength"),
        plot(distances_figure(survey), "Norms, distances and angles of both clouds by strength"),
        plot(spectrum_figure(survey), "Variance of the latents by frequency at a few strengths"),
        answers((f"Strength {level.strength:g}", f"{level.verdict}.") for level in survey.levels),
        folded("All figures", table(HEADER, [row(level) for level in survey.levels])),
    ]


def proposal(survey: Survey) -> str:
    level = "none" if survey.proposed is None else f"strength {survey.proposed:g}"
    return f"Level to work at: {level}, because {survey.reason}."


HEADER = (
    *("strength", "time", "sigma", "norm", "own norm", "distance", "own distance", "angle", "own angle"),
    *("round", "own round", "shrinkage", "own shrinkage", "accuracy", "Gaussian p"),
)


def row(level: LevelStatistics) -> tuple[str, ...]:
    unseen, own = level.unseen.geometry, level.own.geometry
    pairs = [
        *(f"{value.mean:.1f}" for value in (unseen.norm, own.norm, unseen.distance, own.distance)),
        *(f"{value.mean:.1f}" for value in (unseen.origin_angle, own.origin_angle)),
        *(f"{value:.3f}" for value in (unseen.roundness, own.roundness, unseen.shrinkage, own.shrinkage)),
    ]
    level_names = (f"{level.strength:g}", f"{level.time:.0f}", f"{level.sigma:.3g}")
    return (*level_names, *pairs, f"{level.separation.accuracy:.2f}", f"{level.unseen.gaussianity.p:.2g}")
