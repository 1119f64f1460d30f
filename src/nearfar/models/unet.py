"""UNets on pixels, in a module of our own: what DDPM, improved DDPM and guided diffusion need.

The architecture is that of Ho et al. (arXiv 2006.11239), Nichol and Dhariwal (2102.09672) and Dhariwal and Nichol
(2105.05233); configurations and weights are those that diffusers saves of a UNet2DModel. One that asks for anything
this module does not know (`unet_files.understood`) is diffusers' to run. Laid out for speed, with the same results:

* channels last throughout, so that a point's channels lie together: 1x1 convolutions and attention are matrix products;
* weights that see the same input are joined (queries, keys and values; every block's product with the time);
* a convolution after doubling by nearest neighbors is one of 2x2 on the small map, with 4/9 of the products: of the
  9 points that it saw only 4 differ;
* shapes follow the input alone and nothing waits for the device, so it can be compiled whole and captured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

DOWN = {"DownBlock2D": (False, "conv"), "ResnetDownsampleBlock2D": (False, "resnet"), "AttnDownBlock2D": (True, None)}
UP = {"UpBlock2D": (False, "conv"), "ResnetUpsampleBlock2D": (False, "resnet"), "AttnUpBlock2D": (True, None)}
"""Whether a block has attention, and how it halves or doubles the map; None is: as the config says."""


class Config(dict[str, Any]):
    """A network's configuration as diffusers saves it, its values also as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class PixelUNet(nn.Module):
    """(noisy images, times, classes) -> prediction, as UNet2DModel has it; in evaluation, so without dropout."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        widths, embedded = config.block_out_channels, config.time_embedding_dim or 4 * config.block_out_channels[0]
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(config, config.time_waves or widths[0], embedded)
        if config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, embedded)
        self.down_blocks = nn.ModuleList(down_blocks(config))
        self.mid_block = MidBlock(config, widths[-1])
        self.up_blocks = nn.ModuleList(up_blocks(config))
        self.conv_norm_out = norm(config, widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)
        self.shares = [block.time_width for block in self.modules() if isinstance(block, ResidualBlock)]
        self.time_projections = nn.Linear(embedded, sum(self.shares))

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x: (batch, channels, height, width); t: (batch,) or one for all; a label for each where it has classes."""
        x = x.contiguous(memory_format=torch.channels_last)
        t = t.expand(len(x))
        embedding = self.time_embedding(t, x.dtype)
        if class_labels is not None:
            embedding = embedding + self.class_embedding(class_labels)
        times = iter(self.time_projections(functional.silu(embedding)).split(self.shares, dim=1))
        h = self.conv_in(2 * x - 1 if self.config.center_input_sample else x)
        skips = [h]
        for down in self.down_blocks:
            h, passed = down(h, times)
            skips += passed
        h = self.mid_block(h, times)
        for up in self.up_blocks:
            h = up(h, skips, times)
        h = self.conv_out(functional.silu(self.conv_norm_out(h), inplace=True))
        output: Tensor = h / t.to(h.dtype)[:, None, None, None] if self.config.time_embedding_type == "fourier" else h
        return output


class TimeEmbedding(nn.Module):
    """Waves of the time (Vaswani et al., arXiv 1706.03762, 3.5) or its logarithm (2011.13456), through two layers."""

    def __init__(self, config: Config, waves: int, embedded: int) -> None:
        super().__init__()
        self.config, self.waves = config, waves
        if config.time_embedding_type == "fourier":
            self.frequencies = nn.Parameter(torch.randn(waves))
        inputs = waves if config.time_embedding_type == "positional" else 2 * waves
        self.linear_1 = nn.Linear(inputs, embedded)
        self.linear_2 = nn.Linear(embedded, embedded)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        waves = self.fourier(t) if self.config.time_embedding_type == "fourier" else self.positional(t)
        embedded: Tensor = self.linear_2(functional.silu(self.linear_1(waves.to(dtype))))
        return embedded

    def positional(self, t: Tensor) -> Tensor:
        half = self.waves // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t[:, None].float() * (-math.log(10000) * steps / (half - self.config.freq_shift)).exp()
        waves = (angles.cos(), angles.sin()) if self.config.flip_sin_to_cos else (angles.sin(), angles.cos())
        return torch.cat(waves, dim=1)

    def fourier(self, t: Tensor) -> Tensor:
        angles = t.log()[:, None] * self.frequencies * 2 * math.pi
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def norm(config: Config, width: int, groups: int | None = None) -> nn.GroupNorm:
    return nn.GroupNorm(groups or config.norm_num_groups, width, eps=config.norm_eps)


class ResidualBlock(nn.Module):
    """Two convolutions around a path that leaves them out; the time is added between them, or scales and shifts.

    resample: halves ("down") or doubles ("up") the map, both what is convolved and what goes around.
    """

    def __init__(self, config: Config, inputs: int, width: int, scale: float = 1.0, resample: str = "") -> None:
        super().__init__()
        self.scale_shift, self.scale, self.resample = config.resnet_time_scale_shift == "scale_shift", scale, resample
        self.time_width = 2 * width if self.scale_shift else width
        self.norm1 = norm(config, inputs)
        self.conv1 = DoublingConvolution(inputs, width) if resample == "up" else nn.Conv2d(inputs, width, 3, padding=1)
        self.norm2 = norm(config, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if inputs != width:
            self.conv_shortcut = nn.Linear(inputs, width)

    def forward(self, x: Tensor, times: Iterator[Tensor]) -> Tensor:
        h = functional.silu(self.norm1(x), inplace=True)
        if self.resample == "down":
            x, h = functional.avg_pool2d(x, 2), functional.avg_pool2d(h, 2)
        h, time = self.conv1(h), next(times)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + time)
        h = self.conv2(functional.silu(h, inplace=True))
        if hasattr(self, "conv_shortcut"):
            x = self.conv_shortcut(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.resample == "up":
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        output: Tensor = h + x if self.scale == 1 else (h + x) / self.scale
        return output


class Attention(nn.Module):
    """Every point looks at all others of its map, by heads; added to what came in, or to that normed (Keras)."""

    def __init__(self, config: Config, width: int, groups: int | None, scale: float = 1.0) -> None:
        super().__init__()
        self.heads = config.attention_heads or width // (config.attention_head_dim or width)
        self.scale, self.normed = scale, config.attention_residual == "normed"
        self.group_norm = norm(config, width, groups) if groups else nn.Identity()
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, length = x.shape
        normed = self.group_norm(x)
        points = normed.permute(0, 2, 3, 1).reshape(batch, height * length, width)
        by_head = self.to_qkv(points).reshape(batch, height * length, 3, self.heads, width // self.heads)
        q, k, v = by_head.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height, length, width)
        h: Tensor = self.to_out(seen).permute(0, 3, 1, 2) + (normed if self.normed else x)
        return h if self.scale == 1 else h / self.scale


class HalvingConvolution(nn.Module):
    """Every second point of a convolution; padding 0 stands for one row and column behind the map."""

    def __init__(self, width: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv(x if self.padding else functional.pad(x, (0, 1, 0, 1)))
        return h


class DoublingConvolution(nn.Conv2d):
    """A 3x3 convolution of the map doubled by nearest neighbors, on the small map.

    weight: (4 * width, inputs, 2, 2), for each of the four points that a point becomes what it sees of its neighbors.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs, 4 * width, 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, length = x.shape
        corners = super().forward(x).permute(0, 2, 3, 1).reshape(batch, height + 1, length + 1, 2, 2, -1)
        h = corners.new_empty(batch, height, 2, length, 2, corners.shape[-1])
        for row in (0, 1):
            for column in (0, 1):
                h[:, :, row, :, column] = corners[:, row : row + height, column : column + length, row, column]
        return h.view(batch, 2 * height, 2 * length, -1).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Residual blocks of one size of map, each with attention where `attended`."""

    def __init__(self, config: Config, inputs: list[int], width: int, attended: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(config, count, width) for count in inputs)
        if attended:
            groups = config.norm_num_groups
            self.attentions = nn.ModuleList(Attention(config, width, groups) for _ in inputs)

    def step(self, number: int, h: Tensor, times: Iterator[Tensor]) -> Tensor:
        h = self.resnets[number](h, times)
        return self.attentions[number](h) if hasattr(self, "attentions") else h


class DownBlock(Block):
    """A level on the way down: what each of its blocks gives is passed to the way up."""

    def __init__(self, config: Config, inputs: list[int], width: int, attended: bool, halved: str) -> None:
        super().__init__(config, inputs, width, attended)
        if halved == "resnet":
            self.downsamplers = nn.ModuleList([ResidualBlock(config, width, width, resample="down")])
        elif halved:
            self.downsamplers = nn.ModuleList([HalvingConvolution(width, config.downsample_padding)])

    def forward(self, h: Tensor, times: Iterator[Tensor]) -> tuple[Tensor, list[Tensor]]:
        passed = []
        for number in range(len(self.resnets)):
            h = self.step(number, h, times)
            passed.append(h)
        for sampler in getattr(self, "downsamplers", ()):
            h = sampler(h, times) if isinstance(sampler, ResidualBlock) else sampler(h)
            passed.append(h)
        return h, passed


class UpBlock(Block):
    """A level on the way up: each of its blocks takes, and uses up, the last of what the way down passed."""

    def __init__(self, config: Config, inputs: list[int], width: int, attended: bool, doubled: str) -> None:
        super().__init__(config, inputs, width, attended)
        if doubled == "resnet":
            self.upsamplers = nn.ModuleList([ResidualBlock(config, width, width, resample="up")])
        elif doubled:
            self.upsamplers = nn.ModuleList([DoublingConvolution(width, width)])

    def forward(self, h: Tensor, skips: list[Tensor], times: Iterator[Tensor]) -> Tensor:
        for number in range(len(self.resnets)):
            h = self.step(number, torch.cat([h, skips.pop()], dim=1), times)
        for sampler in getattr(self, "upsamplers", ()):
            h = sampler(h, times) if isinstance(sampler, ResidualBlock) else sampler(h)
        return h


class MidBlock(nn.Module):
    """The smallest map: a residual block, attention, a residual block."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        scale = float(config.mid_block_scale_factor)
        plain = config.resnet_time_scale_shift == "default"
        self.resnets = nn.ModuleList(ResidualBlock(config, width, width, scale) for _ in range(2))
        if config.add_attention:
            groups = config.attn_norm_num_groups or (config.norm_num_groups if plain else None)
            self.attentions = nn.ModuleList([Attention(config, width, groups, scale)])

    def forward(self, h: Tensor, times: Iterator[Tensor]) -> Tensor:
        h = self.resnets[0](h, times)
        for attention in getattr(self, "attentions", ()):
            h = attention(h)
        output: Tensor = self.resnets[1](h, times)
        return output


def down_blocks(config: Config) -> Iterator[DownBlock]:
    widths, layers = config.block_out_channels, config.layers_per_block
    for level, kind in enumerate(config.down_block_types):
        attended, way = DOWN[kind]
        inputs = [widths[max(level - 1, 0)], *[widths[level]] * (layers - 1)]
        halved = (way or config.downsample_type) if level < len(widths) - 1 else ""
        yield DownBlock(config, inputs, widths[level], attended, halved)


def up_blocks(config: Config) -> Iterator[UpBlock]:
    """Each block but the last of a level meets one of its own width, the last what came into the level below."""
    widths, layers = config.block_out_channels[::-1], config.layers_per_block
    for level, kind in enumerate(config.up_block_types):
        attended, way = UP[kind]
        width, below = widths[level], widths[max(level - 1, 0)]
        skips = [*[width] * layers, widths[min(level + 1, len(widths) - 1)]]
        inputs = [came + skip for came, skip in zip([below, *[width] * layers], skips, strict=True)]
        yield UpBlock(config, inputs, width, attended, (way or config.upsample_type) if level < len(widths) - 1 else "")
