"""Where a model's denoising happens: in its pixels, in their patches, or behind an encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from nearfar.diffusion.noise import NoiseStream
from nearfar.errors import UsageError
from nearfar.models.tiles import tiled
from nearfar.tensors import Images, Latents


@runtime_checkable
class LatentSpace(Protocol):
    """Maps images in [-1, 1] to the states that the denoiser works on, and back."""

    @property
    def span(self) -> float:
        """Between the largest and the smallest value of a state's element; infinite behind an encoder."""
        ...

    @property
    def factor(self) -> int:
        """Pixels along the side of what becomes one place of a state."""
        ...

    def encode(self, images: Images, noise: NoiseStream | None = None) -> Latents:
        """States of images. noise: used by an encoder that samples; without it the encoder's mode is taken."""
        ...

    def decode(self, latents: Latents) -> Images: ...


@dataclass(frozen=True)
class PixelSpace:
    """The identity: the denoiser works on pixels."""

    span: ClassVar[float] = 2.0
    factor: ClassVar[int] = 1

    def encode(self, images: Images, noise: NoiseStream | None = None) -> Latents:
        return images

    def decode(self, latents: Latents) -> Images:
        return latents


@dataclass(frozen=True)
class UnitRange:
    """Pixels in [0, 1], as the variance-exploding score models have them (Song et al., arXiv 2011.13456)."""

    span: ClassVar[float] = 1.0
    factor: ClassVar[int] = 1

    def encode(self, images: Images, noise: NoiseStream | None = None) -> Latents:
        return (images + 1) / 2

    def decode(self, latents: Latents) -> Images:
        return latents * 2 - 1


@dataclass(frozen=True)
class PatchSpace:
    """Patches of `factor` x `factor` pixels as channels, in the order row, column, color (arXiv 2207.04316).

    It only rearranges, so a noise level means what it means for pixels.
    """

    factor: int
    span: ClassVar[float] = 2.0

    def encode(self, images: Images, noise: NoiseStream | None = None) -> Latents:
        batch, channels, height, width = images.shape
        cells = images.reshape(batch, channels, height // self.factor, self.factor, width // self.factor, self.factor)
        return cells.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // self.factor, width // self.factor)

    def decode(self, latents: Latents) -> Images:
        batch, channels, rows, columns = latents.shape
        cells = latents.reshape(batch, self.factor, self.factor, channels // self.factor**2, rows, columns)
        return cells.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, rows * self.factor, columns * self.factor)


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """The latents of a diffusers autoencoder, KL or VQ: `(encoder's - shift) * scaling` (arXiv 2112.10752, 4.3).

    scaling, shift: one number, or one for each channel, (channels, 1, 1).
    sampled: draw from a KL encoder's Gaussian instead of taking its mode. tile: images longer than this many pixels
    are encoded and decoded in overlapping tiles. Images are encoded and decoded one by one, so memory follows one tile.
    """

    network: Any = field(repr=False)
    scaling: Tensor
    shift: Tensor
    factor: int
    tile: int
    sampled: bool = False
    span: ClassVar[float] = float("inf")

    @torch.inference_mode()
    def encode(self, images: Images, noise: NoiseStream | None = None) -> Latents:
        if self.sampled and noise is None:
            raise UsageError("this model draws its latents, which an inversion cannot: load it without --sampled")
        tile, scale = self.tile, Fraction(1, self.factor)
        moments = torch.cat([tiled(self._moments, image[None], tile, scale) for image in images])
        mean, spread = moments.chunk(2, dim=1) if self._gaussian else (moments, None)
        if self.sampled and noise is not None and spread is not None:
            mean = mean + (spread.clamp(-30, 20) / 2).exp() * noise.draw()
        return (mean - self.shift.to(mean)) * self.scaling.to(mean)

    @torch.inference_mode()
    def decode(self, latents: Latents) -> Images:
        unscaled = latents / self.scaling.to(latents) + self.shift.to(latents)
        tile, factor = self.tile // self.factor, Fraction(self.factor)
        return torch.cat([tiled(self._decode, latent[None], tile, factor) for latent in unscaled])

    @property
    def _gaussian(self) -> bool:
        return not hasattr(self.network, "quantize")

    def _moments(self, images: Tensor) -> Tensor:
        """Mean and log variance of a KL encoder, the continuous latents of a VQ encoder."""
        encoded = self.network.encode(images.to(self.network.dtype))
        moments: Tensor = encoded.latent_dist.parameters if self._gaussian else encoded.latents
        return moments.float()

    def _decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.network.decode(latents.to(self.network.dtype)).sample
        return images.float()
