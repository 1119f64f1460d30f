"""Whether a source is still the one that an output was made of.

A record holds a keyed tag of its source. Where the key is not kept, the tags have a salt instead, which lies beside
the record until the run has come to its end and is then removed: nobody can hold the tags against a suspected original
any more. From then on a source counts as changed when its file was written, moved or replaced after its output was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nearfar.diffusion.noise import SecretKey
from nearfar.io.listing import Item
from nearfar.io.manifest import CONFIDENTIAL, Manifest, Record, has_content, salt_path, write_whole, writing
from nearfar.jobs.job import Job


def with_salt(job: Job, out: Path, resume: bool) -> Job:
    """The job with the salt of the run that it goes on with, or with a new one."""
    path = salt_path(out)
    return replace(job, salt=SecretKey.load(path)) if resume and path.exists() else job


def still_good(job: Job, item: Item, out: Path, records: dict[str, Record]) -> Record | None:
    """The record of what still stands, its source unchanged: done and its file intact, or dropped."""
    record = records.get(item.name)
    if record is None or record.status == "failed" or not same_source(job, item, out, record):
        return None
    stands = record.status == "dropped" or has_content(job.target(out, item.name), record.target_sha256)
    return replace(record, source_tag=job.source_tag(item.path)) if stands else None


def same_source(job: Job, item: Item, out: Path, record: Record) -> bool:
    """By its tag, or by the file's times where the salt of the tag is gone."""
    if job.repeatable or job.numbered or salt_path(out).exists():
        return record.source_tag == job.source_tag(item.path)
    try:
        source, target = item.path.stat(), job.target(out, item.name).stat()
    except OSError:
        return False
    return max(source.st_mtime_ns, source.st_ctime_ns) <= target.st_mtime_ns


@contextmanager
def salt_kept(job: Job, out: Path, manifest: Manifest, kept: Sequence[Record]) -> Iterator[None]:
    """The salt lies beside the record until the work is done; earlier records are tagged with it."""
    path = salt_path(out)
    if job.repeatable or job.numbered:
        yield
        return
    if not path.exists():
        for record in kept:
            manifest.add(record)
        manifest.commit()
    with writing(path):
        write_whole(path, (job.salt.secret.hex() + "\n").encode(), CONFIDENTIAL)
    yield
    with writing(path):
        path.unlink(missing_ok=True)
