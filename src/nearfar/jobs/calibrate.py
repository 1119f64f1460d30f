"""`calibrate`: local samples of some images at several strengths, scored, until the targets' strengths are found.

Every image keeps one noise at all strengths, so that its scores move smoothly; outputs are looked at and forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from nearfar.audit.calibration import GRID, LEAST_IMAGES, PARTS, Found, search
from nearfar.audit.scorer import Numbers, Scorer
from nearfar.audit.targets import Target
from nearfar.data.labels import top_folders
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import OnStep, Sampling, Solver
from nearfar.errors import ImageError, RunError, UsageError
from nearfar.io.fitting import FitMode
from nearfar.io.listing import Item, Listing, Rejected, list_folder
from nearfar.io.manifest import Progress, manifest_path, read_manifest
from nearfar.jobs.estimate import Estimate, estimate
from nearfar.jobs.job import Job, Reading, Results, make_job, plain_frame, read_square, trajectory_settings, workers_for
from nearfar.jobs.run import plan_items, run
from nearfar.models.model import FrozenModel
from nearfar.sampling.local_sampling import decode, noised_and_denoised
from nearfar.tensors import Images

THINNED = 8
"""Strengths along the curve at which pictures are shown, besides the one that was found."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Images that are measured: float32 in [-1, 1]. labels: the number of each one's folder. people: whether that
    is a person. failed: what could not be read."""

    names: list[str]
    images: Images
    labels: Numbers
    people: bool = False
    failed: Sequence[Rejected] = ()

    @property
    def groups(self) -> Numbers:
        """The number of each one's person; each is a person of its own if nothing is known."""
        return self.labels if self.people else torch.arange(len(self.names))


@dataclass(frozen=True, eq=False)
class Measuring:
    """How outputs are made and scored."""

    model: FrozenModel
    sample: Sample
    scorer: Scorer
    steps: int
    solver: Solver
    batch_size: int
    seed: int = 0

    def cost(self, targets: int) -> int:
        """The most network calls, each for a batch, that the search makes."""
        count, levels = len(self.sample.names), sum(strength > 0 for strength in GRID)
        whole = math.ceil(count * levels / self.batch_size) + (PARTS - 1) * targets * math.ceil(count / self.batch_size)
        return whole * self.solver.calls(self.steps)

    def estimate(self, targets: int) -> Estimate:
        """How long the search takes at most; two network calls for each worker."""
        workers = workers_for(self.model, self.batch_size)
        return estimate(self.model, (1, 1), self.cost(targets), self.batch_size, workers)

    def items(self, strengths: Sequence[float]) -> list[Item]:
        """Every image of the sample at each of the strengths."""
        numbered = list(enumerate(self.sample.names))
        return [Item(Path(), f"{name}@{at:g}", number, at) for at in strengths for number, name in numbered]

    def read(self, item: Item) -> Reading:
        return Reading(self.sample.images[item.variant][None], plain_frame(self.model.image))

    def transform(self, images: Images, items: Sequence[Item], on_step: OnStep) -> Results:
        """A local sample of each image at its item's strength, at strength 0 the image itself; with its scores."""
        outputs = self.outputs(images, [item.strength or 0.0 for item in items], on_step)
        scores = self.scorer(outputs, images, torch.tensor([item.variant for item in items]))
        return Results(outputs, {view: torch.tensor(values, dtype=torch.float64) for view, values in scores.items()})

    def outputs(self, images: Images, strengths: Sequence[float], on_step: OnStep) -> Images:
        if not any(strengths):
            return images
        key = SecretKey.from_seed(self.seed)
        streams = [key.for_image(image, 0.0) for image in images]
        sampling = Sampling(Level(strengths), self.steps, self.solver)
        return decode(self.model, noised_and_denoised(self.model, images, sampling, streams, on_step))

    def along(self, strengths: Sequence[float], count: int) -> list[list[Tensor]]:
        """The first images of the sample, one row each, at every strength. Cost: a batch of network calls for each."""
        images, none = self.sample.images[:count], lambda *_: None
        columns = [self.outputs(images, [at] * len(images), none) for at in strengths]
        return [list(row) for row in zip(*columns, strict=True)]

    def job(self, settings: dict[str, Any]) -> Job:
        """Images at strengths as items, of which scores are recorded and no files are written."""
        return make_job(
            self.model,
            {"steps": self.steps, **settings},
            key=SecretKey.from_seed(self.seed),
            batch_size=self.batch_size,
            calls=(self.solver.calls(self.steps),) * 2,
            read=self.read,
            transform=self.transform,
            encode=None,
            numbered=True,
        )


def take_sample(source: Path, model: FrozenModel, fit: FitMode, count: int, people: bool, seed: int = 0) -> Sample:
    """At most `count` images of a folder, drawn at random; with `people`, whole top folders, each of one person.

    Raises UsageError for fewer than 20, and where an image has no person.
    """
    listing, failed = list_folder(source), []
    folders = folders_of([item.name for item in listing.items], people, source)
    images: dict[str, Tensor] = {}
    places = drawn(folders, count, people, seed)
    for place in places:
        item = listing.items[place]
        try:
            images[item.name] = read_square(item, model.image, fit).squares[0]
        except (ImageError, OSError) as error:
            failed.append(Rejected(item.name, str(error)))
    check_number(source, len(images), all_taken=len(places) == len(folders))
    of = {item.name: folder for item, folder in zip(listing.items, folders, strict=True)}
    labels = torch.from_numpy(np.unique([of[name] for name in images], return_inverse=True)[1])
    return Sample(list(images), torch.stack(list(images.values())), labels, people, [*listing.rejected, *failed])


def check_listing(source: Path, count: int) -> None:
    """Refuse a folder, or a size of the sample, that cannot give 20 images, before anything is read or loaded."""
    listed = len(list_folder(source).items)
    check_number(source, min(listed, count), all_taken=listed <= count)


def check_number(source: Path, number: int, all_taken: bool) -> None:
    more = "give more" if all_taken else "raise --sample"
    if number < LEAST_IMAGES:
        raise UsageError(f"a calibration needs {LEAST_IMAGES} images or more, {source} gave {number}: {more}")


def folders_of(names: Sequence[str], people: bool, source: Path) -> Sequence[str]:
    """The folder of each image; of people the top folder, as audits have it."""
    if not people:
        return [str(Path(name).parent) for name in names]
    if (found := top_folders(names)) is None:
        raise UsageError(f"people must be top folders, two or more: {source} has fewer, or images outside of them")
    return found


def drawn(folders: Sequence[str], count: int, people: bool, seed: int) -> Int[np.ndarray, " drawn"]:
    """Places of the images to take, ascending: of single ones, or of whole folders as long as there is room."""
    random = np.random.default_rng(seed)
    if not people:
        return np.sort(random.permutation(len(folders))[:count])
    names, places = np.unique(folders, return_inverse=True)
    ordered = random.permutation(len(names))
    taken = ordered[np.cumsum(np.bincount(places)[ordered]) <= count]
    return np.flatnonzero(np.isin(places, taken))


def calibrate(
    work: Measuring,
    targets: Sequence[Target],
    record: Path,
    *,
    settings: dict[str, Any],
    resume: bool = False,
    parts: int = PARTS,
    report: Callable[[Progress], None] = lambda _: None,
) -> Found:
    """Find the smallest strength that meets the targets.

    record: scores are kept in `record.manifest.jsonl` until the search is over, and an interrupted one that is resumed
    with the same settings takes them from there. report: told of the progress of each part of the search.
    Cost: `work.cost` at most.
    """
    path = manifest_path(record)
    if path.exists() and not resume:
        raise UsageError(f"{path} is the record of an earlier run: give --resume, or remove it")
    scores_at = partial(measured, work, work.job(settings), record, report)
    found = search(scores_at, targets, work.sample.groups.numpy(), parts=parts)
    path.unlink()
    return found


def measured(
    work: Measuring, job: Job, record: Path, report: Callable[[Progress], None], strengths: Sequence[float]
) -> dict[str, dict[float, NDArray[np.float64]]]:
    """Scores by view and strength; what is not known yet is measured. Originals apart, which need no sampling."""
    for part in filter(None, ([at for at in strengths if at == 0], [at for at in strengths if at > 0])):
        plan = plan_items(job, Listing(work.items(sorted(part))), record, resume=True)
        progress = run(job, record, plan, report) if plan.todo else Progress(0)
        if progress.failed:
            first = progress.failed[0]
            raise RunError(f"{first.name} cannot be measured: {first.reason}")
    records = read_manifest(manifest_path(record)).records

    def scored(view: str, at: float) -> NDArray[np.float64]:
        return np.array([records[item.name].figures[view] for item in work.items([at])])

    return {view: {at: scored(view, at) for at in strengths} for view in work.scorer.views}


def settings_of(work: Measuring, fit: FitMode, source: Path) -> dict[str, Any]:
    """Everything that decides the scores; the sample by its files' names, sizes and times."""
    sample = work.sample
    files = [(name, (source / name).stat()) for name in sample.names]
    stamps = "".join(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0" for name, status in files)
    return {
        "command": "calibrate",
        **method_settings(work.model, Sampling(Level(1.0), work.steps, work.solver), fit),
        "measures": list(work.scorer.measures),
        "attacker": work.scorer.attacker.eyes.name,
        "others": [known.eyes.name for known in work.scorer.others],
        "content": work.scorer.network.name,
        "people": len(set(sample.groups.tolist())) if sample.people else 0,
        "sample": SecretKey.from_seed(work.seed).tag("sample", stamps.encode()),
        "batch_size": work.batch_size,
        "seed": work.seed,
    }


def method_settings(model: FrozenModel, sampling: Sampling, fit: FitMode) -> dict[str, Any]:
    """What a strength means only together with: the model, and how it is sampled from whatever level."""
    level = ("strength", "time", "sigma")
    chosen = trajectory_settings(model, sampling, fit)
    return {"model": model.provenance.sha256, **model.settings} | {k: v for k, v in chosen.items() if k not in level}
