"""What the numbers of a YOLO line mean: `data.yaml` or the user says it, how many there are does not.

Six numbers are a triangle, or a box with a confidence and a tracker's id; five may end in a confidence or an angle.
Four are a box in every format: a center and a size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nearfar.errors import UsageError

FORMATS = ("detect", "pose", "segment", "obb")
MORE = 2
"""Numbers that predictions append to a line: a confidence, a tracker's id."""

BEYOND = 0.5
"""How far corners may lie outside of the picture, as a share of it."""

Corners = tuple[float, float, float, float]
"""Left, top, width and height, as shares of the picture."""


@dataclass(frozen=True)
class Meaning:
    """format: one of `FORMATS`, or nothing. keypoints: how many numbers tell those of a line, where that is known."""

    format: str = ""
    keypoints: int | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any], given: str = "", place: str = "data.yaml") -> Meaning:
        """What `kpt_shape` and `task` tell, and what the user says, who must not contradict them. Raises UsageError."""
        keypoints = keypoints_of(told["kpt_shape"], place) if "kpt_shape" in told else None
        task = told.get("task", given or ("pose" if keypoints else ""))
        if task not in ("", *FORMATS):
            raise UsageError(f"{place}: task must be one of {', '.join(FORMATS)}, got {str(task)[:40]!r}")
        found = {each for each in (task, given, "pose" if keypoints else "") if each}
        if len(found) > 1:
            said = f"{place} and --boxes-format say {' and '.join(sorted(found))}"
            raise UsageError(f"{said} of the same lines: mend {place}, or leave the option out")
        return cls(task, keypoints)

    def box(self, line: str, place: str) -> Corners:
        """The box of a line, or what encloses its corners. UsageError where nothing explains the line."""
        numbers = [float(number) for number in line.split()[1:]]
        count = len(numbers)
        if self.format == "obb" and 8 <= count <= 8 + MORE:
            return enclosing(numbers[:8], line, place)
        if self.format == "segment" and count >= 6:
            return enclosing(numbers[: count - count % 2], line, place)
        if count == 4 or self.has_box_first(count):
            return centered(numbers, line, place)
        raise UsageError(f"{place} has {count} numbers after the class, {self.why()}, got {line.strip()[:40]!r}")

    def has_box_first(self, count: int) -> bool:
        """Whether so many numbers are a center and a size, then keypoints and what predictions append."""
        if self.format == "pose":
            return count > 4 if self.keypoints is None else 0 <= count - 4 - self.keypoints <= MORE
        return self.format == "detect" and 0 <= count - 4 <= MORE

    def why(self) -> str:
        """Why a line is not understood, and the way out."""
        if not self.format:
            options = ", ".join(FORMATS)
            return f"which nothing explains: say it in data.yaml (kpt_shape or task) or by --boxes-format {options}"
        rule = {
            "detect": "but those of detect are 4, a confidence and an id",
            "pose": f"but those of pose are 4, {self.keypoints} of keypoints (kpt_shape), a confidence and an id",
            "segment": "but those of segment are pairs, at least 3",
            "obb": "but those of obb are 4 pairs, a confidence and an id",
        }
        return f"{rule[self.format]}: mend the line or what names the format"


def keypoints_of(shape: object, place: str) -> int:
    """How many numbers the keypoints of a line are: 17 of x, y and visibility are 51."""
    numbers = shape if isinstance(shape, list) and all(type(each) is int for each in shape) else []
    if len(numbers) != 2 or numbers[0] < 1 or numbers[1] not in (2, 3):
        raise UsageError(f"{place}: kpt_shape must be [points, 2 or 3], such as [17, 3], got {str(shape)[:40]}")
    return int(numbers[0] * numbers[1])


def centered(numbers: list[float], line: str, place: str) -> Corners:
    x, y, width, height = numbers[:4]
    if not (0 <= x <= 1 and 0 <= y <= 1 and 0 < width <= 1 + 1e-3 and 0 < height <= 1 + 1e-3):
        rule = "must have its center in [0, 1] and a width and height above 0 to 1, as shares of the image"
        raise UsageError(f"{place} {rule}, got {line.strip()[:40]!r}: mend or remove it")
    return x - width / 2, y - height / 2, width, height


def enclosing(numbers: list[float], line: str, place: str) -> Corners:
    across, down = numbers[::2], numbers[1::2]
    if not -BEYOND <= min(numbers) <= max(numbers) <= 1 + BEYOND:
        rule = "must have corners in [0, 1], as shares of the image"
        raise UsageError(f"{place} {rule}, got {line.strip()[:40]!r}: mend or remove it")
    return min(across), min(down), max(across) - min(across), max(down) - min(down)
