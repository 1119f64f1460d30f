"""`nearfar anonymize`: every image of a folder replaced by a new one near it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar.audit.choices import Networks
from nearfar.cli.carry_out import Settled
from nearfar.cli.console import Lines
from nearfar.cli.options import (
    BURNED_IN,
    KEEP_METADATA,
    TILE,
    Folders,
    Marks,
    ModelChoice,
    RunChoice,
    SolverName,
    Trajectory,
    command,
    one_of,
    option,
    solver_option,
)
from nearfar.data.lines import FORMATS
from nearfar.errors import UsageError

if TYPE_CHECKING:
    from nearfar.audit.calibration import Calibration
    from nearfar.diffusion.noise import SecretKey
    from nearfar.io.manifest import Progress
    from nearfar.jobs.job import Job
    from nearfar.jobs.regions import Search
    from nearfar.jobs.run import Plan
    from nearfar.models.model import FrozenModel

OF_KIND = {
    "faces": {"detector", "recognizer", "least_score"},
    "boxes": {"boxes", "box_classes", "boxes_format", "boxes_upright"},
}
"""Options that go with one kind of regions only."""
OF_ANY = {"margin", "keep_unmatched", "report"}


@dataclass(frozen=True)
class Method:
    """How images are changed, and what outlives the run."""

    solver: SolverName = solver_option("local-prior", SolverName)
    tile: bool = option(False, TILE)
    key_file: Path | None = option(None, "Keep the secret key here (made if absent), to make the same images again.")
    keep_metadata: bool = option(False, KEEP_METADATA)
    burned_in: bool = option(False, BURNED_IN)


@dataclass(frozen=True)
class CalibrationChoice:
    """A strength that was found by `nearfar calibrate`."""

    calibration: Path | None = option(None, "Take the strength that nearfar calibrate found.", metavar="FILE")
    per_image: bool = option(False, "With it: each image only as far as its own target needs, in 6 x the time.")

    def read(self, trajectory: Trajectory, regions: str | None) -> Calibration | None:
        """The calibration, before a model is loaded; refused together with what it decides."""
        from nearfar.audit.calibration import load_calibration

        if self.calibration is None:
            if self.per_image:
                raise UsageError("--per-image needs the --calibration FILE whose target each image shall meet")
            return None
        if trajectory.strength is not None or trajectory.sigma is not None:
            raise UsageError("the strength comes from --calibration: leave --strength and --sigma out")
        if regions:
            raise UsageError("--calibration was measured on whole images: with --regions give --strength instead")
        return load_calibration(self.calibration)

    def job(self, model: FrozenModel, calibration: Calibration | None, **options: Any) -> Job:
        """The job at the strength of the calibration, or of the options where there is none."""
        from nearfar.audit.scorer import load_eyes
        from nearfar.jobs.anonymize import anonymize_job, calibrated_job, need_of

        if calibration is None:
            return anonymize_job(model, **options)
        networks = Networks.of(calibration.measuring["eyes"])
        need = need_of(calibration, *load_eyes(networks, model)) if self.per_image else None
        return calibrated_job(model, calibration, need, **options)

    def lines(self, calibration: Calibration | None) -> Lines:
        """What is said of it before the run."""
        if calibration is None:
            return []
        strength = "each image's own, at least that above" if self.per_image else f"found in {self.calibration}"
        return [("target", f"{calibration.asked}; strength {strength}")]


@dataclass(frozen=True)
class RegionChoice:
    """Which parts of images are replaced, where not all of them is."""

    regions: str | None = option(None, "Replace only faces or boxes, and leave all else. [default: whole images]")
    detector: Path | None = option(None, "For faces: OpenCV's YuNet (ONNX), which finds them.", metavar="FILE")
    least_score: float | None = option(None, "For faces: what the detector must give one, in [0, 1]. [default: 0.6]")
    boxes: Path | None = option(None, "For boxes: a COCO file. [default: COCO and YOLO files in IN]", metavar="FILE")
    box_classes: str | None = option(None, "For boxes: only of these classes: cat,dog.")
    boxes_format: str | None = option(
        None, "For boxes: what YOLO's lines are: detect, pose, segment or obb. [default: as data.yaml says]"
    )
    boxes_upright: bool = option(False, "For boxes: of pictures with an EXIF turn they are of the turned picture.")
    margin: float | None = option(
        None, "What the model sees around a region, as a share of it. [default: faces 0, boxes 0.25]"
    )
    keep_unmatched: bool = option(False, "Write images without any region as they are.")
    recognizer: Path | None = option(None, "A face recognizer (ONNX) that attacks them in the report.", metavar="FILE")
    report: Path | None = option(None, "The regions' report, not in OUT. [default: OUT.report.html]", metavar="FILE")

    def search(self, source: Path, fit: str) -> Search | None:
        """What to look for in images; nothing where they are replaced as a whole. Options must fit together."""
        self.check(fit)
        if self.regions is None:
            return None
        from nearfar.data.boxes import Told, read_boxes
        from nearfar.io.listing import list_folder
        from nearfar.jobs.regions import BOX_MARGIN, FACE_MARGIN, box_search, face_search

        margin = (FACE_MARGIN if self.detector else BOX_MARGIN) if self.margin is None else self.margin
        if self.detector:
            return face_search(self.detector, self.score, margin, self.keep_unmatched)
        names = {item.name for item in list_folder(source).items}
        kinds = [kind.strip() for kind in self.box_classes.split(",")] if self.box_classes else []
        told = Told(kinds, self.boxes_format or "", self.boxes_upright, self.keep_unmatched)
        return box_search(read_boxes(source, names, self.boxes, told), margin, self.keep_unmatched)

    @property
    def score(self) -> float:
        """What a face needs."""
        return 0.6 if self.least_score is None else self.least_score

    def check(self, fit: str) -> None:
        """Refuse options that would have no effect, and values out of range."""
        if self.regions and fit != "pad":
            raise UsageError("--fit is for whole images: leave it out with --regions")
        if self.regions is not None:
            one_of(self.regions, "regions", OF_KIND)
        self.check_foreign()
        if self.boxes_format is not None:
            one_of(self.boxes_format, "boxes format", FORMATS)
        if self.regions == "faces" and self.detector is None:
            raise UsageError("--regions faces needs --detector: name a YuNet ONNX file from OpenCV's model zoo")
        if not 0 <= self.score <= 1:
            raise UsageError(f"least score must be in [0, 1], got {self.score:g}")
        least = 0 if self.regions == "faces" else 1e-3
        if self.margin is not None and not least <= self.margin <= 2:
            raise UsageError(f"margin must be in [{least:g}, 2], got {self.margin:g}")

    def check_foreign(self) -> None:
        """Refuse options of another kind of regions than the one that is replaced."""
        foreign = set().union(*(names for kind, names in OF_KIND.items() if kind != self.regions))
        foreign |= set() if self.regions else OF_ANY
        if given := sorted(name for name in foreign if getattr(self, name) is not getattr(type(self), name)):
            needed = next((kind for kind, names in OF_KIND.items() if given[0] in names), "faces or boxes")
            raise UsageError(f"--{given[0].replace('_', '-')} goes with --regions {needed}: give both, or neither")

    def lines(self) -> Lines:
        """What is said before a run."""
        return [("regions", f"only {self.regions} are replaced: all else stays as it is")] if self.regions else []

    def after(self, job: Job, search: Search | None, folders: Folders) -> Callable[..., dict[str, Any]]:
        """What is done when the run is over: the report, where regions were replaced. Checked before it begins."""
        if search is None:
            return lambda *_: {}
        from nearfar.jobs.places import page_beside
        from nearfar.metrics.faces import FaceRecognizer
        from nearfar.reports.regions import write_region_report

        source, out = folders.source, folders.out
        given = [file for file in (self.boxes, self.detector, self.recognizer) if file]
        path = page_beside(self.report, out, source, keep=given)
        recognizer = FaceRecognizer.load(self.recognizer) if self.recognizer else None

        def report(plan: Plan, _: Progress) -> dict[str, Any]:
            return write_region_report(plan, job, search, source, out, path, recognizer)

        return report


@command
def anonymize(
    folders: Folders,
    *,
    trajectory: Trajectory,
    method: Method,
    calibrated: CalibrationChoice,
    parts: RegionChoice,
    marks: Marks,
    choice: ModelChoice,
    how: RunChoice,
) -> Settled:
    """Replace every image by a new one near it (local sampling).

    How near is set by --strength (0.35 unless given), a noise level that does not depend on --steps, or found by
    nearfar calibrate. What this protects, and what it does not: documentation, Privacy. With --regions
    only faces or boxes are replaced: documentation, Regions.
    """
    from nearfar.diffusion.solver import SOLVERS
    from nearfar.jobs.regions import region_job

    written: dict[str, Any] = {"keep_metadata": method.keep_metadata, "burned_in": method.burned_in}
    written["marking"] = marks.marking(folders.source, folders.out)
    options = trajectory.options(0.35, method.solver, SOLVERS, method.tile) | written
    if method.tile and (parts.regions or calibrated.calibration):
        raise UsageError("--tile is for whole images at a given strength: leave --regions and --calibration out")
    calibration = calibrated.read(trajectory, parts.regions)
    key = open_key(method.key_file, folders)
    search = parts.search(folders.source, trajectory.fit)
    model = choice.load()
    job = calibrated.job(model, calibration, key=key, **options)
    job = region_job(job, search, **written) if search else job
    more = [*calibrated.lines(calibration), *parts.lines()]
    after = parts.after(job, search, folders)
    return Settled(
        job,
        model,
        folders,
        how,
        more=lambda plan: [*more, *odd_ones(folders.source, plan)],
        before=lambda: keep_key(key, method.key_file),
        after=after,
    )


def odd_ones(source: Path, plan: Plan) -> Lines:
    """Pictures that may not have been meant: replaced like all others, as nothing may stay as it is, and told."""
    from nearfar.data.companions import hidden, label_pictures

    names = [item.name for item in plan.listing.items]
    masks, aside = sorted(label_pictures(source, names)), [name for name in names if hidden(name)]
    kinds = {"look like masks or labels of others": masks, "lie in hidden folders": aside}
    return [
        ("note", f"{len(found)} pictures, such as {found[0]}, {what}: they are replaced like all others")
        for what, found in kinds.items()
        if found
    ]


def open_key(path: Path | None, folders: Folders) -> SecretKey | None:
    """The key in a file, a new one if the file is absent. It must lie neither with the originals nor the results."""
    from nearfar.diffusion.noise import SecretKey
    from nearfar.io.manifest import manifest_path

    if path is None:
        return None
    if path.resolve() == manifest_path(folders.out):
        raise UsageError(f"{path} is where the record of this run goes: keep the key elsewhere")
    for folder in (folders.source.resolve(), folders.out.resolve()):
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
