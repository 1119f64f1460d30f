"""The report of `nearfar evolve`: what was promised, what came of it, and how the candidates changed.

Everything on it is made of noisy votes, so it may be shown to whoever may see the outputs: no private image is in it,
nor any figure of them. The page of an attack shows private images, and is for their owner alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor

from nearfar.audit.synthetic import Attacked
from nearfar.errors import ImageError
from nearfar.evolution.accounting import epsilon_of, rate_of
from nearfar.evolution.population import Evolution, Round, weights_of
from nearfar.io.fitting import from_8_bit
from nearfar.io.stacks import read_sample, sample_names
from nearfar.jobs.evolve import Evolved, Evolving
from nearfar.metrics.intervals import Figure
from nearfar.reports.page import (
    Report,
    answers,
    folded,
    groups,
    heading,
    paragraph,
    picture,
    records_of,
    shown,
    table,
)

SHOWN, ABREAST, OF_A_ROUND, PAIRS_ABREAST, CELL = 32, 8, 8, 4, 80
"""Outputs of a class on the sheet and in a row of it, most wanted candidates of a round, pairs in a row, pixels."""

MEANING = (
    "Epsilon: whatever somebody concludes from these images, it would be nearly as likely without any one {one}: the "
    "odds differ by a factor of exp(epsilon) at most. Delta: the chance that this fails."
)
ASSUMED = [
    "The frozen model and the network that votes have never seen the private images.",
    "Two private folders are neighbors if they differ by one {one}; near copies of it in others count by themselves.",
    "The number of images, the names of the classes and all options are public.",
    "The private images were not looked at to choose options.",
]


def write_evolution_report(path: Path, work: Evolving, done: Evolved) -> dict[str, Any]:
    """The page, and JSON beside it; returns what is in that."""
    content = evolution_content(work, done)
    evolution_report(work, done, content).write(path, content)
    return content


def evolution_content(work: Evolving, done: Evolved) -> dict[str, Any]:
    """For machines: the settings, what they promise, and of each round how many candidates have votes."""
    evolution = work.evolution
    return {
        "settings": work.job.settings,
        "promise": promise(evolution),
        "classes": {name: [votes_of(one, evolution) for one in rounds] for name, rounds in done.rounds.items()},
    }


def promise(evolution: Evolution) -> dict[str, Any]:
    """What all rounds cost together; nothing where no noise is."""
    if evolution.epsilon == inf:
        return {"epsilon": None, "delta": None, "mu": None, "deviation": 0.0}
    return {
        "epsilon": epsilon_of(evolution.deviation, evolution.rounds, evolution.delta),
        "delta": evolution.delta,
        "mu": rate_of(evolution.deviation, evolution.rounds),
        "deviation": evolution.deviation,
    }


def votes_of(one: Round, evolution: Evolution) -> dict[str, float | int]:
    """Of a round: the strength after it, candidates with weight, and how many equal ones would weigh as much."""
    weights = weights_of(one.votes, evolution)
    return {
        "round": one.number,
        "strength": evolution.strength(one.number),
        "wanted": int((weights > 0).sum()),
        "effective": float(1 / weights.square().sum()),
    }


def evolution_report(work: Evolving, done: Evolved, content: dict[str, Any]) -> Report:
    one = "person" if work.grouping == "persons" else "image"
    return Report("A synthetic data set").add(
        answers(lines(work, content["promise"], one)),
        *(part for name in work.classes for part in sheet(work, name)),
        heading("How the candidates changed"),
        paragraph("The candidates with most votes of each round, the first one on top; all of them are synthetic."),
        *(part for name in work.classes for part in rounds_sheet(done.rounds[name], name)),
        folded("What is assumed", *(paragraph(text.format(one=one)) for text in ASSUMED)),
        folded("The rounds", *tables(content["classes"])),
    )


def lines(work: Evolving, promised: dict[str, Any], one: str) -> list[tuple[str, str]]:
    """What the page is opened for."""
    evolution, made = work.evolution, len(records_of(work.out, list(work.parents)))
    if promised["epsilon"] is None:
        return [("made", f"{made} images"), ("promise", "nothing: votes without noise")]
    noise = f"{evolution.rounds} rounds of votes, each with noise of deviation {promised['deviation']:g}"
    return [
        ("made", f"{made} images of {work.model.provenance.source}"),
        ("promise", f"epsilon {shown(promised['epsilon'])} at delta {promised['delta']:g} for each {one}"),
        ("meaning", MEANING.format(one=one)),
        ("by", f"{noise}: mu = {shown(promised['mu'])} in all"),
    ]


def sheet(work: Evolving, name: str) -> Iterator[Markup]:
    """Outputs of a class."""
    share = work.evolution.shares(len(work.classes))[list(work.classes).index(name)]
    files = [f"{name}/{file}" if name else file for file in sample_names(min(share, SHOWN), 1, ".png")]
    yield heading(name or "Some of them")
    yield picture(groups([[image] for image in read_again(work.out, files)], [""], ABREAST, CELL), f"Outputs {name}")


def read_again(out: Path, files: Sequence[str]) -> Iterator[Tensor]:
    """Outputs (channel, row, column) in [-1, 1] from their files; what cannot be read again is left out."""
    for file in files:
        with suppress(ImageError, OSError):
            yield read_sample(out / file)


def rounds_sheet(rounds: Sequence[Round], name: str) -> Iterator[Markup]:
    """The most wanted candidates, a row for each round."""
    if name:
        yield paragraph(name)
    images = [[from_8_bit(one.population[place])] for one in rounds for place in most_wanted(one)]
    yield picture(groups(images, [""], len(most_wanted(rounds[0])), CELL), f"Candidates {name}")


def most_wanted(one: Round) -> list[int]:
    places = sorted(range(len(one.votes)), key=lambda place: -one.votes[place])
    return places[:OF_A_ROUND]


def tables(classes: dict[str, Sequence[dict[str, float | int]]]) -> Iterator[Markup]:
    for name, rounds in classes.items():
        rows = [[one["round"], shown(one["strength"]), one["wanted"], shown(one["effective"])] for one in rounds]
        if name:
            yield paragraph(name)
        yield table(["round", "strength after it", "candidates with weight", "as many equal ones"], rows)


def write_attack_report(path: Path, work: Evolving, found: Attacked) -> dict[str, Any]:
    """A page for the owner alone: private images beside what is nearest to them; JSON beside it, and returned."""
    content = {"settings": work.job.settings, "figures": [asdict(figure) for figure in found.figures]}
    Report("A synthetic data set under attack").add(
        answers([(figure.name, interval(figure)) for figure in found.figures]),
        paragraph("This page shows private images: keep it to yourself."),
        picture(
            groups(found.nearest, ["synthetic", "private"], PAIRS_ABREAST, CELL),
            "Synthetic images beside the private ones that they are nearest to, the nearest first",
        ),
        folded("What is measured", *(paragraph(f"{figure.name}: {figure.note}.") for figure in found.figures)),
    ).write(path, content)
    return content


def interval(figure: Figure) -> str:
    """A figure in a sentence."""
    bounds = [shown(bound) for bound in (figure.low, figure.high) if bound is not None]
    reach = f" ({' to '.join(bounds)})" if bounds else ""
    chance = f"; {shown(figure.chance)} where there is nothing to find" if figure.chance is not None else ""
    return f"{shown(figure.value)}{reach} of {figure.count}{chance}"
