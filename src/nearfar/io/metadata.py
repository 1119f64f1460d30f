"""What a picture file says beside its pixels: what of it is kept where that is asked for, and how it is written again.

Kept are the descriptive EXIF tags, XMP and dpi, never what may hold a copy of the original; in no format's own form:
`exif` and `xmp` as bytes, `dpi` as a pair of numbers. A mark (`marks`) is written as XMP, into what is kept or alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import XMP

from nearfar.io.marks import with_mark

DESCRIPTIVE_EXIF = frozenset({270, 271, 272, 305, 306, 315, 316, 18246, 33432, 40091, 40092, 40093, 40094, 40095})
"""Description, camera, software, date, author, rating, copyright, titles; others lay out the file or hold previews."""

DROPPED_EXIF = frozenset({37500, 40962, 40963, 40965})
"""Maker note (may hold a preview), width and height (wrong after turning), interoperability."""

LONGEST_TAG = 1000
"""Characters of a tag's value as Python shows it: room for a comment, none for a picture."""

PICTURE_IN_XMP = re.compile(
    rb"x[am]pGImg:|GImage:|GDepth:|Container:|ns\.adobe\.com/xap/1\.0/g/img/|ns\.google\.com/photos/1\.0/|[\w+/=]{200}"
)
"""Prefixes and namespaces of embedded pictures, or a run of base64."""

WITHOUT_XMP = ("BMP", "DICOM")
WITHOUT_DPI = ("AVIF", "HEIC", "WEBP")


def kept_metadata(image: Image.Image, form: str, write: Callable[[Image.Image, dict[str, Any]], object]) -> Any:
    """What is kept of the picture's; nothing when it cannot be parsed, or when `write` cannot write it."""
    with suppress(Exception):  # whatever a stranger's metadata make the writers of other formats raise
        kept: dict[str, Any] = {"exif": kept_exif(image, form), "xmp": kept_xmp(image), "dpi": kept_dpi(image)}
        kept = {name: value for name, value in kept.items() if value}
        write(Image.new("L", (16, 16)), save_options(form, kept))
        return kept
    return {}


def save_options(form: str, kept: Mapping[str, Any], mark: str = "") -> dict[str, Any]:
    """EXIF, XMP with the mark, and dpi in the way in which Pillow wants them for this format."""
    xmp = with_mark(kept.get("xmp", b""), mark) if form not in WITHOUT_XMP else b""
    options = {name: kept[name] for name in ("exif", "dpi") if name in kept}
    if form in WITHOUT_DPI:
        options.pop("dpi", None)
    if form == "TIFF" and xmp:
        exif = Image.Exif()
        exif.load(options.get("exif", b""))
        exif[XMP] = xmp
        options["exif"] = exif.tobytes()
    elif form == "PNG" and xmp:
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif xmp:
        options["xmp"] = xmp
    return options


def kept_dpi(image: Image.Image) -> tuple[float, ...]:
    """Both resolutions; a TIFF without any reads as 1."""
    dpi = tuple(float(value) for value in image.info.get("dpi", ()))
    return dpi if dpi and min(dpi) > 1 else ()


def kept_exif(image: Image.Image, form: str) -> bytes:
    """The EXIF tags that describe. Pillow cannot write the camera's and the position's directories to TIFF."""
    source, kept = image.getexif(), Image.Exif()
    kept.update({tag: value for tag, value in source.items() if tag in DESCRIPTIVE_EXIF and is_short(value)})
    for directory in () if form == "TIFF" else (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        tags = source.get_ifd(directory).items()
        entries = {tag: value for tag, value in tags if tag not in DROPPED_EXIF and is_short(value)}
        kept.update({directory: entries} if entries else {})
    return kept.tobytes() if len(kept) else b""


def is_short(value: object) -> bool:
    return len(repr(value)) <= LONGEST_TAG


def kept_xmp(image: Image.Image) -> bytes:
    """The XMP packet with its orientation reset; empty when pictures are embedded in it."""
    packet: bytes = image.info.get("xmp", b"")
    if PICTURE_IN_XMP.search(packet):
        return b""
    return re.sub(rb'(tiff:Orientation(?:="|>))[0-9]', rb"\g<1>1", packet)
