"""What people hand over as a model's images, and results given back in the same kind: PIL images, arrays, tensors.

    handed over                                                    given back
    tensor of floats, (batch, channel, height, width) in [-1, 1]   the same, float32 on the CPU
    array of floats, the same                                      the same, float32
    PIL image of any size                                          PIL image of its size, upright
    array of 8 bits, (height, width) or (height, width, 1 to 4)    the same
    list or tuple of pictures, each of the last two                list, each of its kind and size
    array of 8 bits, (batch, height, width, 1 to 4)                the same

Pictures are read as files are (`pictures`): turned upright, in sRGB, alpha and 16-bit gray kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from nearfar.errors import ImageError, UsageError
from nearfar.io.fitting import fit, to_float, to_integer, unfit, with_channels
from nearfar.io.pictures import EIGHT_BIT_MODES, Frame, Picture, as_pil, decoding, to_picture
from nearfar.tensors import ImageContract, Images

KINDS = "a tensor or an array (batch, channel, height, width) in [-1, 1], a PIL image, or a list of these pictures"


@dataclass(frozen=True, eq=False)
class Handed:
    """Pictures that were handed over. collect: what is given back, of as many PIL images."""

    pictures: list[Picture]
    collect: Callable[[list[Any]], Any]

    def squares(self, contract: ImageContract) -> Images:
        """The pictures as the model takes them, padded to squares by their mirror image."""
        return torch.stack([fit(picture, contract.size, contract.channels) for picture in self.pictures])

    def back(self, images: Images) -> Any:
        """A model's images in the frames of the pictures, each of its size and kind."""
        pairs = zip(images, self.pictures, strict=True)
        return self.collect([as_pil(unfit(image, picture.frame)) for image, picture in pairs])

    def enlarged(self, channels: int, enlarge: Callable[[Images], Images]) -> Any:
        """Each picture, at its own size, through `enlarge`, and its alpha channel with it."""
        return self.collect([enlarged(picture, channels, enlarge) for picture in self.pictures])


def enlarged(picture: Picture, channels: int, enlarge: Callable[[Images], Images]) -> Any:
    """PIL's image of one picture, enlarged."""
    planes = np.stack([to_float(plane) for plane in np.moveaxis(picture.pixels, -1, 0)])
    large = enlarge(torch.from_numpy(with_channels(planes, channels))[None])[0]
    height, width = large.shape[1:]
    frame, alpha = picture.frame, picture.frame.alpha
    if alpha is not None:
        alpha = np.asarray(Image.fromarray(alpha).resize((width, height), Image.Resampling.BICUBIC))
    pixels = with_channels(large.numpy(), frame.channels)
    made = np.stack([to_integer(plane, frame.depth) for plane in pixels], axis=-1)
    return as_pil(Picture(made, replace(frame, height=height, width=width, alpha=alpha)))


def as_images(given: Any, contract: ImageContract) -> tuple[Images, Callable[[Images], Any]]:
    """What was handed over as a model's images, and the function that gives a model's images back in the same kind.

    Raises UsageError for everything else, and for pictures that would lose precision.
    """
    if not isinstance(given, Tensor) and not is_array_of_floats(given):
        handed = hand_over(given)
        return handed.squares(contract), handed.back
    images, back = as_tensor(given)
    contract.check(images)
    return images, back


def as_pil_images(images: Images, like: Any = None) -> list[Any]:
    """A model's images as PIL images, of their own size, or in the frames of the pictures that they are `like`."""
    if like is None:
        frames = [Frame(image.shape[1], image.shape[2], image.shape[0], 8, None, "PNG", {}) for image in images]
    else:
        frames = [picture.frame for picture in hand_over(like).pictures]
    if len(frames) != len(images):
        raise UsageError(f"like must be {len(images)} pictures, one for each image, got {len(frames)}")
    return [as_pil(unfit(image, frame)) for image, frame in zip(images, frames, strict=True)]


def is_array_of_floats(given: Any) -> bool:
    return isinstance(given, np.ndarray) and given.dtype.kind == "f"


def as_tensor(given: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """A tensor, or an array of floats as one, and the way back."""
    if isinstance(given, Tensor):
        if not given.is_floating_point():
            raise UsageError(f"images must be floats in [-1, 1], got {given.dtype}: divide 8-bit by 127.5, less 1")
        return given, lambda images: images
    return torch.from_numpy(np.array(given, np.float32)), lambda images: images.numpy()


def hand_over(given: Any) -> Handed:
    """Pictures of any kind and number."""
    if isinstance(given, list | tuple) and given:
        each = [hand_over_one(one, f"image {number} of {len(given)}") for number, one in enumerate(given, 1)]
        return Handed([one.pictures[0] for one in each], lambda made: collected(each, made))
    if isinstance(given, np.ndarray) and given.ndim == 4 and len(given):
        handed = hand_over(list(given))
        return Handed(handed.pictures, lambda made: np.stack(handed.collect(made)))
    return hand_over_one(given, "images")


def collected(each: list[Handed], made: list[Any]) -> list[Any]:
    return [one.collect([image]) for one, image in zip(each, made, strict=True)]


def hand_over_one(given: Any, name: str) -> Handed:
    """One picture."""
    if isinstance(given, Image.Image):
        return Handed([read_pil(given, name)], lambda made: made[0])
    if isinstance(given, np.ndarray) and given.dtype in (np.uint8, np.uint16) and given.ndim in (2, 3) and given.size:
        channels = given.shape[2:]
        try:
            image = Image.fromarray(given[..., 0] if channels == (1,) else given)
        except TypeError:
            wanted = "(height, width), with 1 to 4 channels of 8 bits or gray of 16"
            raise UsageError(f"{name} must be {wanted}, got {given.dtype} {given.shape}") from None
        return Handed([read_pil(image, name)], lambda made: np.asarray(made[0]).reshape(*made[0].size[::-1], *channels))
    got = f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
    got = "none" if isinstance(given, list | tuple) and not given else got
    way_out = ": open it with PIL.Image.open" if isinstance(given, str | bytes) or hasattr(given, "__fspath__") else ""
    raise UsageError(f"{name} must be {KINDS}, got {got}{way_out}")


def read_pil(image: Image.Image, name: str) -> Picture:
    """A picture of a PIL image, upright. Raises UsageError for modes that hold more than is processed."""
    if image.mode not in EIGHT_BIT_MODES and not image.mode.startswith("I;16"):
        wanted = "8 bits a channel, or 16 bits of gray"
        raise UsageError(f"{name} must have {wanted}, got mode {image.mode}: convert to RGB, RGBA, L or I;16")
    try:
        with decoding(image.format or "picture"):
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            return to_picture(ImageOps.exif_transpose(image) if turned else image, "PNG")
    except ImageError as refusal:
        raise UsageError(f"{name} {refusal}") from None
