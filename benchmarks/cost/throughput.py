"""What a run costs beside the network, and how it compares with a loop over diffusers' scheduler.

    OMP_WAIT_POLICY=passive python -m benchmarks.cost.throughput [--images 256] [--rounds 3]

* overhead: time of the whole folder run (read, fit, noise, steps, check, write, record) over the time of the same
  number of bare network calls at the same batch size, spread over the cores in the same way, before and after it; and
  over what the run's own network calls took (their seconds, divided by the cores), which drifting clocks do not touch.
* diffusers: the same strength, steps and order of solver (SDE-DPM-Solver++ 2M), image by image, against ours at batch 1
  and at the automatic batch size; seconds an image, tensors in, tensors out.
* memory: highest resident memory of runs over 200 and over 2,000 images, each in a process of its own.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from benchmarks.support.common import faces, write_result
from nearfar.diffusion.denoiser import Network
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import Sampling
from nearfar.jobs.anonymize import anonymize_job
from nearfar.jobs.run import plan_run, run, worker_pool
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel
from nearfar.sampling.local_sampling import local_sample

STRENGTH, STEPS = 0.35, 20


def write_faces(folder: Path, count: int, size: int) -> None:
    """Photographs of the model's size as PNG files; more than 100 are the same faces, each made a little brighter."""
    folder.mkdir(parents=True)
    pixels = faces(100, size).add(1).mul(115).round().byte().permute(0, 2, 3, 1).numpy()
    for number in range(count):
        Image.fromarray(pixels[number % 100] + number // 100).save(folder / f"{number:05}.png")


def seconds(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


@dataclass
class Stopwatch:
    """A network that counts the seconds spent in it, over all threads."""

    network: Network
    spent: list[float]

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        began = time.perf_counter()
        output = self.network(x, t)
        self.spent.append(time.perf_counter() - began)
        return output


def bare_calls(model: FrozenModel, batches: int, batch_size: int, steps: int) -> Callable[[], None]:
    """The same network calls with nothing around them, spread over the cores as a run does it."""
    x = torch.randn(batch_size, model.image.channels, model.image.size, model.image.size, device=model.device)
    t = torch.full((batch_size,), 300.0, device=model.device)

    @torch.inference_mode()
    def one_batch(_: int) -> None:
        for _ in range(steps):
            model.denoiser.network(x, t)  # type: ignore[attr-defined]

    def call() -> None:
        with worker_pool(torch.get_num_threads()) as pool:
            list(pool.map(one_batch, range(batches)))

    return call


def overhead(model: FrozenModel, images: int, rounds: int) -> dict[str, Any]:
    """Folder run over bare network calls."""
    ratios, own = [], []
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "in"
        write_faces(source, images, model.image.size)
        for number in range(rounds):
            clock = Stopwatch(model.denoiser.network, [])  # type: ignore[attr-defined]
            timed = replace(model, denoiser=replace(model.denoiser, network=clock))  # type: ignore[type-var]
            job = anonymize_job(timed, Sampling(Level(STRENGTH), STEPS))
            plan = plan_run(job, source, Path(scratch) / f"out{number}", resume=False)
            bare = bare_calls(model, -(-images // plan.batch_size), plan.batch_size, STEPS)
            before = seconds(bare)
            progress = run(job, Path(scratch) / f"out{number}", plan)
            network = (before + seconds(bare)) / 2
            ratios.append(progress.seconds / network)
            own.append(progress.seconds / sum(clock.spent) * job.workers)
            typer.echo(f"run {progress.seconds:.1f} s, bare {network:.1f} s: {ratios[-1]:.3f}; own {own[-1]:.3f}")
    return {
        "images": images,
        "batch_size": plan.batch_size,
        "run_over_bare_calls": [round(ratio, 4) for ratio in ratios],
        "run_over_its_own_calls": [round(ratio, 4) for ratio in own],
        "medians": [round(statistics.median(ratios), 4), round(statistics.median(own), 4)],
    }


def scheduler_loop(model: FrozenModel, image: torch.Tensor) -> torch.Tensor:
    """One image through diffusers' scheduler, started at the noise level that its own grid offers."""
    scheduler = DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, algorithm_type="sde-dpmsolver++", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(round(STEPS / STRENGTH))
    scheduler.timesteps = scheduler.timesteps[-STEPS:]
    scheduler.set_begin_index(len(scheduler.sigmas) - 1 - STEPS)
    x = scheduler.add_noise(image, torch.randn_like(image), scheduler.timesteps[:1])
    for t in scheduler.timesteps:
        x = scheduler.step(model.denoiser.network(x, t[None].float()), t, x).prev_sample  # type: ignore[attr-defined]
    return x


@torch.inference_mode()
def against_diffusers(model: FrozenModel, rounds: int, count: int = 32) -> dict[str, Any]:
    """Seconds an image: theirs and ours one by one, in turns, then ours batched; medians over all images and rounds."""
    images = faces(count, model.image.size)
    theirs, single, batch = [], [], []
    for _ in range(rounds):
        for image in images:
            theirs.append(seconds(lambda: scheduler_loop(model, image[None])))  # noqa: B023
            single.append(seconds(lambda: local_sample(model, image[None], strength=STRENGTH, steps=STEPS)))  # noqa: B023
        batch.append(seconds(lambda: local_sample(model, images, strength=STRENGTH, steps=STEPS)) / count)
    medians = [statistics.median(times) for times in (theirs, single, batch)]
    typer.echo(f"diffusers {medians[0]:.3f} s/image, ours {medians[1]:.3f}, {medians[2]:.3f} at batch {count}")
    return {
        "seconds_an_image": [round(median, 4) for median in medians],
        "speed_up_batch_1": round(statistics.median(a / b for a, b in zip(theirs, single, strict=True)), 3),
        f"speed_up_batch_{count}": round(medians[0] / medians[2], 3),
    }


def peak_memory(images: int) -> float:
    """Highest resident memory, in MiB, of a process that anonymizes this many images in one step each."""
    command = [sys.executable, "-m", "benchmarks.cost.throughput", "--memory-of", str(images)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_of(images: int) -> None:
    model = load_model("bundled/faces")
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "in", Path(scratch) / "out"
        write_faces(source, images, model.image.size)
        job = anonymize_job(model, Sampling(Level(STRENGTH), 2))
        run(job, out, plan_run(job, source, out, resume=False))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main(
    images: Annotated[int, typer.Option(help="Images of the overhead run.")] = 256,
    rounds: Annotated[int, typer.Option(help="Repetitions of every comparison.")] = 3,
    memory_of_images: Annotated[int, typer.Option("--memory-of", hidden=True)] = 0,
) -> None:
    """Measure, print and write results/throughput.json."""
    if memory_of_images:
        memory_of(memory_of_images)
        return
    model = load_model("bundled/faces")
    result = {"overhead": overhead(model, images, rounds), "diffusers": against_diffusers(model, rounds)}
    few, many = peak_memory(200), peak_memory(2000)
    result["memory_mib"] = {"200": round(few, 1), "2000": round(many, 1), "ratio": round(many / few, 4)}
    typer.echo(str(result["memory_mib"]))
    write_result("throughput", {"model": model.provenance.sha256, **result})


if __name__ == "__main__":
    typer.run(main)
