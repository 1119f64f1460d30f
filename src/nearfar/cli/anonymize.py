"""`nearfar anonymize`: every image of a folder replaced by a new one near it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.calibration import CalibrationChoice
from nearfar.cli.carry_out import carry_out
from nearfar.cli.console import reported_errors
from nearfar.cli.options import KeepMetadata, ModelChoice, Out, RunChoice, Source, TrajectoryChoice, grouped, one_of
from nearfar.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nearfar.diffusion.noise import SecretKey
    from nearfar.io.progress import Progress
    from nearfar.jobs.job import Job
    from nearfar.jobs.regions import Search
    from nearfar.jobs.run import Plan

KINDS = ("faces", "boxes")


@dataclass(frozen=True)
class RegionChoice:
    """Which parts of images are replaced, where not all of them is."""

    regions: Annotated[
        str | None, typer.Option(help="Replace only faces or boxes, and leave all else. [default: whole images]")
    ] = None
    detector: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For faces: OpenCV's YuNet (ONNX), which finds them.")
    ] = None
    least_score: Annotated[
        float | None, typer.Option(help="For faces: what the detector must give one, in [0, 1]. [default: 0.6]")
    ] = None
    boxes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For boxes: a COCO file. [default: COCO and YOLO files in IN]")
    ] = None
    box_classes: Annotated[str | None, typer.Option(help="For boxes: only of these classes: cat,dog.")] = None
    margin: Annotated[
        float | None,
        typer.Option(help="What the model sees around a region, as a share of it. [default: faces 0, boxes 0.25]"),
    ] = None
    keep_unmatched: Annotated[
        bool, typer.Option("--keep-unmatched", help="Write images without any region as they are.")
    ] = False
    recognizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A face recognizer (ONNX) that attacks them in the report.")
    ] = None
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The regions' report, not in OUT. [default: OUT.report.html]")
    ] = None

    def search(self, source: Path, fit: str) -> Search | None:
        """What to look for in images; nothing where they are replaced as a whole. Options must fit together."""
        self.check(fit)
        if self.regions is None:
            return None
        from nearfar.data.boxes import read_boxes
        from nearfar.io.listing import list_folder
        from nearfar.jobs.regions import BOX_MARGIN, FACE_MARGIN, box_search, face_search

        margin = (FACE_MARGIN if self.detector else BOX_MARGIN) if self.margin is None else self.margin
        if self.detector:
            return face_search(self.detector, self.score, margin, self.keep_unmatched)
        names = {item.name for item in list_folder(source).items}
        kinds = [kind.strip() for kind in self.box_classes.split(",")] if self.box_classes else []
        return box_search(read_boxes(source, names, self.boxes, kinds), margin, self.keep_unmatched)

    @property
    def score(self) -> float:
        """What a face needs."""
        return 0.6 if self.least_score is None else self.least_score

    def check(self, fit: str) -> None:
        """Refuse options that would have no effect, and values out of range."""
        if self.regions and fit != "pad":
            raise UsageError("--fit is for whole images: leave it out with --regions")
        of_kind = {"faces": {"detector", "recognizer", "least_score"}, "boxes": {"boxes", "box_classes"}}
        if self.regions is not None:
            one_of(self.regions, "regions", KINDS)
        foreign = set().union(*(names for kind, names in of_kind.items() if kind != self.regions))
        foreign |= set() if self.regions else {"margin", "keep_unmatched", "report"}
        if given := sorted(name for name in foreign if getattr(self, name) is not getattr(type(self), name)):
            needed = next((kind for kind, names in of_kind.items() if given[0] in names), "faces or boxes")
            raise UsageError(f"--{given[0].replace('_', '-')} goes with --regions {needed}: give both, or neither")
        if self.regions == "faces" and self.detector is None:
            raise UsageError("--regions faces needs --detector: name a YuNet ONNX file from OpenCV's model zoo")
        if not 0 <= self.score <= 1:
            raise UsageError(f"least score must be in [0, 1], got {self.score:g}")
        least = 0 if self.regions == "faces" else 1e-3
        if self.margin is not None and not least <= self.margin <= 2:
            raise UsageError(f"margin must be in [{least:g}, 2], got {self.margin:g}")

    def lines(self) -> list[str]:
        """What is said before a run."""
        text = f"regions   only {self.regions} are replaced: all else stays as it is"
        return [text] if self.regions else []

    def after(self, job: Job, search: Search | None, source: Path, out: Path) -> Callable[..., dict[str, Any]]:
        """What is done when the run is over: the report, where regions were replaced. Checked before it begins."""
        if search is None:
            return lambda *_: {}
        from nearfar.metrics.faces import FaceRecognizer
        from nearfar.reports.page import page_beside
        from nearfar.reports.regions import write_region_report

        given = [file for file in (self.boxes, self.detector, self.recognizer) if file]
        path = page_beside(self.report, out, source, keep=given)
        recognizer = FaceRecognizer.load(self.recognizer) if self.recognizer else None

        def report(plan: Plan, _: Progress) -> dict[str, Any]:
            return write_region_report(plan, job, search, source, out, path, recognizer)

        return report


@grouped
def anonymize(
    source: Source,
    out: Out,
    *,
    how: TrajectoryChoice,
    solver: Annotated[str, typer.Option(help="dpm++sde, ancestral, ddim, dpm++ or heun.")] = "dpm++sde",
    key_file: Annotated[
        Path | None, typer.Option(help="Keep the secret key here (made if absent), to make the same images again.")
    ] = None,
    keep_metadata: KeepMetadata = False,
    found: CalibrationChoice,
    parts: RegionChoice,
    choice: ModelChoice,
    progress: RunChoice,
) -> None:
    """Replace every image by a new one near it (local sampling).

    How near is set by --strength (0.35 unless given), a noise level that does not depend on --steps, or found by
    nearfar calibrate (docs/calibrate.md). What this protects, and what it does not: docs/privacy.md. With --regions
    only faces or boxes are replaced: docs/regions.md.
    """
    with reported_errors():
        from nearfar.diffusion.solver import SOLVERS
        from nearfar.jobs.regions import region_job
        from nearfar.jobs.run import check_places

        options = how.options(0.35, solver, SOLVERS)
        calibration = found.read(how, parts.regions)
        check_places(source, out, progress.resume)
        key = open_key(key_file, source, out)
        search = parts.search(source, how.fit)
        model = choice.load()
        job = found.job(model, calibration, key=key, keep_metadata=keep_metadata, **options)
        job = region_job(job, search, keep_metadata) if search else job
        report = parts.after(job, search, source, out)
        more, keep = [*found.lines(calibration), *parts.lines()], lambda: keep_key(key, key_file)
        carry_out(job, model, source, out, progress, before=keep, say_more=lambda _: more, after=report)


def open_key(path: Path | None, source: Path, out: Path) -> SecretKey | None:
    """The key in a file, a new one if the file is absent. It must lie neither with the originals nor the results."""
    from nearfar.diffusion.noise import SecretKey
    from nearfar.io.manifest import manifest_path

    if path is None:
        return None
    if path.resolve() == manifest_path(out):
        raise UsageError(f"{path} is where the record of this run goes: keep the key elsewhere")
    for folder in (source.resolve(), out.resolve()):
        if folder in path.resolve().parents:
            raise UsageError(f"key file {path} must not lie in {folder}, which may be shared: keep it elsewhere")
    return SecretKey.load(path) if path.exists() else SecretKey.random()


def keep_key(key: SecretKey | None, path: Path | None) -> None:
    """Write a new key to its file, before anything is made with it."""
    if key and path and not path.exists():
        try:
            key.save(path)
        except OSError as error:
            raise UsageError(f"cannot write key file {path} ({error.strerror}): choose another place") from None
