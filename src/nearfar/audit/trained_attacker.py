"""An attacker that has learned what local sampling does, from outputs of other people beside their originals.

For each fold of people he learns from all others and attacks the outputs of the fold, so that nobody who attacks an
output has seen its person. Outputs and originals are centered, each by their own mean, and projected on their principal
axes. There it is learned how the pictures of one person differ: the axes in which outputs still tell people apart
count, others do not. Candidates are told apart by the distance in that metric (the likelihood of a Gaussian difference)
or by the cosine (within-class covariance normalization, Hatch et al., Interspeech 2006).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from nearfar.audit.view import Mask, Scores, View, chance, hits, same_person, share, similarities, unit
from nearfar.errors import UsageError
from nearfar.metrics.intervals import Figure

FOLDS, FEWEST, KINDS = 5, 20, ("distance", "cosine")
"""Parts of the people, the fewest people to learn from, and the attackers."""

MOST_AXES = 100
SETTINGS = tuple(product((30, MOST_AXES), (0.001, 0.03, 0.3)))
"""Principal axes that are kept, and how far the metric is drawn toward the plain one: chosen on people held out."""

Matrix = Float64[Tensor, "_ _"]
Chosen = Bool[Tensor, " originals"]
Numbers = Int64[Tensor, " _"]
Rows = tuple[Numbers, Numbers]
"""Of outputs and of originals that belong together."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """What outputs share, what originals share, principal axes (the last is the first), and on them how the two images
    of each pair differ."""

    after_mean: Float64[Tensor, " _"]
    before_mean: Float64[Tensor, " _"]
    axes: Matrix
    apart: Matrix

    @classmethod
    def of(cls, after: Matrix, before: Matrix, pairs: Rows) -> Lesson:
        """From outputs and originals of one person (`pairs`)."""
        outputs, originals = (torch.unique(some) for some in pairs)
        means = after[outputs].mean(0), before[originals].mean(0)
        axes = principal_axes(torch.cat([after[outputs] - means[0], before[originals] - means[1]]), MOST_AXES)
        apart = ((after - means[0]) @ axes)[pairs[0]] - ((before - means[1]) @ axes)[pairs[1]]
        return cls(*means, axes, apart)

    def metric(self, count: int, shrinkage: float) -> Metric:
        """On at most `count` axes."""
        apart = self.apart[:, -count:]
        moments = apart.T @ apart / len(apart)
        plain = moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
        lengths, turns = torch.linalg.eigh((1 - shrinkage) * moments + shrinkage * plain)
        weights = self.axes[:, -count:] @ turns / lengths.clamp(min=1e-12).sqrt()
        return Metric(self.after_mean, self.before_mean, weights)


@dataclass(frozen=True, eq=False)
class Metric:
    """Outputs and originals in coordinates in which two pictures of one person differ alike in all directions."""

    after_mean: Float64[Tensor, " _"]
    before_mean: Float64[Tensor, " _"]
    weights: Matrix

    def scores(self, after: Matrix, before: Matrix, kind: str) -> Scores:
        queries, candidates = (after - self.after_mean) @ self.weights, (before - self.before_mean) @ self.weights
        if kind == "cosine":
            queries, candidates = unit(queries), unit(candidates)
        return similarities(queries, candidates)


def trained_attack(view: View, people: Sequence[object] | None = None, seed: int = 0) -> list[Figure]:
    """Rank-1 of the trained attackers beside the untrained one, on the same question.

    With people the right candidate is another picture of the output's person and he learns from such pairs; without, it
    is the output's own original. seed: of the folds. No network is called. Raises UsageError for fewer than 20 people.
    """
    if (count := view.teachers(people)) < FEWEST:
        text = f"an attacker learns from at least {FEWEST} people, got {count}: give more images"
        raise UsageError(text + ("" if people is None else " of each"))
    attackers = {"untrained": similarities(view.after, view.before), **trained_scores(view, people, seed)}
    right, allowed = view.question(people)
    asked = "own original" if people is None else "same person, another picture"
    guess, group = chance(right, 1, allowed), view.groups(people)
    return [
        share(f"re-identified, {asked}, rank 1, {name} attacker", hits(scores, right, 1, allowed), guess, view, group)
        for name, scores in attackers.items()
    ]


def trained_scores(view: View, people: Sequence[object] | None = None, seed: int = 0) -> dict[str, Scores]:
    """Scores of every output against every original, each by an attacker who learned from other people."""
    before, after = view.before.double(), view.after.double()
    folds = folds_of(list(range(len(before))) if people is None else people, len(before), seed)
    right, _ = view.question(people)
    found = {f"trained ({kind})": torch.zeros(len(after), len(before), dtype=torch.float64) for kind in KINDS}
    for fold in range(FOLDS):
        learning, inner = folds != fold, folds == (fold + 1) % FOLDS
        attacked = ~learning[view.owner]
        if not attacked.any():
            continue
        chosen = choose(view, right, learning & ~inner, inner)
        lesson = Lesson.of(after, before, pairs_among(right, view.owner, learning))
        for kind, setting in chosen.items():
            found[f"trained ({kind})"][attacked] = lesson.metric(*setting).scores(after[attacked], before, kind)
    return found


def choose(view: View, right: Mask, learning: Chosen, inner: Chosen) -> dict[str, tuple[int, float]]:
    """For each attacker the settings that find most of the people held out, among themselves."""
    before, after = view.before.double(), view.after.double()
    lesson, asked = Lesson.of(after, before, pairs_among(right, view.owner, learning)), inner[view.owner]
    metrics = {setting: lesson.metric(*setting) for setting in SETTINGS}
    answer = right[asked][:, inner]
    allowed = answer | ~view.own[asked][:, inner]

    def rate(setting: tuple[int, float], kind: str) -> float:
        scores = metrics[setting].scores(after[asked], before[inner], kind)
        return hits(scores, answer, 1, allowed).nanmean().item()

    return {kind: max(SETTINGS, key=partial(rate, kind=kind)) for kind in KINDS}


def pairs_among(right: Mask, owner: Numbers, some: Chosen) -> Rows:
    """The pairs of which both images belong to some of the originals."""
    outputs, originals = (right & some[owner][:, None] & some).nonzero(as_tuple=True)
    return outputs, originals


def folds_of(people: Sequence[object], count: int, seed: int) -> Numbers:
    """The fold of each original; all pictures of a person are in one."""
    kinds, whose = torch.unique(same_person(people, count).int().argmax(1), return_inverse=True)
    return (torch.randperm(len(kinds), generator=torch.Generator().manual_seed(seed)) % FOLDS)[whose]


def principal_axes(centered: Matrix, count: int) -> Matrix:
    """The first principal axes as columns of unit length, through the smaller of the two Gram matrices."""
    small = centered.T @ centered if centered.shape[1] <= len(centered) else centered @ centered.T
    lengths, places = torch.linalg.eigh(small)
    if len(small) == centered.shape[1]:
        return torch.as_tensor(places[:, -count:])
    kept = int((lengths[-count:] > 1e-9 * lengths[-1]).sum())
    return torch.as_tensor(centered.T @ places[:, -kept:] / lengths[-kept:].sqrt())
