"""Samples of a domain as files: numbered, judged, written whole, recorded, resumed where they stopped.

Batches are fixed by number: a sample always has the same neighbors and the same place among them, whether these are
written or not, and every batch is computed by one thread. So a resumed run ends in the same bytes as an undisturbed
one, and a run that goes on to a larger count in the same bytes as one that began with it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearfar.diffusion.solver import OnStep
from nearfar.domain.domain import Domain
from nearfar.domain.draws import FAMILY, Start, generator_of
from nearfar.domain.guards import Judgment
from nearfar.domain.synthesis import Synthesis, Synthesizer, synthesizer, varying
from nearfar.errors import ImageError, RunError, UsageError
from nearfar.io.arrays import SCIENCE_SUFFIXES, TYPES, write_array
from nearfar.io.manifest import Earlier, Manifest, Record, manifest_path, read_manifest
from nearfar.io.progress import Progress
from nearfar.io.stacks import sample_names, write_picture
from nearfar.io.values import ValueTransform
from nearfar.io.writing import has_content, remove_parts
from nearfar.jobs.plan import check_out, check_same_settings
from nearfar.jobs.run import NOT_FINITE, ahead, within_memory, worker_pool
from nearfar.models.model import FrozenModel
from nearfar.tensors import Images

AMOUNT = 0.5
FIRST = 1
"""The number of `sample-0001`: `synthesize(..., first=1)` makes the same ones."""

FIGURES = ("nearest", "latent_copy", "feature_copy", "captured", "quality")
"""Of a judgment, those that the record keeps."""

Report = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Sampling:
    """How samples are made, judged and kept.

    make: the samples of some numbers. judge: a judgment for each of them. write: one of them to a file; returns the
    content's SHA-256. suffix: of the files. keep_all: whether those that are to be dropped are written too.
    settings: all that decides the bytes; only a run with equal ones may be resumed.
    steps: of a batch. batch_size: the shape in which `make` and `judge` are called. workers: batches at the same time.
    """

    make: Callable[[Sequence[int], OnStep], Synthesis]
    judge: Callable[[Images], Sequence[Judgment]]
    write: Callable[[Path, Tensor], str]
    suffix: str
    keep_all: bool
    settings: dict[str, Any]
    steps: int
    batch_size: int
    workers: int

    def name(self, number: int) -> str:
        return sample_names(1, number, self.suffix)[0]


@dataclass(frozen=True)
class SamplePlan:
    """Numbers to make, and the records of those that an earlier run has made or dropped."""

    todo: list[int]
    kept: list[Record]

    def batches(self, size: int) -> list[range]:
        """The batches that hold what is to be made, whole."""
        first = sorted({number - (number - FIRST) % size for number in self.todo})
        return [range(number, number + size) for number in first]


@dataclass(frozen=True)
class Recipe:
    """What samples are made of; the fields are those of `synthesize`, a pull of None is the domain's own.

    near, amount: an image that samples are variations of, and how far from it (`draws.steer`).
    """

    family: str = FAMILY
    geometry: str = "free"
    pull: float | None = None
    eta: float = 0.0
    seed: int = 0
    parents: int | None = None
    near: Tensor | None = None
    amount: float = AMOUNT

    def synthesizer(self, model: FrozenModel, domain: Domain) -> Synthesizer:
        names = ("family", "geometry", "pull", "eta", "seed", *(() if self.parents is None else ("parents",)))
        how: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.near is None:
            return synthesizer(model, domain, **how)
        return varying(model, domain, self.near, amount=self.amount, **how)

    def settings(self) -> dict[str, Any]:
        """For a manifest's header: an image by its hash."""
        near = None if self.near is None else hashlib.sha256(self.near.numpy().tobytes()).hexdigest()
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return given | {"near": near, "amount": None if near is None else self.amount}


def sampling(
    model: FrozenModel,
    domain: Domain,
    recipe: Recipe,
    *,
    suffix: str,
    dtype: str = "float32",
    keep_all: bool = False,
    batch_size: int,
) -> Sampling:
    """How samples of a domain are made: pictures (`.png`), or arrays of physical values of a suffix and a dtype."""
    values = values_of(domain)
    check_format(suffix, dtype, values)
    recipe = replace(recipe, pull=domain.pull) if recipe.pull is None else recipe
    making = recipe.synthesizer(model, domain)
    making.draw(generator_of(recipe.seed, FIRST))
    settings = {
        "command": "domain sample",
        "nearfar": version("nearfar"),
        "model": model.provenance.sha256,
        "model_settings": model.settings,
        "domain": digest(domain),
        **recipe.settings(),
        "format": suffix,
        "dtype": None if values is None else dtype,
        "keep_all": keep_all,
        "precision": str(model.dtype).removeprefix("torch."),
        "batch_size": batch_size,
    }
    return Sampling(
        make=making.make,
        judge=partial(domain.guards.judge, model, batch_size=batch_size),
        write=write_picture if values is None else partial(write_values, values=values, dtype=dtype),
        suffix=suffix,
        keep_all=keep_all,
        settings=settings,
        steps=domain.steps,
        batch_size=batch_size,
        workers=torch.get_num_threads() if model.device.type == "cpu" and batch_size > 1 else 1,
    )


def values_of(domain: Domain) -> ValueTransform | None:
    """How physical values became the domain's images; none if these were pictures."""
    found = domain.preprocessing.get("values")
    return None if found is None else ValueTransform.from_json(json.dumps(found))


def default_suffix(domain: Domain) -> str:
    return ".png" if values_of(domain) is None else ".npy"


def check_format(suffix: str, dtype: str, values: ValueTransform | None) -> None:
    """Pictures for a domain of pictures, arrays for one of arrays, and of a type that can hold all of them."""
    allowed = (".png",) if values is None else SCIENCE_SUFFIXES
    if suffix not in allowed:
        what = "pictures" if values is None else "arrays"
        raise UsageError(f"this domain is one of {what}: format must be one of {' '.join(allowed)}, got {suffix}")
    if dtype not in TYPES:
        raise UsageError(f"dtype must be one of {', '.join(TYPES)}, got {dtype!r}")
    low, high, _ = TYPES[dtype]
    if values and (min(values.low) < low or max(values.high) > high):
        span = f"{min(values.low):g} to {max(values.high):g}"
        raise UsageError(f"{dtype} holds values from {low:g} to {high:g}, this domain has {span}: take another dtype")


def write_values(path: Path, image: Tensor, values: ValueTransform, dtype: str) -> str:
    return write_array(path, values.to_values(image), dtype)


def digest(domain: Domain) -> str:
    """Tells domains apart by all that decides their samples and what becomes of them."""
    content = hashlib.sha256()
    for tensor in (domain.latents, domain.clean, domain.own.mean):
        content.update(tensor.numpy().tobytes())
    about = [domain.strength, domain.steps, dict(domain.preprocessing), dict(domain.mixing), domain.guards.numbers()]
    content.update(json.dumps(about).encode())
    return content.hexdigest()


def plan_samples(sampling: Sampling, out: Path, count: int, resume: bool) -> SamplePlan:
    """List the work; nothing is written. Raises UsageError when `out` is in the way or was begun otherwise."""
    check_count(count)
    check_out(out, resume)
    earlier = read_manifest(manifest_path(out)) if resume else Earlier()
    check_same_settings(sampling.settings, out, earlier)
    names = {number: sampling.name(number) for number in range(FIRST, FIRST + count)}
    kept = {name: record for name in names.values() if (record := still_good(earlier.records.get(name), out))}
    return SamplePlan([number for number, name in names.items() if name not in kept], list(kept.values()))


def check_count(count: int) -> None:
    if count < 1:
        raise UsageError(f"count must be at least 1, got {count}")


def still_good(record: Record | None, out: Path) -> Record | None:
    """The record, if it was dropped or if its file is intact."""
    if record is None or record.status == "failed":
        return None
    return record if record.status == "dropped" or has_content(out / record.name, record.target_sha256) else None


def earlier_settings(out: Path, resume: bool) -> dict[str, Any]:
    """Those of the run that is to be resumed, if any."""
    return read_manifest(manifest_path(out)).header.get("run", {}) if resume else {}


def write_samples(sampling: Sampling, out: Path, plan: SamplePlan, report: Report = lambda _: None) -> Progress:
    """Carry out a plan. What is finished when it is interrupted is on the disk and in the manifest."""
    began = time.monotonic()
    progress = Progress(len(plan.todo) + len(plan.kept), kept=len(plan.kept), steps=sampling.steps)
    progress.batch_size = sampling.batch_size

    def tick(step: int, _: Tensor) -> None:
        if progress.stopping:
            raise CancelledError
        progress.step, progress.seconds = step, time.monotonic() - began
        report(progress)

    with Manifest(manifest_path(out), {"run": sampling.settings, "key": ""}) as manifest:
        prepare(out, [sampling.name(number) for number in plan.todo])
        for records in made(sampling, out, plan, progress, tick):
            for record in records:
                manifest.add(record)
                progress.count(record)
            manifest.commit()
            progress.batches, progress.seconds = progress.batches + 1, time.monotonic() - began
            report(progress)
    return progress


def prepare(out: Path, names: Sequence[str]) -> None:
    """Make the folder; remove unfinished files, and those about to be made again."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_parts(out)
        for name in names:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {out} ({error.strerror}): choose another output") from None


def made(sampling: Sampling, out: Path, plan: SamplePlan, progress: Progress, tick: OnStep) -> Iterator[list[Record]]:
    """Make batches in threads, and write each in turn; yields its records."""
    todo = set(plan.todo)
    with worker_pool(sampling.workers) as pool:
        try:
            work = partial(made_and_judged, sampling, tick)
            for new, judgments in ahead(pool, work, plan.batches(sampling.batch_size), sampling.workers + 1):
                rows = zip(new.numbers, new.images, new.starts, judgments, strict=True)
                yield [store(sampling, out, *row) for row in rows if row[0] in todo]
        finally:
            progress.stopping = True
            pool.shutdown(wait=False, cancel_futures=True)


def made_and_judged(sampling: Sampling, tick: OnStep, numbers: Sequence[int]) -> tuple[Synthesis, Sequence[Judgment]]:
    """Samples and what the guards say of them; of those that are not finite this means nothing."""
    with within_memory(sampling.batch_size):
        made = sampling.make(numbers, tick)
        return made, sampling.judge(made.images.nan_to_num())


def store(sampling: Sampling, out: Path, number: int, image: Tensor, start: Start, judgment: Judgment) -> Record:
    """Write one sample, unless it is to be dropped."""
    name = sampling.name(number)
    if not image.isfinite().all():
        return Record(name, "failed", NOT_FINITE)
    found = {name: getattr(judgment, name) for name in FIGURES}
    record = Record(
        name,
        "dropped",
        "; ".join(judgment.reasons),
        sampling.batch_size,
        figures={"number": number, "attempts": start.attempts, **found},
        verdict=judgment.verdict,
        parents=start.parents.tolist(),
    )
    if judgment.verdict == "drop" and not sampling.keep_all:
        return record
    try:
        return replace(record, status="done", target_sha256=sampling.write(out / name, image))
    except ImageError as refusal:
        return Record(name, "failed", str(refusal))
