"""What a frozen model is: a denoiser, a latent space (pixels, patches or behind an encoder), an image contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from nearfar.diffusion.denoiser import Denoiser
from nearfar.diffusion.noise import NoiseStream
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.errors import UsageError
from nearfar.io.conversion import as_images, as_pil_images
from nearfar.io.notebook import html_table, summary
from nearfar.models.graphs import float32_products
from nearfar.tensors import ImageContract, Images, Latents, patched, unpatched

OVERLAP = 0.25
"""Share of a tile that it has in common with the next one."""


def tiled(function: Callable[[Tensor], Tensor], images: Images, tile: int, scale: Fraction = Fraction(1)) -> Tensor:
    """`function` of images, tile by tile where they are longer than `tile`, the overlaps blended.

    function: (batch, channel, height, width) -> (batch, any, height * scale, width * scale). Weights fall toward a
    tile's edge, so a function that looks at nothing beyond its pixel is reproduced. Cost: a call for each tile; the
    memory of a call follows the tile.
    """
    height, width = images.shape[-2:]
    if max(height, width) <= tile:
        return function(images)
    corners = product(starts(height, tile, scale.denominator), starts(width, tile, scale.denominator))
    pieces = [(y, x, function(images[..., y : y + tile, x : x + tile])) for y, x in corners]
    first = pieces[0][2]
    total = first.new_zeros(*first.shape[:2], int(height * scale), int(width * scale))
    weights = torch.zeros_like(total[:1, :1])
    for y, x, piece in pieces:
        rows, columns = (
            slice(int(at * scale), int(at * scale) + n) for at, n in zip((y, x), piece.shape[-2:], strict=True)
        )
        total[..., rows, columns] += piece * pyramid(piece)
        weights[..., rows, columns] += pyramid(piece)
    return total / weights


def starts(length: int, tile: int, multiple: int) -> list[int]:
    """Where tiles begin along one side: evenly, at multiples of `multiple`, the last tile ending at the end."""
    room = (length - tile) // multiple
    if room <= 0:
        return [0]
    gaps = -(-room // max(1, int(tile * (1 - OVERLAP)) // multiple))
    return [round(gap * room / gaps) * multiple for gap in range(gaps + 1)]


def pyramid(piece: Tensor) -> Tensor:
    """A weight for each place of a tile, (height, width), highest in its middle."""
    rows, columns = (
        torch.minimum(distance, n - distance)
        for n in piece.shape[-2:]
        for distance in [torch.arange(n, device=piece.device, dtype=piece.dtype) + 0.5]
    )
    return rows[:, None] * columns[None, :]


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
class ValueRange:
    """Values from `low` to `high`: [0, 1] for the variance-exploding score models (Song et al., arXiv 2011.13456)."""

    low: float = 0.0
    high: float = 1.0
    factor: ClassVar[int] = 1

    @property
    def span(self) -> float:
        return self.high - self.low

    def encode(self, images: Images, noise: NoiseStream | None = None) -> Latents:
        return self.low + (images + 1) / 2 * self.span

    def decode(self, latents: Latents) -> Images:
        return (latents - self.low) / self.span * 2 - 1


@dataclass(frozen=True)
class PatchSpace:
    """Patches of `factor` x `factor` pixels as channels, in the order row, column, color (arXiv 2207.04316).

    It only rearranges, so a noise level means what it means for pixels.
    """

    factor: int
    span: ClassVar[float] = 2.0

    def encode(self, images: Images, noise: NoiseStream | None = None) -> Latents:
        return patched(images, self.factor)

    def decode(self, latents: Latents) -> Images:
        return unpatched(latents, self.factor)


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """The latents of a diffusers autoencoder, KL or VQ: `(encoder's - shift) * scaling` (arXiv 2112.10752, 4.3).

    scaling, shift: one number, or one for each channel, (channels, 1, 1).
    sampled: draw from a KL encoder's Gaussian instead of taking its mode. tile: images longer than this many pixels
    are encoded and decoded in overlapping tiles. Images are encoded and decoded one by one, so memory follows one tile.
    tf32: see `graphs.float32_products`.
    """

    network: Any = field(repr=False)
    scaling: Tensor
    shift: Tensor
    factor: int
    tile: int
    sampled: bool = False
    tf32: bool = False
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
        with float32_products(images.device, self.tf32):
            encoded = self.network.encode(images.to(self.network.dtype))
        moments: Tensor = encoded.latent_dist.parameters if self._gaussian else encoded.latents
        return moments.float()

    def _decode(self, latents: Tensor) -> Tensor:
        with float32_products(latents.device, self.tf32):
            images: Tensor = self.network.decode(latents.to(self.network.dtype)).sample
        return images.float()


PLACES, PARAMETERS = 64 * 64, 50_000_000
"""Size of latents and of a network up to which the default batch is whole; beyond, it shrinks in proportion."""


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from. `sha256` covers its configuration and weights."""

    source: str
    sha256: str
    license: str


@dataclass(frozen=True, eq=False, repr=False)
class FrozenModel:
    """A pretrained model, ready to be sampled; nothing here is ever trained.

    latent_shape: (channels, height, width) of what the denoiser works on for one image.
    settings: what was bound to the network (prompt, guidance, label) and decides the pixels.
    tf32: whether its float32 products are made in tf32, which a GPU alone can.
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
    tf32: bool = False

    @property
    def precision(self) -> str:
        """Of the network: float32, tf32, float16 or bfloat16."""
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def from_pil(self, pictures: Any) -> Images:
        """A PIL image, or a list of them, as the model takes them: upright, in sRGB, padded to squares, resized."""
        return as_images(pictures, self.image)[0]

    def to_pil(self, images: Images, like: Any = None) -> list[Any]:
        """The model's images as PIL images. like: the pictures they were made of, whose sizes and alpha they get."""
        return as_pil_images(images, like)

    def facts(self) -> dict[str, object]:
        """What `repr` says and a notebook shows."""
        size, channels = self.image.size, self.image.channels
        return {
            "model": self.provenance.source,
            "images": f"{size}x{size} {'gray' if channels == 1 else 'RGB'}",
            "family": "latent diffusion" if self.latent_space.span == float("inf") else "pixel diffusion",
            "schedule": self.schedule.path.name,
            "parameters": f"{self.parameters / 1e6:.1f} million",
            "license": self.provenance.license,
            "device": f"{self.device} {self.precision}",
            **{name: value for name, value in self.settings.items() if name in ("prompt", "label") and value},
        }

    def __repr__(self) -> str:
        return summary("FrozenModel", self.facts())

    def _repr_html_(self) -> str:
        return html_table("FrozenModel", self.facts())


def checked_model(model: Any) -> FrozenModel:
    """Refuse what is no loaded model. Wrappers that carry the same attributes are models."""
    if not hasattr(model, "latent_space"):
        raise UsageError(f"model must be what nearfar.load_model returns, got {type(model).__name__}: load it first")
    loaded: FrozenModel = model
    return loaded


GPU_BATCH = 256
"""At most in a default batch on a GPU: on an H100 small networks make 94 to 98 % of the images a second of 512 at once,
and 256-pixel ones, whose batch shrinks to 8, 93 % of those of 32 (benchmarks/results/gpu_h100.json)."""


def default_batch_size(model: FrozenModel) -> int:
    """On a CPU 32 for networks of a few million parameters, 16 for larger ones, less for the largest; more on a GPU."""
    on_cpu = 32 if model.parameters < 10_000_000 else 16
    size = on_cpu if model.device.type == "cpu" else GPU_BATCH
    places = model.latent_shape[1] * model.latent_shape[2]
    return max(1, int(size / max(1, places / PLACES) / max(1, model.parameters / PARAMETERS)))


def check_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise UsageError(f"batch size must be at least 1, got {batch_size}")
    return batch_size
