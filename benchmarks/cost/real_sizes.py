"""The models people have at 256x256, with random weights, from their real files to a real photograph's local sample.

    OMP_WAIT_POLICY=passive python -m benchmarks.cost.real_sizes [--steps 4]
    ... [--device cuda --precision bfloat16 --steps 50]

* ddpm-celebahq-256: a flat diffusers folder in the layout of google/ddpm-celebahq-256 (113.7 million weights).
* afhqdog: a guided-diffusion checkpoint, `.pt` (93.6 million weights, learned variance).

Each is loaded and run by the command line in a process of its own: seconds for loading, seconds a network call, share
of the run outside the network, highest resident memory. Speed and memory do not depend on the weights' values.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from skimage import data
from torch import Tensor

from benchmarks.support.common import write_result
from nearfar.models.original.layouts import Plan, module_names, network_config

WIDTHS = (128, 128, 256, 256, 512, 512)
SIZE = 256


def plan_of(guided: bool) -> Plan:
    """CelebA-HQ and LSUN of Ho et al., or AFHQ and FFHQ of the P2 and ILVR releases."""
    return Plan(
        guided=guided,
        widths=WIDTHS,
        layers=1 if guided else 2,
        attended=(4,),
        resnet_resampling=guided,
        scale_shift=guided,
        in_channels=3,
        out_channels=6 if guided else 3,
        classes=None,
    )


def build(plan: Plan) -> UNet2DModel:
    heads = {"attention_head_dim": 64 if plan.guided else None}
    return UNet2DModel(sample_size=SIZE, **network_config(plan), **heads)


def write_celebahq(folder: Path) -> Path:
    """A diffusers folder with network and scheduler beside the index."""
    path = folder / "ddpm-celebahq-256"
    DDPMPipeline(build(plan_of(guided=False)), DDPMScheduler()).save_pretrained(path)
    for part in ("unet", "scheduler"):
        for file in (path / part).iterdir():
            file.rename(path / file.name)
        (path / part).rmdir()
    return path


def write_afhq(folder: Path) -> Path:
    """A state dict under guided-diffusion's names: joint queries, keys and values, as convolutions over one place."""
    plan = plan_of(guided=True)
    ours = build(plan).state_dict()
    theirs: dict[str, Tensor] = {}
    for name, places in module_names(plan).items():
        for kind in ("weight", "bias"):
            parts = [ours[f"{place}.{kind}"] for place in places if f"{place}.{kind}" in ours]
            if parts:
                theirs[f"{name}.{kind}"] = torch.cat(parts)
    path = folder / "afhqdog_p2.pt"
    torch.save(theirs, path)
    return path


def run_command(model: Path, photographs: Path, out: Path, options: list[str]) -> dict[str, Any]:
    """`nearfar anonymize` as its user runs it, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "nearfar",
        "anonymize",
        str(photographs),
        str(out),
        "--model",
        str(model),
        "--json",
    ]
    began = time.perf_counter()
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    summary = json.loads(output)
    steps, batches = summary["settings"]["steps"], summary["batches"]
    return {
        "batch_size": summary["batch_size"],
        "images": summary["total"],
        "steps": steps,
        "seconds_loading_and_start": round(time.perf_counter() - began - summary["seconds"], 2),
        "seconds_a_network_call": round(summary["network_seconds"] / (steps * batches), 3),
        "images_a_second": round(summary["total"] / summary["seconds"], 4),
        "share_outside_the_network": round(1 - summary["network_seconds"] / summary["seconds"], 4),
        "peak_memory_mib": round(usage.ru_maxrss / 1024),
    }


def main(
    steps: Annotated[int, typer.Option(help="Solver steps.")] = 4,
    images: Annotated[int, typer.Option(help="Copies of the photograph, each cropped elsewhere.")] = 1,
    device: str = "cpu",
    precision: str = "float32",
    batch_size: Annotated[int | None, typer.Option(help="Images in one call.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder to keep results in, to look at.")] = None,
) -> None:
    options = ["--steps", str(steps), "--device", device, "--precision", precision]
    options += ["--batch-size", str(batch_size)] if batch_size else []
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = keep or Path(name)
        photographs = folder / "photographs"
        photographs.mkdir(parents=True)
        for number in range(images):
            Image.fromarray(data.astronaut()[number : number + 450, 60:510]).save(photographs / f"{number}.png")
        for write in (write_afhq, write_celebahq):
            model = write(Path(name))
            results[model.name] = run_command(model, photographs, folder / f"out-{model.name}", options)
            typer.echo(f"{model.name}: {results[model.name]}")
    write_result(f"real_sizes_{device}", {"settings": options, **results})


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
