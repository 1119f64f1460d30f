"""What a frozen model is: a denoiser with its latent space, its image contract and its provenance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from nearfar.diffusion.denoiser import Denoiser
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.errors import UsageError
from nearfar.models.latent_space import LatentSpace
from nearfar.tensors import Images

PLACES, PARAMETERS = 64 * 64, 50_000_000
"""Size of latents and of a network up to which the default batch is whole; beyond, it shrinks in proportion."""


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
    license: str


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


def default_batch_size(model: FrozenModel) -> int:
    """32 for networks of a few million parameters, 16 for larger ones, less for the largest; 4 times that on a GPU."""
    on_cpu = 32 if model.parameters < 10_000_000 else 16
    size = on_cpu if model.device.type == "cpu" else 4 * on_cpu
    places = model.latent_shape[1] * model.latent_shape[2]
    return max(1, int(size / max(1, places / PLACES) / max(1, model.parameters / PARAMETERS)))


def check_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise UsageError(f"batch size must be at least 1, got {batch_size}")
    return batch_size
