"""Options of `anonymize --regions`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.errors import UsageError
from nearfar.options import one_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from nearfar.plan import Job, Plan
    from nearfar.region_job import Search
    from nearfar.run import Progress

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
    recogniser: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A face recogniser (ONNX) that attacks them in the report.")
    ] = None
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The regions' report, not in OUT. [default: OUT.report.html]")
    ] = None

    def search(self, source: Path, fit: str) -> Search | None:
        """What to look for in images; nothing where they are replaced as a whole. Options must fit together."""
        self.check(fit)
        if self.regions is None:
            return None
        from nearfar.boxes import read_boxes
        from nearfar.region_job import BOX_MARGIN, FACE_MARGIN, box_search, face_search
        from nearfar.sources import list_folder

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
        of_kind = {"faces": {"detector", "recogniser", "least_score"}, "boxes": {"boxes", "box_classes"}}
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
        from nearfar.faces import FaceRecogniser
        from nearfar.region_report import write_region_report
        from nearfar.representation_report import page_beside

        given = [file for file in (self.boxes, self.detector, self.recogniser) if file]
        path = page_beside(self.report, out, source, keep=given)
        recogniser = FaceRecogniser.load(self.recogniser) if self.recogniser else None

        def report(plan: Plan, _: Progress) -> dict[str, Any]:
            return write_region_report(plan, job, search, source, out, path, recogniser)

        return report
