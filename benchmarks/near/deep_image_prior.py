"""Deep Image Prior for enlarging (Ulyanov et al., arXiv 1711.10925), small: a network fitted to one image.

An hourglass of convolutions maps fixed noise to an image; its weights are fitted until the image's means over squares
are the small image. What keeps it from noise is that it is stopped early.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS, DEPTH, JITTER, RATE = 32, 4, 1 / 30, 0.01


class Hourglass(nn.Module):
    """Halved `DEPTH` times and doubled again, with skips of 4 channels."""

    def __init__(self, noise: int) -> None:
        super().__init__()
        widths = [noise, *[CHANNELS] * DEPTH]
        self.down = nn.ModuleList(block(width, CHANNELS, stride=2) for width in widths[:-1])
        self.skip = nn.ModuleList(nn.Conv2d(width, 4, 1) for width in widths[:-1])
        self.up = nn.ModuleList(block(CHANNELS + 4, CHANNELS, stride=1) for _ in range(DEPTH))
        self.colors = nn.Conv2d(CHANNELS, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        sides = []
        for down, skip in zip(self.down, self.skip, strict=True):
            sides.append(skip(x))
            x = down(x)
        for up, side in zip(self.up, reversed(sides), strict=True):
            larger = functional.interpolate(x, size=side.shape[2:], mode="bilinear", align_corners=False)
            x = up(torch.cat([larger, side], dim=1))
        return self.colors(x).tanh()


def block(channels: int, out: int, stride: int) -> nn.Sequential:
    def convolution(width: int, step: int) -> list[nn.Module]:
        padded = nn.Conv2d(width, out, 3, step, 1, padding_mode="reflect")
        return [padded, nn.BatchNorm2d(out), nn.LeakyReLU(0.2)]

    return nn.Sequential(*convolution(channels, stride), *convolution(out, 1))


def deep_image_prior(small: Tensor, scale: int, iterations: int = 300, seed: int = 0) -> Tensor:
    """The enlargement `(3, height * scale, width * scale)` of one image in [-1, 1]; the sides must be 32 or more."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Hourglass(CHANNELS)
        code = torch.rand(1, CHANNELS, *(scale * length for length in small.shape[1:])) / 10
        optimizer = torch.optim.Adam(network.parameters(), RATE)
        for _ in range(iterations):
            optimizer.zero_grad()
            image = network(code + JITTER * torch.randn_like(code))
            functional.mse_loss(functional.avg_pool2d(image, scale), small[None]).backward()
            optimizer.step()
    return network(code)[0].detach()
