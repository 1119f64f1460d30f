"""Reading the networks of `unet`: which configurations are understood, and where diffusers' weights go."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.models.unet import DOWN, UP, Config, DoublingConvolution, PixelUNet, ResidualBlock

DEFAULTS: dict[str, Any] = {
    "add_attention": True,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "attention_heads": None,
    "attention_residual": "plain",
    "attn_norm_num_groups": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "num_train_timesteps": None,
    "out_channels": 3,
    "resnet_time_scale_shift": "default",
    "sample_size": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "time_waves": None,
    "upsample_type": "conv",
}
"""What a config may leave out, as diffusers has it."""
UNKNOWN_TO_DIFFUSERS = ("attention_residual", "time_waves")
"""Ours, as is `attention_heads` (at every width): what attention is added to, how many waves tell the time."""
LISTS = ("block_out_channels", "down_block_types", "up_block_types")
CHOICES: dict[str, tuple[Any, ...]] = {
    "add_attention": (False, True),
    "attention_residual": ("plain", "normed"),
    "act_fn": ("silu", "swish"),
    "center_input_sample": (False, True),
    "class_embed_type": (None,),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "flip_sin_to_cos": (False, True),
    "mid_block_type": ("UNetMidBlock2D",),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "time_embedding_type": ("positional", "fourier"),
    "upsample_type": ("conv", "resnet"),
}
OPTIONAL = ("attention_head_dim", "attention_heads", "attn_norm_num_groups", "num_class_embeds", "time_embedding_dim",
            "time_waves")  # fmt: skip
RENAMED = {
    r"\.query\.": ".to_q.",
    r"\.key\.": ".to_k.",
    r"\.value\.": ".to_v.",
    r"\.(to_out\.0|proj_attn)\.": ".to_out.",
    r"(upsamplers\.\d+)\.conv\.": r"\1.",
    r"^time_proj\.weight$": "time_embedding.frequencies",
}
"""Names of weights, the oldest of attention among them, that are others here."""


def understood(given: Mapping[str, Any]) -> Config | None:
    """The whole config, where `PixelUNet` is the network that diffusers makes of it; None for what it may not be."""
    if any(not key.startswith("_") and key not in (*DEFAULTS, *LISTS) for key in given):
        return None
    config = Config({**DEFAULTS, **given})
    if not all(isinstance(config.get(key), list | tuple) and config[key] for key in LISTS):
        return None
    chosen = all(config[key] in allowed for key, allowed in CHOICES.items())
    blocks = {*config.down_block_types} <= {*DOWN} and {*config.up_block_types} <= {*UP}
    equal = len({len(config[key]) for key in LISTS}) == 1
    return config if chosen and blocks and equal and are_sound(config) else None


def are_sound(config: Config) -> bool:
    """Whether the numbers are numbers, and groups and heads divide the widths."""
    counts = (*config.block_out_channels, config.norm_num_groups, config.layers_per_block, config.in_channels)
    given = [config[key] for key in OPTIONAL if config[key] is not None]
    if not all(type(count) is int and count > 0 for count in (*counts, config.out_channels, *given)):
        return False
    if not all(isinstance(config[key], int | float) for key in ("freq_shift", "norm_eps", "mid_block_scale_factor")):
        return False
    units = [config.norm_num_groups, config.attn_norm_num_groups or 1]
    units.append(config.attention_heads or config.attention_head_dim or 1)
    divided = all(width % unit == 0 for width in config.block_out_channels for unit in units)
    waves = config.time_waves or config.block_out_channels[0]
    return divided and waves % 2 == 0 and config.freq_shift < waves // 2 and config.mid_block_scale_factor > 0


def pixel_unet(config: Config) -> PixelUNet:
    """The network without weights: they take no memory until `fill` gives them."""
    with torch.device("meta"):
        return PixelUNet(config)


def count_weights(network: nn.Module) -> int:
    """As many as diffusers' network has, where one kernel of 9 points stands for our four of 4."""
    doubling = [module for module in network.modules() if isinstance(module, DoublingConvolution)]
    more = sum(module.weight.numel() * 7 // 16 + module.out_channels * 3 // 4 for module in doubling)
    return sum(weight.numel() for weight in network.parameters()) - more


def read_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of safetensors files by name, mapped into memory."""
    from safetensors.torch import load_file

    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def fill(network: PixelUNet, weights: Mapping[str, Tensor], dtype: torch.dtype) -> list[str]:
    """Give the network diffusers' weights; the names of those that are lacking, with which nothing is done.

    Raises RuntimeError for weights of another shape. Memory: what is joined is there twice meanwhile.
    """
    named = {renamed(name): weight for name, weight in weights.items()}
    wanted = {name: pieces(network, name) for name in network.state_dict()}
    missing = [name for names in wanted.values() for name in names if name not in named]
    if not missing:
        joined = {ours: torch.cat([whole(named[name], ours) for name in names]) for ours, names in wanted.items()}
        doubling = [name for name, module in network.named_modules() if isinstance(module, DoublingConvolution)]
        for name in doubling:
            joined[f"{name}.weight"] = on_small_map(joined[f"{name}.weight"])
            joined[f"{name}.bias"] = joined[f"{name}.bias"].repeat(4)
        ready = {name: weight.to(dtype) for name, weight in joined.items()}
        network.load_state_dict(ready, strict=True, assign=True)
    return missing


def renamed(name: str) -> str:
    for pattern, ours in RENAMED.items():
        name = re.sub(pattern, ours, name)
    return name


def pieces(network: PixelUNet, name: str) -> list[str]:
    """The weights that are joined to one of ours."""
    module, _, kind = name.rpartition(".")
    if module == "time_projections":
        blocks = [block for block, part in network.named_modules() if isinstance(part, ResidualBlock)]
        return [f"{block}.time_emb_proj.{kind}" for block in blocks]
    if module.endswith(".to_qkv"):
        return [f"{module.removesuffix('qkv')}{letter}.{kind}" for letter in "qkv"]
    return [name]


def whole(weight: Tensor, name: str) -> Tensor:
    """A convolution over single points is a matrix."""
    single = weight.ndim == 4 and weight.shape[2:] == (1, 1) and not name.startswith("conv_")
    return weight.flatten(1) if single else weight


def on_small_map(kernel: Tensor) -> Tensor:
    """(width, inputs, 3, 3) on a doubled map -> (4 * width, inputs, 2, 2) on the map itself.

    Of three neighbors in a row two are the same point: the last two for the first of its halves, else the first two.
    """
    one, two, three = kernel.double().unbind(2)
    rows = [torch.stack([one, two + three], 2), torch.stack([one + two, three], 2)]
    corners = []
    for row in rows:
        one, two, three = row.unbind(3)
        corners += [torch.stack([one, two + three], 3), torch.stack([one + two, three], 3)]
    return torch.cat(corners)
