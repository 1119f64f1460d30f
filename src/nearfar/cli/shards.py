"""What a folder command means for shards: how it is planned, and what a worker does of it.

A shard is done by the very command that the job was planned with, on a private folder: parsed and settled as ever, but
carried out in silence.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from typer.main import get_command

from nearfar.cli.help import IN_SHARDS
from nearfar.cli.options import ONLY_SETTLE, Folders, one_of
from nearfar.errors import ModelWarning, UsageError
from nearfar.io.stores import Folder, Place, place_of

if TYPE_CHECKING:
    from nearfar.jobs.engines import Do
    from nearfar.jobs.shards import ShardedJob, Work

OF_THE_RUN = ("--resume", "--dry-run", "--json", "--key-file")
"""Options that say nothing of what is made, or must not be written down."""
KEY = "NEARFAR_KEY_FILE"
UNITS = {".tar", ".parquet"}
MANY = 1 << 16
"""Images that no batch is too small for."""
KEY_HELP = f"Where the key is; made by plan if absent. [default: {KEY}]"


def parsed(name: str, words: Sequence[str]) -> Any:
    """What the shell's words for a folder command mean: typer's context."""
    from nearfar.cli.app import app

    inner = get_command(app).commands[one_of(name, "command", IN_SHARDS)]  # type: ignore[attr-defined]
    return inner.make_context(name, list(words))


def options_of(context: Any) -> dict[str, Any]:
    """The options that were given, by the names that are typed; files by their whole path."""
    found = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        name = max(parameter.opts, key=len)
        if parameter.param_type_name == "option" and source and source.name == "COMMANDLINE":
            found[name] = plain(context.params[parameter.name])
    check_options(found)
    return {name: value for name, value in found.items() if name not in OF_THE_RUN}


def plain(value: Any) -> Any:
    """A value as JSON has it. A name that is a path here is that path everywhere."""
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    if isinstance(value, Path) or (isinstance(value, str) and value and Path(value).exists()):
        return str(Path(value).resolve())
    return value


def check_options(options: dict[str, Any]) -> None:
    """Refuse what a shard alone cannot do."""
    if "--report" in options:
        raise UsageError("--report is about a whole folder on this machine: leave it out with URLs and shards")
    if options.get("--regions") == "boxes":
        raise UsageError("--regions boxes reads a whole folder on this machine: copy it here, without shards")


def words_of(options: dict[str, Any]) -> list[str]:
    """Options as they are typed."""
    words = list[str]()
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            words += [name] if each is True else [f"{name}={each}"]
    return words


def settled(
    name: str, options: dict[str, Any], key_file: str | None, models: dict[Any, Any], source: Path, out: Path
) -> Work:
    """What a command means for these folders. models: those that are loaded; others are added."""
    key = [f"--key-file={key_file}"] if key_file and name == "anonymize" else []
    from nearfar.io.manifest import manifest_path

    resume = ["--resume"] if manifest_path(out).exists() else []
    context = parsed(name, [str(source), str(out), *words_of(options), *key, *resume])
    token = ONLY_SETTLE.set(models)
    try:
        with context:
            work: Work = context.command.invoke(context)
            return work
    finally:
        ONLY_SETTLE.reset(token)


def settle_nothing(name: str, options: dict[str, Any], key_file: str | None, models: dict[Any, Any]) -> Work:
    """What a command means before there are any images."""
    with TemporaryDirectory() as folder:
        source = Path(folder, "in")
        source.mkdir()
        return settled(name, options, key_file, models, source, Path(folder, "out"))


def worker(text: bytes, key_file: str | None) -> Do:
    """In a process that is to work: the function that does a shard. UsageError where model or key are others."""
    from nearfar.jobs.shards import check_same, do_shard, parsed_job

    job, models = parsed_job(text, "the job"), dict[Any, Any]()
    warnings.simplefilter("ignore", ModelWarning)  # said when it was planned
    check_same(job, settle_nothing(job.command, job.options, key_file, models).job.header)
    return partial(do_shard, job, partial(settled, job.command, job.options, key_file, models))


def key_of(name: str, key_file: str | Path | None, context: Any) -> str | None:
    """The file of the key that a command needs whose shards many machines may do."""
    from nearfar.cli.anonymize import keep_key, open_key

    if name != "anonymize":
        return None
    text = key_file or context.params.get("key_file") or os.environ.get(KEY)
    if not text:
        raise UsageError(f"shards have one key, so that they may be done again: give --key-file or set {KEY}")
    given = Path(text)
    key = open_key(given, Folders(*(Path(context.params[which]) for which in ("source", "out"))))
    keep_key(key, given)
    return str(given.resolve())


def planned(context: Any, key_file: str | None, shards: int | None = None) -> ShardedJob:
    """Plan a folder command in so many shards, or as many as are usual; the plan is beside OUT then."""
    from nearfar.jobs.shards import ShardedJob, cut, keep_plan, listed

    name, options = context.command.name, options_of(context)
    source, out = places_of(context)
    check_output(source, out)
    with listed(source) as (lines, counts):
        images = check_images(source, counts)
        size = shard_size(name, counts, shards)
        work = settle_nothing(name, options, key_file, {})
        if name != "augment":
            options["--batch-size"] = batch_of(work, images)
        settings, key = work.job.header["run"], work.job.header["key"]
        shards_of = cut(lines, size, settings)
        places = str(source), str(out)
        job = ShardedJob(version("nearfar"), name, options, *places, settings, key, counts.total(), shards_of)
        keep_plan(job, lines)
    return job


def places_of(context: Any) -> tuple[Place, Place]:
    """IN and OUT; paths are whole."""
    places = (place_of(context.params[which]) for which in ("source", "out"))
    source, out = (Folder(each.path.absolute()) if isinstance(each, Folder) else each for each in places)
    return source, out


def check_output(source: Place, out: Place) -> None:
    """Refuse places that are in each other's way, and an output that holds something."""
    from nearfar.jobs.places import check_out, check_places
    from nearfar.jobs.shards import check_new

    if isinstance(out, Folder) and isinstance(source, Folder):
        check_places(source.path, out.path, False)
    elif isinstance(out, Folder):
        check_out(out.path, False)
    elif f"{out}/".startswith(f"{source}/") or f"{source}/".startswith(f"{out}/"):
        raise UsageError(f"{source} and {out} must not contain each other: choose an output elsewhere")
    check_new(out)


def check_images(source: Place, counts: Counter[str]) -> int:
    """How many sources are images, or files of them, by their suffix."""
    from nearfar.io.listing import PICTURES

    images = sum(counts[suffix] for suffix in (*PICTURES.suffixes, *UNITS))
    if not images:
        raise UsageError(
            f"{source} holds no images ({counts.total()} other files): PNG, JPEG, WebP, TIFF and BMP are read"
        )
    return images


def shard_size(name: str, counts: Counter[str], shards: int | None) -> int:
    """How many sources make a shard: copies go with what is told of all images, or with those of one file."""
    from nearfar.jobs.shards import AT_ONCE

    if name != "augment":
        return AT_ONCE if shards is None else -(-counts.total() // shards)
    if counts.keys() <= UNITS:
        return 1 if shards is None else -(-counts.total() // shards)
    if (shards or 1) > 1:
        raise UsageError("copies and labels are of all images: give --shards 1, or an IN of .tar or .parquet files")
    return counts.total()


def batch_of(work: Work, images: int) -> int:
    """The batch size that the plain run of so many images would have."""
    from nearfar.io.listing import Item
    from nearfar.jobs.run import choose_batch_size

    return choose_batch_size(work.job, [Item(Path(), "")] * min(images, MANY), [])
