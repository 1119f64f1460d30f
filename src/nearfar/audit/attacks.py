"""What attackers get from originals and outputs: each attack through each eye that is at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.audit.bound import bound, departure
from nearfar.audit.figure import Figure
from nearfar.audit.linkage import averaging, linkage
from nearfar.audit.membership import membership_by_loss, membership_by_outputs
from nearfar.audit.pairs import Pairs
from nearfar.audit.reidentification import reidentification
from nearfar.audit.trained_attacker import FEWEST, teachers, trained_attack
from nearfar.audit.verification import verification
from nearfar.audit.view import View, pixels
from nearfar.audit.walk_back import walked_back
from nearfar.diffusion.noise import SecretKey, fingerprint
from nearfar.errors import UsageError
from nearfar.io.fitting import FitMode, fit
from nearfar.io.listing import Item
from nearfar.io.pictures import read_picture
from nearfar.io.progress import Watch
from nearfar.metrics.faces import Faces
from nearfar.metrics.features import BATCH, FeatureNetwork, pixel_features
from nearfar.models.model import FrozenModel

PIXELS, WALKED = 64, 32
"""Pixels of a side at which pixels are compared at most, and images kept at least; outputs that are walked back, in 100
network calls."""


@dataclass(frozen=True, eq=False)
class Others:
    """Pictures of other people, which were not among the originals."""

    items: Sequence[Item]
    images: Float[Tensor, "others 3 size size"]


def views(
    pairs: Pairs,
    features: tuple[Tensor, Tensor],
    others: tuple[Others, Tensor] | None,
    network: FeatureNetwork,
    faces: Faces | None,
    size: int,
    watch: Watch,
) -> list[View]:
    """Originals, outputs and pictures of other people by pixels, by a network's features, by their faces.

    features: of the originals and of the outputs; others: with their features. size: at which pixels are compared.
    """
    eye, (more, more_features) = pixel_features(size), others or (None, None)
    before, after = (pixels(eye.seen(images)) for images in (pairs.originals, pairs.outputs))
    found = [View(eye.name, before, after, None if more is None else pixels(eye.seen(more.images)), of=pairs.of)]
    if not network.name.startswith("pixels"):
        found.append(View.of_network(network.name, *features, more_features, of=pairs.of))
    if faces is not None:
        found.append(face_view(pairs, more, faces, watch))
    return found


def face_view(pairs: Pairs, others: Others | None, faces: Faces, watch: Watch) -> View:
    """Where no face is found in an output, its original's place is taken: an attacker knows that faces stay."""
    before = faces.see(pairs.items, watch, "faces of originals")
    known = [before.landmarks[original] for original in pairs.of.tolist()]
    after = faces.see(pairs.output_items, watch, "faces of outputs", known)
    more = faces.see(others.items, watch, "faces of others").vectors.double() if others else None
    missed = f"no face found in {before.missed} originals and {after.missed} outputs"
    note = missed if before.missed + after.missed else ""
    name = f"faces, {faces.recognizer.name}"
    return View.of_network(name, before.vectors.double(), after.vectors.double(), more, note, pairs.of)


def attack_views(seen: Sequence[View], people: Sequence[object] | None, watch: Watch) -> list[Figure]:
    """Every attack through every eye; one that learns needs the originals of 20 people or more."""
    attacks: list[Callable[[View], list[Figure]]] = [
        lambda view: reidentification(view, people),
        lambda view: verification(view, people).figures,
        lambda view: linkage(view, people),
    ]
    if len(torch.unique(seen[0].owner)) < len(seen[0].owner):
        attacks.append(lambda view: averaging(view, []))
    if teachers(seen[0], people) >= FEWEST:
        attacks.append(lambda view: trained_attack(view, people))
    found: list[Figure] = []
    for number, (view, attack) in enumerate(product(seen, attacks), 1):
        found += attack(view)
        watch("attacks", number, len(seen) * len(attacks))
    return found


def membership(
    seen: Sequence[View], model: FrozenModel, members: Sequence[Item], others: Others | None
) -> list[Figure]:
    """Whether originals, and what the model was trained on, can be told from pictures that are neither."""
    if others is None:
        return []
    found = [membership_by_outputs(v.name, v.after, v.before, v.others, v.note) for v in seen if v.others is not None]
    if not members:
        return found
    trained, strange = (as_noised(model, some, FitMode.PAD) for some in (members, others.items))
    return [*found, *membership_by_loss(model, trained, strange)]


def no_way_back(model: FrozenModel, header: Mapping[str, Any], key: SecretKey) -> str:
    """Why outputs cannot be walked back, by the first line of their record; empty if they can.

    Raises UsageError for another model, and for another key: with that nothing comes back whatever leaked.
    """
    settings = header.get("run", {})
    if not made_by(model, settings) or not settings.get("strength"):
        raise UsageError("the record beside AFTER names no strength of this model: leave out the key, or give --model")
    if why := departure(settings):
        return why
    if header.get("key") != fingerprint(key):
        kept = "was made with another key" if header.get("key") else "was made with a key that was not kept"
        raise UsageError(f"AFTER {kept}, as its record says: give the key file of that run, or leave it out")
    return "at strength 1 nothing of an original is in its output" if settings["strength"] >= 1 else ""


def walk_back(
    model: FrozenModel, pairs: Pairs, settings: Mapping[str, Any], key: SecretKey, watch: Watch
) -> list[Figure]:
    """Of the first outputs, by one who has the key of the run that made them."""
    first = sorted({original: number for number, original in reversed(list(enumerate(pairs.of.tolist())))}.items())
    first, mode = first[:WALKED], FitMode(settings.get("fit", "pad"))
    before = as_noised(model, [pairs.items[original] for original, _ in first], mode)
    after = as_noised(model, [pairs.output_items[number] for _, number in first], mode)
    watch("walk back", 0, 1)
    found = walked_back(model, before, after, float(settings["strength"]), key)
    watch("walk back", 1, 1)
    return found


def no_bound(model: FrozenModel, settings: Mapping[str, Any]) -> str:
    """Why nothing is proven of the outputs of a run with these settings; empty if something is."""
    named = made_by(model, settings) and settings.get("sigma") and settings.get("strength")
    other = "" if named else "the record beside AFTER names no noise level of this model: give the one that was used"
    return departure(settings) or other


def formal_bound(model: FrozenModel, pairs: Pairs, settings: Mapping[str, Any]) -> list[Figure]:
    """Of the run that made the outputs; at strength 1 nothing of an original is used."""
    images = as_noised(model, pairs.items, FitMode(settings.get("fit", "pad")))
    with torch.inference_mode():
        latents = [model.latent_space.encode(some.to(model.device)).cpu() for some in torch.split(images, BATCH)]
    return bound(torch.cat(latents), inf if settings["strength"] >= 1 else float(settings["sigma"]))


def made_by(model: FrozenModel, settings: Mapping[str, Any]) -> bool:
    return settings.get("model") == model.provenance.sha256


def as_noised(model: FrozenModel, items: Sequence[Item], mode: FitMode) -> Tensor:
    """Images as a run hands them to the model."""
    contract = model.image
    return torch.stack([fit(read_picture(item.path), contract.size, contract.channels, mode) for item in items])
