"""What a folder run will do, settled before anything is written; what an earlier run has finished is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearfar.errors import UsageError
from nearfar.io.listing import Item, Listing, list_folder
from nearfar.io.manifest import Earlier, Record, manifest_path, read_manifest
from nearfar.io.writing import has_content
from nearfar.jobs.job import Job


@dataclass(frozen=True)
class Plan:
    """What a run will do: images to process, earlier outputs to keep and to remove, entries that cannot be read."""

    todo: list[Item]
    kept: list[Record]
    outdated: list[str]
    listing: Listing
    batch_size: int


def plan_run(job: Job, source: Path, out: Path, resume: bool) -> Plan:
    """List the work; nothing is written. Raises UsageError when `out` is in the way."""
    check_places(source, out, resume)
    listing = list_folder(source)
    if not listing.items and not listing.rejected:
        others = f"{listing.ignored} other files"
        raise UsageError(f"{source} holds no images ({others}): PNG, JPEG, WebP, TIFF and BMP are read")
    return plan_items(job, listing, out, resume)


def plan_items(job: Job, listing: Listing, out: Path, resume: bool) -> Plan:
    """The same for whatever is listed. Raises UsageError when `out` was begun with other settings or another key."""
    earlier = read_manifest(manifest_path(out)) if resume else Earlier()
    check_same_run(job, out, earlier)
    items = job.expand(listing.items)
    kept = {item.name: record for item in items if (record := still_good(job, item, out, earlier.records))}
    todo = [item for item in items if item.name not in kept]
    done = [name for name, record in earlier.records.items() if record.status == "done" and not job.numbered]
    outdated = [name for name in done if name not in kept and is_inside(name)]
    return Plan(todo, list(kept.values()), outdated, listing, choose_batch_size(job, todo, list(kept.values())))


def check_places(source: Path, out: Path, resume: bool) -> None:
    """Refuse folders that could not be worked with, before anything costs time."""
    check_folders(source, out)
    check_out(out, resume)


def check_folders(source: Path, out: Path) -> None:
    """Neither folder may lie in the other: outputs would become inputs, or originals be overwritten."""
    a, b = source.resolve(), out.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise UsageError(f"{source} and {out} must not contain each other: choose an output folder elsewhere")


def check_out(out: Path, resume: bool) -> None:
    for path in (out, *out.absolute().parents):
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} must be a folder, got a file: choose another output")
    manifest = manifest_path(out)
    has_files = out.is_dir() and any(out.iterdir())
    if has_files and not resume:
        raise UsageError(f"{out} is not empty: give --resume to go on with it, or choose another output")
    if has_files and not manifest.exists():
        raise UsageError(f"{out} has no manifest ({manifest.name}), so nothing can be resumed: choose another output")
    if manifest.exists() and not resume:
        raise UsageError(f"{manifest} is the record of an earlier run: give --resume, or remove it")


def check_same_run(job: Job, out: Path, earlier: Earlier) -> None:
    """An output folder has one set of settings and one key; anything else would be redone over finished work."""
    check_same_settings(job.settings, out, earlier)
    if earlier.header and earlier.header.get("key") != job.header["key"]:
        raise UsageError(f"{out} has another key: give the --key-file that it began with, or none if it had none")


def check_same_settings(now: dict[str, Any], out: Path, earlier: Earlier) -> None:
    """Refuse to go on with a folder that was begun with other settings."""
    before = earlier.header.get("run", now)
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    changed = [f"{name} {short(before.get(name))}, now {short(now.get(name))}" for name in names]
    if changed:
        raise UsageError(
            f"{out} was made with other settings ({'; '.join(changed)}): repeat them, or choose another output"
        )


def short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)[:20]


def still_good(job: Job, item: Item, out: Path, records: dict[str, Record]) -> Record | None:
    """The record of what still stands, its source unchanged: done and its file intact, or dropped."""
    record = records.get(item.name)
    if record is None or record.status == "failed" or record.source_tag != job.source_tag(item.path):
        return None
    if record.status == "dropped" or has_content(job.target(out, item.name), record.target_sha256):
        return record
    return None


def is_inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def choose_batch_size(job: Job, todo: list[Item], kept: list[Record]) -> int:
    """The job's own, unless it may shrink: then as before the interruption, or what the images are likely to need."""
    if not job.shrinkable:
        return job.batch_size
    if kept:
        return kept[-1].batch_size
    share = -(-len(todo) * job.squares // job.workers)
    return min(job.batch_size, 1 << max(0, share - 1).bit_length())
