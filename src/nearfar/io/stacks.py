"""A small folder as one batch of images, and a batch of new images as files.

Without a curve a folder is one of pictures. With one it is a folder of scientific arrays, read as physical values. So a
`.tif` is a picture in the first case and an array in the second, and never both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from nearfar.errors import ImageError, UsageError
from nearfar.io.arrays import SCIENCE_SUFFIXES, Planes, fit_square, read_array, write_array
from nearfar.io.fitting import FitMode, from_8_bit
from nearfar.io.fitting import fit as fit_picture
from nearfar.io.listing import PICTURES, Kind, Rejected, list_folder
from nearfar.io.pictures import printable, read_picture
from nearfar.io.values import CURVES, ValueTransform, check_finite, fit_values
from nearfar.tensors import ImageContract, Images

A = TypeVar("A")

OWN_VALUES = "model"
"""Asks for arrays in the units of a model of physical values."""

ARRAYS = Kind(SCIENCE_SUFFIXES, (".npz", ".gz", ".fz", ".h5", ".hdf5", ".mat", ".nii", ".dcm"), ".npy, TIFF or FITS")


@dataclass(frozen=True, eq=False)
class Inputs:
    """All that could be read of a folder, as a model wants it.

    names: of the images, below the folder. images: float32 (image, channel, size, size) in [-1, 1], on the CPU.
    failed: what could not be read, and why. values: how physical values became images; None for pictures.
    ignored: how many files are of another kind.
    """

    names: list[str]
    images: Images
    failed: list[Rejected]
    values: ValueTransform | None
    ignored: int


def read_inputs(
    folder: Path,
    contract: ImageContract,
    fit: FitMode = FitMode.PAD,
    curve: str | None = None,
    clip: float = 0.0,
    softening: Sequence[float] | None = None,
) -> Inputs:
    """Every image below a folder at the model's size; all of them are held in memory.

    curve: None reads pictures; a key of `values.CURVES` reads arrays and fits one value transform to all of them, with
    `clip` and `softening` as for `values.fit_values`; "model" reads arrays in the model's own units. Files that cannot
    be read are listed and left out. Raises UsageError when none is left, when arrays have different channels, and for
    values that the curve cannot take.
    """
    if fit is FitMode.TILE:
        raise UsageError("a domain is one of the model's squares, got fit tile: give pad or cover")
    if curve is None:
        if clip or softening is not None:
            raise UsageError(f"clip and softening are for arrays: give a curve too, one of {', '.join(CURVES)}")
        squares, failed, ignored = read_each(folder, PICTURES, lambda path: picture_square(path, contract, fit))
        return Inputs(list(squares), torch.stack(list(squares.values())), failed, None, ignored)
    arrays, failed, ignored = read_each(folder, ARRAYS, lambda path: read_usable(path, contract.channels))
    if curve == OWN_VALUES:
        values = own_values(contract, clip, softening)
    else:
        values = fit_values(list(arrays.values()), curve, clip, softening)
    images = [array_square(array, values, contract, fit) for array in arrays.values()]
    return Inputs(list(arrays), torch.stack(images), failed, values, ignored)


def own_values(contract: ImageContract, clip: float = 0.0, softening: Sequence[float] | None = None) -> ValueTransform:
    """The value transform of a model of physical values; UsageError for one of pictures."""
    if contract.values is None or clip or softening is not None:
        came = "clip or softening with it" if contract.values is not None else "a model of pictures"
        raise UsageError(f"values of the model's own need a model of physical values alone, got {came}: name a curve")
    return ValueTransform.from_json(contract.values)


def picture_square(path: Path, contract: ImageContract, fit: FitMode) -> Tensor:
    """A picture as the model's square: colors for a gray model become luma, gray is repeated for a color model."""
    return fit_picture(read_picture(path), contract.size, contract.channels, fit)


def array_square(array: Planes, values: ValueTransform, contract: ImageContract, fit: FitMode) -> Tensor:
    """An array as the model's square: gray is repeated for a color model, other channels must be the model's own."""
    return fit_square(values.to_image(array, contract.channels), contract.size, fit)


def read_each(folder: Path, kind: Kind, read: Callable[[Path], A]) -> tuple[dict[str, A], list[Rejected], int]:
    """What could be read, by name; what could not; and how many files are of another kind."""
    listing = list_folder(folder, kind)
    done: dict[str, A] = {}
    failed = list(listing.rejected)
    for item in listing.items:
        try:
            done[item.name] = read(item.path)
        except ImageError as refusal:
            failed.append(Rejected(item.name, str(refusal)))
    if not done:
        reason = f"the first of {len(failed)} files: {failed[0].reason}" if failed else f"{listing.ignored} other files"
        raise UsageError(f"{folder} holds no image that can be read ({reason}): {advice(kind)}")
    return done, failed, listing.ignored


def read_one(path: Path, contract: ImageContract, fit: FitMode, values: ValueTransform | None) -> Tensor:
    """One image `(channel, size, size)` in [-1, 1], as those of a folder are read; with `values` it is an array."""
    try:
        if values is None:
            return picture_square(path, contract, fit)
        return array_square(read_usable(path, contract.channels), values, contract, fit)
    except (ImageError, OSError) as refusal:
        raise UsageError(f"{path} cannot be read ({refusal}): give another image") from None


def advice(kind: Kind) -> str:
    """What to give instead of a folder without images."""
    others = f"a curve ({', '.join(CURVES)}) for arrays" if kind is PICTURES else "no curve for pictures"
    return f"give {kind.formats} files, or {others}"


def read_usable(path: Path, channels: int) -> Planes:
    """The array in a file, provided that a model of so many channels can take it."""
    values, name = read_array(path), printable(path.name)
    if len(values) not in (1, channels):
        raise ImageError(f"{name} has {len(values)} channels, the model {channels}: save the channels one by one")
    check_finite(name, values)
    return values


def write_arrays(
    folder: Path,
    images: Images,
    values: ValueTransform,
    suffix: str = ".fits",
    dtype: str = "float32",
    first: int = 1,
) -> list[str]:
    """Write images in [-1, 1] as physical values, `sample-0001.fits` and on from number `first`; returns the names.

    values: the transform that the model's images were made with. suffix: one of `SCIENCE_SUFFIXES`. dtype: "float32"
    or "uint16". Raises as `arrays.write_array` does.
    """
    names = sample_names(len(images), first, suffix)
    for name, image in zip(names, images, strict=True):
        write_array(folder / name, values.to_values(image), dtype)
    return names


def read_sample(path: Path, values: ValueTransform | None = None) -> Tensor:
    """A new image as it was written, (channel, row, column) in [-1, 1]. Raises ImageError or OSError."""
    if values is not None:
        return values.to_image(read_array(path))
    return from_8_bit(torch.from_numpy(read_picture(path).pixels).permute(2, 0, 1))


def sample_names(count: int, first: int, suffix: str) -> list[str]:
    """File names of new images, in order."""
    return [f"sample-{number:04}{suffix}" for number in range(first, first + count)]
