"""Synthetic sets under a guarantee: how near they come to the private images, what a classifier learns, an attack.

    python -m benchmarks.near.evolve distance --data DATA --cache /tmp/evolve
    python -m benchmarks.near.evolve use --data DATA --cache /tmp/evolve
    python -m benchmarks.near.evolve attack --data DATA --cache /tmp/evolve

DATA holds faces_lfw.zip: 3,000 private gray faces and 1,000 held-out ones, labeled by smiles, which the bundled model
of color faces has never seen. Defaults were chosen on the first 500 held-out images; the tables are of the others.
Votes and distances are by EfficientNet-Lite0; `stupid` rows need no private image at all. Rows that stand in the result
are not made again. Cost: about two minutes a row on one core.
"""

from __future__ import annotations

import csv
import json
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from math import inf, log
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.support.common import RESULTS, write_result
from nearfar.evolution.population import (
    Evolution,
    Population,
    drawn,
    first_population,
    looked_at,
    numbers_of,
    rounds_of,
    varied,
    weights_of,
)
from nearfar.evolution.votes import counted, noisy
from nearfar.io.fitting import FitMode, from_8_bit
from nearfar.io.stacks import picture_square
from nearfar.metrics.features import FeatureNetwork, feature_network, logistic_pipeline
from nearfar.metrics.intervals import rate_bounds
from nearfar.metrics.sets import kernel_distance, precision_recall
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel
from nearfar.sampling.local_sampling import local_sample

app = typer.Typer()
CHOSEN_ON, COUNT, OF_EACH, BATCH = 500, 128, 150, 64
Data = Annotated[Path, typer.Option(help="Folder with faces_lfw.zip.")]
Cache = Annotated[Path, typer.Option(help="Folder for what is made once.")]


@dataclass(frozen=True, eq=False)
class Bench:
    """The model, the network that votes and judges, and the faces, gray in three channels."""

    model: FrozenModel
    network: FeatureNetwork
    private: Tensor
    smiles: Tensor
    held: Tensor
    held_smiles: Tensor
    cache: Path

    def seen(self, name: str, images: Tensor) -> Tensor:
        """Vectors of images, kept under a name."""
        path = self.cache / f"{name}.npy"
        if not path.exists():
            np.save(path, self.network(images).numpy())
        return torch.from_numpy(np.load(path))

    def first(self, evolution: Evolution, place: int = 0) -> Population:
        """The model's own samples, kept."""
        name = f"own-{evolution.candidates}-{place}-{evolution.seed}-{evolution.steps}-{evolution.gray}"
        path = self.cache / f"{name}.npy"
        if not path.exists():
            np.save(path, first_population(self.model, evolution, place, BATCH).numpy())
        return torch.from_numpy(np.load(path))

    def distance(self, images: Tensor) -> dict[str, float]:
        """To the held-out images that no default was chosen on."""
        real = self.seen("held", self.held)[CHOSEN_ON:]
        other = self.network(images)
        distance, found = kernel_distance(real, other), precision_recall(real, other)
        return {
            "distance": round(distance.value, 4),
            "error": round(distance.deviation, 4),
            "precision": round(found.precision, 3),
            "recall": round(found.recall, 3),
        }


def read(data: Path, cache: Path) -> Bench:
    """The faces at the model's size."""
    warnings.simplefilter("ignore")
    cache.mkdir(parents=True, exist_ok=True)
    model = load_model("faces")
    with zipfile.ZipFile(data / "faces_lfw.zip") as archive:
        rows = list(csv.DictReader(TextIOWrapper(archive.open("labels.csv"))))
        for row in rows:
            if not (cache / row["file"]).exists():
                archive.extract(row["file"], cache)
    images = torch.stack([picture_square(cache / row["file"], model.image, FitMode.PAD) for row in rows])
    private = torch.tensor([row["split"] == "private" for row in rows])
    smiles = torch.tensor([int(row["smile"]) for row in rows])
    network = feature_network("efficientnet", model)
    return Bench(model, network, images[private], smiles[private], images[~private], smiles[~private], cache)


def evolved(bench: Bench, evolution: Evolution, voters: Tensor, place: int = 0, count: int | None = None) -> Tensor:
    """Outputs of one class, as `nearfar evolve` makes them."""
    vary = varied(bench.model, evolution, BATCH)

    def vote(number: int, population: Population) -> list[int]:
        seen = looked_at(population, bench.network, vary, evolution, number)
        return noisy(counted(voters, seen), evolution.deviation)

    *_, last = rounds_of(lambda: bench.first(evolution, place), vote, vary, evolution, lambda _, make: make())
    share = evolution.count if count is None else count
    parents = drawn(weights_of(last.votes, evolution), share, evolution.seed)
    variants = numbers_of(evolution, evolution.rounds, 0, share)
    return from_8_bit(vary(last.population[parents], evolution.last, variants))


def kept(name: str) -> dict[str, Any]:
    """Rows that were measured before."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else {}


GRID = [
    *(Evolution(COUNT, epsilon, gray=True, seed=seed) for seed in range(3) for epsilon in (inf, 2.0, 1.0)),
    *(Evolution(COUNT, epsilon, seed=seed) for seed in range(2) for epsilon in (inf, 2.0)),
    *(Evolution(COUNT, 2.0, gray=True, rounds=rounds) for rounds in (1, 5)),
    *(Evolution(COUNT, 2.0, gray=True, candidates=candidates) for candidates in (32, 256)),
    Evolution(COUNT, 10.0, gray=True),
]


@app.command()
def distance(data: Data, cache: Cache) -> None:
    """Kernel distance to held-out images, by epsilon, and what reaches how far without any vote."""
    bench, rows = read(data, cache), kept("evolve_distance")
    voters = normalize(bench.seen("private", bench.private), dim=1)
    for name, images in stupid(bench):
        if name not in rows:
            rows[name] = bench.distance(images)
            write_result("evolve_distance", {"rows": rows})
    for evolution in GRID:
        name = named(evolution)
        if name not in rows:
            rows[name] = bench.distance(evolved(bench, evolution, voters))
            print(name, rows[name], flush=True)
            write_result("evolve_distance", {"rows": rows})


def named(evolution: Evolution) -> str:
    color = "gray" if evolution.gray else "color"
    return (
        f"epsilon {evolution.epsilon:g}, {color}, {evolution.candidates} candidates, {evolution.rounds} rounds, "
        f"seed {evolution.seed}"
    )


def stupid(bench: Bench) -> Iterator[tuple[str, Tensor]]:
    """Rows without votes: real images, the model's samples, these turned gray, copies of the private images."""
    yield "private images themselves", bench.private[:COUNT]
    for gray in (False, True):
        own = from_8_bit(bench.first(Evolution(COUNT, inf, candidates=COUNT, gray=gray)))
        yield f"samples of the model{', gray' if gray else ''}, no votes", own
    for strength in (0.2, 0.35, 0.5):
        made = torch.cat(
            [local_sample(bench.model, part, strength=strength) for part in bench.private[:COUNT].split(BATCH)]
        )
        yield f"private images anonymized at {strength}, no guarantee", made
        yield f"private images anonymized at {strength}, gray, no guarantee", as_gray(made)


def anonymized(model: FrozenModel, images: Tensor, strength: float) -> Tensor:
    return torch.cat([local_sample(model, part, strength=strength) for part in images.split(BATCH)])


def as_gray(images: Tensor) -> Tensor:
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return (images * luma).sum(1, keepdim=True).expand_as(images)


@app.command()
def use(data: Data, cache: Cache) -> None:
    """Accuracy on real smiles of a classifier (logistic, on EfficientNet's features) that learned from each set."""
    bench, rows = read(data, cache), kept("evolve_use")
    real = bench.seen("private", bench.private)
    floor = bench.held_smiles[CHOSEN_ON:].double().mean().item()
    rows["the larger class"] = {"accuracy": round(max(floor, 1 - floor), 4)}
    rows["private images themselves (3,000)"] = {"accuracy": accuracy(bench, real, bench.smiles)}
    for strength in (0.2, 0.5):
        name = f"{2 * OF_EACH} private images anonymized at {strength}, gray, no guarantee"
        if name not in rows:
            made = as_gray(anonymized(bench.model, bench.private[: 2 * OF_EACH], strength))
            rows[name] = {"accuracy": accuracy(bench, bench.network(made), bench.smiles[: 2 * OF_EACH])}
            write_result("evolve_use", {"rows": rows})
    for epsilon in (inf, 2.0, 1.0):
        for seed in range(2):
            evolution = Evolution(2 * OF_EACH, epsilon, candidates=64, gray=True, seed=seed)
            name = f"epsilon {epsilon:g}, seed {seed}"
            if name not in rows:
                rows[name] = {"accuracy": labeled(bench, evolution, normalize(real, dim=1))}
                print(name, rows[name], flush=True)
                write_result("evolve_use", {"rows": rows})


def labeled(bench: Bench, evolution: Evolution, voters: Tensor) -> float:
    """Of a classifier that learned from `OF_EACH` synthetic images of each class."""
    made, labels = [], []
    for label in (0, 1):
        made.append(evolved(bench, evolution, voters[bench.smiles == label], place=label, count=OF_EACH))
        labels += [label] * OF_EACH
    return accuracy(bench, bench.network(torch.cat(made)), torch.tensor(labels))


def accuracy(bench: Bench, vectors: Tensor, labels: Tensor) -> float:
    """On the held-out images that no default was chosen on."""
    classifier = logistic_pipeline(max_iter=2000, C=0.01)
    classifier.fit(vectors.numpy(), labels.numpy())
    test = bench.seen("held", bench.held)[CHOSEN_ON:]
    right = classifier.predict(test.numpy()) == bench.held_smiles[CHOSEN_ON:].numpy()
    return round(float(right.mean()), 4)


@app.command()
def attack(data: Data, cache: Cache, runs: int = 4000, epsilon: float = 1.0) -> None:
    """A membership attacker who knows all but whether one image is in, and sees the noisy votes of all rounds.

    Half of the runs choose the threshold, the other half give the bound: the greatest epsilon that 95 % of confidence
    leaves below it, from the rates of true and false alarms at a delta of 1e-5.
    """
    bench = read(data, cache)
    evolution = Evolution(COUNT, epsilon, gray=True)
    voters = normalize(bench.seen("private", bench.private), dim=1)
    candidates = normalize(bench.network(from_8_bit(bench.first(evolution))), dim=1)
    without = counted(voters[1:], candidates)
    place = int((voters[0] @ candidates.T).argmax())
    alarms = {True: [], False: []}  # type: dict[bool, list[int]]
    for inside in (True, False):
        counts = without.clone()
        counts[place] += inside
        for _ in range(runs):
            votes = [noisy(counts[place : place + 1], evolution.deviation)[0] for _ in range(evolution.rounds)]
            alarms[inside].append(sum(votes) - evolution.rounds * int(without[place]))
    found = lower_bound(np.array(alarms[True]), np.array(alarms[False]), evolution.delta)
    write_result(f"evolve_attack_{epsilon:g}", {"runs": runs, "promised": epsilon, **found})
    print(found)


def lower_bound(inside: np.ndarray, outside: np.ndarray, delta: float) -> dict[str, float]:
    """Of epsilon, at 95 %, by the threshold that is best on the first half of the runs."""
    half = len(inside) // 2
    thresholds = np.unique(np.concatenate([inside[:half], outside[:half]]))
    best = max(thresholds, key=lambda one: bound_at(inside[:half] >= one, outside[:half] >= one, delta))
    hits, false = inside[half:] >= best, outside[half:] >= best
    return {
        "threshold": float(best),
        "true_alarms": float(hits.mean()),
        "false_alarms": float(false.mean()),
        "advantage": float(hits.mean() - false.mean()),
        "epsilon_at_least": bound_at(hits, false, delta),
    }


def bound_at(hits: np.ndarray, false: np.ndarray, delta: float) -> float:
    """log of (true alarms less delta) over false alarms, by Clopper and Pearson at 2.5 % each."""
    alone = np.arange(len(hits))
    low, _ = rate_bounds(hits.astype(float), alone, 0.025)
    _, high = rate_bounds(false.astype(float), alone, 0.025)
    return max(0.0, log(max(low - delta, 1e-9) / max(high, 1e-9)))


if __name__ == "__main__":
    app()
