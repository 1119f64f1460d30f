"""Does augmentation by local samples help a classifier that has few labels?

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python -m benchmarks.near.augment digits MODEL [DATA] --labels 2,5,10

MODEL is a diffusers folder that recipes/train_ddpm.py trained on all training images of the task **without labels**:
the setting is semi-supervised, the plain classifier sees the few labeled images only. MODEL saw no test image.

Arms, all with the same weights at the start, the same order of images and the same number of optimizer steps:

    none      the labeled images
    moves     shifted by a few pixels; mirrored and turned where the task allows it
    local     half of the time one of K local samples in an image's place
    both      local, then moves
    noise     moves, and half of the time the image with white noise of the size that its local samples differ by
    checked   both, without copies to which the seed's own `moves` classifier gives another class

The strength is chosen on the validation part with two seeds of its own, the result is the accuracy on the test part
(mean over classes). Differences are paired by seed; their intervals are Student's, 95 %. Results are kept by task.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from scipy.stats import t as student
from torch import Tensor

from benchmarks.near.classifier import Shown, Training, accuracy, predict, train
from benchmarks.near.few_labels import TASKS, Labeled, Task, few
from benchmarks.support.common import RESULTS, write_result
from nearfar import FrozenModel, SecretKey, load_model, local_sample

PLAIN, CONTROLS = ("none", "moves", "local", "both"), ("noise", "checked")
PAIRS = (("moves", "none"), ("local", "none"), ("both", "moves"), ("noise", "moves"), ("checked", "moves"))
CHOOSING_SEEDS = (100, 101)
BATCH = 32


@dataclass
class Copies:
    """Local samples of a pool's images, made once for each image and strength: `of(rows, strength)`."""

    model: FrozenModel
    pool: Labeled
    count: int
    steps: int
    made: dict[tuple[float, int], Tensor] = field(default_factory=dict)

    def of(self, rows: Tensor, strength: float) -> Tensor:
        """Float32 `(rows, count, 3, size, size)`."""
        missing = [row for row in rows.tolist() if (strength, row) not in self.made]
        wanted = [(row, variant) for row in missing for variant in range(1, self.count + 1)]
        parts = [self.sample(wanted[start : start + BATCH], strength) for start in range(0, len(wanted), BATCH)]
        if parts:
            drawn = torch.cat(parts).unflatten(0, (-1, self.count))
            self.made.update({(strength, row): copies for row, copies in zip(missing, drawn, strict=True)})
        return torch.stack([self.made[strength, row] for row in rows.tolist()])

    def sample(self, wanted: Sequence[tuple[int, int]], strength: float) -> Tensor:
        rows, variants = zip(*wanted, strict=True)
        images, key = self.pool.images[list(rows)], SecretKey.from_seed(0)
        return local_sample(self.model, images, strength=strength, key=key, steps=self.steps, variant=list(variants))


def noise_like(copies: Tensor, images: Tensor, seed: int) -> Tensor:
    """The images with white noise, each of the root mean square difference between the copy in its place and the image.

    `copies` `(count, K, 3, size, size)`, `images` `(count, 3, size, size)`; in [-1, 1] as the copies.
    """
    originals = images[:, None]
    size = (copies - originals).square().mean(dim=(2, 3, 4), keepdim=True).sqrt()
    noise = torch.randn(copies.shape, generator=torch.Generator().manual_seed(seed))
    return (originals + size * noise).clamp(-1, 1)


def agreeing(model: torch.nn.Sequential, copies: Tensor, labels: Tensor) -> Tensor:
    """Which copies the classifier gives the class of their original, bool `(count, K)`."""
    return predict(model, copies.flatten(0, 1)).reshape(copies.shape[:2]) == labels[:, None]


def run_seed(task: Task, copies: Tensor, rows: Tensor, training: Training, seed: int, controls: bool) -> dict[str, Any]:
    """Test accuracy of every arm, and the share of copies whose class the `moves` classifier confirms."""
    known = task.pool.at(rows)
    still, moving = Shown(known), Shown(known, symmetry=task.symmetry)
    shown = {"none": still, "moves": moving, "local": replace(still, copies=copies)}
    shown["both"] = replace(moving, copies=copies)
    models = {arm: train(what, task.classes, training, seed) for arm, what in shown.items()}
    agree = agreeing(models["moves"], copies, known.labels)
    if controls:
        extra = {"noise": replace(moving, copies=noise_like(copies, known.images, seed))}
        extra["checked"] = replace(moving, copies=copies, usable=agree)
        models |= {arm: train(what, task.classes, training, seed) for arm, what in extra.items()}
    figures = {arm: accuracy(model, task.test) for arm, model in models.items()}
    return {"seed": seed, "agree": agree.double().mean().item(), "accuracy": figures}


def choose_strength(
    task: Task, copies: Copies, strengths: Sequence[float], each: int, training: Training
) -> dict[float, float]:
    """Validation accuracy of `both` for each strength, the mean over the choosing seeds; 0 stands for `moves`."""
    found = dict.fromkeys([0.0, *strengths], 0.0)
    for seed in CHOOSING_SEEDS:
        rows = few(task.pool, each, seed)
        moving = Shown(task.pool.at(rows), symmetry=task.symmetry)
        for strength in found:
            what = replace(moving, copies=copies.of(rows, strength)) if strength else moving
            model = train(what, task.classes, training, seed)
            found[strength] += accuracy(model, task.validation) / len(CHOOSING_SEEDS)
    typer.echo("validation: " + "  ".join(f"{level:g} {share:.3f}" for level, share in found.items()))
    return found


def difference(runs: Sequence[dict[str, Any]], arm: str, other: str) -> dict[str, float]:
    """Mean gain of an arm over another, paired by seed, in points, with its 95 % interval by Student's t."""
    gains = torch.tensor([100 * (run["accuracy"][arm] - run["accuracy"][other]) for run in runs], dtype=torch.float64)
    half = student.ppf(0.975, len(gains) - 1) * gains.std().item() / len(gains) ** 0.5
    mean = gains.mean().item()
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracy of each arm, in per cent, and the paired differences that `PAIRS` names."""
    arms = runs[0]["accuracy"]
    means = {arm: 100 * sum(run["accuracy"][arm] for run in runs) / len(runs) for arm in arms}
    gains = {f"{arm} - {other}": difference(runs, arm, other) for arm, other in PAIRS if arm in arms}
    return {"accuracy": means, "gain": gains, "agree": sum(run["agree"] for run in runs) / len(runs)}


def keep(task: str, result: dict[str, Any]) -> None:
    """Put a task's result beside those of the other tasks."""
    path = RESULTS / "augment.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known.pop("machine", None)
    write_result("augment", {**known, task: result})


def main(
    task: Annotated[str, typer.Argument(help="digits, cells or cifar.")],
    model: Annotated[Path, typer.Argument(help="A model trained on the task's training images.")],
    data: Annotated[Path, typer.Argument(help="The folder with bloodcells.zip and cifar10.zip.")] = Path(),
    labels: Annotated[str, typer.Option(help="Labeled images of each class, one setting each.")] = "10,25,100",
    seeds: Annotated[int, typer.Option(help="Trainings of each arm and setting.")] = 5,
    copies: Annotated[int, typer.Option(help="Local samples of each image.")] = 4,
    steps: Annotated[int, typer.Option(help="Network calls for each local sample.")] = 10,
    strengths: Annotated[
        str, typer.Option(help="Strengths to choose from; one is taken as it is.")
    ] = "0.1,0.2,0.3,0.4",
    training: Annotated[int, typer.Option(help="Optimizer steps of the classifier.")] = 200,
    name: Annotated[str, typer.Option(help="Keep the result under this name instead of the task's.")] = "",
) -> None:
    """Measure, print and write results/augment.json."""
    began, parts, how = time.monotonic(), TASKS[task](data), Training(training)
    each = [int(number) for number in labels.split(",")]
    levels = [float(level) for level in strengths.split(",")]
    frozen = load_model(model)
    drawn, middle = Copies(frozen, parts.pool, copies, steps), each[len(each) // 2]
    tried = choose_strength(parts, drawn, levels, middle, how) if len(levels) > 1 else {}
    strength = max(levels, key=lambda level: tried.get(level, 0.0))
    result: dict[str, Any] = {"model": frozen.provenance.sha256, "strength": strength, "copies": copies, "steps": steps}
    result |= {"training": training, "tried": tried, "sizes": [len(parts.pool), len(parts.validation), len(parts.test)]}
    result["labels"] = {}
    for number in each:
        runs = []
        for seed in range(seeds):
            rows = few(parts.pool, number, seed)
            runs.append(run_seed(parts, drawn.of(rows, strength), rows, how, seed, number == middle))
        found = summary(runs)
        typer.echo(f"{task}, {number} labels a class: " + json.dumps(found))
        result["labels"][number] = {**found, "runs": runs}
        keep(name or task, {**result, "seconds": time.monotonic() - began})


if __name__ == "__main__":
    typer.run(main)
