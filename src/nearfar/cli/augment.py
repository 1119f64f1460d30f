"""`nearfar augment`: copies of the images of a folder, with the labels and boxes of their originals."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from nearfar.cli.carry_out import carry_out, finish, run_shown
from nearfar.cli.console import reported_errors
from nearfar.cli.options import KeepMetadata, ModelChoice, Out, RunChoice, fit_of, grouped, one_of
from nearfar.errors import UsageError

if TYPE_CHECKING:
    from nearfar.io.progress import Progress
    from nearfar.jobs.augment import Augmentation, Wanted
    from nearfar.jobs.run import Plan
    from nearfar.models.model import FrozenModel

LAYOUTS = {"Metadata": "metadata", "ClassFolders": "class folders", "Coco": "COCO", "Yolo": "YOLO"}
"""What people call the layouts of annotations."""


@dataclass(frozen=True)
class CopyChoice:
    """Which copies are made; the fields are those of `augment.Wanted`."""

    copies: Annotated[int, typer.Option(help="Of each image; with --select balance, at most.")] = 1
    strength: Annotated[
        list[str] | None,
        typer.Option(metavar="S", help="0.3, a range 0.2-0.4, or of a class: cat=0.3 (repeated). [default: 0.3]"),
    ] = None
    seed: Annotated[int, typer.Option(help="Equal seeds give equal copies.")] = 0
    select: Annotated[str, typer.Option(help="Which images get copies: all, rarest, hardest or balance.")] = "all"
    share: Annotated[float, typer.Option(help="Of the images, with --select rarest or hardest.")] = 0.4
    only: Annotated[str, typer.Option(metavar="PATTERN", help="Only of images so named, such as 'train/*'.")] = "*"
    keep_originals: Annotated[bool, typer.Option("--keep-originals", help="Copy the originals to OUT too.")] = False
    check_labels: Annotated[
        str | None, typer.Option(help="drop or flag copies that a classifier takes for another class.")
    ] = None
    classifier: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Of transformers. [default: trained on the originals]")
    ] = None
    features: Annotated[str, typer.Option(help="That it is trained on: model, efficientnet, pixels or a folder.")] = (
        "model"
    )
    label_column: Annotated[str | None, typer.Option(help="Of metadata. [default: label]")] = None

    def wanted(self) -> Wanted:
        from nearfar.data.copies import Select, Strengths
        from nearfar.jobs.augment import Check, Wanted

        chosen = {each.name: getattr(self, each.name) for each in fields(self)}
        check = chosen.pop("check_labels") or ""
        chosen |= {"strengths": Strengths.parse(chosen.pop("strength") or [])}
        chosen |= {"select": cast(Select, one_of(self.select, "select", ["all", "rarest", "hardest", "balance"]))}
        chosen |= {"check": cast(Check, one_of(check, "check-labels", ["", "drop", "flag"]))}
        return Wanted(**chosen)


@grouped
def augment(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Folder of images, data set or shards; only read.")],
    out: Out,
    *,
    what: CopyChoice,
    steps: Annotated[int, typer.Option(help="Solver steps for each image.")] = 20,
    solver: Annotated[str, typer.Option(help="dpm++sde, ancestral, ddim, dpm++ or heun.")] = "dpm++sde",
    fit: Annotated[str, typer.Option(help="Images that are not square: pad or cover.")] = "pad",
    batch_size: Annotated[int | None, typer.Option(help="Images in one network call. [default: automatic]")] = None,
    keep_metadata: KeepMetadata = False,
    choice: ModelChoice,
    progress: RunChoice,
) -> None:
    """Enlarge a training set: K copies of each image, with its labels and boxes.

    Copies of cat/a.png are cat/a~1.png, cat/a~2.png, ... Class folders, metadata.jsonl or .csv, COCO and YOLO
    annotations are carried over and marked as inherited; data sets of Hugging Face (saved folders, Parquet) and
    WebDataset shards (.tar) come out as what they were. docs/augment.md has the details.
    """
    with reported_errors():
        from nearfar.diffusion.solver import SOLVERS

        if steps < 1:
            raise UsageError(f"steps must be at least 1, got {steps}")
        solver_used = SOLVERS[one_of(solver, "solver", SOLVERS)]
        options = {"steps": steps, "solver": solver_used, "fit": fit_of(fit), "batch_size": batch_size}
        augment_files(source, out, what, choice, progress, {**options, "keep_metadata": keep_metadata})


def augment_files(
    source: Path, out: Path, what: CopyChoice, choice: ModelChoice, how: RunChoice, options: dict[str, Any]
) -> None:
    from nearfar.jobs.augment import augmentation
    from nearfar.jobs.run import check_places
    from nearfar.jobs.units import check_wishes, units_of

    wanted, units = what.wanted(), units_of(source)
    check_places(source, out, how.resume)
    if units:
        check_wishes(units, wanted)
        model = choice.load()
        carry_out_units(model, source, out, wanted, how, options, [unit.name for unit in units])
        return
    model = choice.load()
    work = augmentation(model, source, out, wanted, **options)
    carry_out(
        work.job, model, source, out, how,
        say_more=lambda _: lines_about(work), after=lambda *_: work.finish(source, out),
    )  # fmt: skip


def carry_out_units(
    model: FrozenModel,
    source: Path,
    out: Path,
    wanted: Wanted,
    how: RunChoice,
    options: dict[str, Any],
    units: list[str],
) -> None:
    """The same for shards and data sets, one after the other."""
    from nearfar.jobs.augment import Making, augment_job
    from nearfar.jobs.units import augment_units

    typer.echo(f"work      {len(units)} shards or splits, one by one; strength {wanted.strengths}", err=True)
    if how.dry_run and how.as_json:
        settings = augment_job(model, wanted, {}, {}, out, Making(**options)).settings
        typer.echo(json.dumps({"settings": settings, "units": units}))
    if not how.dry_run:
        done = augment_units(model, source, out, wanted, resume=how.resume, run_unit=run_unit, **options)
        finish(done.progress, out, done.job, how.as_json, {"units": len(units), **done.counts})


def run_unit(work: Augmentation, out: Path, plan: Plan) -> Progress:
    """Run the plan of one shard or split under a progress display."""
    for line in judge_line(work):
        typer.echo(line, err=True)
    return run_shown(work.job, out, plan)


def judge_line(work: Augmentation) -> list[str]:
    return [f"judge     {work.judge.about}"] if work.judge else []


def lines_about(work: Augmentation) -> list[str]:
    """What is special about this job, on stderr before it starts."""
    classes = {label for labels in work.annotations.labels.values() for label in labels}
    layouts = ", ".join(LAYOUTS.get(type(layout).__name__, "") for layout in work.annotations.layouts)
    return [f"copies    strength {work.wanted.strengths}; {len(classes)} classes ({layouts})", *judge_line(work)]
