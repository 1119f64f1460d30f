"""Measure a face model: draw images from it and compare them with real ones, by a face recognizer and a face detector.

Three questions, each asked of real test images too, which give the value that a perfect model would reach:

    distances          Fréchet and kernel distance to the test images, in the recognizer's space (so it is no "FID")
    detector           share of images in which YuNet finds exactly one face
    nearest_training   cosine and pixel distance to the closest training image, either way round: is it memorized?

    python recipes/evaluate_model.py MODEL faces.zip --recognizer mobilefacenet.onnx --detector yunet.onnx --out OUT
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from nearfar import FrozenModel, SecretKey, load_model, local_sample
from nearfar.diffusion.solver import SOLVER
from nearfar.reports.page import contact_sheet
from training_data import load_images

BATCH = 32
DETECTOR_PIXELS, DETECTOR_SCORE = 160, 0.6
FRAME, TEMPLATE = 64, (96, 112)
LANDMARKS = ((19.30, 18.11), (43.97, 17.73), (32.32, 31.98), (21.12, 43.26), (42.79, 42.91))
"""Mean position of eyes, nose and mouth corners in the 11,000 aligned UTKFace images (pixels of 64 x 64)."""
TEMPLATE_LANDMARKS = ((30.29, 51.70), (65.53, 51.50), (48.03, 71.74), (33.55, 92.37), (62.73, 92.20))
"""The same five points where the recognizer expects them (pixels of 96 x 112)."""
QUANTILES = (0.05, 0.5, 0.95)
PACKAGES = ("nearfar", "torch", "torchmetrics", "diffusers", "opencv-python-headless", "numpy", "pillow")


class Precomputed(torch.nn.Module):
    """Feature network for torchmetrics that takes the recognizer's embeddings, so that each is computed once."""

    num_features = 128

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings


@dataclass(frozen=True, eq=False)
class Faces:
    """Images, uint8 `(count, 3, size, size)`, and their embeddings, float64 `(count, 128)` of unit length."""

    images: Tensor
    embeddings: Tensor


@dataclass(frozen=True, eq=False)
class Neighbors:
    """Of each image the closest training image by recognizer and by pixels: value and index, each `(count,)`.

    `cosine` is that of the embeddings, `distance` the root mean square difference in gray levels (0 to 255).
    """

    cosine: Tensor
    by_cosine: Tensor
    distance: Tensor
    by_distance: Tensor


def draw_samples(model: FrozenModel, count: int, steps: int, seed: int) -> Tensor:
    """`count` images from pure noise, uint8 `(count, 3, size, size)`; the last batch is full as well, then cut.

    Strength 1 leaves nothing of its input, but noise is derived from its content: each image starts from another one.
    """
    generator, key = torch.Generator().manual_seed(seed), SecretKey.from_seed(seed)
    batches = math.ceil(count / BATCH)
    inputs = torch.rand(batches, BATCH, 3, model.image.size, model.image.size, generator=generator) * 2 - 1
    with typer.progressbar(inputs, label="sampling", file=sys.stderr) as progress:
        drawn = [local_sample(model, batch, strength=1.0, key=key, steps=steps) for batch in progress]
    return torch.cat(drawn)[:count].add(1).mul(127.5).round().to(torch.uint8)


def alignment(size: int) -> np.ndarray:
    """The similarity transform, `(2, 3)`, from pixels of an aligned `size` x `size` face to the recognizer's template.

    Least squares over the five mean landmarks; pixel centers are whole numbers, hence the halves.
    """
    source = (np.array(LANDMARKS) + 0.5) * size / FRAME - 0.5
    target = np.array(TEMPLATE_LANDMARKS)
    p, q = ((points - points.mean(0)) @ (1, 1j) for points in (source, target))
    turn = np.vdot(p, q) / np.vdot(p, p).real
    matrix = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.column_stack([matrix, target.mean(0) - matrix @ source.mean(0)])


def embed(network: cv2.dnn.Net, images: Tensor) -> Tensor:
    """Embeddings, float64 `(count, 128)`, of uint8 RGB faces; outside of the frame the recognizer sees black."""
    transform = alignment(images.shape[-1])
    embeddings = []
    for batch in images.split(64):
        faces = [cv2.warpAffine(face, transform, TEMPLATE) for face in batch.permute(0, 2, 3, 1).numpy()]
        network.setInput(cv2.dnn.blobFromImages(faces, 1 / 128, TEMPLATE, (127.5, 127.5, 127.5)))
        embeddings.append(torch.from_numpy(network.forward().copy()))
    return torch.nn.functional.normalize(torch.cat(embeddings).double())


def faces_of(network: cv2.dnn.Net, images: Tensor) -> Faces:
    return Faces(images, embed(network, images))


def distances(real: Tensor, other: Tensor, seed: int) -> dict[str, float]:
    """Fréchet and kernel distance of two sets of embeddings; the deviation is that from subset to subset."""
    subset = min(500, len(real) // 2, len(other) // 2)
    frechet = FrechetInceptionDistance(Precomputed())
    kernel = KernelInceptionDistance(Precomputed(), subsets=100, subset_size=subset, gamma=1.0)
    for metric in (frechet, kernel):
        metric.update(real, real=True)
        metric.update(other, real=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mean, deviation = kernel.compute()
    kernels = {"kernel": mean.item(), "kernel_deviation": deviation.item(), "kernel_subset": subset}
    return {"frechet": frechet.compute().item(), **kernels, "images": len(other)}


def face_scores(detector: Path, images: Tensor) -> dict[str, Any]:
    """Share of images with exactly one detected face, with none, and quantiles of the best score (0 without a face)."""
    side = (DETECTOR_PIXELS, DETECTOR_PIXELS)
    yunet = cv2.FaceDetectorYN.create(str(detector), "", side, DETECTOR_SCORE)
    enlarged = (cv2.resize(face, side, interpolation=cv2.INTER_CUBIC) for face in images.permute(0, 2, 3, 1).numpy())
    found = [yunet.detect(cv2.cvtColor(face, cv2.COLOR_RGB2BGR))[1] for face in enlarged]
    counts = np.array([0 if faces is None else len(faces) for faces in found])
    best = torch.tensor([0.0 if faces is None else faces[:, -1].max() for faces in found])
    return {"one_face": (counts == 1).mean(), "no_face": (counts == 0).mean(), "best_score": quantiles(best)}


def nearest(faces: Faces, mirrored: Faces, training: Faces) -> Neighbors:
    """The closest training image of each face; the model saw mirrored images too, so both ways round are compared."""
    both = (faces, mirrored)
    cosine, by_cosine = torch.maximum(*(side.embeddings @ training.embeddings.T for side in both)).max(1)
    distance, by_distance = torch.minimum(*(pixel_distances(side.images, training.images) for side in both)).min(1)
    return Neighbors(cosine, by_cosine, distance, by_distance)


def pixel_distances(images: Tensor, bank: Tensor) -> Tensor:
    """Root mean square difference, in gray levels, of every image and every image of `bank`: `(images, bank)`."""
    rows, columns = images.flatten(1).float(), bank.flatten(1).float()
    return torch.cdist(rows, columns) / rows.shape[1] ** 0.5


def quantiles(values: Tensor) -> dict[str, float]:
    return {f"{share:.0%}": values.double().quantile(share).item() for share in QUANTILES}


def summary(neighbors: Neighbors) -> dict[str, dict[str, float]]:
    """Quantiles of both measures, with the closest of all."""
    return {
        "cosine": {**quantiles(neighbors.cosine), "closest": neighbors.cosine.max().item()},
        "gray_levels": {**quantiles(neighbors.distance), "closest": neighbors.distance.min().item()},
    }


def enlarge(image: Tensor) -> Image.Image:
    """An image `(3, size, size)`, four times as large (bicubic)."""
    side = 4 * image.shape[-1]
    return Image.fromarray(image.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BICUBIC)


def write_samples(path: Path, samples: Tensor) -> None:
    """The first 128 samples as drawn, 8 rows of 16."""
    rows = [[enlarge(sample) for sample in row] for row in samples[: min(128, len(samples) // 16 * 16)].split(16)]
    contact_sheet(rows, [""] * 16, 4 * samples.shape[-1]).save(path)


def write_pairs(path: Path, samples: Tensor, training: Tensor, closeness: Tensor, partners: Tensor) -> None:
    """The 16 samples of the highest `closeness` above their `partners` in the training set."""
    order = closeness.argsort(descending=True)[:16]
    rows = [[enlarge(samples[i]) for i in order], [enlarge(training[partners[i]]) for i in order]]
    contact_sheet(rows, [f"{abs(closeness[i].item()):.3g}" for i in order], 4 * samples.shape[-1]).save(path)


def feature_network(path: Path) -> dict[str, str | int]:
    """What the distances are measured with."""
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "dimensions": Precomputed.num_features,
        "input": "RGB, one fixed similarity transform to 96 x 112, bilinear, black outside, (x - 127.5) / 128",
        "kernel": "(cosine + 1)^3, unbiased, 100 subsets",
    }


def compare(samples: Faces, test: Faces, training: Faces, seed: int) -> dict[str, dict[str, float]]:
    """Distances of the samples, and of as many training images, to the test images."""
    chosen = torch.randperm(len(training.images), generator=torch.Generator().manual_seed(seed))[: len(samples.images)]
    return {
        "samples_to_test": distances(test.embeddings, samples.embeddings, seed),
        "training_to_test": distances(test.embeddings, training.embeddings[chosen], seed),
    }


def main(
    folder: Annotated[Path, typer.Argument(metavar="MODEL", help="A diffusers folder.", exists=True)],
    data: Annotated[Path, typer.Argument(help="The zip or folder of aligned faces it was trained on.", exists=True)],
    *,
    recognizer: Annotated[Path, typer.Option(help="MobileFaceNet (ONNX).", exists=True)],
    detector: Annotated[Path | None, typer.Option(help="YuNet (ONNX), to count faces.", exists=True)] = None,
    split: Annotated[str, typer.Option(help="The real images to compare with: those below this folder.")] = "test/",
    train_split: Annotated[str, typer.Option(help="The images the model was trained on.")] = "train/",
    count: Annotated[int, typer.Option(help="Images to draw.", min=32)] = 2000,
    steps: Annotated[int, typer.Option(help="Network calls an image.")] = 25,
    seed: Annotated[int, typer.Option(help="Seed of samples and subsets.")] = 0,
    out: Annotated[Path, typer.Option(help="Where metrics.json and the sheets go.")] = Path("runs/evaluation"),
) -> None:
    """Draw images from MODEL, measure them against DATA, print and write the figures and three sheets."""
    out.mkdir(parents=True, exist_ok=True)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    cv2.setNumThreads(torch.get_num_threads())
    model, network = load_model(folder), cv2.dnn.readNetFromONNX(str(recognizer))
    test, train = (load_images(data, part, model.image.size) for part in (split, train_split))
    began = time.monotonic()
    images = {"samples": draw_samples(model, count, steps, seed), "test": test}
    seconds = time.monotonic() - began
    training = faces_of(network, train)
    faces = {name: faces_of(network, images[name]) for name in images}
    neighbors = {name: nearest(faces[name], faces_of(network, images[name].flip(3)), training) for name in images}
    settings = {"count": count, "steps": steps, "solver": repr(SOLVER), "batch": BATCH, "seed": seed}
    report = {
        "model": {**asdict(model.provenance), "size": model.image.size, "parameters": model.parameters},
        "sampling": {**settings, "seconds": round(seconds), "threads": torch.get_num_threads()},
        "real_images": {"file": data.name, split: len(test), train_split: len(train)},
        "features": feature_network(recognizer),
        "distances": compare(faces["samples"], faces["test"], training, seed),
        "detector": detector and {name: face_scores(detector, images[name]) for name in images},
        "nearest_training": {name: summary(neighbors[name]) for name in images},
        "versions": {name: version(name) for name in PACKAGES},
        "seconds": round(time.monotonic() - began),
    }
    text = json.dumps(report, indent=2)
    (out / "metrics.json").write_text(text + "\n", encoding="utf-8")
    samples, closest = images["samples"], neighbors["samples"]
    write_samples(out / "samples.png", samples)
    write_pairs(out / "closest_cosine.png", samples, train, closest.cosine, closest.by_cosine)
    write_pairs(out / "closest_pixels.png", samples, train, -closest.distance, closest.by_distance)
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
