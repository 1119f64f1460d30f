"""Options of `calibrate` that `anonymize --calibration` needs again: networks to look through, and the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.errors import UsageError

if TYPE_CHECKING:
    from nearfar.audit.calibration import Calibration
    from nearfar.audit.scores import Eyes
    from nearfar.cli.options import TrajectoryChoice
    from nearfar.jobs.job import Job
    from nearfar.metrics.features import FeatureNetwork
    from nearfar.models.model import FrozenModel


@dataclass(frozen=True)
class EyesChoice:
    """Through which networks originals and outputs are compared."""

    features: Annotated[
        str, typer.Option(help="model (its own), efficientnet, pixels, or a folder of a network of transformers.")
    ] = "model"
    recognizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A face recognizer (ONNX), for rank1 and similarity.")
    ] = None
    detector: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YuNet (ONNX), which finds the faces for it.")
    ] = None

    def load(self, model: FrozenModel) -> tuple[Eyes, FeatureNetwork]:
        """Who sees rank1 and similarity, and which network sees label and distance."""
        from nearfar.audit.scores import face_eyes, network_eyes
        from nearfar.metrics.faces import Faces
        from nearfar.metrics.features import feature_network

        if (self.recognizer is None) != (self.detector is None):
            raise UsageError("give --recognizer and --detector together, or neither: faces must be found first")
        faces, network = Faces.load(self.detector, self.recognizer), feature_network(self.features, model)
        return network_eyes(network) if faces is None else face_eyes(faces), network

    def places(self) -> dict[str, str]:
        """For the calibration's file: names and whole paths, from which the same can be loaded again."""
        whole = Path(self.features)
        features = str(whole.resolve()) if whole.is_dir() else self.features
        files = {"recognizer": self.recognizer, "detector": self.detector}
        return {"features": features, **{name: str(path.resolve()) for name, path in files.items() if path}}

    @classmethod
    def of(cls, places: dict[str, str]) -> EyesChoice:
        files = {name: Path(place) for name, place in places.items() if name != "features"}
        return cls(features=places["features"], **files)


@dataclass(frozen=True)
class CalibrationChoice:
    """A strength that was found by `nearfar calibrate`."""

    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take the strength that nearfar calibrate found.")
    ] = None
    per_image: Annotated[
        bool,
        typer.Option("--per-image", help="With it: each image only as far as its own target needs, in 6 x the time."),
    ] = False

    def read(self, how: TrajectoryChoice, regions: str | None) -> Calibration | None:
        """The calibration, before a model is loaded; refused together with what it decides."""
        from nearfar.audit.calibration import load_calibration

        if self.calibration is None:
            if self.per_image:
                raise UsageError("--per-image needs the --calibration FILE whose target each image shall meet")
            return None
        if how.strength is not None or how.sigma is not None:
            raise UsageError("the strength comes from --calibration: leave --strength and --sigma out")
        if regions:
            raise UsageError("--calibration was measured on whole images: with --regions give --strength instead")
        return load_calibration(self.calibration)

    def job(self, model: FrozenModel, calibration: Calibration | None, **options: Any) -> Job:
        """The job at the strength of the calibration, or of the options where there is none."""
        from nearfar.jobs.anonymize import anonymize_job
        from nearfar.jobs.per_image import calibrated_job, need_of

        if calibration is None:
            return anonymize_job(model, **options)
        eyes = EyesChoice.of(calibration.measuring["eyes"])
        need = need_of(calibration, *eyes.load(model)) if self.per_image else None
        return calibrated_job(model, calibration, need, **options)

    def lines(self, calibration: Calibration | None) -> list[str]:
        """What is said of it before the run."""
        if calibration is None:
            return []
        how = "each image's own, at least that above" if self.per_image else f"found in {self.calibration}"
        return [f"target    {calibration.asked}; strength {how}"]
