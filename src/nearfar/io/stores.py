"""Places where images are read and results go: folders of this machine, and object stores by fsspec's URLs.

The one module that knows of them; everything else takes a `Place`. A name below a place has `/` between its parts,
the empty one is the place itself.
Objects appear whole or not at all: stores promise that of an upload, and what came of one is compared with the file's
size, as a proxy may cut it; in a folder a file is renamed into place. Listings stream: no more of them is held than one
page of S3, or one folder of another store. What a store refuses or drops is tried again a few times; then it is a
`RunError` that names the object. Credentials and endpoints are the drivers' own business (`AWS_ENDPOINT_URL`, ...).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from nearfar.errors import RunError, UsageError, first_line, printable
from nearfar.io.manifest import PART, check_own_folder, write_whole

A = TypeVar("A")

DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "hf": "huggingface_hub", "file": "", "memory": ""}
"""Scheme -> the module that fsspec needs for it."""
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
"""A scheme, of two letters or more, as a path has it: of `s3://images` is left `s3:/images`."""
PAUSES = (0.2, 1.0, 3.0)
"""Seconds before something is tried again that a store has refused."""
LANES = 16
"""Objects that are carried at the same time."""


@dataclass(frozen=True)
class Source:
    """A file or object below a place. size: bytes. tag: what its store tells of its content or its last change."""

    name: str
    size: int
    tag: str


@runtime_checkable
class Place(Protocol):
    """A folder or a prefix of a store; its `str` is what a user would type."""

    @property
    def lanes(self) -> int: ...

    def beside(self, ending: str) -> Place:
        """The place of this one's name and an ending."""

    def sources(self) -> Iterator[Source]:
        """All files below it, in an order of its own that does not change."""

    def names(self) -> list[str]:
        """What lies directly in it."""

    def fetch(self, source: Source, target: Path) -> None:
        """Bring one of them to this machine, if it is not there. Raises OSError where it is gone or has no place."""

    def put(self, file: Path, name: str) -> None:
        """Move a file of this machine to the place, whole or not at all."""

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of a file, or a part of them. Raises FileNotFoundError."""

    def write(self, name: str, content: bytes) -> None:
        """A small file, whole or not at all."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


def address_of(path: str | Path) -> str | None:
    """The URL that was typed, where it was one; `Path` takes a slash away."""
    found = ADDRESS.fullmatch(f"{path}/" if str(path).removesuffix(":") in DRIVERS else str(path))
    if not found:
        return None
    rest = found[2].rstrip("/")
    return f"{found[1].lower()}://" + (f"/{rest}" if found[1].lower() == "file" else rest)


def place_of(path: str | Path) -> Place:
    """A path or a URL as a place. UsageError, at once, for a scheme that is not known or has no driver here."""
    url = address_of(path)
    if url is None:
        return Folder(Path(path))
    scheme, _, rest = url.partition("://")
    if scheme not in DRIVERS:
        known = ", ".join(f"{each}://" for each in DRIVERS)
        raise UsageError(f"{url} has a scheme that is not known: give a path, or one of {known}")
    if scheme == "file":
        return Folder(Path(rest))
    if not rest.strip("/"):
        raise UsageError(f"{url} names nothing: give {scheme}://BUCKET/FOLDER")
    if DRIVERS[scheme] and find_spec(DRIVERS[scheme]) is None:
        raise UsageError(f"{url} needs the library {DRIVERS[scheme]}: pip install 'nearfar[{scheme}]'")
    return Store(url)


def safe(name: str) -> bool:
    """Whether a name stays below the folder that it is joined to."""
    return "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


@dataclass(frozen=True)
class Folder:
    """A folder of this machine. Files are not copied from it, but linked; they are moved to it."""

    path: Path
    lanes = 1

    def __str__(self) -> str:
        return str(self.path)

    def beside(self, ending: str) -> Folder:
        whole = self.path.resolve()
        return Folder(whole.with_name(whole.name + ending))

    def sources(self) -> Iterator[Source]:
        from nearfar.io.listing import PICTURES, Rejected, walk  # loads Pillow

        if not self.path.is_dir():
            raise UsageError(f"{self} must be a folder of images, got {'a file' if self.path.exists() else 'nothing'}")
        rejected: list[Rejected] = []
        for path in walk(self.path, rejected, PICTURES.suffixes):
            status = path.stat() if path.exists() else path.lstat()
            yield Source(path.relative_to(self.path).as_posix(), status.st_size, str(status.st_mtime_ns))
        if rejected:
            raise UsageError(f"{rejected[0].name} in {self}: {rejected[0].reason}; make it readable or move it away")

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self.path.iterdir()) if self.path.is_dir() else []

    def fetch(self, source: Source, target: Path) -> None:
        path = self.path.absolute() / source.name
        path.lstat()
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():  # one that is named like an image: refused as such
            target.mkdir(exist_ok=True)
            return
        target.unlink(missing_ok=True)
        target.symlink_to(path)

    def put(self, file: Path, name: str) -> None:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        check_own_folder(self.path, target)
        try:
            file.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            part = target.with_name(target.name + PART)
            shutil.copyfile(file, part)
            part.replace(target)
            file.unlink()

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        with (self.path / name).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            first, last = (max(0, size + at) if at is not None and at < 0 else at for at in (start, end))
            file.seek(first or 0)
            return file.read((size if last is None else last) - (first or 0))

    def write(self, name: str, content: bytes) -> None:
        write_whole(self.path / name, content)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Store:
    """A prefix of an object store."""

    url: str
    lanes = LANES

    def __str__(self) -> str:
        return self.url

    @property
    def root(self) -> str:
        return str(opened(self.url)[1]).rstrip("/")

    @property
    def driver(self) -> Any:
        return opened(self.url)[0]

    def path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")

    def beside(self, ending: str) -> Store:
        return Store(self.url + ending)

    def sources(self) -> Iterator[Source]:
        listing = s3_pages if self.url.startswith("s3:") else walked
        for path, size, tag in listing(self.driver, self.root):
            name = path.removeprefix(self.root + "/")
            if name.endswith("/") and not size:
                continue  # how some tools keep an empty folder
            if not safe(name):
                raise UsageError(f"{self} has an object {printable(name)!r}, which is no name of a file: rename it")
            yield Source(name, size, tag)

    def names(self) -> list[str]:
        self.driver.invalidate_cache()
        try:
            found = again(partial(self.driver.ls, self.root, detail=False), f"listing {self}")
        except FileNotFoundError:
            return []
        return sorted(path.removeprefix(self.root + "/") for path in found if path.rstrip("/") != self.root)

    def fetch(self, source: Source, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file() or target.stat().st_size != source.size:
            again(partial(self.bring, source, target), f"reading {self}/{source.name}")

    def bring(self, source: Source, target: Path) -> None:
        self.driver.get_file(self.path(source.name), str(target))
        if (size := target.stat().st_size) != source.size:
            raise EOFError(f"it came with {size:,} bytes and was listed with {source.size:,}")

    def put(self, file: Path, name: str) -> None:
        again(partial(self.send, file, name), f"writing {self}/{name}")
        file.unlink()

    def send(self, file: Path, name: str) -> None:
        self.driver.put_file(str(file), self.path(name))
        self.check(name, file.stat().st_size)

    def check(self, name: str, size: int) -> None:
        """An upload that was cut on its way is removed, and an error."""
        self.driver.invalidate_cache()
        arrived = self.driver.info(self.path(name))["size"]
        if arrived != size:
            self.driver.rm_file(self.path(name))
            raise EOFError(f"{arrived:,} of {size:,} bytes arrived")

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        act = partial(self.driver.cat_file, self.path(name), start=start, end=end)
        return bytes(again(act, f"reading {self}/{name}"))

    def write(self, name: str, content: bytes) -> None:
        def act() -> None:
            self.driver.pipe_file(self.path(name), content)
            self.check(name, len(content))

        again(act, f"writing {self}/{name}")

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            again(partial(self.driver.rm_file, self.path(name)), f"removing {self}/{name}")


@lru_cache
def opened(url: str) -> tuple[Any, str]:
    """fsspec's driver and the path that it knows the place by; it keeps no listings."""
    from fsspec.core import url_to_fs

    try:
        driver, path = url_to_fs(url, use_listings_cache=False)
    except Exception as error:  # whatever drivers raise where nothing is set up
        raise UsageError(f"{url} cannot be opened ({first_line(error)}): set up access to it first") from None
    return driver, path


def again(act: Callable[[], A], what: str) -> A:
    """What it gives, after a few tries. FileNotFoundError and PermissionError are raised at once."""
    for pause in (*PAUSES, None):
        try:
            return act()
        except (FileNotFoundError, UsageError):
            raise
        except Exception as error:  # each driver has errors of its own
            if pause is None or isinstance(error, PermissionError):
                reason = first_line(error)
                raise RunError(f"{what} fails ({reason}): mend the way there, then go on with --resume") from None
            time.sleep(pause)
    raise AssertionError


Found = tuple[str, int, str]
"""Path, bytes, tag."""


def s3_pages(driver: Any, root: str) -> Iterator[Found]:
    """All objects below a prefix of S3 in the order of their keys, a page of 1,000 at a time."""
    bucket, _, key = root.partition("/")
    more = {"Prefix": f"{key}/"} if key else {}
    while True:
        act = partial(driver.call_s3, "list_objects_v2", Bucket=bucket, **more)
        try:
            page = again(act, f"listing s3://{root}")
        except FileNotFoundError:
            raise UsageError(f"there is no bucket s3://{bucket}: make it, or name another one") from None
        for entry in page.get("Contents", ()):
            yield f"{bucket}/{entry['Key']}", entry["Size"], entry["ETag"].strip('"')
        if not page.get("IsTruncated"):
            return
        more["ContinuationToken"] = page["NextContinuationToken"]


def walked(driver: Any, folder: str) -> Iterator[Found]:
    """All files below a folder of a store, a folder at a time, sorted."""
    try:
        entries = again(partial(driver.ls, folder, detail=True), f"listing {folder}")
    except FileNotFoundError:
        return
    for entry in sorted(entries, key=lambda entry: str(entry["name"])):
        path = str(entry["name"])
        if entry["type"] == "directory":
            yield from walked(driver, path)
        elif path != folder:
            tag = next(
                (str(entry[at]) for at in ("etag", "ETag", "blob_id", "md5Hash", "created") if entry.get(at)), ""
            )
            yield path, int(entry["size"] or 0), tag
