"""Colors of a loaded picture as sRGB, and its transparency."""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile


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


def deep_gray_pixels(image: Image.Image) -> NDArray[np.uint16]:
    """16-bit gray with 0 black; Pillow leaves files where 0 is white as they are."""
    pixels = np.array(image).astype(np.uint16)  # in the machine's byte order
    white_is_zero = isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION, 0) == 0
    return 65535 - pixels if white_is_zero else pixels
