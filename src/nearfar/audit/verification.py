"""Are these two images one person? Scores of genuine and impostor pairs, and how well a threshold parts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from nearfar.audit.view import View, same_person, share, similarities
from nearfar.metrics.intervals import Figure

FALSE_RATE, REPEATS = 1e-3, 200
"""Share of impostor pairs that a threshold may let pass, and the bootstrap's resamples of people for an interval."""

ACCEPTED = f"true rate at false rate {FALSE_RATE:g}"

Values = Float64[Tensor, " _"]


@dataclass(frozen=True, eq=False)
class PairScores:
    """scores: similarities of pairs. genuine: whether both show the same. group: of each pair, its bootstrap unit (the
    person of the query)."""

    scores: Values
    genuine: Bool[Tensor, " _"]
    group: Tensor

    def ordered(self) -> PairScores:
        """The highest score first."""
        order = self.scores.argsort(descending=True)
        return PairScores(self.scores[order], self.genuine[order], self.group[order])


@dataclass(frozen=True, eq=False)
class Roc:
    """thresholds, descending; at each, the shares of impostor and of genuine pairs that score at least as much."""

    thresholds: Values
    false: Values
    true: Values

    @classmethod
    def of(cls, pairs: PairScores) -> Roc:
        """The curve as scikit-learn's `roc_curve` has it, all points kept."""
        return cls.of_ordered(pairs.ordered(), torch.ones(int(pairs.group.max()) + 1, dtype=torch.float64))

    @classmethod
    def of_ordered(cls, pairs: PairScores, weights: Values) -> Roc:
        """Of pairs in descending order. weights: of each group."""
        scores, genuine, each = pairs.scores, pairs.genuine, weights[pairs.group]
        last = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])
        true, false = ((each * some).cumsum(0)[last] for some in (genuine, ~genuine))
        start = torch.zeros(1, dtype=torch.float64)
        ends = torch.cat([torch.full((1,), torch.inf, dtype=torch.float64), scores[last]])
        return cls(ends, torch.cat([start, false / false[-1]]), torch.cat([start, true / true[-1]]))

    def equal_error(self) -> float:
        """Where as many impostors pass as genuine pairs fail, between two points of the curve on a straight line."""
        excess = self.false - (1 - self.true)
        after = int((excess >= 0).nonzero()[0])
        if after == 0:
            return self.false[0].item()
        part = excess[after - 1] / (excess[after - 1] - excess[after])
        return (self.false[after - 1] + part * (self.false[after] - self.false[after - 1])).item()

    def operating_point(self, false_rate: float = FALSE_RATE) -> tuple[float, float]:
        """The lowest threshold at which no more impostors pass than `false_rate`, and the genuine pairs that pass."""
        place = int((self.false <= false_rate).nonzero()[-1])
        return self.thresholds[place].item(), self.true[place].item()


@dataclass(frozen=True, eq=False)
class Verification:
    """figures, and what a plot needs: pairs with outputs, pairs of untouched images (None without people)."""

    figures: list[Figure]
    pairs: PairScores
    untouched: PairScores | None


def verification(view: View, people: Sequence[object] | None = None) -> Verification:
    """Equal error rate, and genuine pairs accepted at a false rate of 1e-3, with bootstrap intervals over people.

    Genuine are an output and another picture of its person, or its own original where no people are known; impostors
    are an output and an original of somebody else. With people the same is told of untouched images, and how many
    genuine pairs pass at the threshold that was set on untouched images. Random numbers come from a fixed seed.
    """
    known = range(len(view.before)) if people is None else people
    same = same_person(known, len(view.before))
    group = same.int().argmax(1)
    use = torch.ones_like(view.own) if people is None else ~view.own
    pairs = pairs_of(similarities(view.after, view.before), view.whose(known), use, group[view.owner])
    figures = errors("outputs and originals", pairs, view)
    if people is None or not figures:
        return Verification(figures, pairs, None)
    alone = ~torch.eye(len(same), dtype=torch.bool)
    untouched = pairs_of(similarities(view.before, view.before), same, alone, group)
    threshold, _ = Roc.of(untouched).operating_point()
    passed = (pairs.scores[pairs.genuine] >= threshold).double()
    name = "accepted as the same person, at the threshold of untouched images"
    note = f"the threshold lets {FALSE_RATE:g} of untouched impostor pairs pass; pairs are not independent"
    figures.append(share(name, passed, None, view, pairs.group[pairs.genuine], note))
    return Verification(figures + errors("untouched", untouched, view), pairs, untouched)


def pairs_of(scores: Tensor, genuine: Tensor, use: Tensor, group: Tensor) -> PairScores:
    return PairScores(scores[use], genuine[use], group[:, None].expand_as(use)[use])


def errors(name: str, pairs: PairScores, view: View) -> list[Figure]:
    """Equal error rate, true rate at the false rate, and mean distances.

    Of unit vectors a distance is the root of 2 less twice the cosine.
    """
    kinds = {"genuine": pairs.scores[pairs.genuine], "impostor": pairs.scores[~pairs.genuine]}
    genuine, impostors = (len(some) for some in kinds.values())
    if not genuine or not impostors:
        return []
    curve, drawn = Roc.of(pairs), resampled(pairs)
    note = f"{genuine} genuine and {impostors} impostor pairs"
    coarse = "" if impostors * FALSE_RATE >= 10 else f": too few for a false rate of {FALSE_RATE:g}"
    error = interval(curve.equal_error(), [wrong for wrong, _ in drawn])
    accepted = interval(curve.operating_point()[1], [right for _, right in drawn])
    rates = [("equal error rate", error, 0.5, note), (ACCEPTED, accepted, FALSE_RATE, note + coarse)]
    return [
        *(rate(f"{name}, {text}", found, chance, genuine, remark, view) for text, found, chance, remark in rates),
        *(
            Figure(f"{name}, mean distance of {kind} pairs", -some.mean().item(), len(some), network=view.name)
            for kind, some in kinds.items()
        ),
    ]


def resampled(pairs: PairScores) -> list[tuple[float, float]]:
    """Equal error rate and accepted genuine pairs of groups drawn with replacement, many times; one curve at a time."""
    groups = torch.unique(pairs.group)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(groups), (REPEATS, len(groups)), generator=generator)
    weights = torch.zeros(REPEATS, int(groups.max()) + 1, dtype=torch.float64)
    weights.scatter_add_(1, groups[draws], torch.ones_like(draws, dtype=torch.float64))
    ordered = pairs.ordered()
    holding = [torch.unique(pairs.group[some]) for some in (pairs.genuine, ~pairs.genuine)]
    curves = (Roc.of_ordered(ordered, row) for row in weights if all(row[some].any() for some in holding))
    return [(curve.equal_error(), curve.operating_point()[1]) for curve in curves]


def interval(value: float, drawn: list[float]) -> tuple[float, float, float]:
    """The value, and the middle 95 % of what was drawn."""
    low, high = torch.tensor(drawn, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return value, low, high


def rate(name: str, found: tuple[float, float, float], chance: float, count: int, note: str, view: View) -> Figure:
    value, low, high = found
    return Figure(name, value, count, low, high, chance, view.name, note="; ".join(filter(None, (note, view.note))))
