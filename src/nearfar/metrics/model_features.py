"""Images as vectors that the frozen network itself gives: no other network, and nothing to download."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from nearfar.diffusion.level import Level
from nearfar.latents.spectral import SIDE, coarse, cosines
from nearfar.models.model import FrozenModel
from nearfar.tensors import Latents

LEVEL, LONGEST = Level(strength=0.05), 512
"""Noise under which the network is asked for features, and how many numbers of them are kept."""

Vectors = Float64[Tensor, "batch numbers"]
Kind = Literal["network", "latents"]


def features_of(model: FrozenModel, latents: Latents, batch_size: int, kind: Kind = "network") -> tuple[Kind, Vectors]:
    """Features of clean latents, and their kind: "network", or "latents" where it has no middle block.

    "network" is mean and deviation over the image of each channel of the middle block under a little fixed noise: one
    network call for each batch. "latents" are the lowest frequencies of the latents themselves.
    """
    if kind == "network":
        parts = [middle(model, some) for some in torch.split(latents, batch_size)]
        if all(part is not None for part in parts):
            return kind, shortened(torch.cat([part for part in parts if part is not None]))
    return "latents", shortened(coarse(cosines(latents.double()), SIDE, SIDE))


def middle(model: FrozenModel, latents: Latents) -> Vectors | None:
    """Mean and deviation over the image of what the middle block gives; nothing where there is none."""
    maps = depths(model, latents)
    return pooled(maps[-1]) if maps else None


def depths(model: FrozenModel, latents: Latents) -> list[Tensor]:
    """Maps (batch, channels, height, width) of the down blocks and, last, of the middle block; one network call.

    An empty list where there is no middle block.
    """
    with outputs_of(way_down) as outputs:
        ask(model, latents)
    return [maps[-len(latents) :] for maps in outputs]


@torch.inference_mode()
def ask(model: FrozenModel, latents: Latents) -> None:
    """One network call for latents under a little noise, the same for each."""
    noise = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(0)).expand_as(latents)
    times = LEVEL.times(model.schedule, len(latents))
    model.denoiser(model.schedule.add_noise(latents, times, noise.to(latents.device)).to(model.device), times)


def pooled(maps: Tensor) -> Vectors:
    """Mean and deviation over the image of each channel."""
    values = maps.double().cpu()
    return torch.cat([values.mean((2, 3)), values.std((2, 3))], 1)


def way_down(network: Module) -> list[Module]:
    """The down blocks and the middle block of a diffusers U-Net; nothing of any other module."""
    block = getattr(network, "mid_block", None)
    return [*getattr(network, "down_blocks", []), block] if isinstance(block, Module) else []


@contextmanager
def outputs_of(parts: Callable[[Module], list[Module]]) -> Iterator[list[Tensor]]:
    """What these parts of whatever network runs in this thread give, in the order in which they run."""
    wanted: set[Module] = set()
    outputs: list[Tensor] = []
    ours = get_ident()  # hooks are called for all threads

    def enter(module: Module, arguments: Any) -> None:
        if get_ident() == ours:
            wanted.update(parts(module))

    def leave(module: Module, arguments: Any, output: Any) -> None:
        if get_ident() == ours and module in wanted:
            outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def shortened(vectors: Vectors) -> Float64[Tensor, "batch fewer"]:
    """No more than `LONGEST` numbers: random projections, which keep distances to 3 % (Johnson and Lindenstrauss)."""
    length = vectors.shape[1]
    if length <= LONGEST:
        return vectors
    matrix = torch.randn(length, LONGEST, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shorter: Tensor = vectors @ matrix / LONGEST**0.5
    return shorter
