"""How one set of images differs from another, as vectors, float64 `(count, dimensions)`: pure functions.

torchmetrics has the first two as well and gives the same numbers (a test holds that). Its Fréchet distance takes the
eigenvalues of a matrix of the features' size, which fails for fewer images than features; these here never do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBORS = 3


@dataclass(frozen=True)
class KernelDistance:
    """Unbiased squared distance over all images, and its standard error."""

    value: float
    deviation: float


@dataclass(frozen=True)
class PrecisionRecall:
    """Share of outputs that lie among the real images, and share of real images that lie among the outputs."""

    precision: float
    recall: float


def kernel_distance(
    real: Tensor, other: Tensor, *, subsets: int = 100, share: float = 0.5, seed: int = 0
) -> KernelDistance:
    """Squared maximum mean discrepancy under the kernel `(x . y / dimensions + 1)^3` (Bińkowski et al., 1801.01401).

    The value is the unbiased estimate from all pairs, which may fall below 0. The deviation is that of random subsets
    of each set, drawn without replacement with this `share` of its images: of halves, because a half deviates from the
    whole as much as the whole from the truth (delete-half jackknife; too much for sets that hardly differ).
    """
    kernels = (cubic_kernel(real, real), cubic_kernel(other, other), cubic_kernel(real, other))
    generator = torch.Generator().manual_seed(seed)

    def of_a_subset() -> float:
        m, n = (torch.randperm(len(x), generator=generator)[: max(2, int(share * len(x)))] for x in (real, other))
        return discrepancy(kernels[0][m][:, m], kernels[1][n][:, n], kernels[2][m][:, n])

    values = torch.tensor([of_a_subset() for _ in range(subsets)], dtype=torch.float64)
    return KernelDistance(discrepancy(*kernels), values.std(correction=0).item())


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def discrepancy(real: Tensor, other: Tensor, between: Tensor) -> float:
    """Unbiased estimate from the three kernel matrices, the diagonals left out."""
    own = sum((k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (real, other))
    return float(own - 2 * between.mean())


def frechet_distance(real: Tensor, other: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians with the sets' means and covariances (Heusel et al., 1706.08500).

    The trace of the root of the product of both covariances is the sum of the singular values of one centered set times
    the other, so no matrix is larger than the sets. With few images the value is biased: compare equal counts.
    """
    x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (real, other))
    means = (real.mean(0) - other.mean(0)).square().sum()
    return float(means + x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum())


def precision_recall(real: Tensor, other: Tensor, *, neighbors: int = NEIGHBORS) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991)."""
    between = distances(real, other)
    precision = (between <= radii(real, neighbors)[:, None]).any(0)
    recall = (between <= radii(other, neighbors)[None, :]).any(1)
    return PrecisionRecall(precision.double().mean().item(), recall.double().mean().item())


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances of all pairs, `(len(x), len(y))`, without the cancellation of a matrix product."""
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def radii(x: Tensor, neighbors: int) -> Tensor:
    """The distance of each vector to its `neighbors`-th nearest other."""
    return distances(x, x).fill_diagonal_(torch.inf).kthvalue(neighbors, dim=1).values
