"""The only look at private images: each is read once, and votes for the candidate that it is most like.

Who votes is one image, or one person, whose images vote together. Noise comes from OpenDP, whose discrete Gaussian is
exact and drawn from a cryptographic source: noise of floating point numbers gives votes away by its last digits
(Mironov, CCS 2012).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.errors import ImageError, UsageError
from nearfar.io.fitting import FitMode
from nearfar.io.listing import Item, Rejected, list_folder
from nearfar.io.stacks import picture_square
from nearfar.metrics.features import BATCH, FeatureNetwork
from nearfar.tensors import ImageContract, Images

Grouping = Literal["images", "classes", "persons"]
"""What the folders below the private one are: nothing of meaning, classes, or persons."""
EVERYBODY = ""
"""The class of all images where folders are no classes."""
Vectors = Float64[Tensor, "_ numbers"]
"""Unit vectors of voters or candidates."""


@dataclass(frozen=True, eq=False)
class Voters:
    """By class, the unit vectors of those who vote. failed: images that could not be read, and do not vote."""

    vectors: Mapping[str, Vectors]
    failed: Sequence[Rejected]


def list_voters(private: Path, grouping: Grouping) -> tuple[dict[str, list[Item]], list[Rejected]]:
    """Images by class; only names are looked at. UsageError for images outside the folders that `grouping` asks for."""
    listing = list_folder(private)
    if not listing.items:
        raise UsageError(f"{private} holds no image that can be read: give a folder of images")
    if grouping != "images" and (loose := [item.name for item in listing.items if "/" not in item.name]):
        raise UsageError(f"with --by {grouping} each image lies in a folder of its own kind, but {loose[0]} does not")
    classes: dict[str, list[Item]] = {}
    for item in listing.items:
        classes.setdefault(top_of(item.name) if grouping == "classes" else EVERYBODY, []).append(item)
    return classes, listing.rejected


def top_of(name: str) -> str:
    """The first folder of an image's name."""
    return PurePosixPath(name).parts[0]


def read_voters(
    private: Path,
    grouping: Grouping,
    contract: ImageContract,
    network: FeatureNetwork,
    tell: Callable[[int, int], None] = lambda *_: None,
) -> Voters:
    """Each image once, brought to the model's square and seen by the network. tell: called with (read, all)."""
    classes, rejected = list_voters(private, grouping)
    failed, total, done = list(rejected), sum(map(len, classes.values())), 0
    vectors: dict[str, Vectors] = {}
    for name, items in classes.items():
        seen: list[Tensor] = []
        persons: list[str] = []
        for start in range(0, len(items), BATCH):
            squares = squares_of(items[start : start + BATCH], contract, failed)
            if squares:
                seen.append(as_seen(network, torch.stack(list(squares.values()))))
                persons += [top_of(name) for name in squares]
            done += len(items[start : start + BATCH])
            tell(done, total)
        if seen:
            vectors[name] = together(torch.cat(seen), persons) if grouping == "persons" else torch.cat(seen)
    if not vectors:
        raise UsageError(f"no image of {private} can be read; the first: {failed[0].reason}")
    return Voters(vectors, failed)


def squares_of(items: Sequence[Item], contract: ImageContract, failed: list[Rejected]) -> dict[str, Tensor]:
    """Those that can be read, by name; the others are put among the failed."""
    squares = {}
    for item in items:
        try:
            squares[item.name] = picture_square(item.path, contract, FitMode.PAD)
        except (ImageError, OSError) as refusal:
            failed.append(Rejected(item.name, str(refusal)))
    return squares


def as_seen(network: FeatureNetwork, images: Images) -> Vectors:
    """Unit vectors of images in [-1, 1]."""
    return normalize(network(images), dim=1)


def together(vectors: Vectors, persons: Sequence[str]) -> Vectors:
    """One voter for each person: the mean of the images, as a unit vector."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(persons))}
    places = torch.tensor([numbers[name] for name in persons])
    sums = torch.zeros(len(numbers), vectors.shape[1], dtype=vectors.dtype)
    return normalize(sums.index_add(0, places, vectors), dim=1)


def counted(voters: Vectors, candidates: Vectors) -> Tensor:
    """How many voters are nearest to each candidate, by the cosine; the first of equals gets the vote."""
    nearest = torch.cat([(some @ candidates.T).argmax(1) for some in torch.split(voters, 4096)])
    return torch.bincount(nearest, minlength=len(candidates))


def check_noise(deviation: float) -> None:
    """UsageError where noise is wanted and its library is not installed."""
    if deviation:
        opendp()


def noisy(counts: Tensor, deviation: float) -> list[int]:
    """The counts with noise: all that leaves this module of the private images. deviation 0: none."""
    votes: list[int] = counts.tolist()
    if deviation == 0:
        return votes
    dp = opendp()
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l2_distance(T=float)
    return [int(vote) for vote in dp.m.make_gaussian(*space, scale=deviation)(votes)]


def opendp() -> Any:
    """The library of the noise."""
    try:
        import opendp.prelude as dp
    except ImportError:
        raise UsageError("noise that proves something comes from OpenDP: pip install 'nearfar[private]'") from None
    dp.enable_features("contrib")
    return dp
