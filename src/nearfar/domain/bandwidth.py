"""The largest eta with which denoising stays in a domain: the paper's bandwidth (arXiv 2310.09213), by measurement.

Fresh noise on the way down makes outputs differ from what the latents came from, and lets the model pull them to what
it knows. Inverted real latents are denoised with one eta after another until too many of them have left the domain.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from nearfar.diffusion.solver import DDIM, Sampling
from nearfar.domain.guards import Guards, Judgment
from nearfar.errors import ModelWarning, UsageError
from nearfar.models.model import FrozenModel
from nearfar.sampling.inversion import check_latents
from nearfar.sampling.local_sampling import BATCH, decode, descend, draws_of_steps, numbered_noise
from nearfar.tensors import Images, Latents

ETAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
KEPT = 0.9
"""The share of outputs in the domain may fall to this share of what the first eta gives."""


@dataclass(frozen=True)
class Bandwidth:
    """What was tried, rising, and what share of the outputs stayed in the domain; value: the largest eta that is fine.

    The last of `etas` is the first that failed, unless all were fine. calls: network calls for each image, the
    features of the guards included.
    """

    etas: tuple[float, ...]
    kept: tuple[float, ...]
    value: float
    calls: int


def bandwidth(
    model: FrozenModel,
    latents: Latents,
    guards: Guards,
    sampling: Sampling,
    *,
    etas: Sequence[float] = ETAS,
    seed: int = 0,
    batch_size: int = BATCH,
) -> Bandwidth:
    """Denoise latents with one eta after another while the outputs stay in the domain.

    latents: of real images of the domain at the level of `sampling` (`invert`), whose solver is of no account; some
    tens are enough. An output stays if it is
    neither captured nor too strong in layout or detail. That it is a copy or too weak does not count: without fresh
    noise all are copies, and the domain's Gaussian knows what it was fitted to.
    etas: in [0, 1], rising; the share that stays with the first is what the others are measured by. seed: of the noise,
    which is the same for all etas. Warns if with the first eta less than half stay: then the level or the guards are
    wrong. Cost: `steps + 1` network calls for each eta tried and each batch.
    """
    check_latents(model, latents)
    check_etas(etas)
    kept: list[float] = []
    for eta in etas:
        outputs = denoised(model, latents, replace(sampling, solver=DDIM(eta)), seed, batch_size)
        judgments = guards.judge(model, outputs, batch_size)
        kept.append(sum(map(stays, judgments)) / len(judgments))
        if kept[-1] < KEPT * kept[0]:
            break
    if kept[0] < 0.5:
        text = f"only {kept[0]:.0%} of the latents lead back into the domain with eta {etas[0]:g}: take a lower level"
        warnings.warn(text, ModelWarning, stacklevel=2)
    fine = [eta for eta, share in zip(etas, kept, strict=False) if share >= KEPT * kept[0] > 0]
    calls = len(kept) * (sampling.steps + (guards.kind == "network"))
    return Bandwidth(tuple(etas[: len(kept)]), tuple(kept), max(fine, default=etas[0]), calls)


def check_etas(etas: Sequence[float]) -> None:
    if not etas or list(etas) != sorted(set(etas)) or etas[0] < 0 or etas[-1] > 1:
        raise UsageError(f"etas must rise within [0, 1], got {', '.join(f'{eta:g}' for eta in etas) or 'none'}")


def stays(judgment: Judgment) -> bool:
    return judgment.captured <= 0 and judgment.quality <= 1


def denoised(model: FrozenModel, latents: Latents, sampling: Sampling, seed: int, batch_size: int) -> Images:
    """The images that latents at a level lead to; the noise of each is its own."""
    parts = []
    for numbers in torch.split(torch.arange(len(latents)), batch_size):
        noise = numbered_noise(model, "bandwidth", numbers.tolist(), seed, draws_of_steps(sampling))
        parts.append(decode(model, descend(model, latents[numbers], sampling, noise)))
    return torch.cat(parts)
