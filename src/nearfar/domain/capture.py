"""Did an output fall back to the model's own domain? A linear classifier between that and the domain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nearfar.latents.two_sample import RIDGES
from nearfar.metrics.model_features import Vectors
from nearfar.tensors import Images

RELIABLE, BORDERLINE = 0.9, 0.975
"""The least accuracy of a classifier that is believed, and the share of the domain that is no borderline case."""


@dataclass(frozen=True, eq=False)
class Capture:
    """Ridge regression of the label, -1 for the domain and 1 for the model's own, on standardized features.

    accuracy: of both domains, each vector left out (in closed form). borderline: the score that 97.5 % of the domain's
    vectors stay below, when left out, and nearer to 0 by `5 / count` of itself.
    """

    weights: Float64[Tensor, " numbers"]
    offset: float
    accuracy: float
    borderline: float

    @classmethod
    def fit(cls, domain: Vectors, own: Float64[Tensor, "samples numbers"]) -> Capture:
        """The ridge is the one of least squared error, and the threshold lies half way between both, when left out."""
        x, count = torch.cat([domain, own]), len(domain)
        labels = torch.cat([-domain.new_ones(count), own.new_ones(len(own))])
        center, target = x.mean(0), labels - labels.mean()
        left, sizes, right = torch.linalg.svd(x - center, full_matrices=False)
        shares = sizes.square() / (sizes.square() + RIDGES[:, None] * sizes.square().mean())
        leverage = 1 / len(x) + shares @ left.square().T
        left_out = target - (target - shares * (left.T @ target) @ left.T) / (1 - leverage)
        best = (left_out - target).square().sum(1).argmin()
        means = torch.stack([left_out[best, :count].mean(), left_out[best, count:].mean()])
        scale = 2 / (means[1] - means[0]).clamp(min=1e-6)
        scores = scale * (left_out[best] - means.mean())
        weights = scale * right.T @ (shares[best] / sizes.clamp(min=1e-9) * (left.T @ target))
        right_share = ((scores[:count] < 0).double().mean() + (scores[count:] > 0).double().mean()) / 2
        offset = -(weights @ center + scale * means.mean()).item()
        return cls(
            weights, offset, right_share.item(), max(0.0, 1 - 5 / count) * scores[:count].quantile(BORDERLINE).item()
        )

    def scores(self, vectors: Vectors) -> Float64[Tensor, " batch"]:
        return vectors @ self.weights + self.offset

    @property
    def reliable(self) -> bool:
        return self.accuracy >= RELIABLE


def recolored(images: Images, like: Float[Tensor, "others channel rows columns"]) -> Images:
    """Each image with every channel's mean and deviation those of one of `like`, drawn at random; kept in [-1, 1]."""
    chosen = like[torch.randint(len(like), (len(images),), generator=torch.Generator().manual_seed(0))]
    mean, wanted_mean = (some.mean((2, 3), keepdim=True) for some in (images, chosen))
    deviation, wanted = (some.std((2, 3), keepdim=True) for some in (images, chosen))
    return ((images - mean) / deviation.clamp(min=1e-3) * wanted + wanted_mean).clamp(-1, 1)
