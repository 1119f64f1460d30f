"""The whole audit of a folder of outputs against the folder of its originals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import TypedDict

from nearfar.audit.answer import FACES_FOUND, answer, headlines
from nearfar.audit.choices import Choices, Folders
from nearfar.audit.fidelity import LEAST, fidelity, pair_distances, set_figures
from nearfar.audit.model_attacks import (
    as_noised,
    formal_bound,
    membership_by_loss,
    membership_by_outputs,
    no_bound,
    no_way_back,
    walk_back,
)
from nearfar.audit.pairs import (
    Others,
    Pairing,
    Pairs,
    compare_strangers,
    features_of,
    pair_folders,
    read_others,
    read_pairs,
    read_several,
    unreadable,
)
from nearfar.audit.trained_attacker import FEWEST, trained_attack
from nearfar.audit.utility import CLASSIFIERS, Examples, Lessons, classes_in, numbered, read_test, utility
from nearfar.audit.verification import verification
from nearfar.audit.view import View, averaging, linkage, nearest_originals, pixels, reidentification
from nearfar.data.labels import top_folders
from nearfar.diffusion.noise import SecretKey
from nearfar.errors import UsageError
from nearfar.io.fitting import FitMode
from nearfar.io.listing import Item, Rejected
from nearfar.io.manifest import Watch, manifest_path, read_manifest, unwatched
from nearfar.metrics.faces import Faces
from nearfar.metrics.features import FeatureNetwork, feature_network, pixel_features
from nearfar.metrics.intervals import Figure, wilson
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel

PIXELS = 64
"""Pixels of a side at which pixels are compared at most, and images kept at least."""

LARGEST = 224
"""Pixels of a side at which images are kept, at most."""

PROVEN, SETS, CLASSIFIER = "What is proven", "All outputs beside real images", "What a classifier learns"

Features = tuple[Tensor, Tensor]
"""Of the originals and of the outputs."""


Content = TypedDict(
    "Content",
    {
        "answer": dict[str, str],
        "headlines": dict[str, float | None],
        "settings": dict[str, Any],
        "counts": dict[str, int],
        "figures": dict[str, list[Figure]],
        "not measured": dict[str, str],
        "outputs": list[dict[str, Any]],
        "without output": list[str],
        "without original": list[str],
        "failed": list[dict[str, str]],
    },
)
"""What stands in the JSON of an audit; docs/audit.schema.json is its JSON schema."""


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

    @property
    def figures(self) -> list[Figure]:
        """Those of all sections."""
        return [figure for some in self.sections.values() for figure in some]

    def content(self) -> dict[str, Any]:
        """All of it for machines."""
        return {
            "answer": dict(answer(self)),
            "headlines": headlines(self.figures),
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
    watch: Watch = unwatched,
    **options: Any,
) -> Audit:
    """Measure what outputs lost of their originals, what attackers still find, and what can be learned from them.

    before, after: folders; outputs are matched by name (`photo.png`, or `photo~1.png`, ... of several). model: whose
    features are used, and whose size, the bundled one unless given. watch: called with each stage, what is done of it
    and of how many. options: the fields of `Folders` (reference, others, test, members) and of `Choices`. All images
    are held in memory at one size: the model's or the feature network's, 64 to 224 pixels. Cost: three network calls
    for each 32 images, two more for each face. Everything random follows from `seed`. Files that cannot be read are
    listed in `rejected`. Raises UsageError for what cannot be meant.
    """
    further = {field.name: options.pop(field.name, None) for field in fields(Folders)[2:]}
    paths = {name: None if folder is None else Path(folder) for name, folder in further.items()}
    folders = Folders(Path(before), Path(after), **paths)
    return run_audit(folders, Choices(**options), model or load_model(), watch)


def run_audit(folders: Folders, choices: Choices, model: FrozenModel, watch: Watch = unwatched) -> Audit:
    faces = Faces.load(choices.detector, choices.recognizer)
    network = feature_network(choices.features, model)
    size = min(max(model.image.size, network.size, PIXELS), LARGEST)
    known, more = settle(folders, choices, model, size), list[Rejected]()
    members = [] if folders.members is None else read_several(folders.members, model.image.size, more, watch)[0]
    others, real = (read_others(each, network, size, more, watch) for each in (folders.others, folders.reference))
    pairs = read_pairs(known.pairing.some(choices.limit, choices.seed), size, watch)
    strange = compare_strangers(pairs)
    rejected = [*pairs.rejected, *unreadable(folders.before, known.pairing.lost, watch), *more]
    features = features_of(network, pairs.originals, watch), features_of(network, pairs.outputs, watch)
    distance = pair_distances(pairs, network)
    lost = fidelity(pairs, distance, network, strange)
    sets = set_figures(*features, pairs.of, None if real is None else real.features, network.name)
    seen = views(pairs, features, others, network, faces, min(model.image.size, PIXELS), watch)
    people = of_items(known.people, pairs)
    sections = {
        "What was lost, output by output": lost,
        SETS: sets,
        "What attackers find": [
            *attack_views(seen, people, watch),
            *faces_found(seen),
            *membership(seen, model, members, others),
            *(walk_back(model, pairs, known.settings, known.key, watch) if known.key else []),
        ],
        PROVEN: [] if PROVEN in known.remarks else formal_bound(model, pairs, known.settings),
        CLASSIFIER: learned(known, choices, pairs, features, network, watch),
    }
    return Audit(
        known.settings,
        counted(known.pairing, pairs, rejected),
        sections,
        known.remarks | left_out(sections, seen[0], people, None if real is None else len(real.items)),
        rows_of(pairs, distance, seen),
        known.pairing,
        pairs,
        seen,
        rejected,
    )


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


def people_of(names: Sequence[str]) -> list[str]:
    """Whose picture each original is, as the top folders say."""
    people = top_folders(names)
    if people is None:
        raise UsageError("BEFORE has no top folders, or only one, that could be people: leave out people")
    return people


def of_items(labels: dict[str, str] | None, pairs: Pairs) -> list[str] | None:
    """Of the originals that could be read."""
    return None if labels is None else [labels[item.name] for item in pairs.items]


def views(
    pairs: Pairs,
    features: Features,
    others: Others | None,
    network: FeatureNetwork,
    faces: Faces | None,
    size: int,
    watch: Watch,
) -> list[View]:
    """Originals, outputs and others by pixels (compared at `size`), by a network's features, and by their faces."""
    small, more = pixel_features(size), None if others is None else others.features
    before, after = (pixels(small.seen(images)) for images in (pairs.originals, pairs.outputs))
    strange = None if others is None else pixels(small.seen(others.images))
    seen = [View(small.name, before, after, strange, of=pairs.of)]
    if not network.name.startswith("pixels"):
        seen.append(View.of_network(network.name, *features, more, of=pairs.of))
    if faces is not None:
        seen.append(face_view(pairs, others, faces, watch))
    return seen


def face_view(pairs: Pairs, others: Others | None, faces: Faces, watch: Watch) -> View:
    """Where no face is found in an output, its original's place is taken: an attacker knows that faces stay."""
    before = faces.see(pairs.items, watch, "faces of originals")
    known = [before.landmarks[original] for original in pairs.of.tolist()]
    after = faces.see(pairs.output_items, watch, "faces of outputs", known)
    more = faces.see(others.items, watch, "faces of others").vectors if others else None
    missed = f"no face found in {before.missed} originals and {after.missed} outputs"
    note = missed if before.missed + after.missed else ""
    name = f"faces, {faces.recognizer.name}"
    view = View.of_network(name, before.vectors, after.vectors, more, note, pairs.of)
    return replace(view, missed=(before.missed, after.missed))


def faces_found(seen: Sequence[View]) -> list[Figure]:
    """In how many outputs a detector still finds a face; chance is the share of originals in which it does."""
    figures = []
    for view in (view for view in seen if view.missed is not None):
        originals, outputs = len(view.before), len(view.after)
        lost_before, lost_after = view.missed or (0, 0)
        rate = 1 - lost_after / outputs
        interval = wilson(rate, outputs)
        figures.append(Figure(FACES_FOUND, rate, outputs, *interval, 1 - lost_before / originals, view.name))
    return figures


def attack_views(seen: Sequence[View], people: Sequence[object] | None, watch: Watch) -> list[Figure]:
    """Every attack on every view; one that learns needs the originals of 20 people or more."""
    attacks: list[Callable[[View], list[Figure]]] = [
        lambda view: reidentification(view, people),
        lambda view: verification(view, people).figures,
        lambda view: linkage(view, people),
    ]
    if len(torch.unique(seen[0].owner)) < len(seen[0].owner):
        attacks.append(lambda view: averaging(view, []))
    if seen[0].teachers(people) >= FEWEST:
        attacks.append(lambda view: trained_attack(view, people))
    figures: list[Figure] = []
    for number, (view, attack) in enumerate(product(seen, attacks), 1):
        figures += attack(view)
        watch("attacks", number, len(seen) * len(attacks))
    return figures


def membership(
    seen: Sequence[View], model: FrozenModel, members: Sequence[Item], others: Others | None
) -> list[Figure]:
    """Whether originals, and what the model was trained on, can be told from pictures that are neither."""
    if others is None:
        return []
    figures = [membership_by_outputs(v.name, v.after, v.before, v.others, v.note) for v in seen if v.others is not None]
    if members:
        inside, outside = (as_noised(model, some, FitMode.PAD) for some in (members, others.items))
        figures += membership_by_loss(model, inside, outside)
    return figures


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
    lessons = Lessons(Examples(inputs, labels), Examples(outputs, labels[pairs.of]), pairs.of, test)
    return utility(lessons, kind, network=network.name, seeds=choices.seeds, watch=watch)


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
    sections: Mapping[str, Sequence[Figure]], view: View, people: Sequence[str] | None, real: int | None
) -> dict[str, str]:
    """What needs more images than there are. real: images of the reference, if there is one."""
    count, learn = len(view.before), view.teachers(people)
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


def rows_of(pairs: Pairs, distance: Tensor | None, seen: Sequence[View]) -> list[dict[str, Any]]:
    """Each output with its figures, and which original is nearest to it in each view."""
    names = [item.name for item in pairs.items]
    rows = []
    for number, (item, original) in enumerate(zip(pairs.output_items, pairs.of.tolist(), strict=True)):
        row = {"name": item.name, "original": names[original]}
        row |= {"psnr": round(pairs.psnr[number].item(), 3), "ssim": round(pairs.ssim[number].item(), 4)}
        row |= {} if distance is None else {"perceptual": round(distance[number].item(), 5)}
        rows.append(row)
    for view in seen:
        for row, original in zip(rows, nearest_originals(view)[:, 0].tolist(), strict=True):
            row.setdefault("nearest", {})[view.name] = names[original]
    return rows
