"""Train a small pixel-space diffusion model on a folder or zip of images and write a diffusers folder.

It predicts the noise (Ho et al., arXiv 2006.11239), the clean image or v (Salimans and Ho, arXiv 2202.00512), weighted
by min-SNR, with stratified times and several averages of the weights. One process, one device. It writes a checkpoint
every few hundred steps and picks up from it, to the bit, so it may be stopped at any moment.

    python recipes/train_ddpm.py DATA OUT --size 32 --steps 3500
    python recipes/train_ddpm.py faces.zip runs/faces --split train/ --size 64 --patch 2 --predict sample --minutes 60
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from averages import Average, choose
from nearfar.models.model import PatchSpace
from objective import Losses, Objective, Predict, stratified_times
from training_data import Examples, load_examples, load_images, part

__all__ = ["load_images", "main"]

HELD_OUT = 64
"""Of the kept images, how many are looked at for the log."""
LEVELS = 10
"""Equal parts of the schedule by which the log tells the loss."""


@dataclass(frozen=True)
class Shape:
    """What kind of network is trained. size: pixels a side of an image; with patches the network's own is smaller."""

    size: int
    channels: tuple[int, ...] = (32, 64, 128)
    layers: int = 1
    attention: int = 8
    patch: int = 1
    dropout: float = 0.0
    scale_shift: bool = False
    learned_variance: bool = False
    classes: int | None = None

    @property
    def colors(self) -> int:
        """Channels of a clean image as the network sees it."""
        return 3 * self.patch**2

    def network(self) -> UNet2DModel:
        """A UNet whose levels of at most `attention` places a side have self-attention."""
        side = self.size // self.patch
        attends = [side >> level <= self.attention for level in range(len(self.channels))]
        return UNet2DModel(
            sample_size=side,
            in_channels=self.colors,
            out_channels=self.colors * (2 if self.learned_variance else 1),
            layers_per_block=self.layers,
            block_out_channels=self.channels,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            attention_head_dim=32,
            norm_num_groups=8,
            dropout=self.dropout,
            resnet_time_scale_shift="scale_shift" if self.scale_shift else "default",
            num_class_embeds=self.classes,
        )


def started_from(folder: Path, shape: Shape) -> UNet2DModel:
    """The network of a diffusers folder, widened at both ends where it was made for pixels and patches are wanted.

    The wider one sees the mean of each patch, as the smaller saw pixels, and its last layer begins at zero.
    """
    source = UNet2DModel.from_pretrained(folder, subfolder="unet").float()
    if source.config.in_channels == shape.colors:
        return source
    config = {name: value for name, value in source.config.items() if not name.startswith("_")}
    sizes = {"in_channels": shape.colors, "out_channels": shape.colors, "sample_size": shape.size // shape.patch}
    network, weights = UNet2DModel(**config | sizes), source.state_dict()
    weights["conv_in.weight"] = weights["conv_in.weight"].repeat(1, shape.patch**2, 1, 1) / shape.patch**2
    for name in ("conv_out.weight", "conv_out.bias"):
        weights[name] = torch.zeros_like(network.state_dict()[name])
    network.load_state_dict(weights)
    return network


@dataclass(frozen=True)
class Plan:
    """How long and how fast. steps or minutes end the run, whichever comes first; the rate falls along that way."""

    steps: int | None = None
    minutes: float | None = None
    batch: int = 32
    peak_rate: float = 1e-3
    warm_up: int = 200
    flip: bool = True
    turn: bool = False

    def done(self, step: int, seconds: float) -> float:
        """The share of the run that lies behind, from 0 to 1."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = seconds / 60 / self.minutes if self.minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    def rate(self, step: int, seconds: float) -> float:
        """Learning rate: linear warm-up, half a cosine down to zero."""
        fall = 0.5 * (1 + math.cos(math.pi * self.done(step, seconds)))
        return self.peak_rate * min(1.0, (step + 1) / self.warm_up) * fall


@dataclass
class Run:
    """The state of a training run: everything that a checkpoint holds. `forward` is the network, perhaps compiled."""

    network: UNet2DModel
    averages: list[Average]
    optimizer: torch.optim.AdamW
    generator: torch.Generator
    forward: Callable[..., Any]
    step: int = 0
    seconds: float = 0.0
    by_level: Tensor = field(default_factory=lambda: torch.zeros(2, LEVELS))

    def save(self, path: Path) -> None:
        state = {
            "network": self.network.state_dict(),
            "averages": [average.network.state_dict() for average in self.averages],
            "optimizer": self.optimizer.state_dict(),
            "randomness": self.randomness(),
            "step": self.step,
            "seconds": self.seconds,
            "by_level": self.by_level,
        }
        part_file = path.with_suffix(".part")
        torch.save(state, part_file)
        part_file.replace(path)

    def restore(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        for average, weights in zip(self.averages, state["averages"], strict=True):
            average.network.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.by_level = state["by_level"].to(self.generator.device)
        self.generator.set_state(state["randomness"][0])
        torch.set_rng_state(state["randomness"][1])
        if len(state["randomness"]) > 2:
            torch.cuda.set_rng_state(state["randomness"][2])

    def randomness(self) -> list[Tensor]:
        """The states of the run's own generator and of those that dropout draws from."""
        device = [torch.cuda.get_rng_state()] if self.generator.device.type == "cuda" else []
        return [self.generator.get_state(), torch.get_rng_state(), *device]


def start_run(network: UNet2DModel, device: str, seed: int, reaches: tuple[float, ...] = (0.05,)) -> Run:
    """A run at step 0, in the memory layout and with the fused optimizer that the device likes."""
    network = network.float().to(device, memory_format=torch.channels_last).train()
    averages = [Average.of(network, reach) for reach in reaches]
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=0.0, weight_decay=0.0, betas=(0.9, 0.99), fused=device == "cuda"
    )
    generator = torch.Generator(device).manual_seed(seed)
    return Run(network, averages, optimizer, generator, network, by_level=torch.zeros(2, LEVELS, device=device))


def draw_batch(examples: Examples, plan: Plan, patch: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Clean images as the network sees them, drawn with replacement, mirrored and turned; and their classes."""
    device = generator.device
    chosen = torch.randint(len(examples), (plan.batch,), generator=generator, device=device)
    batch = examples[chosen.to(examples.images.device)].to(str(device))
    mirrored = torch.rand(plan.batch, generator=generator, device=device) < (0.5 if plan.flip else 0.0)
    images = torch.where(mirrored[:, None, None, None], batch.images.flip(3), batch.images)
    return clean(turned(images, generator) if plan.turn else images, patch), batch.labels


def turned(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by none, one, two or three quarters."""
    quarters = torch.randint(4, (len(images), 1, 1, 1), generator=generator, device=generator.device)
    for number in (1, 2, 3):
        images = torch.where(quarters == number, images.rot90(number, (2, 3)), images)
    return images


def clean(images: Tensor, patch: int) -> Tensor:
    """uint8 `(batch, 3, size, size)` as float in [-1, 1], patches as channels."""
    return PatchSpace(patch).encode(images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def train_step(run: Run, objective: Objective, examples: Examples, plan: Plan, patch: int = 1) -> None:
    """One optimizer step on a batch drawn with replacement; the loss goes into `run.by_level`."""
    images, labels = draw_batch(examples, plan, patch, run.generator)
    times = stratified_times(len(images), len(objective.alphas_cumprod), run.generator)
    noise = torch.empty_like(images).normal_(generator=run.generator)
    losses = predict(run.forward, objective, images, noise, times, labels)
    for group in run.optimizer.param_groups:
        group["lr"] = plan.rate(run.step, run.seconds)
    run.optimizer.zero_grad(set_to_none=True)
    losses.weighted.mean().backward()
    torch.nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    run.by_level += by_level(losses.velocity, times, len(objective.alphas_cumprod))
    for average in run.averages:
        average.update(run.network, run.step)


def predict(
    network: Callable[..., Any],
    objective: Objective,
    images: Tensor,
    noise: Tensor,
    times: Tensor,
    labels: Tensor | None,
) -> Losses:
    """Losses of a network on noisy images, in bfloat16 on a GPU."""
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=images.is_cuda):
        output = network(objective.noisy(images, noise, times), times, class_labels=labels).sample
    return objective.losses(output, images, noise, times)


def by_level(errors: Tensor, times: Tensor, levels: int) -> Tensor:
    """Sum and number of errors in each equal part of the schedule, `(2, LEVELS)`."""
    place = times * LEVELS // levels
    sums = torch.zeros(2, LEVELS, device=errors.device)
    return sums.index_add_(1, place, torch.stack([errors, torch.ones_like(errors)]))


@torch.no_grad()
def held_out_loss(run: Run, objective: Objective, kept: Examples, patch: int) -> Tensor:
    """Error in v of the first average on kept images, by level, `(LEVELS,)`: the same times and noise at every call."""
    device, levels = run.generator.device, len(objective.alphas_cumprod)
    generator = torch.Generator(device).manual_seed(1)
    some = kept[torch.arange(min(HELD_OUT, len(kept)))].to(str(device))
    images, sums = clean(some.images, patch), torch.zeros(2, LEVELS, device=device)
    for level in range(LEVELS):
        times = (stratified_times(len(images), levels, generator) + level * levels) // LEVELS
        noise = torch.empty_like(images).normal_(generator=generator)
        network = run.averages[0].network
        losses = predict(network, objective, images, noise, times, some.labels)
        sums += by_level(losses.velocity, times, levels)
    return sums[0] / sums[1]


def export(network: UNet2DModel, scheduler: DDPMScheduler, out: Path) -> None:
    """Write a network as a half-precision diffusers folder, in pieces of at most 8 MB, whole or not at all."""
    config = {name: value for name, value in network.config.items() if not name.startswith("_")}
    half = UNet2DModel.from_config(config).half()
    half.load_state_dict(network.state_dict())
    unfinished = out.with_name(f"{out.name}.part")
    pipeline = DDPMPipeline(unet=half, scheduler=scheduler)
    pipeline.save_pretrained(unfinished, safe_serialization=True, max_shard_size="8MB")
    shutil.rmtree(out, ignore_errors=True)
    unfinished.replace(out)


def compiled(network: UNet2DModel) -> Callable[..., Any]:
    """The network compiled at fixed shapes; cost: a minute or two of compilation at the first step."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return torch.compile(network, dynamic=False)


@dataclass(frozen=True, eq=False)
class Log:
    """What is said of a run while it goes on. began: when this process started to train."""

    objective: Objective
    kept: Examples
    plan: Plan
    patch: int
    began: float = field(default_factory=time.monotonic)

    def tell(self, run: Run) -> None:
        """Step, rate, images a second, and the error in v by tenths of the schedule, clean end first."""
        sums, run.by_level = run.by_level, torch.zeros_like(run.by_level)
        speed = run.step * self.plan.batch / max(run.seconds, 1e-9)
        rate = self.plan.rate(run.step, run.seconds)
        typer.echo(f"step {run.step} loss {(sums[0].sum() / sums[1].sum()).item():.4f} rate {rate:.1e}", nl=False)
        typer.echo(f" images/s {speed:.0f} minutes {run.seconds / 60:.1f}")
        typer.echo(f"  by level {levels_line(sums[0] / sums[1])}")
        if len(self.kept):
            typer.echo(f"  held out {levels_line(held_out_loss(run, self.objective, self.kept, self.patch))}")


def levels_line(values: Tensor) -> str:
    return " ".join(f"{value:.4f}" for value in values.tolist())


def train(run: Run, examples: Examples, log: Log, save_every: int, save: Callable[[], None]) -> None:
    """Until the plan is done; saved every `save_every` steps and at the end."""
    before = run.seconds
    while log.plan.done(run.step, run.seconds) < 1:
        train_step(run, log.objective, examples, log.plan, log.patch)
        if run.step % 20 == 0 and run.generator.device.type == "cuda":
            torch.cuda.synchronize()
        run.seconds = before + time.monotonic() - log.began
        if run.step % save_every == 0 or log.plan.done(run.step, run.seconds) >= 1:
            log.tell(run)
            save()


def main(
    data: Annotated[Path, typer.Argument(help="A zip or a folder of images.")],
    out: Annotated[Path, typer.Argument(help="Where checkpoint.pt and the diffusers folder model/ go.")],
    split: Annotated[str, typer.Option(help="Use only images below this folder.")] = "",
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 32,
    channels: Annotated[str, typer.Option(help="Channels of each level, finest first.")] = "32,64,128",
    layers: Annotated[int, typer.Option(help="Residual blocks a level.")] = 1,
    attention: Annotated[int, typer.Option(help="Self-attention at this many places a side and below.")] = 8,
    patch: Annotated[int, typer.Option(help="Pixels a side of a patch, 1, 2 or 4.")] = 1,
    predict: Annotated[str, typer.Option(help="noise, sample or v.")] = "noise",
    scale_shift: Annotated[bool, typer.Option(help="Times scale the features as well as shift them.")] = False,
    dropout: Annotated[float, typer.Option(help="Share of features left out.")] = 0.0,
    learned_variance: Annotated[bool, typer.Option(help="Learn the steps' variance too (improved DDPM).")] = False,
    classes: Annotated[bool, typer.Option(help="The folder of an image is its class.")] = False,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps in all.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes of training in all, over all starts.")] = None,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 32,
    peak_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    average: Annotated[str, typer.Option(help="Share of the run that each average reaches back over.")] = "0.05",
    min_snr: Annotated[float, typer.Option(help="Gamma of the min-SNR weight.")] = 5.0,
    flip: Annotated[bool, typer.Option(help="Mirror half of the images.")] = True,
    turn: Annotated[bool, typer.Option(help="Turn images by quarters: for those without an up.")] = False,
    init: Annotated[Path | None, typer.Option(help="Start from the network of this diffusers folder.")] = None,
    keep: Annotated[int, typer.Option(help="Images never trained on, to choose the average by.")] = 0,
    features: Annotated[str, typer.Option(help="Network to choose with: efficientnet, pixels, a folder.")] = "pixels",
    compile_network: Annotated[bool, typer.Option("--compile", help="Compile the network first.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of weights, order, noise.")] = 0,
) -> None:
    """Train, resuming from OUT/checkpoint.pt when it is there, and write OUT/model."""
    if steps is None and minutes is None:
        raise typer.BadParameter("give --steps, --minutes or both")
    if predict not in ("noise", "sample", "v"):
        raise typer.BadParameter(f"--predict must be noise, sample or v, got {predict}")
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    examples, kept = part(load_examples(data, split, size, classes), keep, seed)
    widths = tuple(int(width) for width in channels.split(","))
    count = int(examples.labels.max()) + 1 if examples.labels is not None else None
    shape = Shape(size, widths, layers, attention, patch, dropout, scale_shift, learned_variance, count)
    reaches = tuple(float(reach) for reach in average.split(","))
    run = start_run(started_from(init, shape) if init else shape.network(), device, seed, reaches)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        run.restore(checkpoint)
    if compile_network:
        run.forward = compiled(run.network)
    prediction: Predict = {"noise": "epsilon", "sample": "sample", "v": "v_prediction"}[predict]  # type: ignore
    variance = "learned_range" if learned_variance else "fixed_small"
    scheduler = DDPMScheduler(variance_type=variance, prediction_type=prediction)
    objective = Objective(scheduler.alphas_cumprod.to(device), predict, min_snr, learned_variance)  # type: ignore
    log = Log(objective, kept, Plan(steps, minutes, batch, peak_rate, flip=flip, turn=turn), patch)
    typer.echo(f"{len(examples)} images, {run.network.num_parameters():,} parameters, from step {run.step}")
    folders = [out / "averages" / f"{reach:g}" for reach in reaches]

    def save() -> None:
        for one, folder in zip(run.averages, folders, strict=True):
            export(one.network, scheduler, folder)
        run.save(checkpoint)  # last: building what is exported draws random numbers, which a resumed run must not miss

    train(run, examples.to(device), log, save_every, save)
    best = folders[0]
    if len(folders) > 1 and len(kept):
        choice = choose(folders, kept, features, device, out / "samples.png")
        choice.write(out / "choice.json")
        best = choice.best
    shutil.copytree(best, out / "model", dirs_exist_ok=True)


if __name__ == "__main__":
    typer.run(main)
