"""Peak memory of fitting a spread to 200 latents of 3x256x256 and drawing 1,000 from it, each family in a process.

    OMP_WAIT_POLICY=passive python -m benchmarks.cost.spread_memory [--count 200] [--draws 1000] [--size 256]

Each draw is looked at (its mean square) and let go, as a decoder would. The latents themselves are part of the peak.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch

from benchmarks.support.common import write_result
from benchmarks.support.latent_draws import samples
from nearfar.latents.covariance import (
    Diagonal,
    LowRank,
    Scalar,
    Spectral,
    Structured,
    spread_about,
    white_noise,
)
from nearfar.latents.mixtures import mix
from nearfar.latents.shell import Shell

FAMILIES: dict[str, Any] = {
    "scalar": Scalar,
    "diagonal": Diagonal,
    "spectral": Spectral,
    "shrinkage": LowRank,
    "structured": Structured,
}
NAMES = (*FAMILIES, "parents")


def peak() -> int:
    """Most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measure(name: str, count: int, draws: int, size: int) -> dict[str, Any]:
    """Fit and draw in this process."""
    generator = torch.Generator().manual_seed(0)
    before = peak()
    latents = white_noise(count, (3, size, size), generator)
    latents.mul_(torch.linspace(0.5, 1.5, size)).add_(0.2)
    mean, shell = latents.mean(0), Shell.fit(latents)
    start = time.perf_counter()
    if name == "parents":
        parts = (mix(latents, mean, 25, generator).latents for _ in range(draws // 25))
    else:
        parts = samples(mean, FAMILIES[name].fit(latents), spread_about(count), draws, generator)
    fitted = time.perf_counter() - start
    square = sum(shell.project(part).square().flatten(1).mean(1).sum().item() for part in parts) / draws
    return {
        "family": name,
        "peak_mib": peak(),
        "before_mib": before,
        "latents_mib": latents.nbytes >> 20,
        "fit_seconds": round(fitted, 2),
        "draw_seconds": round(time.perf_counter() - start - fitted, 2),
        "mean_square": square,
    }


def in_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    sizes = [f"--{key}={getattr(arguments, key)}" for key in ("count", "draws", "size")]
    command = [sys.executable, "-m", "benchmarks.cost.spread_memory", *sizes, "--only", name]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--only", choices=NAMES)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.count, arguments.draws, arguments.size)))
        return
    rows = [in_process(name, arguments) for name in NAMES]
    sizes = {key: getattr(arguments, key) for key in ("count", "draws", "size")}
    write_result("spread_memory", {**sizes, "families": rows})


if __name__ == "__main__":
    main()
