"""`evolve`: a folder of private images in, a folder of synthetic ones out, under a formal guarantee.

First the rounds of votes, class by class, which `OUT.rounds` keeps; then the last candidates that were voted for are
varied once more, as numbered outputs of the one runner.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import SOLVER, Sampling
from nearfar.errors import ModelWarning, UsageError
from nearfar.evolution.ledger import Ledger
from nearfar.evolution.population import (
    Evolution,
    Population,
    Round,
    Vary,
    drawn,
    first_population,
    looked_at,
    numbers_of,
    rounds_of,
    varied,
    weights_of,
)
from nearfar.evolution.votes import Grouping, Vectors, Voters, check_noise, counted, list_voters, noisy, read_voters
from nearfar.io.fitting import FitMode, from_8_bit
from nearfar.io.listing import Item, Listing, Rejected
from nearfar.io.manifest import Progress, Watch, unwatched
from nearfar.io.stacks import sample_names
from nearfar.jobs.estimate import Estimate, estimate
from nearfar.jobs.job import Job, Reading, as_picture, calls_near, make_job, near, plain_frame, trajectory_settings
from nearfar.jobs.pipeline import ahead, worker_pool
from nearfar.jobs.places import check_places
from nearfar.jobs.run import plan_items, run
from nearfar.metrics.features import FeatureNetwork, feature_network
from nearfar.models.cards import card_of
from nearfar.models.model import FrozenModel
from nearfar.tensors import ImageContract


@dataclass(frozen=True, eq=False)
class Evolving:
    """A run that is settled. classes: their names, in order. job: that of the outputs; its settings are the run's."""

    model: FrozenModel
    private: Path
    out: Path
    evolution: Evolution
    grouping: Grouping
    network: FeatureNetwork
    classes: Sequence[str]
    job: Job
    parents: dict[str, tuple[Population, int]] = field(default_factory=dict)

    def estimate(self) -> Estimate:
        """How long a whole run takes, but for the features; two network calls for each worker."""
        batches = math.ceil(self.evolution.calls(len(self.classes)) / self.job.batch_size)
        return estimate(self.model, (1, 1), batches, self.job.batch_size, self.job.workers)


@dataclass(frozen=True, eq=False)
class Evolved:
    """What came of a run. rounds: by class. failed: private images that could not be read and did not vote."""

    progress: Progress
    rounds: Mapping[str, Sequence[Round]]
    failed: Sequence[Rejected]
    scant: Mapping[str, int]


def evolving(
    model: FrozenModel,
    private: Path,
    out: Path,
    evolution: Evolution,
    *,
    grouping: Grouping = "images",
    features: str = "model",
    batch_size: int | None = None,
) -> Evolving:
    """Settle a run; of the private folder only names are looked at. Raises UsageError for what cannot be meant."""
    check_noise(evolution.deviation)
    classes, network = list(list_voters(private, grouping)[0]), feature_network(features, model)
    if evolution.count < len(classes):
        raise UsageError(f"count must be at least that of the {len(classes)} classes, got {evolution.count}")
    warn_of_training(model, private)
    sampling = Sampling(Level(evolution.strength(evolution.rounds)), evolution.steps, SOLVER)
    parents: dict[str, tuple[Population, int]] = {}
    job = make_job(
        model,
        {
            "command": "evolve",
            **trajectory_settings(model, sampling, FitMode.PAD),
            **asdict(evolution),
            "epsilon": str(evolution.epsilon),
            "deviation": evolution.deviation,
            "by": grouping,
            "classes": classes,
            "features": network.name,
        },
        key=SecretKey.from_seed(evolution.seed),
        batch_size=batch_size,
        calls=calls_near(sampling),
        read=partial(read_parent, parents=parents, channels=1 if evolution.gray else model.image.channels),
        transform=near(model, SecretKey.from_seed(evolution.seed), sampling),
        encode=as_picture(FitMode.PAD, False),
        numbered=True,
    )
    return Evolving(model, private, out, evolution, grouping, network, classes, job, parents)


def warn_of_training(model: FrozenModel, private: Path) -> None:
    """A model that has seen the private images gives them away whatever the votes cost."""
    card = card_of(model.provenance.source)
    known = (card.trained_on if card else None) or ""
    names = re.findall(r"\w*[A-Z]\w*[A-Z]\w*", known)
    if same := [name for name in names if name.lower() in str(private).lower()]:
        warnings.warn(
            f"{model.provenance.source} was trained on {known}, and {private} is named like {same[0]}: the guarantee "
            "does not hold for images that the model was trained on",
            ModelWarning,
            stacklevel=2,
        )


def read_parent(item: Item, parents: Mapping[str, tuple[Population, int]], channels: int) -> Reading:
    """The candidate that an output is a variation of. channels: of the output's file."""
    population, place = parents[item.name]
    square = from_8_bit(population[place : place + 1])
    return Reading(square, plain_frame(ImageContract(square.shape[2], channels)))


def evolve(
    model: FrozenModel,
    private: str | Path,
    out: str | Path,
    *,
    count: int,
    epsilon: float,
    resume: bool = False,
    **options: Any,
) -> Evolved:
    """Synthetic images that resemble those below `private`, with (epsilon, delta) differential privacy, in `out`.

    Each private image votes once a round for its nearest candidate; only votes with noise leave that. Two private
    folders that differ by one image (by one person with `grouping="persons"`) give nearly the same outputs: of whatever
    is concluded from these, the odds differ by a factor of `exp(epsilon)` at most, but for a chance of `delta`.
    count: images in all. options: those of `Evolution`, `grouping`, `features` and `batch_size`. Raises UsageError.
    Cost: `Evolution.calls` network calls for one image, and a look of the feature network at each private image.
    """
    names = {entry.name for entry in fields(Evolution)}
    evolution = Evolution(count, epsilon, **{name: options.pop(name) for name in names & set(options)})
    check_places(Path(private), Path(out), resume)
    work = evolving(model, Path(private), Path(out), evolution, **options)
    return carry_out(work, resume)


def carry_out(
    work: Evolving,
    resume: bool,
    watch: Watch = unwatched,
    report: Callable[[Progress], None] = lambda _: None,
) -> Evolved:
    """Vote where no votes stand yet, then make the outputs. watch: told of rounds. report: of outputs."""
    source = Source(work, watch)
    with Ledger.open(work.out, work.job.settings, resume) as ledger, in_batches(work) as vary:
        rounds = {}
        for place, name in enumerate(work.classes):
            voting = Voting(work, source, ledger, vary, name, place)
            rounds[name] = list(voting.rounds(watch))
    items = outputs(work, {name: done[-1] for name, done in rounds.items()})
    progress = run(work.job, work.out, plan_items(work.job, Listing(items), work.out, resume), report)
    return Evolved(progress, rounds, source.failed, source.scant)


@contextmanager
def in_batches(work: Evolving) -> Iterator[Vary]:
    """Variations, several batches at a time."""
    with worker_pool(work.job.workers) as pool:
        each = partial(ahead, pool, depth=work.job.workers)
        yield varied(work.model, work.evolution, work.job.batch_size, each)


@dataclass(eq=False)
class Source:
    """The private images, read when a vote is needed, all of them once.

    scant: classes with fewer voters than the noise asks for. What is said of them is for their owner alone.
    """

    work: Evolving
    watch: Watch
    voters: Voters | None = None

    def vectors(self, name: str) -> Vectors:
        """Of the voters of a class."""
        if self.voters is None:
            work = self.work
            tell = partial(self.watch, "private images")
            self.voters = read_voters(work.private, work.grouping, work.model.image, work.network, tell)
        empty = torch.empty(0, 1, dtype=torch.float64)
        return self.voters.vectors.get(name, empty)

    @property
    def failed(self) -> Sequence[Rejected]:
        return self.voters.failed if self.voters else ()

    @property
    def scant(self) -> dict[str, int]:
        needed = self.work.evolution.needed()
        read = self.voters.vectors if self.voters else {}
        return {name: len(vectors) for name, vectors in read.items() if len(vectors) < needed}


@dataclass(frozen=True, eq=False)
class Voting:
    """The rounds of one class."""

    work: Evolving
    source: Source
    ledger: Ledger
    vary: Vary
    name: str
    place: int

    def rounds(self, watch: Watch) -> Iterator[Round]:
        work = self.work
        total = work.evolution.rounds * len(work.classes)
        first = partial(first_population, work.model, work.evolution, self.place, work.job.batch_size)
        for done in rounds_of(first, self.vote, self.vary, work.evolution, self.keep):
            watch("rounds", self.place * work.evolution.rounds + done.number, total)
            yield done

    def key(self, number: int) -> str:
        """The name of a round in the ledger."""
        return f"{self.place + 1:03}-{number:02}"

    def keep(self, number: int, make: Callable[[], Population]) -> Population:
        return self.ledger.population(self.key(number), make)

    def vote(self, number: int, population: Population) -> list[int]:
        return self.ledger.votes(self.key(number), population, partial(self.cast, number, population))

    def cast(self, number: int, population: Population) -> list[int]:
        """New votes, with noise."""
        evolution = self.work.evolution
        seen = looked_at(population, self.work.network, self.vary, evolution, number)
        return noisy(counted(self.source.vectors(self.name), seen), evolution.deviation)


def outputs(work: Evolving, last: Mapping[str, Round]) -> list[Item]:
    """The numbered outputs of all classes, each a variation of a candidate that the last votes drew."""
    items, evolution = [], work.evolution
    for name, share in zip(work.classes, evolution.shares(len(work.classes)), strict=True):
        done = last[name]
        parents = drawn(weights_of(done.votes, evolution), share, evolution.seed)
        variants = numbers_of(evolution, evolution.rounds, 0, share)
        for file, parent, variant in zip(sample_names(share, 1, ".png"), parents.tolist(), variants, strict=True):
            item = Item(Path(), f"{name}/{file}" if name else file, variant)
            work.parents[item.name] = done.population, parent
            items.append(item)
    return items
