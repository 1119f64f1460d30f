"""What simple attackers get from local samples of 100 faces, at each strength.

    OMP_WAIT_POLICY=passive python -m benchmarks.near.privacy

* linkage: the attacker holds the originals and takes the nearest one, by pixels, for each output of the default solver
  (chance: 1 %).
* walk back: the attacker holds one output of a deterministic run (DDIM), the model and its noise, follows the
  trajectory back to the noisy image and takes the noise out again. Correlation of the first 8 faces with their
  originals: as published, with the noise known, and with other noise.
* mu: local sampling as a Gaussian mechanism on the pixels, for the mean distance between two of the faces: a test
  between two candidates has power Phi(mu - Phi^-1(1 - alpha)) (Dong et al., arXiv 1905.02383). Below about 1 protects.
"""

from __future__ import annotations

from typing import Any

import torch
import typer
from torch import Tensor

from benchmarks.support.common import faces, write_result
from nearfar.diffusion.noise import NoiseStream, SecretKey, noise_for
from nearfar.diffusion.schedule import WARP
from nearfar.diffusion.solver import DDIM, Heun, solve
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel
from nearfar.sampling.local_sampling import local_sample
from nearfar.tensors import per_image

STRENGTHS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
WALKED = 8
WALK_STEPS = 50


def linkage(originals: Tensor, outputs: Tensor) -> float:
    """Share of outputs whose nearest original is their own."""
    nearest = torch.cdist(outputs.flatten(1), originals.flatten(1)).argmin(dim=1)
    return (nearest == torch.arange(len(originals))).float().mean().item()


def walk_back(model: FrozenModel, output: Tensor, original: Tensor, strength: float, key: SecretKey) -> Tensor:
    """The attacker's reconstruction from a published image; `original` and `key` stand for the noise that leaked."""
    schedule = model.schedule
    start = schedule.time_of_strength(torch.full((len(output),), strength, dtype=torch.float64))
    noisy = solve(model.denoiser, output, schedule.grid(start, WALK_STEPS, WARP).flip(1), Heun())
    noise = NoiseStream(noise_for(original, start, key, 0), output.shape[1:]).draw()
    alpha, sigma = (per_image(c, output) for c in schedule.coefficients(start))
    return (noisy - sigma * noise) / alpha


def correlation(x: Tensor, y: Tensor) -> float:
    """Mean over images of the correlation between their pixels."""
    u, v = (a.flatten(1) - a.flatten(1).mean(dim=1, keepdim=True) for a in (x, y))
    return torch.nn.functional.cosine_similarity(u, v).mean().item()


def attack(model: FrozenModel, originals: Tensor, strength: float) -> dict[str, Any]:
    """All figures of one strength."""
    key, wrong = SecretKey.random(), SecretKey.random()
    outputs = torch.cat([local_sample(model, batch, strength=strength, key=key) for batch in originals.split(25)])
    few = originals[:WALKED]
    published = local_sample(model, few, strength=strength, key=key, steps=WALK_STEPS, solver=DDIM())
    published = published.add(1).mul(127.5).round().div(127.5).sub(1)
    sigma = model.schedule.ratio(model.schedule.time_of_strength(torch.tensor([strength], dtype=torch.float64))).item()
    spread = torch.pdist(originals.flatten(1)).mean().item()
    return {
        "strength": strength,
        "sigma": round(sigma, 3),
        "linkage": round(linkage(originals, outputs), 3),
        "published": round(correlation(published, few), 3),
        "known_noise": round(correlation(walk_back(model, published, few, strength, key), few), 3),
        "other_noise": round(correlation(walk_back(model, published, few, strength, wrong), few), 3),
        "mu": 0.0 if strength == 1 else round(spread / sigma, 2),
    }


def main() -> None:
    """Measure, print a table and write results/privacy.json."""
    model = load_model("bundled/faces")
    originals = faces(100, model.image.size)
    rows = []
    for strength in STRENGTHS:
        rows.append(attack(model, originals, strength))
        typer.echo(str(rows[-1]))
    write_result("privacy", {"model": model.provenance.sha256, "rows": rows})


if __name__ == "__main__":
    typer.run(main)
