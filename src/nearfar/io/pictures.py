"""Picture files in and out; how a picture of any shape meets a model is the business of `fitting`.

    path -> read_picture -> Picture -> fit -> Tensor -> (model) -> Tensor, Frame -> unfit -> Picture -> encode -> bytes

A picture is pixels in a frame: its size, depth, alpha, format and metadata. `unfit` is given the frame only, so nothing
but the model's image and the alpha channel can reach the output. What comes in and what goes out again:

    in the file                                  processed as         written as
    gray: 1 and 8 bits                           1 channel            8-bit gray (a color model's luma)
    gray: 16 bits (PNG, TIFF), 0 to 65535        1 channel            16-bit gray
    RGB, YCbCr, palette                          sRGB                 8-bit RGB
    CMYK, YCCK                                   sRGB                 8-bit RGB
    any 8-bit kind with alpha or transparency    colors as above     the same with the alpha channel copied unchanged
    16-bit color, 16-bit gray with alpha, 12 bits, 32-bit integers, floats, LAB, BMP with alpha:     refused

* Formats: PNG, JPEG, WebP, TIFF, BMP, known by their content; the suffix must agree with it. The output has the same
  format: PNG, TIFF (deflate) and BMP without loss, JPEG at quality 95 with full color resolution (4:4:4), WebP lossy
  at quality 95 with lossless alpha.
* One picture a file: animations and multi-page files are refused; of a phone's multi-picture JPEG the main one is used.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile, PngInfo
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, XMP, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from nearfar.errors import ImageError

MAX_PIXELS = 100_000_000
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 1 MB of comments or profile refuse no sound pixels

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Format:
    """How one file format is recognized, named, read and written; `reader` and `options` are Pillow's."""

    signature: bytes
    suffixes: tuple[str, ...]
    reader: Callable[[BinaryIO], ImageFile]
    options: dict[str, Any]


FORMATS = {
    "PNG": Format(rb"\x89PNG\r\n\x1a\n", (".png",), PngImageFile, {"compress_level": 3}),
    "JPEG": Format(
        rb"\xff\xd8\xff",
        (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
        JpegImageFile,
        {"quality": 95, "subsampling": "4:4:4"},
    ),
    "WEBP": Format(rb"RIFF....WEBP", (".webp",), WebPImageFile, {"quality": 95}),
    "TIFF": Format(rb"II[*+]\0|MM\0[*+]", (".tif", ".tiff"), TiffImageFile, {"compression": "tiff_adobe_deflate"}),
    "BMP": Format(rb"BM", (".bmp",), BmpImageFile, {"dpi": (0, 0)}),
}

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

DESCRIPTIVE_EXIF = frozenset({270, 271, 272, 305, 306, 315, 316, 18246, 33432, 40091, 40092, 40093, 40094, 40095})
"""Description, camera, software, date, author, rating, copyright, titles; others lay out the file or hold previews."""

DROPPED_EXIF = frozenset({37500, 40962, 40963, 40965})
"""Maker note (may hold a preview), width and height (wrong after turning), interoperability."""

TURNED = "orientation before it was turned upright"
"""Where `decode` leaves that in Pillow's `info`."""

LONGEST_TAG = 1000
"""Characters of a tag's value as Python shows it: room for a comment, none for a picture."""

PICTURE_IN_XMP = re.compile(
    rb"x[am]pGImg:|GImage:|GDepth:|Container:|ns\.adobe\.com/xap/1\.0/g/img/|ns\.google\.com/photos/1\.0/|[\w+/=]{200}"
)
"""Prefixes and namespaces of embedded pictures, or a run of base64."""


@dataclass(frozen=True, eq=False)
class Frame:
    """All of a picture but its colors; small, unless there is an alpha channel.

    channels: 1 (gray) or 3 (sRGB). depth: bits of a channel, 8, or 16 for gray only. alpha: uint8 (height, width).
    format: a key of `FORMATS`. metadata: Pillow's save options for `keep_metadata`. orientation: by which EXIF data
    turned it upright, 1 to 8, where 1 is not at all and 5 and more swap height and width.
    """

    height: int
    width: int
    channels: int
    depth: int
    alpha: NDArray[np.uint8] | None
    format: str
    metadata: dict[str, Any]
    orientation: int = 1


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture, upright: uint8 or uint16 (height, width, channels), as its frame says."""

    pixels: Pixels
    frame: Frame


def read_picture(path: Path | str, max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture in a file. Raises ImageError, a sentence beginning with the file's name, if there is none to use."""
    path = Path(path)
    try:
        with open_regular_file(path) as file:
            form = identify(file, path)
            with decoding(form):
                return to_picture(decode(file, form, max_pixels), form)
    except ImageError as refusal:
        raise ImageError(f"{printable(path.name)} {refusal}") from refusal.__cause__


def encode(picture: Picture, keep_metadata: bool = False) -> bytes:
    """The picture as a file in its own format; without metadata of any kind unless `keep_metadata` is set."""
    frame, buffer = picture.frame, BytesIO()
    options = FORMATS[frame.format].options | (frame.metadata if keep_metadata else {})
    as_pil(picture).save(buffer, frame.format, **options)
    return buffer.getvalue()


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
    start = file.read(16)
    file.seek(0)
    name = next((name for name, form in FORMATS.items() if re.match(form.signature, start, re.DOTALL)), None)
    if name is None:
        raise ImageError(f"holds no PNG, JPEG, WebP, TIFF or BMP data (it begins with {start[:8]!r}): convert it first")
    if SUFFIXES.get(path.suffix.lower()) != name:
        raise ImageError(f"holds {name} data: rename it to {printable(path.stem)}{FORMATS[name].suffixes[0]}")
    return name


def disguised(path: Path) -> str:
    """The format of a picture whose name does not say that it is one; empty for everything else."""
    try:
        with open_regular_file(path) as file:
            start = file.read(16)
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


def decode(file: BinaryIO, form: str, max_pixels: int) -> ImageFile:
    """Pillow's image, loaded and upright."""
    quieten()
    header = FORMATS[form].reader(file)
    check_header(header, max_pixels)
    header.verify()  # the only call that looks at a PNG's checksums
    file.seek(0)
    image = FORMATS[form].reader(file)
    image.load()
    with suppress(Exception):  # EXIF data that cannot be parsed turn nothing
        image.info[TURNED] = image.getexif().get(ExifTags.Base.Orientation, 1)
    ImageOps.exif_transpose(image, in_place=True)
    return image


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
    """Refuse by what the header says: too many pixels, several frames, pixels that would lose precision."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"has {width} x {height} pixels, more than {max_pixels:,}: make it smaller or raise the limit")
    tile = math.prod(image.tag_v2.get(tag, 1) for tag in TILE) if isinstance(image, TiffImageFile) else 1
    if tile > max_pixels:  # room for whole tiles is made before they are looked at
        raise ImageError(f"has tiles of {tile:,} pixels, more than {max_pixels:,}: save it anew")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(f"has {frames} {'pages' if image.format == 'TIFF' else 'frames'}: extract the one you want")
    bits = stored_bits(image)
    deep_gray = image.mode.startswith("I;16") and bits == 16 and "transparency" not in image.info
    if not deep_gray and (bits > 8 or image.mode not in EIGHT_BIT_MODES):
        raise ImageError(f"has {bits}-bit {image.mode} pixels: save it in 8 bits, or as 16-bit gray without alpha")


def stored_bits(image: ImageFile) -> int:
    """Bits of one channel in the file; Pillow reads deep colors as 8 bits without a word."""
    if isinstance(image, TiffImageFile):
        return int(max(image.tag_v2.get(BITSPERSAMPLE, (1,))))
    return 16 if isinstance(image, PngImageFile) and ";16" in str(image.tile[0].args) else 8


def to_picture(image: Image.Image, form: str) -> Picture:
    """The pixels of a loaded image, sorted into colors and alpha."""
    colors, alpha = split_alpha(image)
    if alpha and form == "BMP":
        raise ImageError("has an alpha channel, which most programs ignore in BMP: save it as PNG")
    deep = image.mode.startswith("I;16")
    pixels = deep_gray_pixels(image) if deep else np.array(to_srgb(colors, image.info.get("icc_profile")))
    pixels = pixels.reshape(image.height, image.width, -1)
    height, width, channels = pixels.shape
    opacity, metadata = np.array(alpha) if alpha else None, kept_metadata(image, form)
    orientation = image.info.get(TURNED, 1)
    frame = Frame(height, width, channels, 16 if deep else 8, opacity, form, metadata, orientation)
    return Picture(pixels, frame)


def deep_gray_pixels(image: Image.Image) -> NDArray[np.uint16]:
    """16-bit gray with 0 black; Pillow leaves files where 0 is white as they are."""
    pixels = np.array(image).astype(np.uint16)  # in the machine's byte order
    white_is_zero = isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION, 0) == 0
    return 65535 - pixels if white_is_zero else pixels


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colors without alpha, and alpha if there is any: a channel, a palette's, or one transparent color."""
    if not image.has_transparency_data:
        return image, None
    *bands, alpha = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA").split()
    return Image.merge("L" if len(bands) == 1 else "RGB", bands), alpha


def to_srgb(colors: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """The colors in mode L or RGB, converted from their ICC profile, or taken for sRGB if there is no usable one."""
    if colors.mode != "CMYK":
        colors = colors.convert("L" if colors.mode in ("1", "L") else "RGB")
    converted = colors
    if icc_profile:
        with suppress(OSError, ImageCms.PyCMSError):
            profile = ImageCms.ImageCmsProfile(BytesIO(icc_profile))
            gray_tagged_as_color = colors.mode == "L" and profile.profile.xcolor_space.strip() == "RGB"
            source = colors.convert("RGB") if gray_tagged_as_color else colors
            srgb, flags = ImageCms.createProfile("sRGB"), ImageCms.Flags.HIGHRESPRECALC
            converted = ImageCms.profileToProfile(source, profile, srgb, outputMode="RGB", flags=flags) or colors
    return converted.convert("L" if colors.mode == "L" else "RGB")


def kept_metadata(image: Image.Image, form: str) -> dict[str, Any]:
    """Pillow's save options that write the picture's metadata; none when they cannot be parsed or written."""
    with suppress(Exception):  # whatever a stranger's metadata make the writers of other formats raise
        options = metadata_options(image, form)
        Image.new("L", (1, 1)).save(BytesIO(), form, **FORMATS[form].options | options)
        return options
    return {}


def metadata_options(image: Image.Image, form: str) -> dict[str, Any]:
    """EXIF, XMP and dpi in the way in which Pillow wants them for this format."""
    exif, xmp, options = kept_exif(image, form), kept_xmp(image), dict[str, Any]()
    dpi = tuple(float(value) for value in image.info.get("dpi", ()))
    if dpi and min(dpi) > 1:  # a TIFF without resolution reads as 1
        options["dpi"] = dpi
    if xmp and form == "TIFF":
        exif[XMP] = xmp
    elif xmp and form == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif xmp:
        options["xmp"] = xmp
    return options | ({"exif": exif.tobytes()} if len(exif) else {})


def kept_exif(image: Image.Image, form: str) -> Image.Exif:
    """The EXIF tags that describe. Pillow cannot write the camera's and the position's directories to TIFF."""
    source, kept = image.getexif(), Image.Exif()
    kept.update({tag: value for tag, value in source.items() if tag in DESCRIPTIVE_EXIF and is_short(value)})
    for directory in () if form == "TIFF" else (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        tags = source.get_ifd(directory).items()
        entries = {tag: value for tag, value in tags if tag not in DROPPED_EXIF and is_short(value)}
        kept.update({directory: entries} if entries else {})
    return kept


def is_short(value: object) -> bool:
    return len(repr(value)) <= LONGEST_TAG


def kept_xmp(image: Image.Image) -> bytes:
    """The XMP packet with its orientation reset; empty when pictures are embedded in it."""
    packet: bytes = image.info.get("xmp", b"")
    if PICTURE_IN_XMP.search(packet):
        return b""
    return re.sub(rb'(tiff:Orientation(?:="|>))[0-9]', rb"\g<1>1", packet)


def printable(name: str) -> str:
    """The name with control characters and undecodable bytes escaped."""
    return repr(name)[1:-1]
