"""How far work has come, and the functions that are called as it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from nearfar.io.manifest import Record

Watch = Callable[[str, int, int], None]
"""Called with `(stage, done, total)` as a stage of the work goes on."""


@dataclass
class Progress:
    """How far a run has come; at its end, the summary. `reduced`: images larger than the model's, which lost detail.

    dropped: outputs that guards refused. network_seconds: spent in the transform, added up over the workers.
    step, steps: how far a batch has come. stopping: batches under way are given up at their next step.
    """

    total: int
    kept: int = 0
    done: int = 0
    ignored: int = 0
    reduced: int = 0
    failed: list[Record] = field(default_factory=list)
    dropped: list[Record] = field(default_factory=list)
    batches: int = 0
    batch_size: int = 0
    seconds: float = 0.0
    network_seconds: float = 0.0
    step: int = 0
    steps: int = 0
    stopping: bool = False

    def count(self, record: Record) -> None:
        if record.status == "done":
            self.done += 1
        else:
            (self.dropped if record.status == "dropped" else self.failed).append(record)


def unwatched(stage: str, done: int, total: int) -> None:
    """A `Watch` that does nothing."""
