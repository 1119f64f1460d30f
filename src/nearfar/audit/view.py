"""What an attacker sees of originals and outputs, and how often the candidate nearest to an output is the right one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Bool, Float64, Int64, Shaped
from torch import Tensor

from nearfar.errors import UsageError
from nearfar.metrics.intervals import Figure, independent, wilson

Vectors = Shaped[Tensor, "_ _"]
Scores = Float64[Tensor, "queries candidates"]
Mask = Bool[Tensor, "queries candidates"]
Rows = Float64[Tensor, " queries"]
Numbers = Int64[Tensor, " queries"]

PLACES = (1, 5)
"""Ranks at which re-identification and linkage are measured."""


@dataclass(frozen=True, eq=False)
class View:
    """Images as vectors; the nearer in Euclidean distance, the more alike.

    name: of the eye: "pixels", or the network. before: the originals. after: the outputs. others: images of other
    people that were not among the originals. note: such as how often no face was found. of: the number of each
    output's original; output i was made from original i unless given. missed: in how many originals and outputs no
    face was found, where faces were looked for. Vectors of networks should have unit length
    (`View.of_network`), which makes the distance a cosine.
    """

    name: str
    before: Vectors
    after: Vectors
    others: Vectors | None = None
    note: str = ""
    of: Int64[Tensor, " outputs"] | None = None
    missed: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.before.shape[1] != self.after.shape[1] or len(self.before) < 2 or len(self.after) != len(self.owner):
            shapes = f"{tuple(self.before.shape)} and {tuple(self.after.shape)}"
            raise UsageError(f"an attack needs at least 2 originals and vectors of one length, got {shapes}")

    @classmethod
    def of_network(
        cls,
        name: str,
        before: Vectors,
        after: Vectors,
        others: Vectors | None = None,
        note: str = "",
        of: Int64[Tensor, " outputs"] | None = None,
    ) -> View:
        """Features of a network, brought to unit length."""
        return cls(name, unit(before), unit(after), None if others is None else unit(others), note, of)

    @property
    def owner(self) -> Int64[Tensor, " outputs"]:
        """The number of each output's original."""
        return torch.arange(len(self.before)) if self.of is None else self.of

    @property
    def own(self) -> Mask:
        """Which original each output was made from."""
        return self.owner[:, None] == torch.arange(len(self.before))

    def groups(self, people: Sequence[object] | None) -> Int64[Tensor, " outputs"]:
        """The number of each output's person, or of its original where people are not known."""
        return self.owner if people is None else self.whose(people).int().argmax(1)

    def whose(self, people: Sequence[object]) -> Mask:
        """Which originals show the person of each output. people: one for each original."""
        return same_person(people, len(self.before))[self.owner]

    def question(self, people: Sequence[object] | None) -> tuple[Mask, Mask]:
        """Which candidates are right for each output, and which are asked at all: with people, not its own original."""
        if people is None:
            return self.own, torch.ones_like(self.own)
        return self.whose(people) & ~self.own, ~self.own

    def teachers(self, people: Sequence[object] | None) -> int:
        """How many people have an output and a right candidate for it, so that an attacker can learn from them."""
        right, _ = self.question(people)
        return len(torch.unique(self.groups(people)[right.any(1)]))


def unit(vectors: Vectors) -> Float64[Tensor, "_ _"]:
    return torch.nn.functional.normalize(vectors.double(), dim=1)


def pixels(images: Shaped[Tensor, "images channel height width"]) -> Float64[Tensor, "_ _"]:
    """Images as vectors, scaled so that a distance is a root mean square difference."""
    flat = images.double().flatten(1)
    return flat / sqrt(flat.shape[1])


def similarities(queries: Vectors, candidates: Vectors) -> Scores:
    """Minus the distance of every pair."""
    exact = "donot_use_mm_for_euclid_dist"
    return -torch.cdist(queries.double(), candidates.double(), compute_mode=exact)


def same_person(people: Sequence[object], count: int) -> Mask:
    """Whether two images show one person."""
    if len(people) != count:
        raise UsageError(f"people must name one person for each of {count} originals, got {len(people)}")
    numbers = {person: number for number, person in enumerate(dict.fromkeys(people))}
    whose = torch.tensor([numbers[person] for person in people])
    return whose[:, None] == whose


def hits(scores: Scores, right: Mask, places: int, allowed: Mask | None = None) -> Rows:
    """For each query, the probability that a right candidate is among the first; candidates that tie are shuffled.

    allowed: which candidates are asked at all. A query without a right candidate gives nan.
    """
    allowed = torch.ones_like(right) if allowed is None else allowed
    best = scores.masked_fill(~(right & allowed), -torch.inf).amax(1, keepdim=True)
    wrong = allowed & ~right
    ahead = (wrong & (scores > best)).sum(1)
    ties = (wrong & (scores == best)).sum(1)
    probability = ((places - ahead) / (ties + 1.0).double()).clamp(0, 1)
    return probability.where((right & allowed).any(1), torch.nan)


def chance(right: Mask, places: int, allowed: Mask | None = None) -> float:
    """The mean probability that a right candidate is among the first ones of a shuffled list (hypergeometric)."""
    allowed = torch.ones_like(right) if allowed is None else allowed
    good, every = (some.sum(1).double() for some in (right & allowed, allowed))
    missed = torch.ones_like(good)
    for place in range(places):
        missed *= ((every - good - place) / (every - place).clamp(min=1)).clamp(0, 1)
    return float((1 - missed)[good > 0].mean())


def share(name: str, hit: Rows, by_chance: float | None, view: View, group: Numbers, note: str = "") -> Figure:
    """The mean of hits, as a figure with Wilson's interval (1927). group: of each query, its person."""
    asked = ~hit.isnan()
    answered = hit[asked]
    value = answered.mean().item() if len(answered) else float("nan")
    low, high = wilson(value, independent(answered.numpy(), group[asked].numpy()))
    remark = "; ".join(text for text in (note, view.note) if text)
    return Figure(name, value, len(answered), low, high, by_chance, view.name, note=remark)


def nearest_originals(view: View, count: int = 2) -> Tensor:
    """The numbers of the originals nearest to each output, the nearest first."""
    return similarities(view.after, view.before).topk(min(count, len(view.before)), dim=1).indices


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
    counts = view.owner.bincount(minlength=len(view.before))
    sums = torch.zeros_like(view.before, dtype=torch.float64).index_add_(0, view.owner, view.after.double())
    used, numbers = counts > 0, torch.arange(len(view.before))
    means, own = sums[used] / counts[used][:, None], used.nonzero() == numbers
    rates: dict[str, tuple[Rows, Numbers]] = {
        "one output": (hits(similarities(view.after, view.before), view.own, 1), view.owner),
        f"vectors of {counts.max()} outputs averaged": (hits(similarities(means, view.before), own, 1), numbers[used]),
    }
    for mean in combined:
        rank1 = hits(similarities(mean.after, mean.before), mean.own, 1)
        rates[f"{mean.name}, images averaged"] = rank1, mean.owner
    return [
        share(f"re-identified, own original, rank 1, {name}", rank1, 1 / len(view.before), view, group)
        for name, (rank1, group) in rates.items()
    ]
