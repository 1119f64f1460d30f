"""Models that take a prompt: how each family's prompt is encoded and how its network is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearfar import networks, prompts
from nearfar.denoiser import Network
from nearfar.networks import Prompt
from nearfar.prompts import Wish


@dataclass(frozen=True)
class TextFamily:
    """pipeline: diffusers' class that encodes the prompt. flow: whether it is a rectified flow, or else has betas."""

    pipeline: str
    encode: Callable[[Any, Wish], Prompt]
    network: Callable[[Any, Prompt], Network]
    flow: bool = False


STABLE_DIFFUSION = TextFamily("StableDiffusionPipeline", prompts.encode_stable_diffusion, networks.stable_diffusion)
STABLE_DIFFUSION_XL = TextFamily(
    "StableDiffusionXLPipeline", prompts.encode_stable_diffusion_xl, networks.stable_diffusion_xl
)
STABLE_DIFFUSION_3 = TextFamily(
    "StableDiffusion3Pipeline", prompts.encode_stable_diffusion_3, networks.stable_diffusion_3, flow=True
)
FLUX = TextFamily("FluxPipeline", prompts.encode_flux, networks.flux, flow=True)

TEXT_NETWORKS = ("UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel")


def text_family(network: Any) -> TextFamily | None:
    """The family of a loaded network; None when it takes no prompt."""
    kind, config = type(network).__name__, network.config
    if kind == "UNet2DConditionModel" and config.encoder_hid_dim_type is None:
        return {None: STABLE_DIFFUSION, "text_time": STABLE_DIFFUSION_XL}.get(config.addition_embed_type)
    return {"SD3Transformer2DModel": STABLE_DIFFUSION_3, "FluxTransformer2DModel": FLUX}.get(kind)


def bind_prompt(family: TextFamily, network: Any, root: Path, wish: Wish) -> Network:
    """The network with its prompt encoded and bound."""
    return family.network(network, prompts.encode(root, family.pipeline, family.encode, wish, network))
