"""Train a small pixel-space DDPM on a folder or zip of images and write a diffusers folder.

The objective is the ordinary one: predict the noise (Ho et al., arXiv 2006.11239), weighted by min-SNR (Hang et al.,
arXiv 2303.09556), with stratified times and an exponential moving average of the weights. One process, one device.
It writes a checkpoint every few hundred steps and picks up from it, so it may be stopped at any moment.

    python recipes/train_ddpm.py DATA OUT --size 32 --steps 3500
    python recipes/train_ddpm.py faces.zip runs/faces --split train/ --size 64 --channels 64,128,256 --device cuda
"""

from __future__ import annotations

import io
import math
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Objective:
    """What one training step minimises: schedule, loss weight and the share of mirrored images."""

    alphas_cumprod: Tensor
    min_snr: float
    flip: bool

    def loss(self, network: torch.nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Weighted mean squared error of the predicted noise; images are float in [-1, 1]."""
        if self.flip:
            mirrored = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)
        times = stratified_times(len(images), len(self.alphas_cumprod), generator).to(images.device)
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        signal = self.alphas_cumprod.to(images.device)[times][:, None, None, None]
        predicted = network(signal.sqrt() * images + (1 - signal).sqrt() * noise, times).sample
        snr = (signal / (1 - signal)).flatten()
        errors = functional.mse_loss(predicted.float(), noise, reduction="none").mean(dim=(1, 2, 3))
        return (errors * snr.clamp(max=self.min_snr) / snr).mean()


def stratified_times(count: int, levels: int, generator: torch.Generator) -> Tensor:
    """One time in each of `count` equal parts of the schedule, so that no batch misses a noise level."""
    strata = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    return (strata / count * levels).long().clamp(max=levels - 1)


def read_files(data: Path, split: str) -> Iterator[bytes]:
    """The image files below `split` in a zip or a folder, in the order of their names."""
    if data.suffix == ".zip":
        with zipfile.ZipFile(data) as archive:
            for name in sorted(archive.namelist()):
                if name.startswith(split) and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                    yield archive.read(name)
        return
    for path in sorted((data / split).rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            yield path.read_bytes()


def load_images(data: Path, split: str, size: int) -> Tensor:
    """All images as one uint8 tensor (count, 3, size, size), cropped to the centre square."""
    squares = [
        np.asarray(ImageOps.fit(Image.open(io.BytesIO(raw)).convert("RGB"), (size, size), Image.Resampling.LANCZOS))
        for raw in read_files(data, split)
    ]
    if not squares:
        raise typer.BadParameter(f"no images below {split!r} in {data}")
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()


def new_network(size: int, channels: list[int], layers: int, attention: int) -> UNet2DModel:
    """A UNet whose levels of at most `attention` pixels a side have self-attention."""
    attends = [size >> level <= attention for level in range(len(channels))]
    return UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        layers_per_block=layers,
        block_out_channels=tuple(channels),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=32,
        norm_num_groups=8,
    )


def learning_rate(step: int, steps: int, peak: float, warm_up: int = 200) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


@torch.no_grad()
def update_average(average: torch.nn.Module, network: torch.nn.Module, decay: float) -> None:
    """Exponential moving average of the weights, in place."""
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)


@dataclass
class Run:
    """The state of a training run: everything that a checkpoint holds."""

    network: UNet2DModel
    average: UNet2DModel
    optimizer: torch.optim.AdamW
    generator: torch.Generator
    step: int = 0

    def save(self, path: Path) -> None:
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def restore(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step = state["step"]


def start_run(network: UNet2DModel, device: str, seed: int) -> Run:
    """A run at step 0; the average starts as a copy of the network."""
    average = UNet2DModel.from_config(network.config)
    average.load_state_dict(network.state_dict())
    network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=0.0)
    return Run(network, average.to(device).eval(), optimizer, torch.Generator().manual_seed(seed))


def train_step(
    run: Run, objective: Objective, images: Tensor, batch: int, rate: float, ema: float, mixed: bool
) -> float:
    """One optimiser step on `batch` images drawn with replacement; returns the loss."""
    device = next(run.network.parameters()).device
    chosen = torch.randint(len(images), (batch,), generator=run.generator)
    pixels = images[chosen].to(device).float() / 127.5 - 1
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
        loss = objective.loss(run.network, pixels, run.generator)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    update_average(run.average, run.network, min(ema, (1 + run.step) / (10 + run.step)))
    return loss.item()


def export(average: UNet2DModel, scheduler: DDPMScheduler, out: Path) -> None:
    """Write the averaged network as a half-precision diffusers folder."""
    config = {name: value for name, value in average.config.items() if name != "_name_or_path"}
    half = UNet2DModel.from_config(config).half()
    half.load_state_dict(average.state_dict())
    DDPMPipeline(unet=half, scheduler=scheduler).save_pretrained(out, safe_serialization=True)


def main(
    data: Annotated[Path, typer.Argument(help="A zip or a folder of images.")],
    out: Annotated[Path, typer.Argument(help="Where checkpoint.pt and the diffusers folder model/ go.")],
    split: Annotated[str, typer.Option(help="Use only images below this folder.")] = "",
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 32,
    channels: Annotated[str, typer.Option(help="Channels of each level, finest first.")] = "32,64,128",
    layers: Annotated[int, typer.Option(help="Residual blocks a level.")] = 1,
    attention: Annotated[int, typer.Option(help="Self-attention at this many pixels a side and below.")] = 8,
    steps: Annotated[int, typer.Option(help="Optimiser steps in all.")] = 3500,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 32,
    peak_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights.")] = 0.999,
    min_snr: Annotated[float, typer.Option(help="Gamma of the min-SNR weight.")] = 5.0,
    flip: Annotated[bool, typer.Option(help="Mirror half of the images.")] = True,
    init: Annotated[Path | None, typer.Option(help="Start from the network of this diffusers folder.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of weights, order, noise.")] = 0,
) -> None:
    """Train, resuming from OUT/checkpoint.pt when it is there, and write OUT/model."""
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    images = load_images(data, split, size)
    widths = [int(width) for width in channels.split(",")]
    network = (
        UNet2DModel.from_pretrained(init, subfolder="unet") if init else new_network(size, widths, layers, attention)
    )
    run = start_run(network.float(), device, seed)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        run.restore(checkpoint)
    scheduler = DDPMScheduler(variance_type="fixed_small")
    objective = Objective(scheduler.alphas_cumprod, min_snr, flip)
    typer.echo(
        f"{len(images)} images, {sum(p.numel() for p in network.parameters()):,} parameters, from step {run.step}"
    )
    began, losses = time.monotonic(), []
    while run.step < steps:
        rate = learning_rate(run.step, steps, peak_rate)
        losses.append(train_step(run, objective, images, batch, rate, ema, mixed=device == "cuda"))
        if run.step % save_every == 0 or run.step == steps:
            run.save(checkpoint)
            export(run.average, scheduler, out / "model")
            typer.echo(f"step {run.step} loss {np.mean(losses):.4f} seconds {time.monotonic() - began:.0f}")
            losses.clear()
    export(run.average, scheduler, out / "model")


if __name__ == "__main__":
    typer.run(main)
