"""Files that belong to images and are no images to make: which kind each is, and how it comes to the copies.

    what                      recognized by                                             in OUT
    masks, label pictures     a folder of `LABEL_FOLDERS` or an ending of `ENDINGS`,    unchanged, for each copy
                              with an image of that name; lossless, 256 colors at most
    darknet, CVAT, `Labels/`  `.txt` named as an image, beside it or in `labels`        unchanged, for each copy
    captions                  `.txt` without numbers, `.caption`, named as an image     unchanged, for each copy
    names of classes          `classes.txt`, `*.names`, `*.data`                        unchanged, once
    lists of images           `.txt`, each line ends with an image's name               lines of the copies
    tables                    `.csv` with a column of images' names (`annotations.py`)  rows of the copies

Everything else that is named as an image is, or speaks of one (LabelMe, VOC, ...), is refused.
"""

from __future__ import annotations

import posixpath
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import ExifTags, Image

from nearfar.data.labels import Labels, Made, read_text
from nearfar.data.unread import SUFFIXES, WORD
from nearfar.data.yolo import check_lines, is_yolo
from nearfar.errors import ImageError, ModelWarning, UsageError
from nearfar.io.listing import copy_name
from nearfar.io.pictures import Frame

LABEL_FOLDERS = re.compile(
    r"masks?|labels?|annotations?|seg|segmentations?|segmentation(class|object)|gt|ground[-_ ]?truths?|gtfine|"
    r"trimaps?|mattes?|semantic|instances?",
    re.IGNORECASE,
)
ENDINGS = re.compile(
    r"[-_. ](masks?|labels?|seg|segmentation|gt|ground_?truth|gtfine_\w+|trimap|matte|label_?ids)", re.IGNORECASE
)
LONGEST_NAME = 255
"""Bytes that file systems give a name."""
LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
CLASSES = re.compile(r"(.*/)?(classes\.txt|[^/]*\.names|[^/]*\.data)")
ABOUT = re.compile(r"(readme|licen[sc]e|changelog|requirements|citation)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Companions:
    """Files carried over. of: image -> its files. labels: what those say. lists: their names, images by line."""

    source: Path
    of: Mapping[str, Sequence[str]]
    labels: Labels
    once: Sequence[str] = ()
    lists: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def files(self, made: Sequence[Made]) -> dict[str, bytes | Path]:
        found: dict[str, bytes | Path] = {name: self.source / name for name in self.once}
        for place, lines in self.lists.items():
            own = [renamed(lines[each.origin], each) for each in made if each.origin in lines]
            found[place] = "".join(line + "\n" for line in own).encode()
        pairs = [(each, place) for each in made for place in self.of.get(each.origin, ())]
        return found | {renamed(place, each): self.source / place for each, place in pairs}


def renamed(place: str, made: Made) -> str:
    """Names of companions of `a~2.png`: `masks/a.png` -> `masks/a~2.png`, `a_mask.png` -> `a~2_mask.png`."""
    if not made.inherited:
        return place
    folder, base = posixpath.split(place)
    stem, new = PurePosixPath(made.origin).stem, PurePosixPath(made.name).stem
    if base.startswith(stem):
        return posixpath.join(folder, new + base[len(stem) :])
    return copy_name(place, int(new.rpartition("~")[2]))


def check_companions(source: Path, made: Made, places: Sequence[str], pictures: Collection[str], frame: Frame) -> None:
    """ImageError where a copy's companion would have too long a name, or a mask may lack the picture's EXIF turn."""
    for place in places:
        if len(posixpath.basename(renamed(place, made)).encode()) > LONGEST_NAME:
            raise ImageError(f"has {place} beside it, whose copy would have too long a name: give both shorter ones")
        if place in pictures and frame.orientation != 1:
            with Image.open(source / place) as mask:
                size, turned = mask.size, mask.getexif().get(ExifTags.Base.Orientation, 1)
            upright = frame.orientation >= 5 and frame.width != frame.height and size == (frame.width, frame.height)
            if not upright and turned != frame.orientation:
                raise ImageError(f"has an EXIF turn that {place} may not have: turn the pixels of the picture for good")


def hidden(name: str) -> bool:
    """Whether a file lies in a hidden folder, such as `.ipynb_checkpoints`, or one of macOS's own."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts[:-1])


def label_pictures(source: Path, names: Collection[str]) -> dict[str, str]:
    """Masks and the like among these pictures -> the image that each is of."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(PurePosixPath(name).stem, []).append(name)
    found = {}
    for name in (name for name in names if name.lower().endswith(LOSSLESS)):
        images = [other for other in image_names(name, stems) if other not in found and other != name]
        if images and few_colors(source / name):
            found[name] = images[0]
    return found


def image_names(name: str, stems: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The images that a picture of this name may be the labels of."""
    path = PurePosixPath(name)
    if any(LABEL_FOLDERS.fullmatch(part) for part in path.parts[:-1]):
        end = ENDINGS.search(path.stem)
        for stem in (path.stem, path.stem[: end.start()] if end else path.stem):
            others = [PurePosixPath(other) for other in stems.get(stem, ())]
            yield from (str(one) for one in others if not any(LABEL_FOLDERS.fullmatch(p) for p in one.parts[:-1]))
    if (end := ENDINGS.search(path.stem)) and end.end() == len(path.stem):
        yield from (
            other for other in stems.get(path.stem[: end.start()], ()) if PurePosixPath(other).parent == path.parent
        )


def few_colors(path: Path) -> bool:
    """Whether a picture has at most 256 colors, as labels have."""
    try:
        with Image.open(path) as image:
            return image.mode.startswith("I") or image.getcolors(256) is not None
    except Exception:  # whatever Pillow raises: it is an image that fails in the run, and is named there
        return False


def read_companions(
    source: Path, names: Collection[str], read: Collection[str], pictures: Mapping[str, str], classes: Mapping[int, str]
) -> Companions:
    """Sort all other files below `source` by the table above. Raises UsageError for what is in none of its rows.

    read: places of files that were understood. pictures: label pictures -> image. classes: number -> name, where told.
    """
    of: dict[str, list[str]] = {}
    for place, of_image in pictures.items():
        of.setdefault(of_image, []).append(place)
    done = {*read, *names}
    others = [path.relative_to(source).as_posix() for path in sorted(source.rglob("*")) if path.is_file()]
    others = [place for place in others if place not in done and not hidden(place)]
    by_label = {label_name(name): name for name in names}
    texts, lists, once = {}, {}, [place for place in others if CLASSES.fullmatch(place)]
    for place in (place for place in others if place not in once):
        if place.lower().endswith((".txt", ".caption")) and (image := by_label.get(label_name(place))):
            texts[image] = place
            of.setdefault(image, []).append(place)
        elif lines := listed(source / place, names):
            lists[place] = lines
        else:
            check_speechless(source, place, names)
    told = {**dict(enumerate(class_list(source, once))), **classes}
    labels = {image: labels_of(source, place, told) for image, place in texts.items()}
    return Companions(source, of, labels, once, lists)


def label_name(name: str) -> str:
    """Equal for an image and its label file: `Images/a.JPG` and `labels/a.txt`, or both in one folder."""
    folder, base = posixpath.split(name)
    parts = ["labels" if part.lower() in ("images", "labels") else part for part in folder.split("/")]
    return posixpath.join(*parts, posixpath.splitext(base)[0])


def labels_of(source: Path, place: str, classes: Mapping[int, str]) -> tuple[str, ...]:
    """The classes of a label file of numbers, checked; of a caption, none."""
    text = read_text(source / place)
    lines = [line for line in text.splitlines() if line.strip()]
    if not any(is_yolo(line) for line in lines):
        return ()
    check_lines(text, place)
    numbers = [int(float(line.split()[0])) for line in lines]
    return tuple(dict.fromkeys(classes.get(number, str(number)) for number in numbers))


def class_list(source: Path, places: Sequence[str]) -> list[str]:
    """Names of classes, one in each line of the only such file."""
    files = [place for place in places if not place.endswith(".data")]
    texts = {place: tuple(read_text(source / place).split("\n")) for place in files}
    if len(set(texts.values())) > 1:
        raise UsageError(f"{' and '.join(files[:2])} name classes in different ways: keep one of them")
    return [line.strip() for line in next(iter(texts.values()), ()) if line.strip()]


def listed(path: Path, names: Collection[str]) -> dict[str, str]:
    """Image -> its line in a list of images; nothing where the file is none."""
    if path.suffix.lower() != ".txt":
        return {}
    lines = [line.strip() for line in path.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    by_base = {posixpath.basename(name): name for name in names}
    found = {by_base.get(posixpath.basename(line.replace("\\", "/"))): line for line in lines}
    return {} if None in found else {name: line for name, line in found.items() if name}


def check_speechless(source: Path, place: str, names: Collection[str]) -> None:
    """Refuse a file that seems to label images; a label file of an image that is not there is told."""
    path = source / place
    if path.suffix.lower() not in SUFFIXES or ABOUT.match(path.name):
        return
    stems = {PurePosixPath(name).stem: name for name in names}
    in_labels = path.suffix == ".txt" and any(part.lower() == "labels" for part in PurePosixPath(place).parts[:-1])
    if in_labels and path.stem not in stems:
        warnings.warn(f"{place} has no image, so it is not carried over", ModelWarning, stacklevel=2)
        return
    words = set(WORD.findall(path.read_text("utf-8", errors="replace")))
    spoken = stems.get(path.stem) or next((name for name in names if PurePosixPath(name).name in words), None)
    if spoken:
        raise UsageError(
            f"{place} seems to label {spoken}, but is in none of the formats that are carried over: convert it to "
            "COCO, YOLO or metadata.csv, or move it away and have copies without its labels"
        )
