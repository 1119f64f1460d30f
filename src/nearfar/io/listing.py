"""What a folder holds: images to process, entries that cannot be, and files that are no images."""

from __future__ import annotations

import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nearfar.errors import UsageError
from nearfar.io.pictures import FORMATS, KNOWN, SUFFIXES, disguised, printable

COPY = re.compile(r"(?<=[^/])~[0-9]+$")


@dataclass(frozen=True)
class Kind:
    """Which files of a folder are inputs.

    suffixes: theirs, in lower case. others: suffixes of files that a user expects to be inputs too; they are refused,
    since passing them over in silence would be fail-open. formats: what is read, in words.
    hidden: the format of a file that is an input by its content and not by its name, which is refused as well.
    """

    suffixes: Collection[str]
    others: Collection[str]
    formats: str
    hidden: Callable[[Path], str] = lambda _: ""


UNREAD = """
gif avifs jp2 j2k jpf jpx jpm jpc j2c jxl jxr wdp hdp apng flif bpg mng jng
ppm pgm pbm pnm pam pfm tga icb vda vst dib rle ico cur icns pcx sgi rgb bw ras sun xbm xpm dds ktx hdr exr qoi iff lbm
psd psb xcf kra ora clip ai eps svg svgz wmf emf
dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef ptx srw x3f erf kdc dcr mrw 3fr fff iiq mef mos rwl gpr raw
fits fit fts nd2 czi lif lsm svs ndpi mrxs vsi oib oif scn
"""
"""Suffixes that a user expects to be read: of the web, of paint programs and games, of cameras, of instruments."""

PICTURES = Kind(SUFFIXES, tuple(f".{suffix}" for suffix in UNREAD.split()), KNOWN, disguised)


@dataclass(frozen=True)
class Item:
    """One image to make: where its source lies, and its name below the output folder, with `/`.

    The name is the source's own unless a job makes several of one source. variant: 1, 2, ... for further ones.
    strength: its own, where it is not the job's.
    """

    path: Path
    name: str
    variant: int = 0
    strength: float | None = None


def copy_name(name: str, number: int) -> str:
    """`cat/a.png`, 2 -> `cat/a~2.png`."""
    stem, suffix = posixpath.splitext(name)
    return f"{stem}~{number}{suffix}"


def original_name(name: str) -> str:
    """`cat/a~2.png` -> `cat/a.png`; other names as they are."""
    stem, suffix = posixpath.splitext(name)
    return COPY.sub("", stem) + suffix


@dataclass(frozen=True)
class Rejected:
    """An entry that looks like an image and is none; the name is printable whatever its bytes."""

    name: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """Everything below a folder, in the order of names. `ignored` counts files without an input's suffix."""

    items: list[Item] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    ignored: int = 0


def list_folder(folder: Path, kind: Kind = PICTURES) -> Listing:
    """Every image below `folder`, or the one picture that it is.

    Links to files are followed, links to folders are not (they may form a loop).
    """
    picture = folder.is_file() and folder.suffix.lower() in (*kind.suffixes, *kind.others)
    if not picture and not folder.is_dir():
        came = "a file" if folder.exists() else "nothing"
        raise UsageError(f"{folder} must be a folder of images, or one image, got {came} there")
    root = folder.parent if picture else folder
    items: list[Item] = []
    rejected: list[Rejected] = []
    ignored = 0
    for path in [folder] if picture else walk(folder, rejected, kind.suffixes):
        name = path.relative_to(root).as_posix()
        reason = objection(path, name, kind)
        if reason:
            rejected.append(Rejected(printable(name), reason))
        elif path.suffix.lower() in kind.suffixes and not path.name.startswith("._"):  # shadow files of macOS
            items.append(Item(path, name))
        else:
            ignored += 1
    return Listing(items, sorted(rejected, key=lambda entry: entry.name), ignored)


def walk(folder: Path, rejected: list[Rejected], suffixes: Collection[str]) -> Iterator[Path]:
    """Files, links and image-named folders below `folder`, sorted; unreadable folders are put among the rejected."""

    def unreadable(error: OSError) -> None:
        name = Path(str(error.filename)).relative_to(folder).as_posix()
        rejected.append(Rejected(printable(name), f"folder cannot be read: {error.strerror}"))

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        named_like_images = [name for name in folders if Path(name).suffix.lower() in suffixes]
        linked = [name for name in folders if name not in named_like_images and (Path(parent) / name).is_symlink()]
        folders[:] = sorted(set(folders) - set(named_like_images) - set(linked))
        for name in sorted([*files, *named_like_images, *linked]):
            yield Path(parent) / name


def objection(path: Path, name: str, kind: Kind) -> str | None:
    """Why this entry cannot be an input image, judged without opening it."""
    if path.is_dir():
        what = "a link to a folder, which is not followed" if path.is_symlink() else "a folder with an image's name"
        return f"{what}: give nearfar that folder by itself"
    suffix = path.suffix.lower()
    if suffix in kind.others:
        return f"{suffix} files are not read: convert it to {kind.formats}"
    if suffix not in kind.suffixes:
        form = kind.hidden(path)
        return f"holds {form} data: rename it to {printable(path.name)}{FORMATS[form].suffixes[0]}" if form else None
    if not storable(name):
        return "the file name is not valid UTF-8 or has control characters: rename it"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"cannot be reached: {error.strerror}"
    return None if stat.S_ISREG(mode) else "not a regular file: only files are read"


def storable(name: str) -> bool:
    """Whether a name is text that can be stored and shown: valid UTF-8 without control characters."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
