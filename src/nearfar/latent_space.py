"""Where a model's denoising happens: in its pixels, or behind an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nearfar.tensors import Images


@runtime_checkable
class LatentSpace(Protocol):
    """Maps images in [-1, 1] to the states that the denoiser works on, and back."""

    def encode(self, images: Images) -> Images: ...
    def decode(self, latents: Images) -> Images: ...


@dataclass(frozen=True)
class PixelSpace:
    """The identity: the denoiser works on pixels."""

    def encode(self, images: Images) -> Images:
        return images

    def decode(self, latents: Images) -> Images:
        return latents
