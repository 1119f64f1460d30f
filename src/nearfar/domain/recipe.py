"""What new images of a domain are made of: plain data, whose help texts the shell shows. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nearfar.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

FAMILY = "mosaic"
PRESET_NAMES = ("paper-v1", "paper-v2")


def parse_eta(text: str) -> float | None:
    """Eta as it is typed; None for "auto". Raises UsageError."""
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"eta must be in [0, 1] or auto, got {text!r}") from None


@dataclass(frozen=True)
class Recipe:
    """What samples are made of; the fields are those of `synthesize`, a pull of None is the domain's own.

    eta: None where it is still to be measured (see `bandwidth`). near, amount: an image that samples are variations
    of, or its file, and how far from it (`synthesis.steer`).
    """

    family: str | None = field(
        default=None,
        metadata={
            "help": "Mixtures of latents: mosaic, parents, sphere. "
            "Gaussians: scalar, diagonal, spectral, structured, shrinkage. [default: the domain's preset, or mosaic]"
        },
    )
    parents: int | None = field(
        default=None, metadata={"help": "Fitted images in a mixture. [default: the domain's own]"}
    )
    geometry: str = field(
        default="free",
        metadata={"help": "free, projected onto the domain's shell, or tested: drawn until it lies there."},
    )
    pull: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the density ratio, from the model's own domain to this one; 0 to 1. "
            "[default: what the domain was fitted with]"
        },
    )
    eta: float | None = field(
        default=0.0,
        metadata={
            "help": "Fresh noise on the way down, 0 to 1, or auto: the most that stays in the domain.",
            "shell": str,
            "typed": "0",
            "read": parse_eta,
        },
    )
    near: Path | Tensor | None = field(
        default=None, metadata={"help": "Make variations of this image.", "metavar": "IMAGE"}
    )
    amount: float | None = field(
        default=None, metadata={"help": "How far from it: 0 gives it back, 1 forgets it. [default: 0.5]"}
    )
    seed: int = field(default=0, metadata={"help": "Of all that is random."})

    def __post_init__(self) -> None:
        if self.amount is not None and self.near is None:
            raise UsageError("--amount is how far variations go: give --near IMAGE too")
        for name in ("pull", "amount", "eta"):
            share = getattr(self, name) or 0.0
            if not 0 <= share <= 1:
                raise UsageError(f"{name} must be in [0, 1], got {share:g}")
