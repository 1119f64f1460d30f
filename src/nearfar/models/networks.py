"""Frozen networks as functions of noisy latents and time: class label, prompt and guidance are bound before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nearfar.diffusion.denoiser import Network
from nearfar.errors import UsageError

Arguments = dict[str, Tensor]
"""What a network takes besides latents and time, for a batch of one."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """An encoded prompt; `negative` is there when guidance needs it (Ho and Salimans, arXiv 2207.12598)."""

    positive: Arguments
    negative: Arguments | None = None
    guidance: float = 1.0

    def to(self, device: torch.device, dtype: torch.dtype) -> Prompt:
        """The same where the network is."""
        away = None if self.negative is None else moved(self.negative, device, dtype)
        return Prompt(moved(self.positive, device, dtype), away, self.guidance)


def moved(arguments: Arguments, device: torch.device, dtype: torch.dtype) -> Arguments:
    return {name: value.to(device, dtype) for name, value in arguments.items()}


def unconditional(unet: Any, label: int | None) -> Network:
    """A UNet2DModel, its class bound where it has classes, in the memory layout that convolutions like best."""
    check_label(unet.config.num_class_embeds, label)

    def network(x: Tensor, t: Tensor) -> Tensor:
        labels = None if label is None else torch.full((len(x),), label, device=x.device)
        output: Tensor = unet(x.contiguous(memory_format=torch.channels_last), t, class_labels=labels).sample
        return output.contiguous()

    return network


def check_label(classes: int | None, label: int | None) -> None:
    if classes is None and label is not None:
        raise UsageError(f"this model knows no classes, got label {label}: leave it out")
    if classes is not None and (label is None or not 0 <= label < classes):
        came = "none" if label is None else label
        raise UsageError(f"this model is class-conditional: give a label (--label) from 0 to {classes - 1}, got {came}")


def stable_diffusion(unet: Any, prompt: Prompt) -> Network:
    """The UNet of Stable Diffusion 1 and 2."""
    return guided(lambda x, t, text: unet(x, t, encoder_hidden_states=text).sample, prompt)


def stable_diffusion_xl(unet: Any, prompt: Prompt) -> Network:
    """The UNet of SDXL, which also takes the pooled prompt and the size of the picture."""

    def call(x: Tensor, t: Tensor, text: Tensor, pooled: Tensor, sizes: Tensor) -> Tensor:
        added = {"text_embeds": pooled, "time_ids": sizes}
        return unet(x, t, encoder_hidden_states=text, added_cond_kwargs=added).sample  # type: ignore[no-any-return]

    return guided(call, prompt)


def stable_diffusion_3(transformer: Any, prompt: Prompt) -> Network:
    """The transformer of Stable Diffusion 3, which takes the time from 0 to 1000."""
    return guided(lambda x, t, text, pooled: transformer(x, text, pooled, timestep=t).sample, prompt)


def flux(transformer: Any, prompt: Prompt) -> Network:
    """The transformer of FLUX: latents as a row of 2x2 patches with their places, the time from 0 to 1.

    Where guidance was distilled into the network it is an input, and there is one call instead of two.
    """
    embedded = transformer.config.guidance_embeds

    def call(x: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        rows, columns = x.shape[-2] // 2, x.shape[-1] // 2
        output = transformer(
            patches_in_a_row(x),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=t / 1000,
            guidance=torch.full((len(x),), prompt.guidance, device=x.device) if embedded else None,
            img_ids=places(rows, columns).to(x),
            txt_ids=x.new_zeros(text.shape[1], 3),
        ).sample
        return patches_in_place(output, rows, columns)

    return guided(call, prompt)


def patches_in_a_row(x: Tensor) -> Tensor:
    """(batch, channel, 2 rows, 2 columns) -> (batch, rows * columns, channel * 4)."""
    return torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def patches_in_place(x: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `patches_in_a_row`."""
    return torch.nn.functional.pixel_shuffle(x.transpose(1, 2).reshape(len(x), -1, rows, columns), 2)


def places(rows: int, columns: int) -> Tensor:
    """(rows * columns, 3): nothing, row and column of each patch."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1)


def guided(call: Callable[..., Tensor], prompt: Prompt) -> Network:
    """Without the prompt, and `guidance` times what the prompt changes; one batch of twice the size."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        if prompt.negative is None:
            return call(x, t, **repeated(prompt.positive, x))
        away, toward = repeated(prompt.negative, x), repeated(prompt.positive, x)
        both = {name: torch.cat([away[name], toward[name]]) for name in toward}
        without, with_prompt = call(torch.cat([x, x]), torch.cat([t, t]), **both).chunk(2)
        return without + prompt.guidance * (with_prompt - without)

    return network


def repeated(arguments: Arguments, x: Tensor) -> Arguments:
    """The arguments of a batch of one, for every image of `x`."""
    return {name: value.expand(len(x), *value.shape[1:]) for name, value in arguments.items()}
