"""Files that may speak of images and were not read: where boxes decide what is replaced, they are refused and named."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from nearfar.errors import UsageError

SUFFIXES = (".txt", ".xml", ".json", ".jsonl", ".csv", ".tsv")
WORD = re.compile(r"""[^\s"',;:<>=/\\|()\[\]{}]+""")
WAY_OUT = "convert it to COCO and name that with --boxes, or move it away"


def check_all_read(source: Path, names: Collection[str], read: Collection[str], copied: Collection[str]) -> None:
    """Refuse a file below `source` that is named as an image is, or may hold boxes of one that would be copied.

    names: all images. read: places of annotation files that were understood. copied: images that were found to have
    no box and would be written as they are; none where such images fail.
    """
    paths = {PurePosixPath(name): name for name in names}
    images = {path.stem: name for path, name in paths.items()} | {path.name: name for path, name in paths.items()}
    unread = [path for path in sorted(source.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    for path in unread:
        place = path.relative_to(source).as_posix()
        if place in read:
            continue
        if path.stem in images:
            raise UsageError(f"{place} is not read, but may hold boxes of {images[path.stem]}: {WAY_OUT}")
        if name := next(spoken_of(path, place, copied), None):
            raise UsageError(f"{place} is not read, but speaks of {name}, which would be copied as it is: {WAY_OUT}")


def spoken_of(path: Path, place: str, copied: Collection[str]) -> Iterator[str]:
    """The images among these that a file names, with their suffix or without; of a label file, whatever there is."""
    if not copied:
        return
    in_labels = path.suffix.lower() == ".txt" and "/labels/" in f"/{place.lower()}"
    words = set(WORD.findall(path.read_text(encoding="utf-8", errors="replace")))
    for name in copied:
        whole = PurePosixPath(name)
        if (in_labels and path.name != "classes.txt") or not words.isdisjoint({whole.name, whole.stem}):
            yield name
