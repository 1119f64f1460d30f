"""The two layouts of original pixel-space diffusion networks, read off the names and shapes of their weights.

    DDPM      down.0.block.0.conv1.weight     pesser/pytorch_diffusion, ermongroup/ddim, SDEdit
    guided    input_blocks.1.0.in_layers.0    openai/guided-diffusion, openai/improved-diffusion and what builds on them

Both are the same U-net: levels of `layers` residual blocks down and `layers + 1` up, attention at some levels and in
the middle. A `Plan` says which; `places` lists where every module of the checkpoint lies in diffusers' UNet2DModel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nearfar.errors import UsageError

Weights = dict[str, Tensor]
Names = dict[str, tuple[str, ...]]

GROUPS = 32  # of every group normalization, in both families
MOST_CHANNELS = 4  # more are upsamplers, which take a second picture
QKV = ("to_q", "to_k", "to_v")
WIDE_HEADS = "Attention heads have 64 channels; guided-diffusion's 128x128 model has 4 heads instead"

DDPM_BLOCKS: dict[str, Names] = {
    "resnet": {
        "norm1": ("norm1",),
        "conv1": ("conv1",),
        "temb_proj": ("time_emb_proj",),
        "norm2": ("norm2",),
        "conv2": ("conv2",),
        "nin_shortcut": ("conv_shortcut",),
    },
    "attention": {
        "norm": ("group_norm",),
        "q": ("to_q",),
        "k": ("to_k",),
        "v": ("to_v",),
        "proj_out": ("to_out.0",),
    },
}
GUIDED_BLOCKS: dict[str, Names] = {
    "resnet": {
        "in_layers.0": ("norm1",),
        "in_layers.2": ("conv1",),
        "emb_layers.1": ("time_emb_proj",),
        "out_layers.0": ("norm2",),
        "out_layers.3": ("conv2",),
        "skip_connection": ("conv_shortcut",),
    },
    "attention": {"norm": ("group_norm",), "qkv": QKV, "proj_out": ("to_out.0",)},
}


@dataclass(frozen=True)
class Plan:
    """What the weights tell about the network. `widths` are channels by level, the finest first."""

    guided: bool
    widths: tuple[int, ...]
    layers: int
    attended: tuple[int, ...]
    resnet_resampling: bool
    scale_shift: bool
    in_channels: int
    out_channels: int
    classes: int | None

    @property
    def attended_widths(self) -> set[int]:
        """Channels at which attention happens: the attended levels and the middle."""
        return {self.widths[level] for level in self.attended} | {self.widths[-1]}

    @property
    def learned_variance(self) -> bool:
        return self.out_channels == 2 * self.in_channels


@dataclass(frozen=True)
class Place:
    """A module of the checkpoint, its place in diffusers, and whether it is a block of modules or one alone."""

    theirs: str
    ours: str
    kind: str = "module"


@dataclass(frozen=True)
class Heads:
    """Attention heads: their number, or the channels of each. Exactly one of the two is set."""

    count: int | None = None
    channels: int | None = None
    new_order: bool = False

    def at(self, width: int) -> int:
        """The number of heads at this width; UsageError where they do not divide it."""
        unit = self.count or self.channels or 1
        if width % unit:
            what = "attention heads" if self.count else "channels per attention head"
            raise UsageError(f"{unit} {what} must divide the {width} channels there: give other heads or head_channels")
        return self.count or width // unit

    def config(self, widths: set[int]) -> tuple[int | None, int | None]:
        """`attention_head_dim` of UNet2DModel, and the number of heads where that cannot say it."""
        counts = {self.at(width) for width in widths}
        if counts == {1}:
            return None, None
        if self.channels or len(widths) == 1:
            return self.channels or min(widths) // min(counts), None
        return None, self.count


def usual_heads(plan: Plan, new_order: bool) -> tuple[Heads, tuple[str, ...]]:
    """guided-diffusion's and improved-diffusion's published models, by their READMEs."""
    if plan.resnet_resampling:
        return Heads(channels=64, new_order=new_order), (f"{WIDE_HEADS} (heads, head_channels).",)
    count = 4 if plan.scale_shift else 1
    said = f"Attention heads: {count}, as in improved-diffusion's models of this kind (heads, head_channels)."
    return Heads(count=count, new_order=new_order), (said,)


def read_plan(weights: Weights) -> Plan:
    """The architecture behind these weights; UsageError for any other family."""
    if any(key.startswith("down.0.block.") for key in weights):
        plan = read_ddpm(weights)
    elif any(key.startswith("input_blocks.") for key in weights):
        plan = read_guided(weights)
    else:
        if any(key.startswith("model.diffusion_model.") for key in weights):
            way = "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
            raise UsageError(f"it holds a whole latent diffusion model: make a folder of it with diffusers, {way}")
        shown = ", ".join(list(weights)[:3])
        raise UsageError(f"the weights ({shown}, ...) are of no family read here: give a DDPM or guided-diffusion one")
    check_plan(plan)
    return plan


def read_ddpm(weights: Weights) -> Plan:
    levels = consecutive(weights, "down.{}.block.0.conv1.weight")
    widths = tuple(shape(weights, f"down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels))
    embedded = shape(weights, "temb.dense.0.weight", 2)[1]
    return Plan(
        guided=False,
        widths=check_widths(widths, embedded),
        layers=consecutive(weights, "down.0.block.{}.conv1.weight"),
        attended=tuple(level for level in range(levels) if f"down.{level}.attn.0.q.weight" in weights),
        resnet_resampling=False,
        scale_shift=False,
        in_channels=shape(weights, "conv_in.weight", 4)[1],
        out_channels=shape(weights, "conv_out.weight", 4)[0],
        classes=None,
    )


def read_guided(weights: Weights) -> Plan:
    levels, layers = count_levels(weights)
    first = [1 + level * (layers + 1) for level in range(levels)]
    widths = tuple(shape(weights, f"input_blocks.{block}.0.in_layers.2.weight", 4)[0] for block in first)
    embedded = shape(weights, "time_embed.0.weight", 2)[1]
    return Plan(
        guided=True,
        widths=check_widths(widths, embedded),
        layers=layers,
        attended=tuple(level for level in range(levels) if f"input_blocks.{first[level]}.1.qkv.weight" in weights),
        resnet_resampling=f"input_blocks.{first[0] + layers}.0.in_layers.0.weight" in weights,
        scale_shift=shape(weights, "input_blocks.1.0.emb_layers.1.weight", 2)[0] == 2 * widths[0],
        in_channels=shape(weights, "input_blocks.0.0.weight", 4)[1],
        out_channels=shape(weights, "out.2.weight", 4)[0],
        classes=shape(weights, "label_emb.weight", 2)[0] if "label_emb.weight" in weights else None,
    )


def count_levels(weights: Weights) -> tuple[int, int]:
    """Levels and residual blocks by level: every level but the finest ends, going up, with an upsampler."""
    outputs = consecutive(weights, "output_blocks.{}.0.in_layers.0.weight")
    inputs = len({key.split(".")[1] for key in weights if key.startswith("input_blocks.")})
    ends = [block for block in range(outputs) if is_upsampled(weights, f"output_blocks.{block}")]
    levels, layers = len(ends) + 1, (ends[0] if ends else outputs - 1)
    if not layers or outputs != levels * (layers + 1) or inputs != outputs:
        blocks = f"{inputs} input and {outputs} output blocks with {len(ends)} upsamplers"
        raise UsageError(f"the weights make no U-net that diffusers can build, got {blocks}: choose another model")
    return levels, layers


def is_upsampled(weights: Weights, block: str) -> bool:
    ends = ("1.conv", "2.conv", "1.in_layers.0", "2.in_layers.0")
    return any(f"{block}.{end}.weight" in weights for end in ends)


def consecutive(weights: Weights, pattern: str) -> int:
    """How many of the pattern's keys there are, counted from 0 without a gap."""
    count = 0
    while pattern.format(count) in weights:
        count += 1
    return count


def shape(weights: Weights, key: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a weight that tells the architecture."""
    if key not in weights:
        raise UsageError(f"the weights lack {key}: the file is incomplete or of another family, get it again")
    lengths = tuple(weights[key].shape)
    if len(lengths) != dimensions:
        raise UsageError(f"{key} must have {dimensions} dimensions, got {lengths}: choose another model")
    return lengths


def check_widths(widths: tuple[int, ...], embedded: int) -> tuple[int, ...]:
    """UNet2DModel embeds time in as many channels as its finest level has."""
    if not widths or widths[0] != embedded:
        finest = widths[0] if widths else "no"
        raise UsageError(
            f"the finest level must have as many channels as time is embedded in ({embedded}), got {finest}: "
            "diffusers' UNet2DModel cannot be built like this, choose another model"
        )
    return widths


def check_plan(plan: Plan) -> None:
    if odd := [width for width in plan.widths if width % GROUPS]:
        raise UsageError(f"every width must be a multiple of {GROUPS}, got {odd[0]}: choose another model")
    if not 1 <= plan.in_channels <= MOST_CHANNELS:
        got = f"{plan.in_channels} (upsamplers are not read)"
        raise UsageError(f"the network must take 1 to {MOST_CHANNELS} channels, got {got}: choose another model")
    if plan.out_channels not in (plan.in_channels, 2 * plan.in_channels):
        rule = f"{plan.in_channels} channels, or twice as many with a learned variance"
        raise UsageError(f"the network must return {rule}, got {plan.out_channels}: choose another model")


def network_config(plan: Plan) -> dict[str, Any]:
    """Arguments of UNet2DModel, but for the size and the heads."""
    resampling = "resnet" if plan.resnet_resampling else "conv"
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if plan.resnet_resampling else None
    down, up = plain or ("DownBlock2D", "UpBlock2D")
    attended = [level in plan.attended for level in range(len(plan.widths))]
    return {
        "in_channels": plan.in_channels,
        "out_channels": plan.out_channels,
        "flip_sin_to_cos": plan.guided,
        "freq_shift": 0 if plan.guided else 1,
        "norm_eps": 1e-5 if plan.guided else 1e-6,
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,
        "downsample_padding": 1 if plan.guided else 0,
        "downsample_type": resampling,
        "upsample_type": resampling,
        "block_out_channels": plan.widths,
        "layers_per_block": plan.layers,
        "down_block_types": tuple("AttnDownBlock2D" if here else down for here in attended),
        "up_block_types": tuple("AttnUpBlock2D" if here else up for here in reversed(attended)),
        "resnet_time_scale_shift": "scale_shift" if plan.scale_shift else "default",
        "num_class_embeds": plan.classes,
    }


def ddpm_places(plan: Plan) -> Iterator[Place]:
    for theirs, ours in (("temb.dense.0", "time_embedding.linear_1"), ("temb.dense.1", "time_embedding.linear_2")):
        yield Place(theirs, ours)
    for theirs, ours in (("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out")):
        yield Place(theirs, ours)
    yield Place("mid.block_1", "mid_block.resnets.0", "resnet")
    yield Place("mid.attn_1", "mid_block.attentions.0", "attention")
    yield Place("mid.block_2", "mid_block.resnets.1", "resnet")
    last = len(plan.widths) - 1
    for level in range(last + 1):
        sides = (("down", f"down_blocks.{level}", plan.layers), ("up", f"up_blocks.{last - level}", plan.layers + 1))
        for side, ours, count in sides:
            for block in range(count):
                yield Place(f"{side}.{level}.block.{block}", f"{ours}.resnets.{block}", "resnet")
                if level in plan.attended:
                    yield Place(f"{side}.{level}.attn.{block}", f"{ours}.attentions.{block}", "attention")
        if level < last:
            yield Place(f"down.{level}.downsample.conv", f"down_blocks.{level}.downsamplers.0.conv")
        if level > 0:
            yield Place(f"up.{level}.upsample.conv", f"up_blocks.{last - level}.upsamplers.0.conv")


def guided_places(plan: Plan) -> Iterator[Place]:
    for theirs, ours in (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2")):
        yield Place(theirs, ours)
    for theirs, ours in (("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out")):
        yield Place(theirs, ours)
    if plan.classes is not None:
        yield Place("label_emb", "class_embedding")
    yield Place("middle_block.0", "mid_block.resnets.0", "resnet")
    yield Place("middle_block.1", "mid_block.attentions.0", "attention")
    yield Place("middle_block.2", "mid_block.resnets.1", "resnet")
    for level in range(len(plan.widths)):
        yield from guided_level(plan, level)


def guided_level(plan: Plan, level: int) -> Iterator[Place]:
    """One level down and up; the input blocks count a downsampler, the output blocks hold an upsampler within."""
    last = len(plan.widths) - 1
    sides = (
        ("input_blocks", 1 + level * (plan.layers + 1), f"down_blocks.{level}", plan.layers),
        ("output_blocks", (last - level) * (plan.layers + 1), f"up_blocks.{last - level}", plan.layers + 1),
    )
    for side, start, ours, count in sides:
        for block in range(count):
            yield Place(f"{side}.{start + block}.0", f"{ours}.resnets.{block}", "resnet")
            if level in plan.attended:
                yield Place(f"{side}.{start + block}.1", f"{ours}.attentions.{block}", "attention")
    (_, first_in, down, _), (_, first_out, up, _) = sides
    kind = "resnet" if plan.resnet_resampling else "module"
    if level < last:
        end = f"input_blocks.{first_in + plan.layers}.0"
        yield resampler(end, "op", f"{down}.downsamplers.0", kind)
    if level > 0:
        end = f"output_blocks.{first_out + plan.layers}.{2 if level in plan.attended else 1}"
        yield resampler(end, "conv", f"{up}.upsamplers.0", kind)


def resampler(theirs: str, name: str, ours: str, kind: str) -> Place:
    return Place(theirs, ours, kind) if kind == "resnet" else Place(f"{theirs}.{name}", f"{ours}.conv")


def module_names(plan: Plan) -> Names:
    """Where each module of the checkpoint goes; joint queries, keys and values go to three places."""
    blocks = GUIDED_BLOCKS if plan.guided else DDPM_BLOCKS
    names: Names = {}
    for place in guided_places(plan) if plan.guided else ddpm_places(plan):
        if place.kind == "module":
            names[place.theirs] = (place.ours,)
            continue
        for theirs, ours in blocks[place.kind].items():
            names[f"{place.theirs}.{theirs}"] = tuple(f"{place.ours}.{name}" for name in ours)
    return names


def rename(weights: Weights, names: Names, heads: Heads) -> Weights:
    """The weights under diffusers' names; UsageError for one without a place."""
    renamed: Weights = {}
    for key, weight in weights.items():
        module, _, kind = key.rpartition(".")
        if module not in names or kind not in ("weight", "bias"):
            raise UsageError(f"the weight {key} has no place in the network: the checkpoint is of another family")
        parts = split_qkv(key, weight, heads) if len(names[module]) == len(QKV) else (weight,)
        for ours, part in zip(names[module], parts, strict=True):
            renamed[f"{ours}.{kind}"] = as_linear(part) if is_attention(ours) else part
    return renamed


def is_attention(ours: str) -> bool:
    return ".attentions." in ours and not ours.endswith("group_norm")


def as_linear(weight: Tensor) -> Tensor:
    """A convolution over single points is a matrix."""
    return weight.flatten(1) if weight.ndim > 2 and weight[0, 0].numel() == 1 else weight


def split_qkv(key: str, weight: Tensor, heads: Heads) -> tuple[Tensor, ...]:
    """Queries, keys and values, each by head; the legacy order interleaves them head by head."""
    width, rest = divmod(len(weight), len(QKV)) if weight.ndim else (0, 1)
    if rest or not width:
        raise UsageError(f"{key} must hold queries, keys and values, got {tuple(weight.shape)}: choose another model")
    if heads.new_order:
        return weight.chunk(len(QKV))
    count = heads.at(width)
    by_head = weight.reshape(count, len(QKV), width // count, *weight.shape[1:])
    return tuple(part.flatten(0, 1).contiguous() for part in torch.unbind(by_head, 1))
