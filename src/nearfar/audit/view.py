"""What an attacker sees of originals and outputs, and how often the right candidate comes first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Bool, Float64, Int64, Shaped
from torch import Tensor

from nearfar.audit.figure import Figure
from nearfar.errors import UsageError
from nearfar.metrics.intervals import independent, wilson

Vectors = Shaped[Tensor, "_ _"]
Scores = Float64[Tensor, "queries candidates"]
Mask = Bool[Tensor, "queries candidates"]
Rows = Float64[Tensor, " queries"]
Numbers = Int64[Tensor, " queries"]


@dataclass(frozen=True, eq=False)
class View:
    """Images as vectors; the nearer in Euclidean distance, the more alike.

    name: of the eye: "pixels", or the network. before: the originals. after: the outputs. others: images of other
    people that were not among the originals. note: such as how often no face was found. of: the number of each
    output's original; output i was made from original i unless given. Vectors of networks should have unit length
    (`View.of_network`), which makes the distance a cosine.
    """

    name: str
    before: Vectors
    after: Vectors
    others: Vectors | None = None
    note: str = ""
    of: Int64[Tensor, " outputs"] | None = None

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
    found = ((places - ahead) / (ties + 1.0).double()).clamp(0, 1)
    return found.where((right & allowed).any(1), torch.nan)


def chance(right: Mask, places: int, allowed: Mask | None = None) -> float:
    """The mean probability that a right candidate is among the first ones of a shuffled list (hypergeometric)."""
    allowed = torch.ones_like(right) if allowed is None else allowed
    good, every = (some.sum(1).double() for some in (right & allowed, allowed))
    missed = torch.ones_like(good)
    for place in range(places):
        missed *= ((every - good - place) / (every - place).clamp(min=1)).clamp(0, 1)
    return float((1 - missed)[good > 0].mean())


def share(name: str, found: Rows, by_chance: float | None, view: View, group: Numbers, note: str = "") -> Figure:
    """The mean of what was found, as a figure with Wilson's interval (1927). group: of each query, its person."""
    asked = ~found.isnan()
    some = found[asked]
    value = some.mean().item() if len(some) else float("nan")
    low, high = wilson(value, independent(some.numpy(), group[asked].numpy()))
    remark = "; ".join(text for text in (note, view.note) if text)
    return Figure(name, value, len(some), low, high, by_chance, view.name, note=remark)


def nearest_originals(view: View, count: int = 2) -> Tensor:
    """The numbers of the originals nearest to each output, the nearest first."""
    return similarities(view.after, view.before).topk(min(count, len(view.before)), dim=1).indices
