"""The audit as one page, and JSON beside it. Pictures are of the originals too: the page is as confidential as they."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure as Drawing

from nearfar.audit.view import View, nearest_originals, similarities
from nearfar.reports.page import Report, groups, heading, paragraph, picture, plot, section, table

if TYPE_CHECKING:
    from nearfar.audit.audit import Audit

SHOWN, LISTED = 24, 200
"""Pairs on a sheet, names in a list."""

READING = (
    "Numbers, each with what the same measurement gives where there is nothing to find (chance). A re-identification "
    "at chance says that this attacker fails with this eye, not that every attacker does. Intervals are of 95 %."
)


def write_audit(path: Path, audit: Audit) -> None:
    """The page at `path` and the same numbers beside it as .json, each whole or not at all."""
    report(audit).write(path, audit.content())


def report(audit: Audit) -> Report:
    return Report("What was lost and what is still there").add(
        paragraph(READING),
        *made_by(audit.settings),
        table(["files", "number"], list(audit.counts.items())),
        *(part for name, figures in audit.sections.items() if figures for part in section(name, figures)),
        *(part for name, remark in audit.remarks.items() for part in (heading(name), paragraph(remark))),
        *drawings(audit),
        *sheets(audit),
        *lists(audit),
    )


def made_by(settings: dict[str, Any]) -> list[str]:
    """The settings of the run that made AFTER, as its record has them."""
    if not settings:
        return [paragraph("No record of the run that made AFTER was found beside it.")]
    shown = [(name, json.dumps(value) if isinstance(value, dict | list) else value) for name, value in settings.items()]
    return [paragraph("The record beside AFTER says that it was made so:"), table(["setting", "value"], shown)]


def drawings(audit: Audit) -> list[str]:
    """How like outputs are to their own originals and to all others, by each eye."""
    text = "Similarity of outputs to their own originals and to the others: what an attacker has to tell apart."
    drawn = [plot(similarity_plot(view), f"Distributions of similarity by {view.name}") for view in audit.views]
    return [heading("Similarities"), paragraph(text), *drawn]


def similarity_plot(view: View) -> Drawing:
    scores = similarities(view.after, view.before)
    own = view.own
    figure = Drawing(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    for name, values in (("their own original", scores[own]), ("other originals", scores[~own])):
        axes.hist(values.numpy(), bins=40, density=True, alpha=0.6, label=name)
    axes.set(xlabel=f"minus the distance by {view.name}", ylabel="density")
    axes.legend(fontsize="small")
    return figure


def sheets(audit: Audit) -> list[str]:
    """Some pairs, those that changed most and least, and outputs that led back to their originals."""
    order = by_change(audit)
    some = torch.linspace(0, len(order) - 1, min(SHOWN, len(order))).long().tolist()
    found = [
        *pairs_sheet(audit, "Pairs, by how much they changed", [order[n] for n in some]),
        *pairs_sheet(audit, "Those that changed least: most of the original is still there", order[:SHOWN]),
        *pairs_sheet(audit, "Those that changed most: most of the original is lost", order[::-1][:SHOWN]),
    ]
    return [*found, *(part for view in audit.views for part in led_back(audit, view))]


def by_change(audit: Audit) -> list[int]:
    """Outputs, the least changed first: by perceptual distance where there is one, else by PSNR."""
    keys = [each.get("perceptual", -each["psnr"]) for each in audit.rows]
    return sorted(range(len(keys)), key=keys.__getitem__)


def pairs_sheet(audit: Audit, title: str, numbers: Sequence[int]) -> list[str]:
    originals, outputs, of = audit.pairs.originals, audit.pairs.outputs, audit.pairs.of.tolist()
    cells = [[originals[of[number]], outputs[number]] for number in numbers]
    return [heading(title), picture(groups(cells, ["original", "output"]), title)]


def led_back(audit: Audit, view: View) -> list[str]:
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
    return [heading(title), picture(groups(cells, ["output", "nearest: its own", "next"]), title)]


def lists(audit: Audit) -> list[str]:
    """Names that had no partner, and files that could not be read."""
    failed = [f"{each.name}: {each.reason}" for each in audit.rejected]
    named = {
        "Originals without an output": audit.pairing.lost,
        "Outputs without an original": audit.pairing.strange,
        "Unreadable files": failed,
    }
    return [part for title, names in named.items() if names for part in listed(title, names)]


def listed(title: str, names: Sequence[str]) -> list[str]:
    more = f" and {len(names) - LISTED} more, in the JSON beside this page" if len(names) > LISTED else ""
    return [heading(title), paragraph(", ".join(names[:LISTED]) + more)]
