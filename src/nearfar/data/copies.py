"""How many copies of which image, and how far each goes from its original."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nearfar.errors import UsageError

if TYPE_CHECKING:
    from nearfar.data.labels import Labels
    from nearfar.diffusion.noise import SecretKey

Range = tuple[float, float]
Select = Literal["all", "rarest", "hardest", "balance"]
Check = Literal["", "drop", "flag"]

STRENGTH = 0.3
STRENGTH_TEXT = re.compile(r"(?:(?P<label>.+)=)?(?P<low>\d*\.?\d+)(?:-(?P<high>\d*\.?\d+))?")


@dataclass(frozen=True)
class Strengths:
    """How far copies go: lowest and highest strength, equal for a fixed one, and those of single classes."""

    general: Range = (STRENGTH, STRENGTH)
    by_class: Mapping[str, Range] = field(default_factory=dict)

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Strengths:
        """From `0.3`, `0.2-0.4`, `cat=0.3` or `cat=0.2-0.4`. Raises UsageError."""
        ranges = dict(parse_strength(text) for text in texts)
        if len(ranges) < len(texts):
            raise UsageError(f"each class, and what holds for all, has one --strength, got {', '.join(texts)}")
        return cls(ranges.pop("", (STRENGTH, STRENGTH)), ranges)

    def of(self, name: str, labels: Sequence[str], key: SecretKey) -> float:
        """The strength of the copy of this name, drawn by its name; of several classes the mildest range holds."""
        low, high = min([self.by_class[label] for label in labels if label in self.by_class] or [self.general])
        return round(low + (high - low) * fraction(key, "strength", name), 4)

    def __str__(self) -> str:
        parts = {"": self.general, **self.by_class}
        return ", ".join(f"{label}={in_words(span)}" if label else in_words(span) for label, span in parts.items())


@dataclass(frozen=True)
class Wanted:
    """Which copies are wanted; the shell shows the help texts, without loading torch.

    copies: of each image, at most. strengths: how far they go. seed: equal ones give equal copies.
    select, share: which images get copies, as `copies_of_each` has it. only: a pattern that their names match.
    keep_originals: OUT holds these too, byte for byte.
    check: whether copies that a classifier takes for another class are flagged or dropped. classifier: a folder of
    transformers; otherwise one is trained on the originals' `features` (a name or folder of `feature_network`).
    label_column: of metadata, where labels stand in another one than `label`.
    """

    copies: int = field(default=1, metadata={"help": "Of each image; with --select balance, at most."})
    strengths: Strengths = field(
        default_factory=Strengths,
        metadata={
            "help": "0.3, a range 0.2-0.4, or of a class: cat=0.3 (repeated). [default: 0.3]",
            "option": "strength",
            "metavar": "S",
            "shell": list[str] | None,
            "read": lambda texts: Strengths.parse(texts or []),
        },
    )
    seed: int = field(default=0, metadata={"help": "Equal seeds give equal copies."})
    select: Select = field(
        default="all", metadata={"help": "Which images get copies: all, rarest, hardest or balance."}
    )
    share: float = field(default=0.4, metadata={"help": "Of the images, with --select rarest or hardest."})
    only: str = field(
        default="*", metadata={"help": "Only of images so named, such as 'train/*'.", "metavar": "PATTERN"}
    )
    keep_originals: bool = field(default=False, metadata={"help": "Copy the originals to OUT too."})
    check: Check = field(
        default="",
        metadata={
            "help": "drop or flag copies that a classifier takes for another class.",
            "option": "check-labels",
        },
    )
    classifier: Path | None = field(
        default=None,
        metadata={"help": "Of transformers. [default: trained on the originals]", "metavar": "FOLDER"},
    )
    features: str = field(
        default="model", metadata={"help": "That it is trained on: model, efficientnet, pixels or a folder."}
    )
    label_column: str | None = field(default=None, metadata={"help": "Of metadata. [default: label]"})

    @property
    def needs_all_images(self) -> bool:
        """Whether what is made of one image depends on the others."""
        return self.select != "all" or (self.check != "" and self.classifier is None)


def in_words(span: Range) -> str:
    return f"{span[0]:g}" if span[0] == span[1] else f"{span[0]:g}-{span[1]:g}"


def parse_strength(text: str) -> tuple[str, Range]:
    """(class, or nothing for all; lowest and highest)."""
    found = STRENGTH_TEXT.fullmatch(text)
    if not found:
        raise UsageError(f"strength must look like 0.3, 0.2-0.4, cat=0.3 or cat=0.2-0.4, got {text!r}")
    low, high = float(found["low"]), float(found["high"] or found["low"])
    if not 0 < low <= high <= 1:
        raise UsageError(f"strength must be above 0 to 1, the lower end of a range first, got {text!r}")
    return found["label"] or "", (low, high)


def fraction(key: SecretKey, purpose: str, name: str) -> float:
    """A number in [0, 1) that depends on key, purpose and name alone."""
    return int(key.tag(purpose, name.encode()), 16) / 2**128


def check_classes(wanted: Collection[str], labels: Labels) -> None:
    """Options by class need labels, and classes that there are."""
    known = sorted({label for each in labels.values() for label in each})
    if wanted and not known:
        raise UsageError("options by class need labels: class folders, metadata with a label column, COCO or YOLO")
    if unknown := sorted(set(wanted) - set(known)):
        raise UsageError(f"--strength names the class {unknown[0]}, which no image has: {', '.join(known)[:200]}")


def copies_of_each(
    names: Sequence[str], labels: Labels, copies: int, select: Select, share: float, key: SecretKey,
    own: Mapping[str, float],
) -> dict[str, int]:  # fmt: skip
    """Name of an image -> how many copies it gets; those that get none are left out.

    select: "all"; "rarest", whole classes from the one with the fewest images on, until a `share` of the images is
    reached (one class at least); "hardest", the `share` of the images whose own label a classifier gives the lowest
    probability `own`; "balance", classes grow toward the size of the largest, which gets none, with at most `copies`
    of an image.
    """
    if copies < 1:
        raise UsageError(f"copies must be at least 1, got {copies}")
    if not 0 < share <= 1:
        raise UsageError(f"share must be above 0 to 1, got {share:g}")
    if select == "all":
        return dict.fromkeys(names, copies)
    if select == "hardest":
        return dict.fromkeys(sorted(own, key=lambda name: (own[name], name))[: ceil(share * len(own))], copies)
    if not any(labels.values()):
        raise UsageError(f"--select {select} needs labels: class folders, metadata with a label column, COCO or YOLO")
    if select == "rarest":
        return dict.fromkeys(rarest(names, labels, share), copies)
    return balancing(names, labels, copies, key)


def class_of(name: str, labels: Labels, counts: Counter[str]) -> str:
    """The rarest of an image's labels; empty where it has none."""
    return min(labels.get(name, ()), key=lambda label: (counts[label], label), default="")


def members(names: Sequence[str], labels: Labels) -> dict[str, list[str]]:
    """Class -> its images, rarest first; an image of several classes counts for the rarest."""
    counts = Counter(label for name in names for label in labels.get(name, ()))
    found: dict[str, list[str]] = {label: [] for label, _ in sorted(counts.items(), key=lambda one: (one[1], one[0]))}
    for name in names:
        if label := class_of(name, labels, counts):
            found[label].append(name)
    return found


def rarest(names: Sequence[str], labels: Labels, share: float) -> list[str]:
    chosen: list[str] = []
    for of_class in members(names, labels).values():
        if chosen and len(chosen) + len(of_class) > share * len(names):
            break
        chosen += of_class
    return chosen


def balancing(names: Sequence[str], labels: Labels, copies: int, key: SecretKey) -> dict[str, int]:
    """Copies that fill every class up; who of a class gets one more is drawn by name."""
    found: dict[str, int] = {}
    classes = members(names, labels)
    largest = max(map(len, classes.values()))
    for of_class in (each for each in classes.values() if each):
        missing = min(copies * len(of_class), largest - len(of_class))
        for rank, name in enumerate(sorted(of_class, key=lambda name: fraction(key, "balance", name))):
            found[name] = missing // len(of_class) + (rank < missing % len(of_class))
    return {name: number for name, number in found.items() if number}
