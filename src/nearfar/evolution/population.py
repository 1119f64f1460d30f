"""What is done with noisy votes: candidates are drawn by them and varied by local sampling, at a falling strength.

Private Evolution (Lin et al., arXiv 2305.15560) with local sampling as its variation. Nothing here sees a private
image, so that whatever is made of votes costs nothing more. Populations are 8-bit images, as they are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import inf

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import SOLVER, Sampling
from nearfar.errors import UsageError
from nearfar.evolution.accounting import DELTA, deviation_for
from nearfar.evolution.votes import Vectors, as_seen
from nearfar.io.fitting import from_8_bit, to_8_bit, with_channels
from nearfar.metrics.features import FeatureNetwork
from nearfar.models.model import FrozenModel
from nearfar.sampling.local_sampling import own_samples, sample_near
from nearfar.tensors import Images

Population = Tensor
"""uint8 (candidate, channel, row, column)."""

Each = Callable[[Callable[[range], Population], Iterable[range]], Iterable[Population]]
"""`map`, or one that works on several batches at a time."""

Vary = Callable[[Population, float, Sequence[int]], Population]
"""(parents, strength, a variant number for each) -> variations of them."""


@dataclass(frozen=True)
class Evolution:
    """What a run promises, and how it goes. epsilon may be infinite, which promises nothing.

    count: images in all, shared out evenly over the classes. candidates: of each class, in each round.
    looks: variations of a candidate by whose mean it is judged; 0: by itself. threshold: votes below so many deviations
    of the noise count nothing. first, last: strengths of the first and the last variations. gray: make all images
    gray, which costs nothing where everybody knows that the private ones are.
    """

    count: int
    epsilon: float
    delta: float = DELTA
    rounds: int = 3
    candidates: int = 128
    looks: int = 0
    first: float = 0.4
    last: float = 0.2
    threshold: float = 0.0
    steps: int = 14
    gray: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("count", "rounds", "candidates", "steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.looks < 0 or self.threshold < 0:
            raise UsageError(f"looks and threshold must be 0 or more, got {self.looks} and {self.threshold:g}")
        if not 0 < self.last <= self.first <= 1:
            raise UsageError(f"strengths must fall within (0, 1], got {self.first:g} to {self.last:g}")

    @cached_property
    def deviation(self) -> float:
        """Of the noise on each vote."""
        return deviation_for(self.epsilon, self.delta, self.rounds)

    def strength(self, number: int) -> float:
        """Of the variations after round `number`, from 1 to `rounds`."""
        if self.rounds == 1:
            return self.last
        return self.first + (self.last - self.first) * (number - 1) / (self.rounds - 1)

    def shares(self, classes: int) -> list[int]:
        """How many images of each class; the first ones get what does not divide."""
        return [self.count // classes + (place < self.count % classes) for place in range(classes)]

    def calls(self, classes: int) -> int:
        """Network calls for single images that a whole run costs, those of the features left out."""
        each = SOLVER.calls(self.steps)
        varied = self.rounds - 1 + self.looks * self.rounds
        return each * (classes * self.candidates * (1 + varied) + self.count)

    def needed(self) -> int:
        """Voters of a class from which on a candidate's mean share of the votes is twice the noise."""
        return 0 if self.epsilon == inf else int(2 * self.deviation * self.candidates) + 1


def varied(model: FrozenModel, evolution: Evolution, batch_size: int, each: Each = map) -> Vary:
    """Local samples of parents; equal parents differ by their variant numbers. each: goes through the batches."""
    key = SecretKey.from_seed(evolution.seed)

    def vary(parents: Population, strength: float, variants: Sequence[int]) -> Population:
        sampling = Sampling(Level(strength), evolution.steps, SOLVER)

        def batch(places: range) -> Population:
            squares, numbers = from_8_bit(parents[places]), [variants[place] for place in places]
            return as_kept(sample_near(model, squares, sampling, key, numbers), evolution)

        starts = range(0, len(parents), batch_size)
        return torch.cat(list(each(batch, [range(len(parents))[start : start + batch_size] for start in starts])))

    return vary


def first_population(model: FrozenModel, evolution: Evolution, place: int, batch_size: int) -> Population:
    """The model's own samples. place: of the class, no two of which begin with the same ones."""
    begin, end = (number * evolution.candidates for number in (place, place + 1))
    made = own_samples(model, end, seed=evolution.seed, steps=evolution.steps, batch_size=batch_size, first=begin)
    return as_kept(made, evolution)


def as_kept(images: Images, evolution: Evolution) -> Population:
    """Images in [-1, 1] in 8 bits, gray where all are."""
    if not evolution.gray:
        return to_8_bit(images)
    gray = torch.from_numpy(with_channels(images.numpy(), 1))
    return to_8_bit(gray.expand_as(images))


def looked_at(
    population: Population, network: FeatureNetwork, vary: Vary, evolution: Evolution, number: int
) -> Vectors:
    """What candidates are judged by in a round: their own vectors, or the mean of those of their variations."""
    if not evolution.looks:
        return as_seen(network, from_8_bit(population))
    repeated = population.repeat_interleave(evolution.looks, 0)
    variants = numbers_of(evolution, number, evolution.candidates, len(repeated))
    seen = as_seen(network, from_8_bit(vary(repeated, evolution.strength(number), variants)))
    return normalize(seen.view(len(population), evolution.looks, -1).mean(1), dim=1)


def numbers_of(evolution: Evolution, number: int, after: int, count: int) -> list[int]:
    """Variant numbers that no other variation of the run has."""
    begin = 1 + number * evolution.candidates * (evolution.looks + 1) + after
    return list(range(begin, begin + count))


def weights_of(votes: Sequence[int], evolution: Evolution) -> Tensor:
    """Float64 weights that sum to 1: votes above the threshold; all alike where none is."""
    beyond = torch.tensor(votes, dtype=torch.float64) - evolution.threshold * evolution.deviation
    kept = beyond.clamp(min=0)
    return kept / kept.sum() if kept.sum() > 0 else torch.full_like(kept, 1 / len(kept))


def drawn(weights: Tensor, count: int, seed: int) -> Tensor:
    """Places of `count` parents, each as often as its weight says to within one (systematic resampling)."""
    start = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    marks = (start + torch.arange(count)) / count
    return torch.searchsorted(weights.cumsum(0), marks).clamp(max=len(weights) - 1)


def next_population(
    population: Population, votes: Sequence[int], vary: Vary, evolution: Evolution, number: int
) -> Population:
    """Variations of candidates drawn by the votes of round `number`."""
    parents = drawn(weights_of(votes, evolution), evolution.candidates, evolution.seed + number)
    variants = numbers_of(evolution, number, 0, evolution.candidates)
    return vary(population[parents], evolution.strength(number), variants)


@dataclass(frozen=True, eq=False)
class Round:
    """What a round leaves: the candidates that were voted on, and the noisy votes."""

    number: int
    population: Population
    votes: Sequence[int]


Vote = Callable[[int, Population], Sequence[int]]
"""(number of the round, its candidates) -> noisy votes for them, which cost a part of the budget."""

Keep = Callable[[int, Callable[[], Population]], Population]
"""(number of the round, how its candidates are made) -> these, from where they are kept if they were made before."""


def rounds_of(
    first: Callable[[], Population], vote: Vote, vary: Vary, evolution: Evolution, keep: Keep
) -> Iterator[Round]:
    """The rounds of one class, from its first population."""
    make = first
    for number in range(1, evolution.rounds + 1):
        population = keep(number, make)
        votes = vote(number, population)
        yield Round(number, population, votes)
        make = partial(next_population, population, votes, vary, evolution, number)
