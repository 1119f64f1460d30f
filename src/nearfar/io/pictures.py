"""Picture files in and out; how a picture of any shape meets a model is the business of `fitting`.

    path -> read_picture -> Picture -> fit -> Tensor -> (model) -> Tensor, Frame -> unfit -> Picture -> encode -> bytes

A picture is pixels in a frame: its size, depth, alpha, format and metadata. `unfit` is given the frame only, so nothing
but the model's image and the alpha channel can reach the output. What comes in and what goes out again:

    in the file                                  processed as         written as
    gray: 1 and 8 bits                           1 channel            8-bit gray (a color model's luma)
    gray: 16 bits (PNG, TIFF), 0 to 65535        1 channel            16-bit gray
    DICOM gray, 8 to 16 bits                     1 channel, 16 bits   its own bits (`dicom`)
    RGB, YCbCr, palette                          sRGB                 8-bit RGB
    CMYK, YCCK                                   sRGB                 8-bit RGB
    any 8-bit kind with alpha or transparency    colors as above     the same with the alpha channel copied unchanged
    16-bit color, 16-bit gray with alpha, 10 and 12 bits, 32-bit integers, floats, LAB, BMP with alpha:     refused

* Formats: PNG, JPEG, WebP, AVIF, HEIC, TIFF, BMP, DICOM, known by their content; the suffix must agree with it. The
  output has the same format: PNG, TIFF (deflate), BMP and DICOM without loss, JPEG and AVIF at quality 95 with full
  color resolution (4:4:4), HEIC at 95 with half of it (4:2:0, what phones read), WebP lossy at quality 95 with lossless
  alpha. AVIF and HEIC with alpha are written at their highest quality, at which alpha stays what it is.
* One picture a file: animations are refused; of a phone's multi-picture JPEG the main one is used. `read_pages` reads
  the pages of a TIFF and the frames of a DICOM file, too, `read_picture` refuses more than one.
* At most `max_pixels`, checked on the header before anything is decoded (Pillow itself stops TIFF and WebP at 179
  million). Damage that the format can detect is refused, PNG's checksums included; a file is never repaired.
* Colors: an embedded ICC profile is converted to sRGB and never written; one that cannot be used counts as sRGB, as in
  image viewers. A profile of 16-bit gray is ignored: its numbers stay what they are. Gray where 0 is white is inverted.
* Metadata: the EXIF orientation is applied; everything else is dropped. With `keep_metadata` the descriptive EXIF tags
  (date, camera, author; position, not in TIFF), XMP and dpi are written back as far as the format allows, but nothing
  that may hold a copy of the original: no thumbnail, maker note, Photoshop block or XMP with embedded pictures.
  Metadata that cannot be parsed count as absent.
* The same picture always gives the same bytes. Everything here may be called from several threads.
"""

import ctypes
import errno
import logging
import math
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from nearfar.errors import ImageError
from nearfar.io.colors import deep_gray_pixels, split_alpha, to_srgb
from nearfar.io.dicom import Header, encode_frames, read_frames
from nearfar.io.extras import needed
from nearfar.io.marks import UNMARKED, Marking
from nearfar.io.metadata import kept_metadata, save_options

MAX_PIXELS = 100_000_000
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 1 MB of comments or profile refuse no sound pixels

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Format:
    """How one file format is recognized, named, read and written; `reader` and `options` are Pillow's.

    with_alpha: the options by which an alpha channel stays what it is.
    """

    signature: bytes
    suffixes: tuple[str, ...]
    reader: Callable[[BinaryIO], ImageFile]
    options: dict[str, Any]
    with_alpha: dict[str, Any] = field(default_factory=dict)


def heif_reader(file: BinaryIO) -> ImageFile:
    opened: ImageFile = needed("pillow_heif", "heic").HeifImageFile(file)
    return opened


def no_reader(file: BinaryIO) -> ImageFile:
    raise ImageError("is no picture that Pillow reads")


FORMATS = {
    "DICOM": Format(rb".{128}DICM", (".dcm", ".dicom"), no_reader, {}),
    "PNG": Format(rb"\x89PNG\r\n\x1a\n", (".png",), PngImageFile, {"compress_level": 3}),
    "JPEG": Format(
        rb"\xff\xd8\xff",
        (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
        JpegImageFile,
        {"quality": 95, "subsampling": "4:4:4"},
    ),
    "WEBP": Format(rb"RIFF....WEBP", (".webp",), WebPImageFile, {"quality": 95}),
    "AVIF": Format(
        rb"....ftyp(avi[fs]|m[is][fs]1.{4}(....){0,8}?avi[fs])",
        (".avif",),
        AvifImageFile,
        {"quality": 95, "subsampling": "4:4:4", "max_threads": 1, "autotiling": False},
        {"quality": 100},
    ),
    "HEIC": Format(
        rb"....ftyp(he[iv][cxms]|m[is]f1.{4}(....){0,8}?he[iv][cxms])",
        (".heic", ".heif", ".hif"),
        heif_reader,
        {"quality": 95, "chroma": 420},
        {"quality": -1},
    ),
    "TIFF": Format(rb"II[*+]\0|MM\0[*+]", (".tif", ".tiff"), TiffImageFile, {"compression": "tiff_adobe_deflate"}),
    "BMP": Format(rb"BM", (".bmp",), BmpImageFile, {"dpi": (0, 0)}),
}
KNOWN, LONGEST_SIGNATURE = "PNG, JPEG, WebP, AVIF, HEIC, TIFF, BMP or DICOM", 132
MOST_PAGES = 1000

SUFFIXES: dict[str, str] = {suffix: name for name, form in FORMATS.items() for suffix in form.suffixes}
"""Lower-case suffix -> the format, by Pillow's name, that such a file must hold."""

TILE = (322, 323)
"""TIFF's tags for width and height of a tile."""

EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})

UNREADABLE: dict[int | None, str] = {
    errno.ENOENT: "is not there, or is a link to nothing: check the path",
    errno.ELOOP: "is a link that leads back to itself: remove it",
    errno.EACCES: "may not be read: give yourself permission (chmod u+r)",
}

TURNED = "orientation before it was turned upright"
"""Where `decode` leaves that in Pillow's `info`."""

HIGH_DEPTH = re.compile(rb"av1C..(.)", re.DOTALL)
"""The byte of an AVIF file's configurations that tells more than 8 bits (0x40) and 12 (0x20)."""


@dataclass(frozen=True, eq=False)
class Frame:
    """All of a picture but its colors; small, unless there is an alpha channel.

    channels: 1 (gray) or 3 (sRGB). depth: bits of a channel, 8, or 16 for gray only. alpha: uint8 (height, width).
    format: a key of `FORMATS`. metadata: what `metadata.kept_metadata` keeps. orientation: by which EXIF data turned
    it upright, 1 to 8, where 1 is not at all and 5 and more swap height and width. header: of a DICOM file.
    """

    height: int
    width: int
    channels: int
    depth: int
    alpha: NDArray[np.uint8] | None
    format: str
    metadata: dict[str, Any]
    orientation: int = 1
    header: Header | None = None


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture, upright: uint8 or uint16 (height, width, channels), as its frame says."""

    pixels: Pixels
    frame: Frame


def read_picture(path: Path | str, max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture in a file. Raises ImageError, a sentence beginning with the file's name, if there is none to use."""
    return read_pages(path, max_pixels, most=1)[0]


def read_pages(path: Path | str, max_pixels: int = MAX_PIXELS, most: int = MOST_PAGES) -> list[Picture]:
    """All pages of a TIFF, all frames of a DICOM file, the one picture of any other, at most `max_pixels` in all."""
    path = Path(path)
    try:
        with open_regular_file(path) as file:
            form = identify(file, path)
            with decoding(form):
                if form == "DICOM":
                    return dicom_pictures(*read_frames(file, max_pixels, most))
                return [to_picture(image, form) for image in decode(file, form, max_pixels, most)]
    except ImageError as refusal:
        raise ImageError(f"{printable(path.name)} {refusal}") from refusal.__cause__


def dicom_pictures(frames: NDArray[Any], header: Header) -> list[Picture]:
    """The frames of a DICOM file as pictures."""
    _, height, width, channels = frames.shape
    frame = Frame(height, width, channels, frames.dtype.itemsize * 8, None, "DICOM", {}, header=header)
    return [Picture(pixels, frame) for pixels in frames]


def encode(picture: Picture, keep_metadata: bool = False, mark: str = "", marking: Marking = UNMARKED) -> bytes:
    """The picture as a file in its own format; without metadata of any kind unless `keep_metadata` is set.

    mark: the digital source type that the file tells of itself, in the way of `marking`.
    """
    return encode_pages([picture], keep_metadata, mark, marking)


def encode_pages(
    pages: Sequence[Picture], keep_metadata: bool = False, mark: str = "", marking: Marking = UNMARKED
) -> bytes:
    """The pages that `read_pages` gave, or new ones in their frames, as one file; arguments as for `encode`."""
    frame, buffer = pages[0].frame, BytesIO()
    if frame.header:
        with decoding("DICOM"):
            return encode_frames([page.pixels for page in pages], frame.header, keep_metadata)
    form = FORMATS[frame.format]
    options = form.options | (form.with_alpha if frame.alpha is not None else {})
    options |= save_options(frame.format, frame.metadata if keep_metadata else {}, mark if marking.xmp else "")
    if len(pages) > 1:
        options |= {"save_all": True, "append_images": [as_pil(page) for page in pages[1:]]}
    save(as_pil(pages[0]), buffer, frame.format, options)
    return marking.finish(buffer.getvalue(), frame.format, mark)


def save(image: Image.Image, file: BytesIO, form: str, options: dict[str, Any]) -> None:
    """Into a file of that format, by the library that writes it."""
    if form == "HEIC":
        needed("pillow_heif", "heic").from_pillow(image).save(file, **options)
    else:
        image.save(file, form, **options)


def as_pil(picture: Picture) -> Image.Image:
    """Pillow's image of a picture, with its alpha channel."""
    alpha = picture.frame.alpha
    pixels = picture.pixels if alpha is None else np.dstack([picture.pixels, alpha])
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def open_regular_file(path: Path) -> BinaryIO:
    """The file, opened; anything else is refused unopened, because opening a pipe waits for its writer."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
            raise ImageError(f"is {kind}: only regular files are read")
        if status.st_size == 0:
            raise ImageError("is empty (0 bytes): restore it or remove it")
        return path.open("rb")
    except (OSError, ValueError) as error:
        number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or error
        raise ImageError(UNREADABLE.get(number, f"cannot be read ({reason}): check the path")) from error


def identify(file: BinaryIO, path: Path) -> str:
    """The name of the format that the file holds, provided that its suffix says the same."""
    start = file.read(LONGEST_SIGNATURE)
    file.seek(0)
    name = next((name for name, form in FORMATS.items() if re.match(form.signature, start, re.DOTALL)), None)
    if name is None:
        raise ImageError(f"holds no {KNOWN} data (it begins with {start[:8]!r}): convert it first")
    if SUFFIXES.get(path.suffix.lower()) != name:
        raise ImageError(f"holds {name} data: rename it to {printable(path.stem)}{FORMATS[name].suffixes[0]}")
    return name


def disguised(path: Path) -> str:
    """The format of a picture whose name does not say that it is one; empty for everything else."""
    try:
        with open_regular_file(path) as file:
            start = file.read(LONGEST_SIGNATURE)
    except ImageError:
        return ""
    found = (name for name, form in FORMATS.items() if re.match(form.signature, start, re.DOTALL))
    # Text may begin with BM, too; in a bitmap's header four zeros follow.
    return next((name for name in found if name != "BMP" or start[6:10] == bytes(4)), "")


@contextmanager
def decoding(form: str) -> Iterator[None]:
    """Turn whatever Pillow raises into an ImageError: on hostile bytes its decoders raise almost anything."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError("does not fit into the memory: make it smaller") from error
    except Exception as error:  # decoders of hostile bytes raise almost anything
        reason = printable(str(error)) or type(error).__name__
        raise ImageError(f"cannot be decoded as {form} ({reason}): restore it or save it anew") from error


def decode(file: BinaryIO, form: str, max_pixels: int, most: int) -> Iterator[ImageFile]:
    """Pillow's image, loaded and upright, once for each page: what it holds changes with the next."""
    quieten()
    header = FORMATS[form].reader(file)
    check_header(header, max_pixels)
    pages = count_pages(header, form, most)
    if pages > 1:
        check_pages(header, pages, max_pixels)
    else:
        header.verify()  # the only call that looks at a PNG's checksums
    file.seek(0)
    image = FORMATS[form].reader(file)
    for page in range(pages):
        if page:
            image.info.clear()
            image.seek(page)
        image.load()
        image.info[TURNED] = 1
        with suppress(Exception):  # EXIF data that cannot be parsed turn nothing
            image.info[TURNED] = image.getexif().get(ExifTags.Base.Orientation, 1)
        ImageOps.exif_transpose(image, in_place=True)
        yield image


def count_pages(image: ImageFile, form: str, most: int) -> int:
    """How many there are; more than one only in TIFF, and only where that is wanted."""
    pages: int = getattr(image, "n_frames", 1)
    if pages > (most if form == "TIFF" else 1):
        many = f", more than {most:,}" if most > 1 and form == "TIFF" else ""
        raise ImageError(f"has {pages} {'pages' if form == 'TIFF' else 'frames'}{many}: extract the one you want")
    return pages


def check_pages(image: ImageFile, pages: int, max_pixels: int) -> None:
    """Refuse by what the headers of the pages say, taken together."""
    total = 0
    for page in range(pages):
        image.seek(page)
        check_header(image, max_pixels)
        total += image.width * image.height
    if total > max_pixels:
        raise ImageError(f"has {total:,} pixels in {pages} pages, more than {max_pixels:,}: take it apart")


@cache
def quieten() -> None:
    """Pillow, and libtiff within its wheels, would tell stderr of what is wrong, which comes as an exception, too."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    folder = Path(Image.__file__).parent
    for path in (*folder.parent.glob("pillow.libs/libtiff*"), *folder.glob(".dylibs/libtiff*")):
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(path))
            for handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
                handler.restype = ctypes.c_void_p
                handler(None)


def check_header(image: ImageFile, max_pixels: int) -> None:
    """Refuse by what the header says: too many pixels, pixels that would lose precision."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"has {width} x {height} pixels, more than {max_pixels:,}: make it smaller or raise the limit")
    tile = math.prod(image.tag_v2.get(tag, 1) for tag in TILE) if isinstance(image, TiffImageFile) else 1
    if tile > max_pixels:  # room for whole tiles is made before they are looked at
        raise ImageError(f"has tiles of {tile:,} pixels, more than {max_pixels:,}: save it anew")
    bits = stored_bits(image)
    deep_gray = image.mode.startswith("I;16") and bits == 16 and "transparency" not in image.info
    if not deep_gray and (bits > 8 or image.mode not in EIGHT_BIT_MODES):
        raise ImageError(f"has {bits}-bit {image.mode} pixels: save it in 8 bits, or as 16-bit gray without alpha")


def stored_bits(image: ImageFile) -> int:
    """Bits of one channel in the file; Pillow reads deep colors as 8 bits without a word."""
    if isinstance(image, TiffImageFile):
        return int(max(image.tag_v2.get(BITSPERSAMPLE, (1,))))
    if isinstance(image, AvifImageFile):
        return avif_bits(image.fp)
    if "bit_depth" in image.info:  # of HEIC
        return int(image.info["bit_depth"])
    return 16 if isinstance(image, PngImageFile) and ";16" in str(image.tile[0].args) else 8


def avif_bits(file: Any) -> int:
    """The most bits that a picture of the file is coded with, by the configurations in its first 64 kB."""
    file.seek(0)
    found = [told[1][0] for told in HIGH_DEPTH.finditer(file.read(1 << 16))]
    return max((8 + 2 * bool(byte & 0x40) * (1 + bool(byte & 0x20)) for byte in found), default=8)


def to_picture(image: Image.Image, form: str) -> Picture:
    """The pixels of a loaded image, sorted into colors and alpha."""
    colors, alpha = split_alpha(image)
    if alpha and form == "BMP":
        raise ImageError("has an alpha channel, which most programs ignore in BMP: save it as PNG")
    deep = image.mode.startswith("I;16")
    pixels = deep_gray_pixels(image) if deep else np.array(to_srgb(colors, image.info.get("icc_profile")))
    pixels = pixels.reshape(image.height, image.width, -1)
    height, width, channels = pixels.shape
    opacity = np.array(alpha) if alpha else None
    metadata = kept_metadata(image, form, lambda some, more: save(some, BytesIO(), form, FORMATS[form].options | more))
    orientation = image.info.get(TURNED, 1)
    frame = Frame(height, width, channels, 16 if deep else 8, opacity, form, metadata, orientation)
    return Picture(pixels, frame)


def printable(name: str) -> str:
    """The name with control characters and undecodable bytes escaped."""
    return repr(name)[1:-1]
