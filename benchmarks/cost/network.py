"""Our network of pixels beside diffusers' module: CPU time of a call, in turns in one process, on one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.cost.network [--rounds 9] [--only bundled]

Ratios are medians over the rounds, above 1 where ours is faster; "as loaded" is diffusers' module as from_pretrained
gives it, "channels last" the same moved to that layout. The share is of the rate of a 2048-square float32 product, and
counts the operations that diffusers makes. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from diffusers import UNet2DModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cost.gpu import pixels_256
from nearfar.models.lookup import BUNDLED
from nearfar.models.unet_files import fill, pixel_unet, understood

CIFAR = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
BATCHES = (1, 8, 32)


def configs() -> dict[str, dict[str, Any]]:
    bundled = {name: json.loads((BUNDLED[name] / "unet/config.json").read_text()) for name in ("faces", "faces64")}
    bare = {name: {k: v for k, v in config.items() if k[0] != "_"} for name, config in bundled.items()}
    smaller = {"AFHQ at 64": pixels_256(True) | {"sample_size": 64}, "CelebA-HQ at 64": pixels_256(False)}
    return bare | {"CIFAR-10": CIFAR} | {name: config | {"sample_size": 64} for name, config in smaller.items()}


def seconds(call: Callable[[], Any], repeats: int) -> float:
    began = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - began) / repeats


def matrix_rate() -> float:
    """Floating-point operations a second of a large product."""
    a = torch.randn(2048, 2048)
    return 2 * 2048**3 / statistics.median(seconds(lambda: a @ a, 1) for _ in range(5))


def compare(config: dict[str, Any], batch: int, rounds: int) -> dict[str, float]:
    theirs, last = (UNet2DModel(**config).eval().requires_grad_(False) for _ in range(2))
    known = understood(theirs.config)
    assert known is not None
    ours = pixel_unet(known)
    fill(ours, theirs.state_dict(), torch.float32)
    for network in (last, ours.eval().requires_grad_(False)):
        network.to(memory_format=torch.channels_last)
    x = torch.randn(batch, config.get("in_channels", 3), *[config["sample_size"]] * 2)
    t = torch.full((batch,), 300.0)
    calls = {
        "ours": lambda: ours(x, t).contiguous(),
        "as loaded": lambda: theirs(x, t).sample,
        "channels last": lambda: last(x.contiguous(memory_format=torch.channels_last), t).sample.contiguous(),
    }
    with FlopCounterMode(display=False) as counter:
        theirs(x, t)
    repeats = max(1, int(0.2 / seconds(calls["ours"], 2)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            times[name].append(seconds(calls[name], repeats))
    pairs = {name: zip(times[name], times["ours"], strict=True) for name in calls if name != "ours"}
    ratios = {name: statistics.median(a / b for a, b in pair) for name, pair in pairs.items()}
    each = statistics.median(times["ours"])
    return {"ms": 1000 * each, "share": counter.get_total_flops() / each / matrix_rate(), **ratios}


@torch.inference_mode()
def main(
    rounds: Annotated[int, typer.Option(help="Of calls in turns.")] = 9,
    only: Annotated[list[str] | None, typer.Option(help="Networks, by name.")] = None,
) -> None:
    """Print a line for each network and batch."""
    torch.set_num_threads(1)
    for name, config in configs().items():
        for batch in BATCHES if not only or name in only else ():
            row = compare(config, batch, rounds)
            typer.echo(f"{name} batch {batch}: {row['ms']:.1f} ms, {row['share']:.0%} of the matrix peak")
            typer.echo(f"  {row['as loaded']:.2f} x diffusers as loaded, {row['channels last']:.2f} x channels last")


if __name__ == "__main__":
    typer.run(main)
