"""What a frozen model is: a denoiser with its latent space, its image contract and its provenance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from nearfar.denoiser import Denoiser
from nearfar.errors import UsageError
from nearfar.latent_space import LatentSpace
from nearfar.schedule import NoiseSchedule
from nearfar.tensors import Images


@dataclass(frozen=True)
class ImageContract:
    """What the model takes: float32 `(batch, channels, size, size)` in [-1, 1]."""

    size: int
    channels: int

    def check(self, images: Images) -> None:
        """Refuse images of another shape, out of range or not finite."""
        expected = (self.channels, self.size, self.size)
        if images.ndim != 4 or images.shape[1:] != expected or not len(images):
            shape = f"(batch, {self.channels}, {self.size}, {self.size})"
            raise UsageError(f"images must be {shape}, got {tuple(images.shape)}")
        if not images.isfinite().all() or images.abs().max() > 1:
            span = f"{images.min().item():g} to {images.max().item():g}"
            raise UsageError(f"images must lie in [-1, 1], got values from {span}: divide 8-bit by 127.5, less 1")


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from. `sha256` covers its configuration and weights."""

    source: str
    sha256: str
    licence: str


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """A pretrained model, ready to be sampled; nothing here is ever trained.

    latent_shape: (channels, height, width) of what the denoiser works on for one image.
    settings: what was bound to the network (prompt, guidance, label) and decides the pixels.
    """

    denoiser: Denoiser
    latent_space: LatentSpace
    image: ImageContract
    latent_shape: tuple[int, int, int]
    provenance: Provenance
    device: torch.device
    dtype: torch.dtype
    parameters: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule
