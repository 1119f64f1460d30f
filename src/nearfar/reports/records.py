"""What the record of a run says of its images, however often the run was resumed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from nearfar.io.manifest import Record, manifest_path, read_manifest
from nearfar.jobs.run import Plan


def names_of(plan: Plan) -> list[str]:
    """The images of a run, those that were made before it among them."""
    return [*(item.name for item in plan.todo), *(record.name for record in plan.kept)]


def records_of(out: Path, names: Iterable[str]) -> list[Record]:
    """The records of those of the named outputs that have one."""
    records = read_manifest(manifest_path(out)).records
    return [records[name] for name in names if name in records]


def failures(records: Sequence[Record]) -> list[dict[str, str]]:
    return [{"name": record.name, "reason": record.reason} for record in records if record.status == "failed"]
