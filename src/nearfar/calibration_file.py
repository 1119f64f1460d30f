"""A calibration in a file: what was measured, with what, and the strength that came of it. JSON, for people too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nearfar.calibration import Found, Point, Target, parse_target
from nearfar.errors import UsageError
from nearfar.sinks import write_whole, writing

FORMAT = 1


@dataclass(frozen=True)
class Calibration:
    """method: the model's hash and how it is sampled; a strength means the same only with these. measuring: all else
    that decided the scores. images: in the sample, which rank1 was searched in. digest: of the file."""

    method: Mapping[str, Any]
    measuring: Mapping[str, Any]
    images: int
    confidence: float
    targets: tuple[Target, ...]
    found: Found
    digest: str = ""

    def strength_for(self, method: Mapping[str, Any]) -> float:
        """The strength that was found; UsageError if there is none, or if it was found for another method."""
        for name in {**self.method, **method}:
            if self.method.get(name) != method.get(name):
                was, now = (str(each.get(name))[:20] for each in (self.method, method))
                raise UsageError(f"the calibration was made with {name} {was}, not {now}: calibrate again, or use that")
        if self.found.strength is None:
            raise UsageError(f"the calibration found no strength for {self.asked}: calibrate for another target")
        return self.found.strength

    @property
    def asked(self) -> str:
        return " and ".join(str(target) for target in self.targets)


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write it, whole or not at all."""
    content = {"format": FORMAT, **asdict(calibration)}
    content["targets"] = [f"{target.measure}={target.value!r}" for target in calibration.targets]
    del content["digest"]
    with writing(path):
        write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def load_calibration(path: Path) -> Calibration:
    """Read it back; `digest` is the SHA-256 of the file. Raises UsageError for what is none."""
    try:
        text = path.read_bytes()
        content = json.loads(text)
        if content.pop("format") != FORMAT:
            raise ValueError
        found = content.pop("found")
        curves = {name: tuple(Point(**point) for point in curve) for name, curve in found["curves"].items()}
        return Calibration(
            targets=tuple(parse_target(target) for target in content.pop("targets")),
            found=Found(curves, found["limits"], found["strength"]),
            digest=hashlib.sha256(text).hexdigest(),
            **content,
        )
    except OSError as error:
        raise UsageError(f"calibration {path} cannot be read ({error.strerror}): name another file") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path} is no calibration of this version: make it with nearfar calibrate") from None
