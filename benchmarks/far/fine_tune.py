"""A vanilla fine-tune of the bundled model on a few images of a domain: what freezing the model is measured against.

    OMP_NUM_THREADS=1 python -m benchmarks.far.fine_tune DATA OUT --domain cells --shots 200 --snapshots 250,500,1000

All parameters, the plain mean squared error of the noise, AdamW, an exponential moving average of the weights; the
images are turned and mirrored where the domain allows it. Each snapshot is a diffusers folder OUT/DOMAIN-SHOTS-STEPS.
(The fine-tune in the code of the paper compared the noise with the second image of the batch.)
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import DDPMScheduler, UNet2DModel

from benchmarks.support.domains import load_domain, symmetric_copies
from nearfar.models.lookup import BUNDLED
from recipes.train_ddpm import Objective, export, start_run, train_step

WARM_UP = 50


def main(
    data: Annotated[Path, typer.Argument(help="The folder of the data packs.")],
    out: Annotated[Path, typer.Argument(help="Where the snapshots go.")],
    domain: Annotated[str, typer.Option(help="cells, galaxies, animals or garments.")] = "cells",
    shots: Annotated[int, typer.Option(help="Images to fine-tune on.")] = 200,
    snapshots: Annotated[str, typer.Option(help="Steps after which to write the model.")] = "250,500,1000",
    batch: Annotated[int, typer.Option(help="Images a step.")] = 16,
    rate: Annotated[float, typer.Option(help="Learning rate after the warm-up.")] = 2e-4,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights.")] = 0.99,
    seed: Annotated[int, typer.Option(help="Of shots, order and noise.")] = 0,
) -> None:
    """Train on one core's worth of threads and write a snapshot after each of the given numbers of steps."""
    network = (
        UNet2DModel.from_pretrained(BUNDLED["faces"], subfolder="unet").float().to(memory_format=torch.channels_last)
    )
    scheduler = DDPMScheduler.from_pretrained(BUNDLED["faces"], subfolder="scheduler")
    images = symmetric_copies(load_domain(data, domain, network.config.sample_size, shots, seed).fit, domain)
    pixels = images.add(1).mul(127.5).round().to(torch.uint8)
    run = start_run(network, "cpu", seed)
    objective = Objective(scheduler.alphas_cumprod, math.inf, flip=False)
    wanted, began, losses = sorted(int(steps) for steps in snapshots.split(",")), time.monotonic(), []
    while run.step < wanted[-1]:
        warm = rate * min(1.0, (run.step + 1) / WARM_UP)
        losses.append(train_step(run, objective, pixels, batch, warm, ema, mixed=False))
        if run.step in wanted:
            export(run.average, scheduler, out / f"{domain}-{shots}-{run.step}")
            seconds = time.monotonic() - began
            print(
                f"{domain} {shots} step {run.step} loss {sum(losses) / len(losses):.4f} seconds {seconds:.0f}",
                flush=True,
            )
            losses.clear()


if __name__ == "__main__":
    typer.run(main)
