"""Attacks on a synthetic set, whose images stand for no original of their own: what is too near, and who was in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nearfar.audit.model_attacks import membership_by_outputs
from nearfar.audit.pairs import features_of, read_several
from nearfar.io.listing import Rejected
from nearfar.io.manifest import Watch, unwatched
from nearfar.metrics.features import FeatureNetwork
from nearfar.metrics.intervals import Figure, rate_bounds

NEAR = 0.95
"""Quantile of the private images' nearest neighbors among one another, beyond which another image is too near."""
SHOWN = 24


@dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack found. nearest: outputs beside the private images that they are nearest to, the nearest first."""

    figures: Sequence[Figure]
    nearest: Sequence[tuple[Tensor, Tensor]]
    rejected: Sequence[Rejected]


def attack_synthetic(
    outputs: Path,
    private: Path,
    network: FeatureNetwork,
    *,
    held_out: Path | None = None,
    size: int,
    watch: Watch = unwatched,
) -> Attacked:
    """How near synthetic images come to private ones, in a network's features, beside images that were not used.

    held_out: images of the same kind that were not in `private`; without them nothing is said of membership. size: at
    which all are compared. Cost: a look of the network at each image. Nothing is random. Raises UsageError.
    """
    rejected: list[Rejected] = []
    sets = {
        name: read_several(folder, size, rejected, watch)[1]
        for name, folder in (("outputs", outputs), ("private", private), ("held out", held_out))
        if folder is not None
    }
    seen = {name: unit(features_of(network, images, watch)) for name, images in sets.items()}
    edge = float(torch.quantile(nearest_others(seen["private"]), NEAR))
    figures = [too_near("synthetic images too near to a private one", seen["outputs"], seen["private"], edge, network)]
    if "held out" in seen:
        name = "held-out images too near to a private one"
        figures.append(too_near(name, seen["held out"], seen["private"], edge, network))
        figures.append(membership_by_outputs(network.name, seen["outputs"], seen["private"], seen["held out"]))
    return Attacked(figures, side_by_side(sets["outputs"], sets["private"], seen), rejected)


def unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)


def nearest_others(vectors: Tensor) -> Tensor:
    """The greatest cosine of each vector with the others of its set."""
    return (vectors @ vectors.T).fill_diagonal_(-1).amax(1)


def too_near(name: str, vectors: Tensor, private: Tensor, edge: float, network: FeatureNetwork) -> Figure:
    """The share of vectors nearer to a private one than 95 % of these are to one another; Clopper and Pearson."""
    near = ((vectors @ private.T).amax(1) > edge).double().numpy()
    low, high = rate_bounds(near, np.arange(len(near)), 0.025)
    note = f"cosine above {edge:.3f}; about 5 % of other real images are"
    return Figure(name, float(near.mean()), len(near), low, high, 1 - NEAR, network.name, note=note)


def side_by_side(outputs: Tensor, private: Tensor, seen: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Outputs and the private images that they are nearest to, the nearest first."""
    cosine, places = (seen["outputs"] @ seen["private"].T).max(1)
    return [(outputs[number], private[places[number]]) for number in cosine.argsort(descending=True)[:SHOWN].tolist()]
