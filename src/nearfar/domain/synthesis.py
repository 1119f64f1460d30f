"""New images of a domain that the frozen model has never seen: draw latents, then denoise (arXiv 2310.09213)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.diffusion.solver import DDIM, OnStep
from nearfar.domain.domain import Domain
from nearfar.domain.draws import GEOMETRIES, Draw, Start, drawing, generator_of, steered
from nearfar.domain.recipe import FAMILY
from nearfar.errors import UsageError
from nearfar.models.model import FrozenModel
from nearfar.sampling.local_sampling import BATCH, ascend, decode, descend, encode, numbered_noise
from nearfar.tensors import Images

Image = Float[Tensor, "channel height width"]


@dataclass(frozen=True, eq=False)
class Synthesis:
    """New images, float32 in [-1, 1], on the CPU, and where each of them began. `numbers`: the outputs' own."""

    images: Images
    starts: tuple[Start, ...]
    numbers: tuple[int, ...]

    @property
    def acceptance(self) -> float:
        """Share of the draws that were taken; 1 where none is refused: no tests, and mixtures without a margin."""
        return len(self.starts) / sum(start.attempts for start in self.starts)


@dataclass(frozen=True, eq=False)
class Synthesizer:
    """Everything that is settled once for all outputs: the draws, the pulled model, the way down.

    eta: 0 follows the deterministic trajectory, as the paper; above, fresh noise is added, up to 1 (see `bandwidth`).
    """

    model: FrozenModel
    domain: Domain
    draw: Draw
    eta: float
    seed: int

    def make(self, numbers: Sequence[int], on_step: OnStep | None = None) -> Synthesis:
        """The outputs of these numbers. Cost: the domain's `steps` network calls for the batch."""
        starts = tuple(self.draw(generator_of(self.seed, number)) for number in numbers)
        latents = torch.stack([start.latent for start in starts])
        noise = numbered_noise(self.model, "synthesis", numbers, self.seed)
        clean = descend(self.model, latents, self.domain.sampling(DDIM(self.eta)), noise, on_step)
        return Synthesis(decode(self.model, clean), starts, tuple(numbers))

    def make_all(self, numbers: Sequence[int], batch_size: int = BATCH, on_step: OnStep | None = None) -> Synthesis:
        """The same, a batch at a time."""
        if not numbers:
            raise UsageError("count must be at least 1, got none")
        batches = (numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size))
        parts = [self.make(batch, on_step) for batch in batches]
        starts = tuple(start for part in parts for start in part.starts)
        return Synthesis(torch.cat([part.images for part in parts]), starts, tuple(numbers))


def synthesizer(
    model: FrozenModel,
    domain: Domain,
    *,
    family: str = FAMILY,
    geometry: str = "free",
    pull: float | None = None,
    eta: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> Synthesizer:
    """Settle how new images are made.

    family: of spread, see `draws.drawing`; options: of the family. geometry: "free" takes draws as they are,
    "projected" puts them onto the domain's shell, "tested" repeats them until they pass the paper's three tests.
    pull: weight of the density ratio, in [0, 1] (see `pull.Pulled`), the domain's own unless given; 0 is the
    frozen model alone. Another than the domain was fitted with bends the way back: a larger one overdoes contrast.
    eta: of the way down, see `Synthesizer`. seed: of draws and noise.
    """
    domain.check(model)
    if geometry not in GEOMETRIES:
        raise UsageError(f"geometry must be one of {', '.join(GEOMETRIES)}, got {geometry!r}")
    if not 0 <= eta <= 1:
        raise UsageError(f"eta must be in [0, 1], got {eta:g}")
    draw = GEOMETRIES[geometry](drawing(domain, family, **options), domain)
    return Synthesizer(domain.pulled(model, pull), domain, draw, eta, seed)


def synthesize(
    model: FrozenModel,
    domain: Domain,
    count: int,
    *,
    first: int = 0,
    batch_size: int = BATCH,
    on_step: OnStep | None = None,
    **options: Any,
) -> Synthesis:
    """`count` new images of a domain. Output `i` depends on model, domain, settings, seed and `i`, not on `count`.

    first: the number of the first output. options: those of `synthesizer`.
    Cost: the domain's `steps` network calls for each batch. `Domain.guards` judges what comes out.
    """
    making = synthesizer(model, domain, **options)
    return making.make_all(range(first, first + count), batch_size, on_step)


def vary(
    model: FrozenModel,
    domain: Domain,
    image: Image,
    count: int,
    *,
    amount: float = 0.5,
    batch_size: int = BATCH,
    on_step: OnStep | None = None,
    **options: Any,
) -> Images:
    """`count` variations of one image `(channel, height, width)` in [-1, 1] of the domain.

    amount: 0 gives the image back, 1 forgets it and is what `synthesize` makes: the image's latent and a draw are added
    as in `draws.steer`, so that every mixture lies where latents of the domain lie. options: those of `synthesizer`;
    the image is inverted with its `pull`, too.
    Cost: one inversion, and `steps` calls for each batch.
    """
    making = varying(model, domain, image, amount=amount, on_step=on_step, **options)
    return making.make_all(range(count), batch_size, on_step).images


def varying(
    model: FrozenModel,
    domain: Domain,
    image: Image,
    *,
    amount: float,
    on_step: OnStep | None = None,
    **options: Any,
) -> Synthesizer:
    """Settle how variations of one image are made, as `vary` says; options: of `synthesizer`. Cost: one inversion."""
    if not 0 <= amount <= 1:
        raise UsageError(f"amount must be in [0, 1], got {amount:g}")
    making = synthesizer(model, domain, **options)
    making.model.image.check(image[None])
    latents = ascend(making.model, encode(making.model, image[None]), domain.sampling(), on_step)
    return replace(making, draw=steered(making.draw, latents[0].cpu(), domain.latents.mean(0), amount))
