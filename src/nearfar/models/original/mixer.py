"""Score networks that mix patches (MLP mixers, arXiv 2105.01601) in continuous time, and Equinox files of them.

The layout is that of galaxygrad's networks of galaxies: patches become a row of vectors, blocks mix over places and
within each vector, patches come out; time is one more channel. An `.eqx` file is one `.npy` array after the other, in
the order in which the classes name their fields; their shapes tell everything but the physical unit of the images.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nearfar.errors import UsageError, first_line
from nearfar.models.original.network import SavedConfig, SavedNetwork
from nearfar.models.unet import Config
from nearfar.structured import checked

MIXER = "ScoreMixer"
MOST_BYTES = 1 << 28
TYPES = ("float16", "float32", "float64")
CURVES = {"linear": lambda value: value, "log1p": math.expm1}
"""How a physical value follows from the network's value times its unit; the inverses are those of `io.values`."""
BLOCK = (
    *("places.0.weight", "places.0.bias", "places.1.weight", "places.1.bias"),
    *("depth.0.weight", "depth.0.bias", "depth.1.weight", "depth.1.bias"),
    *("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"),
)
AGAIN = "get the file again"


@dataclass(frozen=True)
class MixerConfig:
    """sample_size, patch_size: pixels. end: the network's last time. low, high: its values at images -1 and 1.

    values: how physical values become images, as `io.values.ValueTransform` has it.
    """

    in_channels: int
    sample_size: int
    patch_size: int
    hidden_size: int
    mix_patch_size: int
    mix_hidden_size: int
    layers: int
    end: float
    low: float
    high: float
    values: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        sizes = (self.in_channels, self.patch_size, self.hidden_size, self.mix_patch_size, self.mix_hidden_size)
        if min(*sizes, self.layers, self.sample_size) < 1 or self.sample_size % self.patch_size:
            raise UsageError(f"a mixer's sizes must be above 0, whole patches: {AGAIN}")
        if not (self.end > 0 and self.low < self.high and math.isfinite(self.high - self.low)):
            raise UsageError(f"low must be below high and both finite, got {self.low:g} and {self.high:g}")

    @property
    def patches(self) -> int:
        return (self.sample_size // self.patch_size) ** 2


class MixerBlock(nn.Module):
    """Two perceptrons: over the places of each feature, then over the features of each place."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        hidden, patches = config.hidden_size, config.patches
        self.places = perceptron(patches, config.mix_patch_size)
        self.depth = perceptron(hidden, config.mix_hidden_size)
        self.norm1, self.norm2 = nn.LayerNorm((hidden, patches)), nn.LayerNorm((patches, hidden))

    def forward(self, h: Tensor) -> Tensor:
        """h: (batch, feature, place)."""
        h = (h + mixed(self.places, self.norm1(h))).transpose(1, 2)
        return (h + mixed(self.depth, self.norm2(h))).transpose(1, 2)


def perceptron(width: int, inner: int) -> nn.ModuleList:
    return nn.ModuleList([nn.Linear(width, inner), nn.Linear(inner, width)])


def mixed(layers: nn.ModuleList, h: Tensor) -> Tensor:
    output: Tensor = layers[1](functional.relu(layers[0](h)))
    return output


class ScoreMixer(nn.Module):
    """(noisy images, times in (0, end]) -> the score, the gradient of the logarithm of their density."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.config = Config(asdict(config) | {"out_channels": config.in_channels, "num_class_embeds": None})
        patch, hidden = config.patch_size, config.hidden_size
        self.conv_in = nn.Conv2d(config.in_channels + 1, hidden, patch, stride=patch)
        self.blocks = nn.ModuleList(MixerBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm((hidden, config.patches))
        self.conv_out = nn.ConvTranspose2d(hidden, config.in_channels, patch, stride=patch)

    def forward(self, x: Tensor, t: Tensor, class_labels: None = None) -> Tensor:
        time = (t / self.config.end).to(x.dtype)[:, None, None, None].expand(len(x), 1, *x.shape[2:])
        h = self.conv_in(torch.cat([x, time], dim=1))
        rows = h.shape[2:]
        h = h.flatten(2).contiguous()
        for block in self.blocks:
            h = block(h)
        output: Tensor = self.conv_out(self.norm(h).unflatten(2, rows))
        return output


def make_mixer(config: dict[str, Any], where: str) -> ScoreMixer:
    """The network of a config without weights: they take no memory until they are given."""
    with torch.device("meta"):
        return ScoreMixer(checked(MixerConfig, config, where, AGAIN))


def give_weights(network: ScoreMixer, weights: dict[str, Tensor], dtype: torch.dtype) -> list[str]:
    """Load the weights; the names of those that are lacking, with which nothing is done."""
    missing = sorted(network.state_dict().keys() - weights.keys())
    if not missing:
        network.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    return missing


# Equinox


def read_equinox(path: Path, low: float, high: float, curve: str, unit: float) -> tuple[SavedNetwork, SavedConfig]:
    """The network of an `.eqx` file and its noise schedule; no code of the file is run.

    low, high: the network's values that images -1 and 1 stand for. curve, unit: what a physical value is, the curve's
    inverse of `unit` times the network's value. Raises UsageError for another layout and a damaged file.
    """
    if curve not in CURVES or not 0 < unit < math.inf:
        raise UsageError(f"curve must be one of {', '.join(CURVES)} and unit above 0, got {curve!r} and {unit:g}")
    arrays = read_arrays(path)
    names = names_of(len(arrays))
    if names is None:
        raise UsageError(f"{path} holds {len(arrays)} arrays, which make no mixer of patches: choose another model")
    leaves = dict(zip(names, arrays, strict=False))
    try:
        values = physical(low, high, curve, unit)
        config = asdict(config_of(leaves, float(arrays[-1]), low, high)) | {"values": values}
        weights = {name: as_torch(name, leaf) for name, leaf in leaves.items()}
        give_weights(make_mixer(config, str(path)), weights, torch.float32)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is no mixer of patches ({first_line(error)}): choose another model") from None
    schedule = {"rate": 1.0, "first_time": 1e-3, "last_time": config["end"], "num_train_timesteps": 1000}
    return SavedNetwork(MIXER, config, weights), SavedConfig("ContinuousVPScheduler", schedule)


def physical(low: float, high: float, curve: str, unit: float) -> dict[str, Any]:
    """The value transform whose images are the network's values from low to high."""
    inverse = CURVES[curve]
    return {"curve": curve, "low": [inverse(low * unit)], "high": [inverse(high * unit)], "softening": [1.0]}


def read_arrays(path: Path) -> list[NDArray[Any]]:
    """Every array of the file; none may claim more than is there, be an object or lie in Fortran's order."""
    if path.stat().st_size > MOST_BYTES:
        raise UsageError(f"{path} has more than {MOST_BYTES:,} bytes: choose a smaller model")
    file, arrays = BytesIO(path.read_bytes()), []
    try:
        while file.tell() < len(file.getbuffer()):
            arrays.append(next_array(file))
    except Exception as error:  # a damaged header can fail in any way
        raise UsageError(f"{path} is no Equinox file, or cut off ({first_line(error)}): {AGAIN}") from None
    return arrays


def next_array(file: BytesIO) -> NDArray[Any]:
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of another version than 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran or dtype.name not in TYPES or not dtype.isnative:
        raise ValueError(f"an array of type {dtype}, read are {', '.join(TYPES)}")
    room = len(file.getbuffer()) - file.tell()
    if min(shape, default=1) < 1 or math.prod(shape) * dtype.itemsize > room:
        raise ValueError(f"an array of shape {shape}, and {room} bytes")
    values = np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
    if not np.isfinite(values).all():
        raise ValueError("values that are not finite")
    return values


def names_of(count: int) -> list[str] | None:
    """The weights' names in the order of the file, without the last entry, the end of time."""
    blocks, rest = divmod(count - 7, len(BLOCK))
    if blocks < 1 or rest:
        return None
    ends = ("conv_in", "conv_out")
    outer = [f"{name}.{part}" for name in ends for part in ("weight", "bias")]
    inner = [f"blocks.{block}.{name}" for block in range(blocks) for name in BLOCK]
    return [*outer, *inner, "norm.weight", "norm.bias"]


def config_of(leaves: dict[str, NDArray[Any]], end: float, low: float, high: float) -> MixerConfig:
    layers = (len(leaves) - 6) // len(BLOCK)
    hidden, inputs, patch, _ = leaves["conv_in.weight"].shape
    inner, patches = leaves["blocks.0.places.0.weight"].shape
    mix_hidden = len(leaves["blocks.0.depth.0.weight"])
    return MixerConfig(
        inputs - 1, math.isqrt(patches) * patch, patch, hidden, inner, mix_hidden, layers, end, low, high
    )


def as_torch(name: str, leaf: NDArray[Any]) -> Tensor:
    """Equinox turns no kernel around where it transposes a convolution, and keeps its biases as maps."""
    weight = torch.from_numpy(leaf.astype(np.float32))
    if name == "conv_out.weight":
        return weight.flip(-1, -2).transpose(0, 1).contiguous()
    return weight.flatten() if name.startswith("conv_") and name.endswith("bias") else weight
