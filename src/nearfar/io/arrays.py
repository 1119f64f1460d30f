"""Scientific arrays in and out: `.npy`, TIFF and FITS files as physical values, and the model's square.

    path -> read_array -> ValueTransform.to_image -> fit_square -> (model) -> unfit_square -> to_values -> write_array

    in the file     rule                                                                written
    .npy            integers or floats; Python objects are never unpickled              channel first, gray 2-D
    .tif, .tiff     one page; palettes are refused; numbers are taken as stored         channel last, gray 2-D
    .fits .fit .fts the only image of the file, in any extension, by BSCALE and BZERO   channel first, gray 2-D

* A 2-D array has one channel. In a 3-D array the smallest axis holds the channels: it must be the first or the last and
  1, 3 or 4 long. An array with two smallest axes is refused.
* FITS: astropy turns scaled 16-bit integers into float32, others into float64, and blank pixels into NaN. The header is
  not carried: what is written has neither coordinates nor units. Rows stay in the file's order.
* At most `max_pixels` values, checked before anything is decoded.
* The same values always give the same bytes. Reading FITS sets Python's warning filters: do it in one thread.
"""

from __future__ import annotations

import logging
import math
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy.typing import NDArray
from torch import Tensor

from nearfar.errors import ImageError, UsageError
from nearfar.io.fitting import FitMode, fit_plane, unfit_plane
from nearfar.io.manifest import write_whole, writing
from nearfar.io.pictures import MAX_PIXELS, decoding, open_regular_file, printable
from nearfar.io.values import check_finite

CHANNELS = (1, 3, 4)
DEFLATED, UNBOUNDED = (8, 32946), (34925, 34926, 50000)
"""TIFF's numbers for deflate, and for compressions (LZMA, Zstandard) whose size tifffile does not look at."""
PALETTE = 3
"""TIFF's photometric interpretation for numbers that stand for colors."""

LARGEST = float(np.finfo(np.float32).max)
TYPES: dict[str, tuple[float, float, Callable[[NDArray[np.float64]], NDArray[np.float64]]]] = {
    "float32": (-LARGEST, LARGEST, np.positive),
    "uint16": (0.0, 65535.0, np.rint),
}
"""What a file can store: least value, greatest value, and how a value is made storable."""

Planes = Float64[np.ndarray, "channel height width"]


@dataclass(frozen=True)
class Stored:
    """An array in a file, as its header describes it, and how to load it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    load: Callable[[], NDArray[Any]]


@dataclass(frozen=True)
class ArrayFormat:
    """A file format, the library that knows it, and how that library opens a file and makes one of an array."""

    name: str
    library: str
    open: Callable[[Any, BinaryIO], Stored]
    encode: Callable[[Any, NDArray[Any], BytesIO], None]


def open_npy(library: Any, file: BinaryIO) -> Stored:
    """library: numpy.lib.format."""
    readers = {(1, 0): library.read_array_header_1_0, (2, 0): library.read_array_header_2_0}
    shape, _, dtype = readers[library.read_magic(file)](file)
    file.seek(0)
    return Stored(shape, dtype, lambda: library.read_array(file, allow_pickle=False))


def open_tiff(library: Any, file: BinaryIO) -> Stored:
    """library: tifffile."""
    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # it would tell stderr of every broken tag
    tiff = library.TiffFile(file)
    check_single(len(tiff.pages), "pages")
    if tiff.pages[0].photometric == PALETTE:
        raise ImageError("holds a palette's indices, which are no physical values: save it as gray or RGB")
    check_parts(tiff.pages[0], file)
    return Stored(tiff.series[0].shape, tiff.series[0].dtype, tiff.asarray)


def check_parts(page: Any, file: BinaryIO) -> None:
    """Refuse strips and tiles that are, or unpack to, more than the image needs: tifffile would make room for all."""
    count = math.prod(page.chunks)
    if count > MAX_PIXELS:
        raise ImageError(f"has strips or tiles of {count:,} values, more than {MAX_PIXELS:,}: save it anew")
    if page.compression in UNBOUNDED:
        raise ImageError(
            f"is compressed by {page.compression.name}, which is not read: save it with deflate or without"
        )
    for place, length in zip(page.dataoffsets, page.databytecounts, strict=False):
        if page.compression in DEFLATED:
            file.seek(place)
            most = count * page.dtype.itemsize
            if len(zlib.decompressobj().decompress(file.read(length), most + 1)) > most:
                raise ImageError("has a strip or tile that unpacks to more than its pixels: save it anew")


def open_fits(library: Any, file: BinaryIO) -> Stored:
    """library: astropy.io.fits; what it has scaled are floats. It would unpack a packed file of any size."""
    if file.read(6) != b"SIMPLE":
        raise ImageError("does not begin as FITS files do (SIMPLE): unpack it, where it is packed, or restore it")
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # many headers break some rule
        warnings.filterwarnings("error", "Error validating header")  # what follows it cannot be read
        images = [hdu for hdu in library.open(file, memmap=False) if hdu.is_image and hdu.shape]
    check_single(len(images), "images")
    return Stored(images[0].shape, np.dtype(np.float64), lambda: images[0].data)


def encode_npy(library: Any, planes: NDArray[Any], file: BytesIO) -> None:
    library.write_array(file, planes, allow_pickle=False)


def encode_tiff(library: Any, planes: NDArray[Any], file: BytesIO) -> None:
    pixels = np.ascontiguousarray(np.moveaxis(planes, 0, -1)) if planes.ndim == 3 else planes
    kind = "rgb" if pixels.shape[2:] == (3,) else "minisblack"
    library.imwrite(file, pixels, photometric=kind, planarconfig="contig", metadata=None)


def encode_fits(library: Any, planes: NDArray[Any], file: BytesIO) -> None:
    library.PrimaryHDU(planes).writeto(file)


NPY = ArrayFormat("NPY", "numpy.lib.format", open_npy, encode_npy)
TIFF = ArrayFormat("TIFF", "tifffile", open_tiff, encode_tiff)
FITS = ArrayFormat("FITS", "astropy.io.fits", open_fits, encode_fits)
FORMATS = {".npy": NPY, ".tif": TIFF, ".tiff": TIFF, ".fits": FITS, ".fit": FITS, ".fts": FITS}
SCIENCE_SUFFIXES = tuple(FORMATS)


def read_array(path: Path | str, max_pixels: int = MAX_PIXELS) -> Planes:
    """The values in a file, float64 (channel, height, width) with 1, 3 or 4 channels.

    Raises ImageError, a sentence beginning with the file's name, for a file that holds no such array; UsageError for
    another suffix and for a missing library. Values that are not finite are read as they are.
    """
    path = Path(path)
    form, library = format_of(path)
    with naming(path), open_regular_file(path) as file:
        with decoding(form.name):
            stored = form.open(library, file)
        check_stored(stored, max_pixels)
        axis = channel_axis(stored.shape)
        with decoding(form.name):
            values = stored.load().astype(np.float64)
        if values.shape != stored.shape:
            raise ImageError(f"holds values of shape {values.shape}, its header says {stored.shape}: save it anew")
    return values[None] if axis is None else np.moveaxis(values, axis, 0)


def write_array(path: Path | str, values: Planes, dtype: str = "float32") -> str:
    """Write physical values in the format of the path's suffix, whole or not at all; returns the content's SHA-256.

    values: (channel, height, width) with 1, 3 or 4 channels. dtype: "float32", or "uint16" for values that lie in 0 to
    65535, which are rounded. Raises ImageError for values that are not finite or that `read_array` would not read,
    UsageError for what the type cannot hold, RunError when the disk refuses.
    """
    path = Path(path)
    content = array_file(path, values, dtype)
    with writing(path):
        return write_whole(path, content)


def array_file(path: Path, values: Planes, dtype: str = "float32") -> bytes:
    """The content of a file of that name; arguments and errors as for `write_array`."""
    form, library = format_of(path)
    check_finite(f"the array for {printable(path.name)}", values)
    planes = values[0] if len(values) == 1 else values
    with naming(path):
        if values.ndim != 3 or not values.size or channel_axis(planes.shape):
            raise ImageError(f"needs values of shape (1, 3 or 4, height, width), got {values.shape}")
        stored = to_dtype(planes, dtype)
    buffer = BytesIO()
    form.encode(library, stored, buffer)
    return buffer.getvalue()


def fit_square(
    image: Float32[Tensor, "channel height width"], size: int, mode: FitMode = FitMode.PAD
) -> Float32[Tensor, "channel {size} {size}"]:
    """An image in [-1, 1] as the model's square, as `fitting.fit` does it, without rounding to integers."""
    if size < 1:
        raise UsageError(f"the model's size must be above 0, got {size}")
    return torch.from_numpy(np.stack([fit_plane(plane, size, mode) for plane in image.cpu().numpy()]))


def unfit_square(
    image: Float32[Tensor, "channel _ _"], height: int, width: int, mode: FitMode = FitMode.PAD
) -> Float32[Tensor, "channel {height} {width}"]:
    """The model's image with an array's height and width; undoes `fit_square` exactly where nothing was resampled."""
    if image.shape[1] != image.shape[2]:
        raise UsageError(f"the model's image must be (channels, size, size), got {tuple(image.shape)}")
    planes = image.detach().cpu().numpy()
    check_finite("the model's image", planes)
    return torch.from_numpy(np.stack([unfit_plane(plane, height, width, mode) for plane in planes]))


def format_of(path: Path) -> tuple[ArrayFormat, Any]:
    """The format that a suffix names, and its library."""
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise UsageError(f"{printable(path.name)} must end in {', '.join(FORMATS)}: convert it to one of these formats")
    try:
        return form, import_module(form.library)
    except ImportError:
        raise UsageError(f"{form.name} files need {form.library}: pip install 'nearfar[science]'") from None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name before the text of an `ImageError` or a `UsageError`."""
    try:
        yield
    except (ImageError, UsageError) as refusal:
        raise type(refusal)(f"{printable(path.name)} {refusal}") from refusal.__cause__


def check_single(count: int, what: str) -> None:
    if count != 1:
        raise ImageError(f"has {count} {what}, and exactly 1 is read: extract the one you want")


def check_stored(stored: Stored, max_pixels: int) -> None:
    """Refuse by what the header says: nothing, too much, or no numbers."""
    count = math.prod(stored.shape)
    if min(stored.shape, default=1) < 1:
        raise ImageError(f"has shape {stored.shape} and so no values: restore it or remove it")
    if count > max_pixels:
        raise ImageError(f"has {count:,} values, more than {max_pixels:,}: make it smaller or raise the limit")
    if stored.dtype.kind not in "iuf":
        raise ImageError(f"holds values of type {stored.dtype}: save them as integers or floats")


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """Which axis holds the channels; None for gray without such an axis. Raises ImageError if it cannot be said."""
    if len(shape) == 2:
        return None
    if len(shape) != 3:
        raise ImageError(f"has shape {shape}, and 2 or 3 axes are read: extract the image you want")
    smallest = min(shape)
    axes = [axis for axis, length in enumerate(shape) if length == smallest]
    if smallest not in CHANNELS or axes == [1]:
        raise ImageError(f"has shape {shape}: the smallest axis must hold 1, 3 or 4 channels, and be first or last")
    if len(axes) > 1:
        raise ImageError(f"has shape {shape}, which leaves open what the channels are: save gray as (height, width)")
    return axes[0]


def to_dtype(values: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """Values as they are stored; what does not fit the type is refused, never wrapped or clipped."""
    if dtype not in TYPES:
        raise UsageError(f"dtype must be one of {', '.join(TYPES)}, got {dtype!r}")
    low, high, convert = TYPES[dtype]
    if values.min() < low or values.max() > high:
        span = f"{values.min():g} to {values.max():g}"
        raise UsageError(f"needs values from {low:g} to {high:g} for {dtype}, got {span}: change the type or the unit")
    return convert(values).astype(dtype)
