"""What several outputs tell together: of one person, and of one original."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nearfar.audit.figure import Figure
from nearfar.audit.reidentification import ranked
from nearfar.audit.view import Numbers, Rows, View, hits, share, similarities


def linkage(view: View, people: Sequence[object] | None = None) -> list[Figure]:
    """How often the output nearest to an output is of the same original, and of another picture of the same person.

    Outputs of one original are linked where there are several of them. Nothing is random.
    """
    scores, group = similarities(view.after, view.after), view.groups(people)
    siblings = view.owner[:, None] == view.owner
    others = ~torch.eye(len(siblings), dtype=torch.bool)
    figures = []
    if (siblings & others).any():
        figures += ranked("output to output, same original", scores, siblings, others, view, group, "linked")
    if people is not None:
        same = view.whose(people)[:, view.owner]
        figures += ranked(
            "output to output, same person, another picture", scores, same, ~siblings, view, group, "linked"
        )
    return figures


def averaging(view: View, combined: Sequence[View]) -> list[Figure]:
    """Rank-1 of the average of several outputs of one original, beside that of one output.

    view: with several outputs of each original, averaged as vectors. combined: views of images that were averaged as
    images and looked at afterward, one output for each original.
    """
    found, counts = dict[str, tuple[Rows, Numbers]](), view.owner.bincount(minlength=len(view.before))
    sums = torch.zeros_like(view.before, dtype=torch.float64).index_add_(0, view.owner, view.after.double())
    used = counts > 0
    means = sums[used] / counts[used][:, None]
    numbers = torch.arange(len(view.before))
    own = used.nonzero() == numbers
    found["one output"] = hits(similarities(view.after, view.before), view.own, 1), view.owner
    averages = f"vectors of {counts.max()} outputs averaged"
    found[averages] = hits(similarities(means, view.before), own, 1), numbers[used]
    for each in combined:
        found[f"{each.name}, images averaged"] = hits(similarities(each.after, each.before), each.own, 1), each.owner
    guess = 1 / len(view.before)
    return [
        share(f"re-identified, own original, rank 1, {name}", hit, guess, view, group)
        for name, (hit, group) in found.items()
    ]
