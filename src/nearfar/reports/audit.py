"""The audit as one page, and JSON beside it. Pictures are of the originals too: the page is as confidential as they."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from markupsafe import Markup
from matplotlib.figure import Figure as Drawing

from nearfar.audit.answer import answer, attackers
from nearfar.audit.view import View, nearest_originals, similarities
from nearfar.reports.charts import Bar, bars, drawing, plot
from nearfar.reports.page import Report, answers, folded, groups, heading, paragraph, picture, section, table

if TYPE_CHECKING:
    from nearfar.audit.audit import Audit

FIRST, SHOWN, LISTED = 8, 24, 200
"""Pairs at the head of the page, pairs on a sheet, names in a list."""

READING = (
    "Numbers, each with what the same measurement gives where there is nothing to find (chance), and never a verdict. "
    "A re-identification at chance says that this attacker fails with this eye, not that every attacker does. "
    "Intervals are of 95 %. This page shows originals: it is as confidential as they are."
)
WORDS = {"found": "Who is found", "lost": "What was lost", "learned": "What is still learned",
         "faces": "Faces that are left", "key": "What the key gives away"}  # fmt: skip


def write_audit(path: Path, audit: Audit) -> None:
    """The page at `path` and the same numbers beside it as .json, each whole or not at all."""
    report(audit).write(path, audit.content())


def report(audit: Audit) -> Report:
    return Report("Who is still found in these images?").add(
        *first_pairs(audit),
        *attack_chart(audit),
        answers((WORDS[word], text[0].upper() + text[1:]) for word, text in answer(audit)),
        paragraph(READING),
        *sheets(audit),
        *(section(name, figures) for name, figures in audit.sections.items() if figures),
        *(folded(name, paragraph(remark)) for name, remark in audit.remarks.items()),
        folded("Similarities", *drawings(audit)),
        folded("How the outputs were made", *made_by(audit.settings)),
        folded("Files", table(["files", "number"], list(audit.counts.items())), *lists(audit)),
    )


def first_pairs(audit: Audit) -> list[Markup]:
    """A few pairs, from the least changed to the most."""
    order = by_change(audit)
    some = torch.linspace(0, len(order) - 1, min(FIRST, len(order))).round().long().tolist()
    return [pairs_picture(audit, "Originals and outputs, the least changed first", [order[n] for n in some])]


def attack_chart(audit: Audit) -> list[Markup]:
    """A bar for each attacker, the worst first."""
    some = attackers(audit.figures)
    whose = {"own original": "", "same person, another picture": ": another picture of the person"}
    rows = [
        Bar(f"{one}{whose[one.whom]}", one.figure.value, one.figure.low, one.figure.high, one.figure.chance,
            one.untouched)
        for one in some
    ]  # fmt: skip
    return [bars(rows, "Share of outputs that lead back to their original, by attacker.")] if rows else []


def made_by(settings: dict[str, Any]) -> list[Markup]:
    """The settings of the run that made AFTER, as its record has them."""
    if not settings:
        return [paragraph("No record of the run that made AFTER was found beside it.")]
    shown = [(name, json.dumps(value) if isinstance(value, dict | list) else value) for name, value in settings.items()]
    return [paragraph("The record beside AFTER says that it was made so:"), table(["setting", "value"], shown)]


def drawings(audit: Audit) -> list[Markup]:
    """How like outputs are to their own originals and to all others, by each eye."""
    text = "Similarity of outputs to their own originals and to the others: what an attacker has to tell apart."
    drawn = [plot(similarity_plot(view), f"Distributions of similarity by {view.name}") for view in audit.views]
    return [paragraph(text), *drawn]


def similarity_plot(view: View) -> Drawing:
    scores = similarities(view.after, view.before)
    own = view.own
    figure, (axes,) = drawing(8.0, 2.6)
    for name, values, hatch in (("their own original", scores[own], "//"), ("other originals", scores[~own], "")):
        axes.hist(values.numpy(), bins=40, density=True, alpha=0.6, label=name, hatch=hatch)
    axes.set(xlabel=f"minus the distance by {view.name}", ylabel="density")
    axes.legend(fontsize="small")
    return figure


def sheets(audit: Audit) -> list[Markup]:
    """Pairs that changed least and most, and outputs that led back to their originals."""
    order = by_change(audit)
    found = {
        "Those that changed least: most of the original is still there": order[:SHOWN],
        "Those that changed most: most of the original is lost": order[::-1][:SHOWN],
    }
    pairs = [folded(title, pairs_picture(audit, title, numbers)) for title, numbers in found.items()]
    return [*pairs, *(part for view in audit.views for part in led_back(audit, view))]


def by_change(audit: Audit) -> list[int]:
    """Outputs, the least changed first: by perceptual distance where there is one, else by PSNR."""
    keys = [each.get("perceptual", -each["psnr"]) for each in audit.rows]
    return sorted(range(len(keys)), key=keys.__getitem__)


def pairs_picture(audit: Audit, title: str, numbers: Sequence[int]) -> Markup:
    originals, outputs, of = audit.pairs.originals, audit.pairs.outputs, audit.pairs.of.tolist()
    cells = [[originals[of[number]], outputs[number]] for number in numbers]
    return picture(groups(cells, ["original", "output"]), title)


def led_back(audit: Audit, view: View) -> list[Markup]:
    """Outputs whose nearest original is their own, the clearest first, beside the original that comes next."""
    scores, nearest = similarities(view.after, view.before), nearest_originals(view)
    best = scores.gather(1, nearest)
    right = (nearest[:, 0] == view.owner).nonzero()[:, 0]
    if not len(right):
        return []
    margin = (best[:, 0] - best[:, 1])[right]
    chosen = right[margin.argsort(descending=True)][:SHOWN].tolist()
    pairs = audit.pairs
    cells = [[pairs.outputs[n], *(pairs.originals[m] for m in nearest[n].tolist())] for n in chosen]
    title = f"Led back to their originals by {view.name}: {len(right)} of {len(nearest)}"
    return [folded(title, picture(groups(cells, ["output", "nearest: its own", "next"]), title))]


def lists(audit: Audit) -> list[Markup]:
    """Names that had no partner, and files that could not be read."""
    failed = [f"{each.name}: {each.reason}" for each in audit.rejected]
    named = {
        "Originals without an output": audit.pairing.lost,
        "Outputs without an original": audit.pairing.strange,
        "Unreadable files": failed,
    }
    return [part for title, names in named.items() if names for part in listed(title, names)]


def listed(title: str, names: Sequence[str]) -> list[Markup]:
    more = f" and {len(names) - LISTED} more, in the JSON beside this page" if len(names) > LISTED else ""
    return [heading(title), paragraph(", ".join(names[:LISTED]) + more)]
