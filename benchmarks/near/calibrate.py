"""Does a calibration on half of the ORL faces hold on the other half?

    OMP_WAIT_POLICY=passive python -m benchmarks.near.calibrate --data DATA --weights WEIGHTS --cache /tmp/cal

DATA holds faces_orl.zip, WEIGHTS mobilefacenet_casia_068.onnx and yunet_n_320_320.onnx. Of each of the 40 people every
second photograph is used, 5. The people are split by chance: 20 to calibrate on, 20 that are fresh, with fresh noise.
An output counts as re-identified if the nearest of the 99 other photographs of its half, as the recognizer sees them at
the model's size, is of the same person (chance 0.04). A target is hit if the score of the fresh half meets it, and
missed for certain if the whole two-sided 95 % interval of the fresh half, over people, lies on the wrong side. The
bundled `faces`, 20 steps, about 55,000 network calls for one image each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.near.faces import Faces, orl, squares
from benchmarks.support.common import write_result
from nearfar.audit.calibration import Curve, Found, estimate, isotonic
from nearfar.audit.scorer import Known, Scorer, face_eyes
from nearfar.audit.targets import Target
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import SOLVER, STEPS, Sampling
from nearfar.io.listing import Item
from nearfar.jobs.anonymize import Need, only_as_far, similarity
from nearfar.jobs.calibrate import Measuring, Sample, calibrate
from nearfar.jobs.job import Results
from nearfar.metrics import faces as recognition
from nearfar.metrics.features import feature_network
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel

TARGETS = (Target("rank1", 0.5), Target("rank1", 0.2), Target("similarity", 0.3))
MEASURES, BATCH, LIMIT = ("rank1", "similarity"), 32, 0.3


def half(model: FrozenModel, faces: Faces, images: Tensor, people: set[int], weights: Path, seed: int) -> Measuring:
    """Images of some of the people, and how they are made and scored."""
    chosen = [number for number, person in enumerate(faces.people) if person in people and number % 2 == 0]
    labels = torch.from_numpy(np.unique([faces.people[number] for number in chosen], return_inverse=True)[1])
    sample = Sample([str(number) for number in chosen], images[chosen], labels, people=True)
    eyes = face_eyes(recognition.Faces.load(weights / "yunet_n_320_320.onnx", weights / "mobilefacenet_casia_068.onnx"))
    known = Known.of(eyes, sample.images, sample.groups, labels)
    scorer = Scorer(MEASURES, known, known, feature_network("pixels", model))
    return Measuring(model, sample, scorer, STEPS, SOLVER, BATCH, seed)


def verified(fresh: Measuring, target: Target, strength: float) -> dict[str, Any]:
    """The score of the fresh half at a strength, with a two-sided 95 % interval."""
    values = scores(fresh, [strength] * len(fresh.sample.names))[target.measure].numpy()
    point = estimate(strength, values, fresh.sample.groups.numpy(), target.kind.rate, 0.025)
    return {"value": point.value, "low": point.low, "high": point.high, "images": len(values)}


def scores(work: Measuring, strengths: Sequence[float]) -> dict[str, Tensor]:
    """By measure, of each image of the sample at its own strength."""
    items = [Item(Path(), "", number, at) for number, at in enumerate(strengths)]
    images, starts = work.sample.images, range(0, len(items), BATCH)
    parts = [work.transform(images[at : at + BATCH], items[at : at + BATCH], lambda *_: None) for at in starts]
    return {name: torch.cat([part.figures[name] for part in parts]) for name in MEASURES}


def judged(target: Target, found: Found, fresh: Measuring) -> dict[str, Any]:
    """What became of one target."""
    strength = found.limits[str(target)]
    if strength is None:
        return {"target": str(target), "strength": None}
    calibrated = next(point for point in found.curves[target.measure] if point.strength == strength)
    there = verified(fresh, target, strength)
    return {
        "target": str(target),
        "strength": strength,
        "calibrated": {"value": calibrated.value, "high": calibrated.high},
        "fresh": there,
        "hit": there["value"] <= target.value,
        "missed_for_certain": there["low"] > target.value,
    }


def per_image(work: Measuring, value: float) -> dict[str, Any]:
    """Strengths of the images' own for a similarity of at most `value`, then the same strengths with fresh noise."""
    attacker, images = work.scorer.attacker, work.sample.images
    need = Need(Target("similarity", value), partial(similarity, attacker.eyes))
    transform = only_as_far(work.model, SecretKey.from_seed(1), need, Sampling(Level(1.0)))
    parts = [transform(some, [Item(Path(), "")] * len(some), lambda *_: None) for some in images.split(BATCH)]
    results = Results.joined(parts)
    strengths, scores = (results.figures[name].float() for name in ("strength", "similarity"))
    met = strengths > 0
    numbers = torch.arange(len(images))
    ranked = torch.tensor(work.scorer(results.images, images, numbers)["rank1"])
    again = scores(work, [max(strength, 0.05) for strength in strengths.tolist()])
    fresh = again["similarity"]
    return {
        "limit": value,
        "attacker": attacker.eyes.name,
        "met": met.float().mean().item(),
        "strength_quantiles": torch.quantile(strengths[met], torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist(),
        "strength_mean": strengths[met].mean().item(),
        "published_similarity": scores[met].mean().item(),
        "published_above_limit": (scores[met] > value).float().mean().item(),
        "published_rank1": ranked[met].mean().item(),
        "fresh_noise_similarity": fresh[met].mean().item(),
        "fresh_noise_above_limit": (fresh[met] > value).float().mean().item(),
        "fresh_noise_rank1": again["rank1"][met].mean().item(),
    }


def described(curve: Curve) -> dict[str, Any]:
    return {
        "strength": [point.strength for point in curve],
        "value": [round(point.value, 4) for point in curve],
        "high": [round(point.high, 4) for point in curve],
        "isotonic": [round(value, 4) for value in isotonic([point.value for point in curve], rises=False)],
    }


def main(
    data: Annotated[Path, typer.Option()],
    weights: Annotated[Path, typer.Option()],
    cache: Annotated[Path, typer.Option(help="Where an interrupted search goes on.")],
) -> None:
    """Calibrate, verify, and write results/calibrate.json."""
    model, faces = load_model("bundled/faces"), orl(data)
    images = squares(faces, model.image.size)
    order = np.random.default_rng(0).permutation(sorted(set(faces.people))).tolist()
    first, second = (half(model, faces, images, set(some), weights, seed)
                     for seed, some in enumerate((order[:20], order[20:])))  # fmt: skip
    cache.mkdir(parents=True, exist_ok=True)
    found = calibrate(first, TARGETS, cache / "orl", settings={}, resume=True, parts=8)
    curves = {name: described(curve) for name, curve in found.curves.items()}
    rows = [judged(target, found, second) for target in TARGETS]
    typer.echo("\n".join(map(str, rows)))
    own = per_image(second, LIMIT)
    typer.echo(str(own))
    split = {"calibrated_on": sorted(order[:20]), "fresh": sorted(order[20:])}
    write_result("calibrate", {"model": model.provenance.sha256, "split": split, "targets": rows, "curves": curves,
                               "per_image": own})  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
