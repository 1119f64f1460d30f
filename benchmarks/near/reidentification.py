r"""Who is it? Attacks on local samples of faces at every strength, against what was lost of the pictures.

    OMP_WAIT_POLICY=passive python -m benchmarks.near.faces --data DATA --cache /tmp/near_faces
    OMP_WAIT_POLICY=passive python -m benchmarks.near.reidentification \
        --data DATA --weights WEIGHTS --cache /tmp/near_faces

WEIGHTS holds mobilefacenet_casia_068.onnx and yunet_n_320_320.onnx. Three eyes: pixels (what the model is shown), an
EfficientNet, the face recognizer; each as it is, and as an attacker who learned from outputs of other people. Two rows
tell what is lost before any noise: the pictures untouched, and pictures that were only brought to the model's size and
back, which is the fair upper end for every strength. Membership: whether the bundled model tells its training faces
from test faces that are nobody's among them.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.near.faces import AVERAGED, SETS, VARIANTS, Faces, cached, framed, pictures, squares, utk
from benchmarks.support.common import write_result
from nearfar.audit.model_attacks import bound, membership_by_loss
from nearfar.audit.trained_attacker import trained_attack
from nearfar.audit.verification import verification
from nearfar.audit.view import View, averaging, linkage, pixels, reidentification
from nearfar.io.fitting import fit
from nearfar.metrics import faces as recognition
from nearfar.metrics.faces import Embedded, Points
from nearfar.metrics.features import FeatureNetwork, efficientnet_features, perceptual_distance
from nearfar.metrics.intervals import Figure
from nearfar.metrics.quality import psnr, ssim
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel

STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DOCS = Path(__file__).parents[2] / "docs"
MEMBERS = 400
Pictures = list[NDArray[np.uint8]]


class Eyes:
    """The networks, and what they see of the originals of one set."""

    def __init__(self, weights: Path, model: FrozenModel, faces: Faces, people: Sequence[int] | None) -> None:
        files = weights / "yunet_n_320_320.onnx", weights / "mobilefacenet_casia_068.onnx"
        self.networks = recognition.Faces.load(*files)
        self.network: FeatureNetwork = efficientnet_features()
        self.model, self.faces, self.people = model, faces, people
        self.images, self.squares = batch(faces.pictures), squares(faces, model.image.size)
        self.features, self.seen = self.network(self.images), self.look(faces.pictures)

    def look(self, some: Pictures, known: Sequence[Points | None] = ()) -> Embedded:
        colored = [np.ascontiguousarray(np.broadcast_to(each, (*each.shape[:2], 3))) for each in some]
        return self.networks.embed(colored, known)

    def views(self, some: Pictures, shown: Tensor) -> tuple[list[View], int]:
        """Through each eye, and in how many outputs no face was found. shown: the same as the model's squares."""
        seen = self.look(some, self.seen.landmarks)
        found = [
            View("pixels", pixels(self.squares), pixels(shown)),
            View.of_network("features", self.features, self.network(batch(some))),
            View.of_network("faces", self.seen.vectors, seen.vectors, note=seen.note),
        ]
        return found, seen.missed


def batch(some: Pictures) -> Tensor:
    return torch.stack([torch.from_numpy(each.copy()).permute(2, 0, 1) for each in some]).float() / 127.5 - 1


def kept(figures: Sequence[Figure]) -> dict[str, list[float | None]]:
    """name -> value, low, high, chance, count."""
    shown = [[each.value, each.low, each.high, each.chance, each.count] for each in figures]
    rounded = [[None if number is None else round(number, 4) for number in row] for row in shown]
    return {each.name: row for each, row in zip(figures, rounded, strict=True)}


def attacked(eyes: Eyes, some: Pictures, shown: Tensor) -> dict[str, Any]:
    """Every figure of one row."""
    images, (seen, missed) = batch(some), eyes.views(some, shown)
    row: dict[str, Any] = {
        "psnr": round(psnr(eyes.images, images).mean().item(), 2),
        "ssim": round(ssim(eyes.images, images).mean().item(), 3),
        "perceptual": round(perceptual_distance(eyes.network, eyes.images[::4], images[::4]).mean().item(), 3),
        "no_face": missed,
    }
    for view in seen:
        figures = reidentification(view, eyes.people) + verification(view, eyes.people).figures + trained_attack(view)
        figures += trained_attack(view, eyes.people) + linkage(view, eyes.people) if eyes.people else []
        row[view.name] = kept(figures)
        if eyes.people:
            row[view.name]["trained minus untrained"] = gain(figures)
    return row


def remembered(cache: Path, name: str, row: str, *seen: Any) -> dict[str, Any]:
    """The figures of a row, measured once for each cache."""
    file = cache / f"{name}-{row}.json"
    if not file.exists():
        file.write_text(json.dumps(attacked(*seen)))
        typer.echo(file.name)
    known: dict[str, Any] = json.loads(file.read_text())
    return known


def gain(figures: Sequence[Figure]) -> list[float | None]:
    """What training adds at the same question."""
    rates = {each.name: each.value for each in figures if "same person" in each.name and "attacker" in each.name}
    untrained = next(value for name, value in rates.items() if "untrained" in name)
    return [round(max(rates.values()) - untrained, 4), None, None, None, None]


def averaged(eyes: Eyes, cache: Path, strength: float) -> dict[str, Any]:
    """What 5 outputs of one original tell together: the first pictures of 40 people, among all 400."""
    shown = [
        cached(cache, "orl", strength)[::10],
        *(cached(cache, "orl-first", strength, n) for n in range(1, VARIANTS)),
    ]
    few = Faces(eyes.faces.pictures[::10], eyes.faces.people[::10])
    several = [pictures(some, few) for some in shown]
    mean = pictures(torch.stack(shown).mean(0), few)
    first = torch.arange(0, len(eyes.faces.pictures), 10)
    landmarks = [eyes.seen.landmarks[number] for number in first]
    looks = torch.cat([eyes.look(some, landmarks).vectors for some in several])
    of = first.repeat(VARIANTS)
    faces = View.of_network("faces", eyes.seen.vectors, looks, of=of)
    combined = View.of_network("faces", eyes.seen.vectors, eyes.look(mean, landmarks).vectors, of=first)
    flat = View("pixels", pixels(eyes.squares), pixels(torch.cat(shown)), of=of)
    return {
        "faces": kept(averaging(faces, [combined]) + linkage(faces)),
        "pixels": kept(averaging(flat, []) + linkage(flat)),
    }


def members(data: Path, model: FrozenModel) -> dict[str, Any]:
    """Training faces of the bundled model against test faces that are nobody's in the training set."""
    with zipfile.ZipFile(data / "faces_utk64.zip") as archive:
        rows = csv.DictReader(TextIOWrapper(archive.open("labels.csv")))
        names = [row["file"] for row in rows if row["split"] == "train"][:: 10_300 // MEMBERS][:MEMBERS]
        inside = [np.asarray(Image.open(archive.open(name)).convert("RGB")) for name in names]
    known = torch.stack([fit(framed(each), model.image.size, 3) for each in inside])
    others = squares(utk(data, MEMBERS), model.image.size)
    return kept(membership_by_loss(model, known, others))


def main(
    data: Annotated[Path, typer.Option()],
    weights: Annotated[Path, typer.Option()],
    cache: Annotated[Path, typer.Option()],
) -> None:
    """Measure what there is in the cache, write results/reidentification.json and docs/reidentification.png."""
    model = load_model("bundled/faces")
    result: dict[str, Any] = {"model": model.provenance.sha256, "size": model.image.size}
    for name, read in SETS.items():
        faces = read(data)
        eyes = Eyes(weights, model, faces, faces.people if name == "orl" else None)
        rows: dict[str, Any] = {"untouched": remembered(cache, name, "untouched", eyes, faces.pictures, eyes.squares)}
        for strength in STRENGTHS:
            try:
                shown = cached(cache, name, strength) if strength else eyes.squares
            except FileNotFoundError:
                continue
            row = remembered(cache, name, f"{strength:g}", eyes, pictures(shown, faces), shown)
            rows[f"{strength:g}"] = row | {"bound": bounds(model, eyes.squares, strength)}
            if name == "orl" and strength in AVERAGED:
                rows[f"{strength:g}"]["averaged"] = averaged(eyes, cache, strength)
        result[name] = {"count": len(faces.pictures), "rows": rows}
    result["membership"] = members(data, model)
    write_result("reidentification", result)
    draw(result)
    typer.echo(table(result))


def bounds(model: FrozenModel, images: Tensor, strength: float) -> dict[str, Any]:
    if strength == 0:
        return {}
    time = model.schedule.time_of_strength(torch.tensor([strength], dtype=torch.float64))
    return kept(bound(images, model.schedule.ratio(time).item()))


OWN, PERSON = "re-identified, own original, rank 1", "re-identified, same person, another picture, rank 1"
ERROR, ACCEPTED = "outputs and originals, equal error rate", "outputs and originals, true rate at false rate 0.001"


def best(row: dict[str, Any], question: str, eyes: Sequence[str] = ("pixels", "features", "faces")) -> list[Any]:
    """The strongest of all attackers on a question, trained or not."""
    every = [(figures, name) for eye in eyes for name, figures in row[eye].items() if name.startswith(question)]
    return max(every, key=lambda each: each[0][0])[0]


def trained(row: dict[str, Any], question: str) -> list[Any]:
    """The strongest trained attacker."""
    names = [f"{question}, trained ({kind}) attacker" for kind in ("distance", "cosine")]
    return max((row[eye][name] for eye in ("pixels", "features", "faces") for name in names), key=lambda each: each[0])


def percent(figure: Sequence[float]) -> str:
    return f"{100 * figure[0]:.0f} ({100 * figure[1]:.0f} to {100 * figure[2]:.0f})"


def table(result: dict[str, Any]) -> str:
    """The tables of docs/privacy.md."""
    lines = []
    for name in SETS:
        asked = PERSON if name == "orl" else OWN
        lines += [
            "",
            f"| {name} | PSNR | SSIM | pixels | features | recognizer | trained | EER | TPR |",
            "|---" * 9 + "|",
        ]
        for strength, row in result[name]["rows"].items():
            cells = [percent(row[eye][asked]) for eye in ("pixels", "features", "faces")]
            cells += [percent(some) for some in (trained(row, asked), row["faces"][ERROR], row["faces"][ACCEPTED])]
            loss = "" if strength == "untouched" else f"{row['psnr']:.1f}"
            lines.append(f"| {strength} | {loss} | {row['ssim']:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(result: dict[str, Any]) -> None:
    """Rates against strength and against fidelity, with their intervals and what chance gives."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 7), sharey=True)
    titles = {"orl": "40 people, 10 pictures each: another picture", "utk": "200 people: the picture itself"}
    for place, (name, title) in enumerate(titles.items()):
        asked = PERSON if name == "orl" else OWN
        rows = {strength: row for strength, row in result[name]["rows"].items() if strength != "untouched"}
        lines = {
            "nearest by pixels": [row["pixels"][asked] for row in rows.values()],
            "by features": [row["features"][asked] for row in rows.values()],
            "by face recognizer": [row["faces"][asked] for row in rows.values()],
            "strongest trained attacker": [trained(row, asked) for row in rows.values()],
            "equal error rate (recognizer)": [row["faces"][ERROR] for row in rows.values()],
        }
        across = ([float(strength) for strength in rows], [row["psnr"] for row in rows.values()])
        for axis, x, label in zip(axes[:, place], across, ("strength", "PSNR, dB"), strict=True):
            for text, figures in lines.items():
                shown = [(at, each) for at, each in zip(x, figures, strict=True) if at < 100]
                at, (value, low, high, *_) = [each[0] for each in shown], np.array([each[1][:3] for each in shown]).T
                style = "--" if "error" in text else "-"
                axis.errorbar(at, value, [value - low, high - value], label=text, linestyle=style, capsize=2)
            axis.axhline(lines["nearest by pixels"][0][3], color="gray", linestyle=":", label="chance (rank 1)")
            axis.set_xlabel(label)
            axis.set_ylabel("share of outputs")
            axis.set_ylim(0, 1.02)
        axes[0, place].set_title(title, fontsize=10)
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(DOCS / "reidentification.png", dpi=80)


if __name__ == "__main__":
    typer.run(main)
