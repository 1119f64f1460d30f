"""Whose image is it? The attacker holds the originals and takes the candidate nearest to each output."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nearfar.audit.figure import Figure
from nearfar.audit.view import Mask, Numbers, Scores, Vectors, View, chance, hits, same_person, share, similarities

PLACES = (1, 5)


def reidentification(view: View, people: Sequence[object] | None = None) -> list[Figure]:
    """How often each output leads back, at rank 1 and 5, with Wilson intervals and what guessing gives.

    Own original: the candidates are all originals, the right one is that which the output was made from. With people:
    the candidates are all other originals, right is any other picture of that person; untouched queries give the upper
    end of what this eye can do. With `view.others`: the candidates are its own original and pictures of other people.
    Nothing is random and no network is called.
    """
    scores, group = similarities(view.after, view.before), view.groups(people)
    figures = ranked("own original", scores, view.own, None, view, group)
    if people is not None:
        figures += ranked("same person, another picture", scores, view.whose(people), ~view.own, view, group)
        same = same_person(people, len(view.before))
        untouched = similarities(view.before, view.before)
        alone, whose = ~torch.eye(len(same), dtype=torch.bool), same.int().argmax(1)
        figures += ranked("untouched: same person, another picture", untouched, same, alone, view, whose)
    if view.others is not None:
        figures += ranked("own original among others", *among_others(view, view.others), None, view, group)
    return figures


def ranked(
    name: str,
    scores: Scores,
    right: Mask,
    allowed: Mask | None,
    view: View,
    group: Numbers,
    found: str = "re-identified",
) -> list[Figure]:
    """The share found at each rank; nothing if no query has a right candidate. group: of each query, its person."""
    if not (right if allowed is None else right & allowed).any():
        return []
    return [
        share(f"{found}, {name}, rank {places}", hits(scores, right, places, allowed), by_chance, view, group)
        for places in PLACES
        for by_chance in [chance(right, places, allowed)]
    ]


def among_others(view: View, others: Vectors) -> tuple[Scores, Mask]:
    """Scores of each output's own original (first) and of the pictures of other people, and which of them is right."""
    own = -(view.after.double() - view.before.double()[view.owner]).norm(dim=1, keepdim=True)
    scores = torch.cat([own, similarities(view.after, others)], dim=1)
    right = torch.zeros_like(scores, dtype=torch.bool)
    right[:, 0] = True
    return scores, right
