"""Keras' DDPM example, exported to TensorFlow.js: a folder with `model.json` and shards of eight-bit weights.

The network is the U-net of keras.io/examples/generative/ddpm: Ho et al.'s (arXiv 2006.11239) with groups of 8, an
attention that is added to the normed map, and the time in four times as many waves as the finest level has channels.
Its weights are known by the order in which Keras numbered the layers; `model.json` is read for their shapes, places and
scales, its graph is not run. UNet2DModel's names hold them, with two keys that only `models.unet` knows.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nearfar.errors import UsageError, first_line, printable
from nearfar.models.networks import cosine_betas
from nearfar.models.original.layouts import MOST_CHANNELS, Plan, Weights, network_config
from nearfar.models.original.network import SavedNetwork
from nearfar.models.unet_files import fill, pixel_unet, understood
from nearfar.structured import checked, json_object, read_text

INDEX = "model.json"
MOST_BYTES = 1 << 30
"""Of all shards together; in float32 they are four times as many."""
TYPES = {"float32": "<f4", "int32": "<i4", "bool": "u1", "uint8": "u1", "uint16": "<u2", "float16": "<f2"}
LAYER = re.compile(r"(?:.*/)?(conv2d|dense|group_normalization)(?:_(\d+))?/(.+)")
KINDS = {
    "Conv2D/ReadVariableOp": "weight",
    "MatMul/ReadVariableOp": "weight",
    "Tensordot/ReadVariableOp": "weight",
    "Reshape_1/ReadVariableOp": "weight",
    "BiasAdd/ReadVariableOp": "bias",
    "Reshape_2/ReadVariableOp": "bias",
}
EXAMPLE = {"norm_num_groups": 8, "attn_norm_num_groups": 8, "norm_eps": 1e-3, "attention_residual": "normed"}
"""What the example has everywhere and its weights do not tell."""
ASSUMED = "Groups of 8 channels are normed, as in Keras' example, and the network predicts the noise."
AGAIN = "export the model again, with tensorflowjs_converter"


@dataclass(frozen=True)
class Quantization:
    """value = stored * scale + min; half precision has neither."""

    dtype: Literal["uint8", "uint16", "float16"]
    scale: float = 1.0
    min: float = 0.0


@dataclass(frozen=True)
class Entry:
    """One weight, where those before it end."""

    name: str
    shape: list[int]
    dtype: Literal["float32", "int32", "bool"]
    quantization: Quantization | None = None

    @property
    def stored(self) -> np.dtype[Any]:
        return np.dtype(TYPES[self.quantization.dtype if self.quantization else self.dtype])

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.stored.itemsize


@dataclass(frozen=True)
class Group:
    """Weights that lie one behind the other, and the shards that hold them."""

    paths: list[str]
    weights: list[Entry]


@dataclass(frozen=True)
class Manifest:
    weightsManifest: list[Group]  # noqa: N815 as TensorFlow.js writes it


@dataclass(frozen=True)
class Layer:
    """A layer's parts, as torch lays them out: `weight` and `bias`."""

    name: str
    parts: Weights


Layers = dict[str, list[Layer]]
"""By kind (conv2d, dense, group_normalization), in the order in which Keras made them."""


def read_keras(folder: Path, size: int | None) -> tuple[SavedNetwork, tuple[str, ...]]:
    """The network in a TensorFlow.js folder, and what was assumed. size: pixels of a side, else as the graph says.

    Memory: the shards and twice the weights in float32. Raises UsageError for a folder that is incomplete, names files
    outside of it, or holds another network.
    """
    content = json_object(read_text(folder / INDEX), str(folder / INDEX), AGAIN)
    manifest = checked(Manifest, content, str(folder / INDEX), AGAIN)
    layers = read_layers(folder, manifest)
    plan = read_plan(layers)
    side = size or side_of(content)
    if not side or side % 2 ** (len(plan.widths) - 1):
        raise UsageError(f"the graph tells no size that the network can halve, got {side}: give size")
    waves = layers["dense"][0].parts["weight"].shape[1]
    config = network_config(plan) | EXAMPLE | {"sample_size": side, "time_waves": waves, "attention_head_dim": None}
    weights = placed(layers, plan)
    check_network(config, weights)
    return SavedNetwork("UNet2DModel", config, weights), (ASSUMED,)


def check_network(config: dict[str, Any], weights: Weights) -> None:
    """Build the network once, to be sure that the weights are its own."""
    known = understood(config)
    if known is None:
        raise UsageError("the weights make no network of Keras' example: choose another model")
    try:
        missing = fill(pixel_unet(known), weights, torch.float32)
    except RuntimeError as error:
        raise UsageError(f"the weights have other shapes than Keras' example ({first_line(error)})") from None
    if missing:
        raise UsageError(f"the weights lack {missing[0]}: {AGAIN}")


def side_of(content: dict[str, Any]) -> int | None:
    """The side of the square images that the graph's signature takes."""
    sides = re.findall(r"'dim': \[\{'size': '-1'\}, \{'size': '(\d{1,5})'\}, \{'size': '(\d{1,5})'\}, ",
                       str(content.get("signature")))  # fmt: skip
    return int(sides[0][0]) if sides and sides[0][0] == sides[0][1] else None


# Weights


def read_layers(folder: Path, manifest: Manifest) -> Layers:
    """All weights by layer; constants of the graph are passed over."""
    found: dict[tuple[str, int], Layer] = {}
    for group in manifest.weightsManifest:
        place, content = 0, read_shards(folder, group)
        for entry in group.weights:
            layer = LAYER.fullmatch(entry.name)
            if layer and layer[3] in KINDS and entry.dtype == "float32":
                where = (layer[1], int(layer[2] or 0))
                parts = found.setdefault(where, Layer(printable(entry.name), {})).parts
                parts[KINDS[layer[3]]] = as_torch(layer[1], dequantized(entry, content, place))
            place += entry.size
    layers: Layers = defaultdict(list)
    for (kind, _), one in sorted(found.items()):
        if one.parts.keys() != {"weight", "bias"}:
            raise UsageError(f"the layer of {one.name} lacks its weight or its bias: {AGAIN}")
        layers[kind].append(one)
    return layers


def read_shards(folder: Path, group: Group) -> bytes:
    """The shards of a group as one; each must lie in the folder, and all have the length that their weights have."""
    if any(length < 0 for entry in group.weights for length in entry.shape):
        raise UsageError(f"{folder / INDEX} has a weight with a length below 0: {AGAIN}")
    wanted = sum(entry.size for entry in group.weights)
    paths = [folder / name for name in group.paths]
    for name, path in zip(group.paths, paths, strict=True):
        if not re.fullmatch(r"\w[\w.-]*", name) or path.resolve().parent != folder.resolve() or not path.is_file():
            raise UsageError(f"{folder / INDEX} names {printable(name)}, which is no shard beside it: copy it again")
    room = sum(path.stat().st_size for path in paths)
    if room != wanted or room > MOST_BYTES:
        raise UsageError(f"the shards of {folder} have {room:,} bytes, their weights {wanted:,}: copy it again")
    return b"".join(path.read_bytes() for path in paths)


def dequantized(entry: Entry, content: bytes, place: int) -> Tensor:
    """Float32; products in float64, as few as there are."""
    stored = np.frombuffer(content, entry.stored, math.prod(entry.shape), place).reshape(entry.shape)
    rule = entry.quantization or Quantization("float16")
    with np.errstate(all="ignore"):
        values = torch.from_numpy((stored * np.float64(rule.scale) + rule.min).astype(np.float32))
    if not values.numel() or not values.isfinite().all():
        raise UsageError(f"{printable(entry.name)} is empty or not finite: {AGAIN}")
    return values


def as_torch(kind: str, values: Tensor) -> Tensor:
    """(height, width, inputs, outputs) and (inputs, outputs) as torch has them."""
    if kind == "conv2d" and values.ndim == 4:
        return values.permute(3, 2, 0, 1).contiguous()
    return values.T.contiguous() if kind == "dense" and values.ndim == 2 else values


# Places


def read_plan(layers: Layers) -> Plan:
    """Levels, widths and attention, of which only one choice makes the layers that are there."""
    dense, convolutions = layers["dense"], [layer.parts["weight"] for layer in layers["conv2d"]]
    blocks = [len(one.parts["bias"]) for one in dense if "/MatMul/" in one.name or "attention" not in one.name][2:]
    found = {len(one.parts["bias"]) for one in dense if "attention" in one.name}
    channels = convolutions[0].shape[1] if convolutions and convolutions[0].ndim == 4 else 0
    plans = [plan_of(levels, blocks, found, channels) for levels in range(1, len(blocks))]
    fitting = [plan for plan in plans if plan and layer_counts(plan) == (len(convolutions), len(dense))]
    if len(fitting) != 1:
        counts = f"{len(convolutions)} convolutions and {len(dense)} dense layers"
        raise UsageError(f"the layers are not those of Keras' DDPM example, got {counts}: choose another model")
    return fitting[0]


def plan_of(levels: int, blocks: list[int], attended: set[int], channels: int) -> Plan | None:
    """The plan with so many levels, where the blocks' widths are those of one."""
    layers = ((len(blocks) - 2) // levels - 1) // 2
    widths = tuple(blocks[level * layers] for level in range(levels)) if layers > 0 else ()
    down = [width for width in widths for _ in range(layers)]
    up = [width for width in reversed(widths) for _ in range(layers + 1)]
    if not widths or blocks != [*down, *[widths[-1]] * 2, *up]:
        return None
    levels_attended = tuple(level for level, width in enumerate(widths) if width in attended)
    plan = Plan(False, widths, layers, levels_attended, False, False, channels, channels, None)
    return plan if 1 <= channels <= MOST_CHANNELS else None


def layer_counts(plan: Plan) -> tuple[int, int]:
    """Convolutions, but for shortcuts that are counted where a width changes, and dense layers."""
    places = list(creation_order(plan))
    attentions = sum(kind == "attention" for kind, _, _ in places)
    resnets = [width_change for kind, _, width_change in places if kind == "resnet"]
    single = sum(kind == "conv2d" for kind, _, _ in places)
    return single + 2 * len(resnets) + sum(resnets), 2 + len(resnets) + 4 * attentions


def creation_order(plan: Plan) -> Iterator[tuple[str, str, bool]]:
    """What Keras makes one after the other: kind, the name in diffusers, whether a block changes the width."""
    yield "conv2d", "conv_in", False
    yield "dense", "time_embedding.linear_1", False
    yield "dense", "time_embedding.linear_2", False
    width, skips, last = plan.widths[0], [plan.widths[0]], len(plan.widths) - 1
    for level, own in enumerate(plan.widths):
        for block in range(plan.layers):
            yield from block_at(f"down_blocks.{level}", block, level in plan.attended, width != own)
            width = own
            skips.append(own)
        if level < last:
            yield "conv2d", f"down_blocks.{level}.downsamplers.0.conv", False
            skips.append(own)
    yield from block_at("mid_block", 0, True, False)
    yield "resnet", "mid_block.resnets.1", False
    for level, own in reversed(list(enumerate(plan.widths))):
        for block in range(plan.layers + 1):
            yield from block_at(f"up_blocks.{last - level}", block, level in plan.attended, width + skips.pop() != own)
            width = own
        if level:
            yield "conv2d", f"up_blocks.{last - level}.upsamplers.0.conv", False
    yield "group_normalization", "conv_norm_out", False
    yield "conv2d", "conv_out", False


def block_at(ours: str, block: int, attended: bool, changes: bool) -> Iterator[tuple[str, str, bool]]:
    yield "resnet", f"{ours}.resnets.{block}", changes
    if attended:
        yield "attention", f"{ours}.attentions.{block}", False


NORM, CONV, DENSE = "group_normalization", "conv2d", "dense"
RESNET = ((DENSE, "time_emb_proj"), (NORM, "norm1"), (CONV, "conv1"), (NORM, "norm2"), (CONV, "conv2"))
ATTENTION = ((NORM, "group_norm"), (DENSE, "to_q"), (DENSE, "to_k"), (DENSE, "to_v"), (DENSE, "to_out.0"))


def placed(layers: Layers, plan: Plan) -> Weights:
    """The weights under UNet2DModel's names, taken in the order of creation; each must be taken once."""
    left = {kind: iter(layers[kind]) for kind in (CONV, DENSE, NORM)}
    weights: Weights = {}
    for kind, ours, changes in creation_order(plan):
        shortcut = ((CONV, "conv_shortcut"),) if changes else ()
        parts = {"resnet": (*shortcut, *RESNET), "attention": ATTENTION}.get(kind, ((kind, ""),))
        for own, name in parts:
            layer = next(left[own], None)
            if layer is None or ("attention_block" in layer.name) != (kind == "attention"):
                raise UsageError(f"the layers are not in the order of Keras' DDPM example at {ours}: choose another")
            weights |= {f"{f'{ours}.{name}'.rstrip('.')}.{key}": value for key, value in layer.parts.items()}
    if more := [layer.name for rest in left.values() for layer in rest]:
        raise UsageError(f"the layer of {more[0]} has no place in Keras' DDPM example: choose another model")
    return weights


def clipped_betas(schedule: str, steps: int) -> list[float]:
    """Keras' linear betas, or the cosine ones (arXiv 2102.09672, formula 17) between 0.0001 and 0.9999."""
    if schedule == "linear":
        return [float(beta) for beta in np.linspace(1e-4, 0.02, steps)]
    return cosine_betas(steps, 1e-4, 0.9999)
