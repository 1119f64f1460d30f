"""Whether a picture is of the kind that a model knows: how far it lies from the model's own images, as the network sees
them.

How well a model gives a picture back does not tell: smooth pictures of anything come back well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nearfar.metrics.features import BATCH, Kind, Vectors, features_of
from nearfar.models.model import FrozenModel
from nearfar.tensors import Images

MOST = 0.95
"""The share of a model's own images that are not called foreign, each left out."""


@dataclass(frozen=True, eq=False)
class Familiar:
    """Features of a model's own images, and the distance to the nearest that 95 % of them stay below."""

    model: FrozenModel
    kind: Kind
    vectors: Vectors
    center: Tensor
    scale: Tensor
    unit: float

    @classmethod
    def fit(cls, model: FrozenModel, own: Images, allowance: float = 1.0) -> Familiar:
        """From the model's own images, float32 in [-1, 1], at least two. Cost: one network call for each.

        allowance: what the unit is multiplied by, where the own images were made in few steps and are smoother.
        """
        kind, vectors = features_of(model, model.latent_space.encode(own), BATCH)
        center, scale = vectors.mean(0), vectors.std(0)
        scale = scale.clamp(min=1e-3 * scale.max().item() + 1e-12)
        standard = (vectors - center) / scale
        apart = torch.cdist(standard, standard).fill_diagonal_(torch.inf).amin(1)
        return cls(model, kind, standard, center, scale, max(allowance * apart.quantile(MOST).item(), 1e-12))

    def foreign(self, images: Images) -> Tensor:
        """Distance of each image to the nearest own one, in the unit: above 1 it is foreign. One network call each."""
        latents = self.model.latent_space.encode(images)
        _, vectors = features_of(self.model, latents, BATCH, self.kind)
        return torch.cdist((vectors - self.center) / self.scale, self.vectors).amin(1) / self.unit
