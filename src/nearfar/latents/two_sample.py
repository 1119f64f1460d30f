"""How far two clouds of latents lie apart, from the Gram matrix of both together.

The null hypothesis is that both are drawn from one distribution: then it does not matter which latents carry which
label. Labels are permuted within each fold of the cross-validation, so that folds keep their balance and the p-values
are exact. With clouds of equal size, permutation tests of the centers stand up to clouds of unequal spread as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Generator, Tensor

from nearfar.latents.statistics import Gram, centered

PERMUTATIONS = 499
FOLDS = 5
RIDGES = torch.logspace(-3, 3, 7, dtype=torch.float64)
"""Candidates for the ridge, in units of the mean eigenvalue."""

Labels = Float64[Tensor, "labelings batch"]
"""1 for the latents of the first cloud, -1 for those of the second; the first row is true, the others are permuted."""
Null = Float64[Tensor, " labelings"]


@dataclass(frozen=True)
class Separation:
    """How far two clouds lie apart.

    squared_distance: of their means, without bias (below 0 at times). distance_z: how far above the mean of its
    permutations, in their standard deviations. distance_p: share of the permutations that reach it.
    quarter_power: distance of the means in units of `std * dimension ** (1 / 4)`, above 1 if the rule that the paper
    quotes for round Gaussians calls them separable.
    norm_gap: mean norm of the first less that of the second, in standard deviations of a norm.
    accuracy: of a cross-validated linear classifier, mean of both clouds; chance is 0.5. accuracy_p: as `distance_p`.
    """

    squared_distance: float
    distance_z: float
    distance_p: float
    quarter_power: float
    norm_gap: float
    accuracy: float
    accuracy_p: float


def separation(gram: Gram, first: int, dimension: int, generator: Generator) -> Separation:
    """How far the cloud of the first `first` latents lies from that of the others.

    generator: of the folds and of 499 permutations, the least p-value being 0.002. Cost: five eigendecompositions of a
    matrix of four fifths the size of the Gram matrix.
    """
    folds = balanced_folds(first, len(gram) - first, generator)
    labels = permuted_labels(folds, first, generator)
    distance, accuracy = center_distances(gram, labels), accuracies(gram, labels, folds)
    clouds = gram[:first, :first], gram[first:, first:]
    scale = sum(centered(cloud).trace().item() / (len(cloud) - 1) for cloud in clouds) / 2
    norms = [cloud.diagonal().sqrt() for cloud in clouds]
    null = distance[1:]
    return Separation(
        squared_distance=distance[0].item(),
        distance_z=((distance[0] - null.mean()) / null.std()).item(),
        distance_p=upper_p(distance),
        quarter_power=max(distance[0].item(), 0.0) ** 0.5 / (scale**0.5 * dimension**-0.25),
        norm_gap=((norms[0].mean() - norms[1].mean()) / ((norms[0].var() + norms[1].var()) / 2).sqrt()).item(),
        accuracy=accuracy[0].item(),
        accuracy_p=upper_p(accuracy),
    )


def upper_p(values: Null) -> float:
    """Share of all values that reach the first (up to rounding), itself among them."""
    return (values >= values[0] - 1e-9 * values[0].abs()).double().mean().item()


def balanced_folds(first: int, second: int, generator: Generator) -> Int64[Tensor, " batch"]:
    """The fold of each latent, by chance, with an equal share of both clouds."""
    return torch.cat([torch.randperm(count, generator=generator) % FOLDS for count in (first, second)])


def permuted_labels(folds: Int64[Tensor, " batch"], first: int, generator: Generator) -> Labels:
    """The true labels, and `PERMUTATIONS` times these shuffled within each fold."""
    true = torch.ones(len(folds), dtype=torch.float64)
    true[first:] = -1
    labels = true.repeat(1 + PERMUTATIONS, 1)
    for fold in range(FOLDS):
        members = (folds == fold).nonzero()[:, 0]
        order = torch.rand(PERMUTATIONS, len(members), generator=generator).argsort(dim=1)
        labels[1:, members] = true[members[order]]
    return labels


def center_distances(gram: Gram, labels: Labels) -> Null:
    """Squared distance of the means without bias (Chen and Qin, Annals of Statistics 38, 2010), for each labeling."""
    squares = gram.diagonal()
    sides = [(labels > 0).double(), (labels < 0).double()]
    counts = [side.sum(1) for side in sides]
    own = [
        ((side @ gram * side).sum(1) - side @ squares) / (count * (count - 1))
        for side, count in zip(sides, counts, strict=True)
    ]
    return own[0] + own[1] - 2 * (sides[0] @ gram * sides[1]).sum(1) / (counts[0] * counts[1])


def accuracies(gram: Gram, labels: Labels, folds: Int64[Tensor, " batch"]) -> Null:
    """Balanced accuracy of ridge classification, cross-validated over the folds, for each labeling."""
    scores = torch.empty_like(labels)
    for fold in range(FOLDS):
        scores[:, folds == fold] = held_out_scores(gram, labels, folds == fold)
    right = (scores * labels > 0).double()
    sides = (labels > 0).double(), (labels < 0).double()
    recalls = [(right * side).sum(1) / side.sum(1) for side in sides]
    return (recalls[0] + recalls[1]) / 2


def held_out_scores(gram: Gram, labels: Labels, held_out: Bool[Tensor, " batch"]) -> Float64[Tensor, "labelings held"]:
    """Positive for what a classifier trained on the others gives to the first cloud.

    Ridge regression of the labels, which is linear discriminant analysis with a ridge on the covariance, in its dual.
    The ridge is the one of least squared error when each training latent is left out (in closed form), the threshold is
    half way between the means of both clouds when left out: where dimensions abound, the fit to the training latents
    themselves is perfect and says nothing.
    """
    train = ~held_out
    means = gram[train].mean(0)
    products = (gram - means - means[:, None] + means[train].mean())[train]
    values, vectors = torch.linalg.eigh(products[:, train])
    signs = labels[:, train]
    targets = signs - signs.mean(1, keepdim=True)
    ridges = (RIDGES * values.mean())[:, None]
    inverse = 1 / (values.clamp(min=0) + ridges)
    shrunk = (values.clamp(min=0) * inverse)[:, None]
    coordinates = targets @ vectors
    leverage = 1 / len(values) + shrunk @ vectors.square().T
    left_out = targets - (targets - coordinates * shrunk @ vectors.T) / (1 - leverage)
    best = (left_out - targets).square().sum(2).argmin(0)
    rows = torch.arange(len(labels))
    predicted: Tensor = coordinates * inverse[best] @ (vectors.T @ products[:, held_out])
    return predicted - threshold(left_out[best, rows], signs)[:, None]


def threshold(left_out: Labels, signs: Labels) -> Null:
    """Half way between the mean predictions of both clouds."""
    first, second = ((left_out * side).sum(1) / side.sum(1) for side in ((signs > 0).double(), (signs < 0).double()))
    return torch.lerp(first, second, 0.5)
