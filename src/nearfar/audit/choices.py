"""What is audited and how: plain data, whose help texts the shell shows. Loads neither torch nor a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nearfar.errors import UsageError

SEEDS, LIMIT = 5, 500
"""Trainings of each classifier, and originals that are audited unless more are asked for."""

CLASSIFIER_NAMES = ("logistic", "cnn")


@dataclass(frozen=True)
class Folders:
    """What is audited, and what it is compared with.

    reference: real images for the distances of sets, instead of the originals. others: pictures of people (or things)
    that are not among the originals. test: real images in class folders, for the classifier. members: what the model
    was trained on; then `others` must be pictures that it was not trained on.
    """

    before: Path = field(metadata={"help": "Folder of the originals; it is only read.", "argument": "BEFORE"})
    after: Path = field(metadata={"help": "Folder of what was made of them; it is only read.", "argument": "AFTER"})
    reference: Path | None = field(
        default=None,
        metadata={"help": "Real images for distances of sets. [default: halves of BEFORE]", "metavar": "DIR"},
    )
    others: Path | None = field(
        default=None, metadata={"help": "Pictures of people who are not in BEFORE.", "metavar": "DIR"}
    )
    test: Path | None = field(
        default=None, metadata={"help": "Real images in class folders, for the classifier.", "metavar": "DIR"}
    )
    members: Path | None = field(
        default=None, metadata={"help": "What the model was trained on (as --others was not).", "metavar": "DIR"}
    )

    def __post_init__(self) -> None:
        if self.members and not self.others:
            raise UsageError("members need others to be told from, that the model was not trained on: give others too")


@dataclass(frozen=True)
class Choices:
    """How it is measured.

    people: each top folder of BEFORE holds the pictures of one person. key_file: of the run that made AFTER, for an
    attacker who has got hold of it.
    """

    features: str = field(
        default="model",
        metadata={"help": "model, efficientnet, pixels, or a folder (DINOv2, CLIP, ...).", "metavar": "NETWORK"},
    )
    detector: str | Path | None = field(
        default=None, metadata={"help": "Face detector, such as YuNet.", "metavar": "ONNX"}
    )
    recognizer: str | Path | None = field(
        default=None, metadata={"help": "Face recognizer, such as SFace or MobileFaceNet.", "metavar": "ONNX"}
    )
    people: bool = field(default=False, metadata={"help": "Each top folder of BEFORE is one person."})
    key_file: str | Path | None = field(
        default=None, metadata={"help": "Key of the run: walk outputs back.", "metavar": "FILE"}
    )
    classifier: str = field(
        default="logistic", metadata={"help": "logistic (on features) or cnn (small, from scratch)."}
    )
    seeds: int = field(default=SEEDS, metadata={"help": "Trainings of each classifier."})
    limit: int = field(default=LIMIT, metadata={"help": "Originals at most, drawn by --seed."})
    seed: int = field(default=0, metadata={"help": "Of all that is random."})

    def __post_init__(self) -> None:
        if self.key_file is not None and not Path(self.key_file).is_file():
            raise UsageError(f"key file {self.key_file} is not there: name the one that the run was given")
        if self.limit < 2:
            raise UsageError(f"an audit needs at least 2 originals, got a limit of {self.limit}")
        if self.seeds < 1:
            raise UsageError(f"a classifier needs at least 1 seed, got {self.seeds}")
        if self.classifier not in CLASSIFIER_NAMES:
            raise UsageError(f"classifier must be one of {', '.join(CLASSIFIER_NAMES)}, got {self.classifier!r}")


@dataclass(frozen=True)
class Networks:
    """Networks used for the comparison of originals and outputs: a network of features, and one for faces if wanted."""

    features: str = field(
        default="model",
        metadata={"help": "model (its own), efficientnet, pixels, or a folder of a network of transformers."},
    )
    recognizer: Path | None = field(
        default=None, metadata={"help": "A face recognizer (ONNX), for rank1 and similarity.", "metavar": "FILE"}
    )
    detector: Path | None = field(
        default=None, metadata={"help": "YuNet (ONNX), which finds the faces for it.", "metavar": "FILE"}
    )

    def __post_init__(self) -> None:
        if (self.recognizer is None) != (self.detector is None):
            raise UsageError("give --recognizer and --detector together, or neither: faces must be found first")

    def places(self) -> dict[str, str]:
        """For the calibration's file: names and whole paths, from which the same can be loaded again."""
        folder = Path(self.features)
        features = str(folder.resolve()) if folder.is_dir() else self.features
        files = {"recognizer": self.recognizer, "detector": self.detector}
        return {"features": features, **{name: str(path.resolve()) for name, path in files.items() if path}}

    @classmethod
    def of(cls, places: dict[str, str]) -> Networks:
        """Those that `places` named."""
        return cls(**{name: place if name == "features" else Path(place) for name, place in places.items()})  # type: ignore[arg-type]
