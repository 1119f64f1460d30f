"""`augment`: copies of the images of a folder, each a local sample, with the labels of their originals."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nearfar.data.annotations import Annotations, read_annotations
from nearfar.data.coco import check_shape
from nearfar.data.companions import check_companions, hidden
from nearfar.data.copies import Wanted, check_classes, copies_of_each
from nearfar.data.judge import Judge, batches, cross_fitted, trained_judge
from nearfar.data.labels import Labels, Made
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import SOLVER, STEPS, Sampling, Solver
from nearfar.errors import ModelWarning, UsageError
from nearfar.io.fitting import FitMode
from nearfar.io.listing import Item, copy_name, list_folder
from nearfar.io.manifest import Manifest, Progress, Record, manifest_path, read_manifest, writing
from nearfar.io.marks import MARKED, Marking
from nearfar.io.pictures import read_pages
from nearfar.jobs.job import (
    Job,
    Read,
    Reading,
    as_picture,
    calls_near,
    make_job,
    near,
    one_square,
    trajectory_settings,
    unchanged,
)
from nearfar.jobs.run import plan_run, run
from nearfar.jobs.tiles import tiled_job
from nearfar.metrics.features import feature_network
from nearfar.models.model import FrozenModel


@dataclass(frozen=True)
class Augmentation:
    """A folder's job, its annotations, and who judges the copies."""

    job: Job
    annotations: Annotations
    judge: Judge | None
    wanted: Wanted

    def finish(self, source: Path, out: Path) -> dict[str, int]:
        """Check the labels of all copies in `out`, write its annotation files; returns counts for the summary.

        The same whether the run was interrupted or not.
        """
        records = read_manifest(manifest_path(out)).records
        items = self.job.expand(list_folder(source).items)
        done = [item for item in items if item.name in records and records[item.name].status == "done"]
        made = [Made(item.name, item.path.relative_to(source).as_posix(), marks_of(item)) for item in done]
        verdicts: dict[str, int] = {}
        if self.judge and self.wanted.check:
            made = judged(self.judge, out, made, self.annotations.labels)
            note(self.job, out, made, records, self.wanted.check == "drop")
            made, verdicts = self.outcome(made, out)
        self.annotations.write(out, made)
        copies = sum(image.inherited for image in made)
        return {"copies": copies, "originals": len(made) - copies, **verdicts}

    def outcome(self, made: Sequence[Made], out: Path) -> tuple[list[Made], dict[str, int]]:
        """The images that stay, and what the judge did in this run and before."""
        agreeing = [image for image in made if image.marks.get("label_agrees", True)]
        if self.wanted.check == "flag":
            return list(made), {"disagree": len(made) - len(agreeing)}
        records = read_manifest(manifest_path(out)).records.values()
        return agreeing, {"dropped": sum(record.status == "dropped" for record in records)}


def augmentation(
    model: FrozenModel, source: Path, out: Path, wanted: Wanted, *, whole: bool = True, **options: Any
) -> Augmentation:
    """Read the annotations, choose what gets copies and settle the job; nothing is written.

    whole: whether this is all there is, so that every class that is named must occur.
    options: the fields of `Making`. Cost: for "hardest" and for a trained check, one call of the feature network for
    each 32 images.
    """
    if source.is_file():
        raise UsageError(f"{source} must be a folder, whose labels are carried over: put the picture into one")
    everything = [item.name for item in list_folder(source).items]
    names = [name for name in everything if not hidden(name)]
    if aside := [name for name in everything if hidden(name)]:
        text = f"{len(aside)} pictures in hidden folders such as {aside[0]} are left out: they are no class"
        warnings.warn(text, ModelWarning, stacklevel=2)
    annotations = read_annotations(source, names, wanted.label_column)
    names = [name for name in names if name not in annotations.pictures]
    labels, key = annotations.labels, SecretKey.from_seed(wanted.seed)
    if whole:
        check_classes(wanted.strengths.by_class, labels)
    chosen = [name for name in names if fnmatchcase(name, wanted.only)]
    if names and not chosen:
        raise UsageError(f"--only {wanted.only} matches none of {len(names)} images, such as {names[0]}")
    judge = judge_of(model, source, chosen, labels, wanted)
    own = judge.own if judge else {}
    copies = copies_of_each(chosen, labels, wanted.copies, wanted.select, wanted.share, key, own)
    job = augment_job(model, wanted, copies, labels, out, Making(**options))
    expand, images = job.expand, frozenset(names)
    job = replace(
        job,
        read=partial(read_annotated, job.read, annotations, source),
        expand=lambda items: expand([item for item in items if item.path.relative_to(source).as_posix() in images]),
    )
    return Augmentation(job, annotations, judge, wanted)


def judge_of(model: FrozenModel, source: Path, names: Sequence[str], labels: Labels, wanted: Wanted) -> Judge | None:
    """The classifier that the wishes ask for."""
    if wanted.select == "hardest":
        if wanted.classifier:
            raise UsageError("hardest is found by a classifier trained on these images: leave out --classifier")
        return cross_fitted(feature_network(wanted.features, model), source, names, labels)
    if not wanted.check:
        return None
    if wanted.classifier:
        return trained_judge(wanted.classifier, names, labels)
    return cross_fitted(feature_network(wanted.features, model), source, names, labels)


@dataclass(frozen=True)
class Making:
    """How copies are made; the fields are those of `Sampling` and the arguments of `anonymize_job`."""

    steps: int = STEPS
    solver: Solver = SOLVER
    fit: FitMode = FitMode.PAD
    batch_size: int | None = None
    keep_metadata: bool = False
    marking: Marking = MARKED
    burned_in: bool = False


def augment_job(
    model: FrozenModel, wanted: Wanted, copies: Mapping[str, int], labels: Labels, out: Path, how: Making
) -> Job:
    """The job of making so many copies of these images. Cost: `solver.calls(steps)` network calls for each batch."""
    key = SecretKey.from_seed(wanted.seed)
    sampling = Sampling(Level(wanted.strengths.general[1]), how.steps, how.solver)
    level = trajectory_settings(model, sampling, how.fit)
    own = {"command": "augment", "strengths": str(wanted.strengths), "seed": wanted.seed, "check": wanted.check}
    if wanted.check:
        own["judge"] = str(wanted.classifier or wanted.features)
    picture = as_picture(how.fit, how.keep_metadata, how.marking)
    job = make_job(
        model,
        {
            **level,
            **own,
            "keep_metadata": how.keep_metadata,
            **how.marking.settings(),
            "keep_originals": wanted.keep_originals,
        },
        transform=near(model, key, sampling),
        read=partial(read, one_square(model.image, how.fit, how.burned_in)),
        encode=lambda results, reading: picture(results, reading) if len(results) else reading.context,
        object_to=unchanged,
        key=key,
        batch_size=how.batch_size,
        calls=calls_near(sampling),
        weigh=lambda item: min(1, item.variant),
        measure=lambda _, reading: {} if isinstance(reading.context, bytes) else marks_of(reading.context),
    )
    if how.fit is FitMode.TILE:
        job = tiled_job(job, model, partial(near, key=key, sampling=sampling), how.batch_size is not None)
    return replace(job, expand=partial(expand, job, wanted, copies, labels, out))


def expand(
    job: Job, wanted: Wanted, copies: Mapping[str, int], labels: Labels, out: Path, items: list[Item]
) -> list[Item]:
    """The copies of these images, but for those that a check has dropped before, and the originals where wanted."""
    taken = {item.name for item in items}
    records = read_manifest(manifest_path(out)).records if wanted.check == "drop" else {}
    made = list(items) if wanted.keep_originals else []
    for item in items:
        for number in range(1, copies.get(item.name, 0) + 1):
            name = copy_name(item.name, number)
            if name in taken:
                raise UsageError(f"{name} is the name of a copy of {item.name}, and of an image in IN: rename that")
            if not dropped_before(job, item.path, records.get(name)):
                strength = wanted.strengths.of(name, labels.get(item.name, ()), job.key)
                made.append(Item(item.path, name, number, strength))
    return made


def dropped_before(job: Job, path: Path, record: Record | None) -> bool:
    return record is not None and record.status == "dropped" and record.source_tag == job.source_tag(path)


def read(read_one: Read, item: Item) -> Reading:
    """A copy is made of its original's square; an original is only checked and passed on as it is."""
    if item.variant:
        return replace(read_one(item), context=item)
    return Reading(torch.empty(0, 1, 1, 1), read_pages(item.path)[0].frame, context=item.path.read_bytes())


def read_annotated(read_one: Read, annotations: Annotations, source: Path, item: Item) -> Reading:
    """A copy is upright: ImageError where its original's boxes or masks were drawn in a picture of another shape."""
    reading, origin = read_one(item), item.path.relative_to(source).as_posix()
    made = Made(item.name, origin, marks_of(item))
    if item.variant:
        check_shape(annotations.shapes.get(origin), reading.frame.height, reading.frame.width)
        places = annotations.companions.get(origin, ())
        check_companions(source, made, places, annotations.pictures, reading.frame)
    return reading


def marks_of(item: Item) -> dict[str, Any]:
    """What is noted of a copy."""
    return {"strength": item.strength} if item.variant else {}


def judged(judge: Judge, out: Path, made: Sequence[Made], labels: Labels) -> list[Made]:
    """The copies in `out` with what the judge says of them."""
    origins = {image.name: image.origin for image in made if image.inherited}
    verdicts: dict[str, dict[str, Any]] = {}
    for names, images in batches(out, list(origins), judge.size, judge.channels):
        verdicts |= zip(names, judge.verdicts(images, [origins[name] for name in names], labels), strict=True)
    return [replace(image, marks=image.marks | verdicts.get(image.name, {})) for image in made]


def note(job: Job, out: Path, made: Sequence[Made], records: Mapping[str, Record], drop: bool) -> None:
    """Put verdicts into the manifest, and remove the copies that disagree where they are to be dropped."""
    with Manifest(manifest_path(out), job.header) as manifest:
        for image in (image for image in made if image.inherited and "label_agrees" in image.marks):
            agrees = image.marks["label_agrees"]
            figures = {name: value for name, value in image.marks.items() if name != "label_agrees"}
            record = replace(records[image.name], figures=figures, verdict="" if agrees else "label disagrees")
            if drop and not agrees:
                record = replace(record, status="dropped", reason="a classifier takes it for another class")
                with writing(out / image.name):
                    (out / image.name).unlink(missing_ok=True)
            if record != records[image.name]:
                manifest.add(record)


def augment_folder(
    model: FrozenModel, source: str | Path, out: str | Path, wanted: Wanted, *, resume: bool = False, **options: Any
) -> Progress:
    """Make the wanted copies of the images below `source`, with their annotations, in `out`.

    options: the fields of `Making`. Returns the run's outcome; `failed` lists images that could not be done.
    """
    source, out = Path(source), Path(out)
    work = augmentation(model, source, out, wanted, **options)
    progress = run(work.job, out, plan_run(work.job, source, out, resume))
    work.finish(source, out)
    return progress
