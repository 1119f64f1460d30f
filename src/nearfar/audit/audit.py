"""The whole audit of a folder of outputs against the folder of its originals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearfar.audit.attacks import (
    PIXELS,
    Faces,
    Others,
    attack_views,
    formal_bound,
    membership,
    views,
    walk_back,
)
from nearfar.audit.fidelity import fidelity, pair_distances, set_figures
from nearfar.audit.figure import Figure, with_library
from nearfar.audit.pairs import (
    Pairing,
    Pairs,
    Watch,
    compare_strangers,
    pair_folders,
    read_images,
    read_pairs,
    unwatched,
)
from nearfar.audit.utility import CLASSIFIERS, SEEDS, Examples, classes_in, numbered, top_folders, utility
from nearfar.audit.view import View, nearest_originals
from nearfar.errors import UsageError
from nearfar.feature_networks import BATCH, FeatureNetwork, feature_network
from nearfar.loading import load_model
from nearfar.manifest import manifest_path, read_manifest
from nearfar.model import FrozenModel
from nearfar.noise import SecretKey
from nearfar.sources import Rejected

LIMIT, LARGEST = 500, 224
"""Originals that are audited unless more are asked for, and pixels of a side at which images are kept, at most."""

Features = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Folders:
    """What is audited, and what it is compared with.

    reference: real images for the distances of sets, instead of the originals. others: pictures of people (or things)
    that are not among the originals. test: real images in class folders, for the classifier. members: what the model
    was trained on; then `others` must be pictures that it was not trained on.
    """

    before: Path
    after: Path
    reference: Path | None = None
    others: Path | None = None
    test: Path | None = None
    members: Path | None = None

    def check(self) -> None:
        if self.members and not self.others:
            raise UsageError("members need others to be told from, that the model was not trained on: give others too")


@dataclass(frozen=True)
class Choices:
    """How it is measured.

    people: each top folder of BEFORE holds the pictures of one person. key_file: of the run that made AFTER, for an
    attacker who has got hold of it.
    """

    features: str = "model"
    detector: str | Path | None = None
    recogniser: str | Path | None = None
    people: bool = False
    key_file: str | Path | None = None
    classifier: str = "logistic"
    seeds: int = SEEDS
    limit: int = LIMIT
    seed: int = 0

    def check(self) -> None:
        if self.key_file is not None and not Path(self.key_file).is_file():
            raise UsageError(f"key file {self.key_file} is not there: name the one that the run was given")
        if self.limit < 2:
            raise UsageError(f"an audit needs at least 2 originals, got a limit of {self.limit}")
        if self.seeds < 1:
            raise UsageError(f"a classifier needs at least 1 seed, got {self.seeds}")
        if self.classifier not in CLASSIFIERS:
            raise UsageError(f"classifier must be one of {', '.join(CLASSIFIERS)}, got {self.classifier!r}")


@dataclass(frozen=True, eq=False)
class Audit:
    """What was measured; numbers, never a verdict.

    settings: of the run that made AFTER, from its manifest, or nothing. counts: of images. sections: figures by what
    they are about. rows: one for each output, in the order of `pairs`. views: what attackers saw.
    """

    settings: dict[str, Any]
    counts: dict[str, int]
    sections: dict[str, list[Figure]]
    rows: list[dict[str, Any]]
    pairing: Pairing
    pairs: Pairs
    views: list[View]
    rejected: list[Rejected]

    def content(self) -> dict[str, Any]:
        """All of it for machines."""
        return {
            "settings": self.settings,
            "counts": self.counts,
            "figures": {name: [asdict(figure) for figure in some] for name, some in self.sections.items()},
            "outputs": self.rows,
            "without output": self.pairing.lost,
            "without original": self.pairing.strange,
            "failed": [{"name": each.name, "reason": each.reason} for each in self.rejected],
        }


def audit_folders(
    before: str | Path,
    after: str | Path,
    *,
    model: FrozenModel | None = None,
    reference: str | Path | None = None,
    others: str | Path | None = None,
    test: str | Path | None = None,
    members: str | Path | None = None,
    watch: Watch = unwatched,
    **choices: Any,
) -> Audit:
    """Measure what outputs lost of their originals, what attackers still find, and what can be learnt from them.

    before, after: folders; outputs are matched by name (`photo.png`, or `photo~1.png`, ... of several). model: whose
    features are used, and whose size, the bundled one unless given. choices: the fields of `Choices`. watch: told of
    each stage. All images are held in memory at one size: the model's or the feature network's, 64 to 224 pixels.
    Cost: three network calls for each 32 images, two more for each face. Everything random follows from `seed`.
    Files that cannot be read are listed in `rejected`. Raises UsageError for what cannot be meant.
    """
    given = (None if path is None else Path(path) for path in (reference, others, test, members))
    return run_audit(Folders(Path(before), Path(after), *given), Choices(**choices), model or load_model(), watch)


def run_audit(folders: Folders, choices: Choices, model: FrozenModel, watch: Watch = unwatched) -> Audit:
    choices.check()
    folders.check()
    key = None if choices.key_file is None else SecretKey.load(Path(choices.key_file))
    faces = Faces.load(choices.detector, choices.recogniser)
    network = feature_network(choices.features, model)
    size = min(max(model.image.size, network.size, PIXELS), LARGEST)
    pairing = pair_folders(folders.before, folders.after)
    pairs = read_pairs(pairing.some(choices.limit, choices.seed), size, watch)
    rejected = list(pairs.rejected)
    features = seen(network, pairs.originals, watch), seen(network, pairs.outputs, watch)
    distance = pair_distances(pairs, network)
    stranger = read_others(folders.others, network, size, rejected, watch)
    eyes = views(pairs, features, stranger, network, faces, min(model.image.size, PIXELS), watch)
    real = read_others(folders.reference, network, size, rejected, watch)
    settings = settings_of(folders.after)
    trained = [] if folders.members is None else read_images(folders.members, model.image.size, rejected, watch)[0]
    sections = {
        "What was lost, output by output": fidelity(pairs, distance, network, compare_strangers(pairs)),
        "All outputs beside real images": set_figures(*features, pairs.of, real and real[1], network.name),
        "What attackers find": [
            *attack_views(eyes, people_of(pairs, choices), watch),
            *membership(eyes, model, trained, stranger and stranger[0]),
            *walk_back(model, pairs, settings, key, watch),
        ],
        "What is proven": formal_bound(model, pairs, settings),
        "What a classifier learns": learnt(folders, choices, pairing, pairs, features, network, watch),
    }
    counts = counted(pairing, pairs, rejected)
    rows = rows_of(pairs, distance, eyes)
    named = {name: with_library(figures) for name, figures in sections.items()}
    return Audit(settings, counts, named, rows, pairing, pairs, eyes, rejected)


def seen(network: FeatureNetwork, images: Tensor, watch: Watch) -> Tensor:
    """Features, batch by batch."""
    parts: list[Tensor] = []
    for some in torch.split(images, BATCH):
        parts.append(network(some))
        watch("features", min(len(parts) * BATCH, len(images)), len(images))
    return torch.cat(parts)


def read_others(
    folder: Path | None, network: FeatureNetwork, size: int, rejected: list[Rejected], watch: Watch
) -> tuple[Others, Tensor] | None:
    if folder is None:
        return None
    items, images = read_images(folder, size, rejected, watch)
    return Others(items, images), seen(network, images, watch)


def people_of(pairs: Pairs, choices: Choices) -> list[str] | None:
    """Whose picture each original is, if the top folders say that."""
    if not choices.people:
        return None
    found = top_folders([item.name for item in pairs.items])
    if found is None:
        raise UsageError("BEFORE has no top folders, or only one, that could be people: leave out people")
    return found


def learnt(
    folders: Folders,
    choices: Choices,
    pairing: Pairing,
    pairs: Pairs,
    features: Features,
    network: FeatureNetwork,
    watch: Watch,
) -> list[Figure]:
    """Utility, where BEFORE has classes that are not people."""
    every = [*(item.name for item, _ in pairing.outputs), *pairing.lost]
    classes = None if choices.people else classes_in(folders.before, every, [item.name for item in pairs.items])
    if classes is None or (folders.test is None and len(classes) < 2 * len(set(classes))):
        return []
    labels, kind = numbered(classes, classes), CLASSIFIERS[choices.classifier]
    inputs, outputs = features if kind.by_features else (pairs.originals, pairs.outputs)
    test = None
    if folders.test is not None:
        images, tested = read_test(folders.test, pairs.originals.shape[-1], classes)
        test = Examples(network(images) if kind.by_features else images, tested)
    before, after = Examples(inputs, labels), Examples(outputs, labels[pairs.of])
    return utility(before, after, pairs.of, test, kind, network=network.name, seeds=choices.seeds, watch=watch)


def read_test(folder: Path, size: int, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Test images and their classes, which BEFORE must have too."""
    items, images = read_images(folder, size, [])
    names = [item.name for item in items]
    found = classes_in(folder, names, names)
    if found is None:
        raise UsageError(f"{folder} must have a folder for each class, as BEFORE: cat/1.png, dog/2.png")
    return images, numbered(found, classes)


def counted(pairing: Pairing, pairs: Pairs, rejected: Sequence[Rejected]) -> dict[str, int]:
    same = pairs.outputs.flatten(1).eq(pairs.originals[pairs.of].flatten(1)).all(1)
    return {
        "originals": len(pairs.items),
        "outputs": len(pairs.output_items),
        "originals matched": len(pairing.outputs),
        "originals without an output": len(pairing.lost),
        "outputs without an original": len(pairing.strange),
        "unreadable files": len(rejected),
        "outputs equal to their original": int(same.sum()),
        "originals beside their copies (left out)": len(pairing.copied),
    }


def settings_of(after: Path) -> dict[str, Any]:
    """What the record beside AFTER says of the run that made it."""
    found: dict[str, Any] = read_manifest(manifest_path(after)).header.get("run", {})
    return found


def rows_of(pairs: Pairs, distance: Tensor | None, eyes: Sequence[View]) -> list[dict[str, Any]]:
    """Each output with its figures, and which original is nearest to it by each eye."""
    names = [item.name for item in pairs.items]
    rows = []
    for number, (item, original) in enumerate(zip(pairs.output_items, pairs.of.tolist(), strict=True)):
        row = {"name": item.name, "original": names[original]}
        row |= {"psnr": round(pairs.psnr[number].item(), 3), "ssim": round(pairs.ssim[number].item(), 4)}
        row |= {} if distance is None else {"perceptual": round(distance[number].item(), 5)}
        rows.append(row)
    for view in eyes:
        for row, original in zip(rows, nearest_originals(view)[:, 0].tolist(), strict=True):
            row.setdefault("nearest", {})[view.name] = names[original]
    return rows
