"""The whole audit of a folder of outputs against the folder of its originals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearfar.audit.attacks import (
    PIXELS,
    Others,
    attack_views,
    formal_bound,
    membership,
    no_bound,
    no_way_back,
    views,
    walk_back,
)
from nearfar.audit.fidelity import LEAST, fidelity, pair_distances, set_figures
from nearfar.audit.figure import Figure, with_library
from nearfar.audit.pairs import Pairing, Pairs, compare_strangers, pair_folders, read_images, read_pairs, unreadable
from nearfar.audit.trained_attacker import FEWEST, teachers
from nearfar.audit.utility import CLASSIFIERS, SEEDS, Examples, classes_in, numbered, utility
from nearfar.audit.view import View, nearest_originals
from nearfar.data.labels import top_folders
from nearfar.diffusion.noise import SecretKey
from nearfar.errors import UsageError
from nearfar.io.listing import Item, Rejected
from nearfar.io.manifest import manifest_path, read_manifest
from nearfar.io.progress import Watch, unwatched
from nearfar.metrics.faces import Faces
from nearfar.metrics.features import BATCH, FeatureNetwork, feature_network
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel

LIMIT, LARGEST = 500, 224
"""Originals that are audited unless more are asked for, and pixels of a side at which images are kept, at most."""

PROVEN, SETS, CLASSIFIER = "What is proven", "All outputs beside real images", "What a classifier learns"

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
    recognizer: str | Path | None = None
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
    they are about. remarks: what was not measured, and why. rows: one for each output, in the order of `pairs`.
    views: what attackers saw.
    """

    settings: dict[str, Any]
    counts: dict[str, int]
    sections: dict[str, list[Figure]]
    remarks: dict[str, str]
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
            "not measured": self.remarks,
            "outputs": self.rows,
            "without output": self.pairing.lost,
            "without original": self.pairing.strange,
            "failed": [{"name": each.name, "reason": each.reason} for each in self.rejected],
        }


@dataclass(frozen=True, eq=False)
class Known:
    """What is known before an image is read.

    people, classes: of each original by its name, where they are known. key: of the run, if outputs are to be walked
    back. test: images and classes.
    """

    pairing: Pairing
    settings: dict[str, Any]
    remarks: dict[str, str]
    key: SecretKey | None
    people: dict[str, str] | None
    classes: dict[str, str] | None
    test: tuple[Tensor, Tensor] | None


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
    """Measure what outputs lost of their originals, what attackers still find, and what can be learned from them.

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
    faces = Faces.load(choices.detector, choices.recognizer)
    network = feature_network(choices.features, model)
    size = min(max(model.image.size, network.size, PIXELS), LARGEST)
    known, more = settle(folders, choices, model, size), list[Rejected]()
    trained = [] if folders.members is None else read_several(folders.members, model.image.size, more, watch)[0]
    stranger, real = (read_others(each, network, size, more, watch) for each in (folders.others, folders.reference))
    pairs = read_pairs(known.pairing.some(choices.limit, choices.seed), size, watch)
    features = seen(network, pairs.originals, watch), seen(network, pairs.outputs, watch)
    distance = pair_distances(pairs, network)
    eyes = views(pairs, features, stranger, network, faces, min(model.image.size, PIXELS), watch)
    settings, people = known.settings, of_items(known.people, pairs)
    sections = {
        "What was lost, output by output": fidelity(pairs, distance, network, compare_strangers(pairs)),
        SETS: set_figures(*features, pairs.of, real and real[1], network.name),
        "What attackers find": [
            *attack_views(eyes, people, watch),
            *membership(eyes, model, trained, stranger and stranger[0]),
            *(walk_back(model, pairs, settings, known.key, watch) if known.key else []),
        ],
        PROVEN: [] if PROVEN in known.remarks else formal_bound(model, pairs, settings),
        CLASSIFIER: learned(known, choices, pairs, features, network, watch),
    }
    remarks = known.remarks | left_out(sections, eyes[0], people, real and len(real[1]))
    rejected = [*pairs.rejected, *unreadable(folders.before, known.pairing.lost, watch), *more]
    counts = counted(known.pairing, pairs, rejected)
    named = {name: with_library(figures) for name, figures in sections.items()}
    rows = rows_of(pairs, distance, eyes)
    return Audit(settings, counts, named, remarks, rows, known.pairing, pairs, eyes, rejected)


def settle(folders: Folders, choices: Choices, model: FrozenModel, size: int) -> Known:
    """Match the folders, and refuse what cannot be meant before anything costs time."""
    pairing = pair_folders(folders.before, folders.after)
    names = [item.name for item, _ in pairing.some(choices.limit, choices.seed).outputs]
    if len(names) < 2:
        raise UsageError(f"an audit needs at least 2 originals with an output, got {len(names)}: give more")
    header = read_manifest(manifest_path(folders.after)).header
    settings = header.get("run", {})
    key = None if choices.key_file is None else SecretKey.load(Path(choices.key_file))
    no_walk = no_way_back(model, header, key) if key else ""
    remarks = {PROVEN: no_bound(model, settings), "Walked back with the key": no_walk}
    every = [*(item.name for item, _ in pairing.outputs), *pairing.lost]
    people = people_of(names) if choices.people else None
    classes = None if choices.people else classes_in(folders.before, every, names)
    return Known(
        pairing,
        settings,
        {name: f"nothing: {remark}" for name, remark in remarks.items() if remark},
        None if no_walk else key,
        None if people is None else dict(zip(names, people, strict=True)),
        None if classes is None else dict(zip(names, classes, strict=True)),
        read_test(folders.test, size, classes) if classes and folders.test else None,
    )


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
    items, images = read_several(folder, size, rejected, watch)
    return Others(items, images), seen(network, images, watch)


def read_several(
    folder: Path, size: int, rejected: list[Rejected], watch: Watch = unwatched
) -> tuple[list[Item], Tensor]:
    """Images of a folder, of which one alone would tell nothing."""
    items, images = read_images(folder, size, rejected, watch)
    if len(items) < 2:
        raise UsageError(f"{folder} must hold at least 2 images that can be read, got {len(items)}")
    return items, images


def people_of(names: Sequence[str]) -> list[str]:
    """Whose picture each original is, as the top folders say."""
    found = top_folders(names)
    if found is None:
        raise UsageError("BEFORE has no top folders, or only one, that could be people: leave out people")
    return found


def of_items(labels: dict[str, str] | None, pairs: Pairs) -> list[str] | None:
    """Of the originals that could be read."""
    return None if labels is None else [labels[item.name] for item in pairs.items]


def learned(
    known: Known, choices: Choices, pairs: Pairs, features: Features, network: FeatureNetwork, watch: Watch
) -> list[Figure]:
    """Utility, where BEFORE has classes that are not people."""
    classes, kind = of_items(known.classes, pairs), CLASSIFIERS[choices.classifier]
    if known.classes is None or classes is None or len(set(classes)) < 2:
        return []
    if known.test is None and len(classes) < 2 * len(set(classes)):
        return []
    labels = numbered(classes, list(known.classes.values()))
    inputs, outputs = features if kind.by_features else (pairs.originals, pairs.outputs)
    test = None
    if known.test is not None:
        images, tested = known.test
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
        "originals": len(pairing.outputs) + len(pairing.lost),
        "originals matched": len(pairing.outputs),
        "originals without an output": len(pairing.lost),
        "outputs without an original": len(pairing.strange),
        "originals audited": len(pairs.items),
        "outputs audited": len(pairs.output_items),
        "unreadable files": len(rejected),
        "outputs equal to their original": int(same.sum()),
        "originals beside their copies (left out)": len(pairing.copied),
    }


def left_out(
    sections: Mapping[str, Sequence[Figure]], eye: View, people: Sequence[str] | None, real: int | None
) -> dict[str, str]:
    """What needs more images than there are. real: images of the reference, if there is one."""
    count, learn = len(eye.before), teachers(eye, people)
    given = f"{count} with an output"
    least = f"{2 * LEAST} images in BEFORE ({LEAST} in each half; or --reference), got {given}"
    if real is not None:
        least = f"{LEAST} images in BEFORE and in the reference, got {given} and {real}"
    unlearned = "needs at least 2 classes (folders or annotations) and 2 images for each, or --test"
    reasons = {
        SETS: "" if sections[SETS] else f"needs at least {least}",
        "Trained attackers": f"need at least {FEWEST} originals or people, got {learn}" if learn < FEWEST else "",
        CLASSIFIER: "" if sections[CLASSIFIER] else "the people are no classes" if people else unlearned,
    }
    return {name: f"left out: {reason}" for name, reason in reasons.items() if reason}


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
