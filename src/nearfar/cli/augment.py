"""`nearfar augment`: copies of the images of a folder, with the labels and boxes of their originals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar.cli.carry_out import Outcome, Settled, SettledUnits, carry_out, outcome, run_shown
from nearfar.cli.console import Lines, say
from nearfar.cli.options import (
    BATCH_SIZE,
    BURNED_IN,
    FIT,
    KEEP_METADATA,
    ONLY_SETTLE,
    STEPS,
    TILE,
    Fit,
    Folders,
    Marks,
    ModelChoice,
    RunChoice,
    SolverName,
    argument,
    command,
    job_options,
    option,
    solver_option,
)
from nearfar.data.copies import Wanted

if TYPE_CHECKING:
    from nearfar.io.manifest import Progress
    from nearfar.jobs.augment import Augmentation
    from nearfar.jobs.run import Plan
    from nearfar.jobs.units import Unit
    from nearfar.models.model import FrozenModel

LAYOUTS = {
    "Metadata": "metadata",
    "ClassFolders": "class folders",
    "Coco": "COCO",
    "Yolo": "YOLO",
    "Companions": "files of each image",
}
"""What people call the layouts of annotations."""


@dataclass(frozen=True)
class Sources(Folders):
    """Where images are read, in a folder or a data set, and where results go."""

    source: Path = argument("IN", "Folder of images, data set or shards; only read.")


@dataclass(frozen=True)
class MakingOptions:
    """How copies are made."""

    steps: int = option(20, STEPS)
    solver: SolverName = solver_option("local-prior", SolverName)
    fit: Fit = option("pad", FIT)
    tile: bool = option(False, TILE)
    batch_size: int | None = option(None, BATCH_SIZE)
    keep_metadata: bool = option(False, KEEP_METADATA)
    burned_in: bool = option(False, BURNED_IN)


@command
def augment(
    folders: Sources,
    *,
    wanted: Wanted,
    making: MakingOptions,
    marks: Marks,
    choice: ModelChoice,
    how: RunChoice,
) -> Settled | SettledUnits:
    """Enlarge a training set: K copies of each image, with its labels and boxes.

    Copies of cat/a.png are cat/a~1.png, cat/a~2.png, ... Class folders, metadata.jsonl or .csv, COCO and YOLO
    annotations are carried over and marked as inherited; data sets of Hugging Face (saved folders, Parquet) and
    WebDataset shards (.tar) come out as what they were. Details: documentation, Augment.
    """
    from nearfar.jobs.augment import augmentation
    from nearfar.jobs.units import check_wishes, units_of

    options, units = job_options(making), units_of(folders.source)
    options["marking"] = marks.marking(folders.source, folders.out)
    planning = ONLY_SETTLE.get() is not None and not any(folders.source.iterdir())
    if units or planning:
        if units:
            check_wishes(units, wanted)
        return augment_data_sets(choice.load(), folders, wanted, how, options, units)
    model = choice.load()
    work = augmentation(model, folders.source, folders.out, wanted, **options)
    more, finish = lines_about(work), lambda *_: work.finish(folders.source, folders.out)
    return Settled(work.job, model, folders, how, more=lambda _: more, after=finish, everywhere=True)


def augment_data_sets(
    model: FrozenModel, folders: Folders, wanted: Wanted, how: RunChoice, options: dict[str, Any], units: list[Unit]
) -> SettledUnits:
    """The same for shards and data sets, one after the other."""
    from nearfar.jobs.augment import Making, augment_job
    from nearfar.jobs.units import augment_units

    source, out = folders.source, folders.out

    def work() -> Outcome:
        done = augment_units(model, source, out, wanted, resume=how.resume, run_unit=run_unit, **options)
        return outcome(done.progress, folders, done.job, {"units": len(units), **done.counts})

    announced = [("work", f"{len(units)} shards or splits, one by one; strength {wanted.strengths}")]
    job = augment_job(model, wanted, {}, {}, out, Making(**options))
    planned = {"settings": job.settings, "units": [unit.name for unit in units]}
    return SettledUnits(
        job,
        lambda: carry_out(announced, planned, how, work),
        lambda: augment_units(model, source, out, wanted, resume=how.resume, **options).progress,
    )


def run_unit(work: Augmentation, out: Path, plan: Plan) -> Progress:
    """Run the plan of one shard or split under a progress display."""
    if work.judge:
        say("judge", work.judge.about)
    return run_shown(work.job, out, plan)


def lines_about(work: Augmentation) -> Lines:
    """What is special about this job."""
    classes = {label for labels in work.annotations.labels.values() for label in labels}
    layouts = ", ".join(LAYOUTS.get(type(layout).__name__, "") for layout in work.annotations.layouts)
    judge = [("judge", work.judge.about)] if work.judge else []
    carried = len(work.annotations.pictures)
    masks = [("masks", f"{carried} label pictures are carried over unchanged")] if carried else []
    return [("copies", f"strength {work.wanted.strengths}; {len(classes)} classes ({layouts})"), *masks, *judge]
