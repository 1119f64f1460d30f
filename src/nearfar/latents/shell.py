"""The shell that a domain's latents lie on: the paper's three tests of a candidate, and what meets them at once.

Of a latent independent of the others (arXiv 2310.09213, code of version 2: "geometric optimization"): its distance to
them, its angle to them at the origin, and the angle between two of them as seen from it. The paper rejects draws until
all three are near constants of one model and domain. Here target and tolerance are measured on the domain, each latent
against the others, because a mean fitted to latents is too near to them. And `Shell.project` puts any latent there at
once: the tests speak of its length and of its component along the mean, and of nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Generator, Tensor

from nearfar.latents.covariance import Latent, Scalar, checked
from nearfar.latents.statistics import gram_matrix, products
from nearfar.tensors import Images, Latents, per_image

PerImage = Float[Tensor, " batch"]


def norms(x: Images) -> PerImage:
    """Euclidean norm of each image."""
    return x.flatten(1).square().sum(dim=1).sqrt()


def angles(x: Images, y: Images) -> PerImage:
    """Angle at the origin between the images of each pair, in radians, stable for small and for opposite angles."""
    u, v = (a / per_image(norms(a), a) for a in (x, y))
    return 2 * torch.atan2(norms(u - v), norms(u + v))


def slerp(x: Images, y: Images, share: PerImage) -> Images:
    """Spherical interpolation of directions, linear interpolation of norms; `share` 0 gives x, 1 gives y."""
    angle = angles(x, y).clamp(min=1e-12)
    weights = [((1 - share) * angle).sin(), (share * angle).sin()]
    u, v = (per_image(w / norms(a), a) * a for w, a in zip(weights, (x, y), strict=True))
    length = torch.lerp(norms(x), norms(y), share)
    return per_image(length / angle.sin(), x) * (u + v)


LOOKS = 10
"""References that a candidate is held against, as in the paper's code: drawn anew for each one."""
FEWEST = 4
"""Latents from which targets are measured: each against three others."""

References = Float[Tensor, "references places rows columns"]
Products = Float64[Tensor, "batch references"]
Chosen = Int64[Tensor, "batch looks"]
Gram = Float64[Tensor, "references references"]
Measured = Float64[Tensor, "batch 3"]


@dataclass(frozen=True)
class Target:
    """What a statistic should be, and how far from it a candidate may be."""

    value: float
    tolerance: float


@dataclass(frozen=True)
class Targets:
    """Of the three tests. distance: in the latents' units. Angles in degrees; `pair_angle` is 60 on a round shell."""

    distance: Target
    origin_angle: Target
    pair_angle: Target

    def table(self) -> Float64[Tensor, "2 3"]:
        """Values, tolerances; in the order of the tests."""
        each = (self.distance, self.origin_angle, self.pair_angle)
        return torch.tensor([[t.value for t in each], [t.tolerance for t in each]], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Tested:
    """Which candidates passed all tests, which of the three each passed, and what was measured, in their order."""

    accepted: Bool[Tensor, " batch"]
    passed: Bool[Tensor, "batch 3"]
    measured: Measured

    @property
    def rate(self) -> float:
        """Share of the candidates that passed: `1 / rate` draws are needed for one."""
        return self.accepted.double().mean().item()


@dataclass(frozen=True, eq=False)
class Shell:
    """Where a latent lies that belongs to a domain, from moments without bias.

    center: mean of `count` latents. trace: of their covariance. count: infinite if the mean is known.
    """

    center: Latent
    trace: float
    count: float

    @classmethod
    def fit(cls, latents: Latents) -> Shell:
        scalar = Scalar.fit(latents)
        center = latents.mean(0, dtype=torch.float64).to(latents.dtype)
        return cls(center, scalar.variance * scalar.dimension, float(len(latents)))

    @property
    def kept(self) -> float:
        """Share of the center that is the domain's and not noise of few latents, as in `shrunk_mean`, in [0, 1]."""
        return max(0.0, 1 - self.trace / self.count / max(self.center.double().square().sum().item(), 1e-300))

    @property
    def radius(self) -> float:
        """Length of what stands at right angles to the center."""
        along = (1 - self.kept) ** 2 * self.center.double().square().sum().item()
        return math.sqrt(self.trace * (1 + 1 / self.count) - along)

    def project(self, latents: Latents) -> Latents:
        """The latent in the same direction from the center that passes the three tests in expectation, exactly.

        `kept center + radius u`, u of length 1 at right angles to the center. To the fitted latents it then has the
        mean squared distance, and the mean scalar products from the origin and from itself, that they have to each
        other (from the origin only if `kept` is above 0). With a known mean this is `mean + sigma sqrt(d) u`. At few
        latents it keeps little of the mean, as whatever is independent of them does: use `count=inf` with a fitted
        mean to keep all of it and fail the tests.
        """
        unit = self.center / norms(self.center[None]).clamp(min=1e-30)
        away = latents - self.center
        across = away - per_image((away * unit).flatten(1).sum(1), away) * unit
        return self.kept * self.center + per_image(self.radius / norms(across), across) * across


def measure(references: Latents, generator: Generator, share: float = 0.95) -> Targets:
    """Targets of the tests from each reference against `LOOKS` of the others, tolerances by the share that passes each.

    generator: picks the others. share: in (0, 1). A latent of the domain passes all three with at least
    `1 - 3 (1 - share)`; the paper's tolerances pass 0.4.
    """
    count = len(checked(references, at_least=FEWEST))
    gram = gram_matrix(references)
    others = picks(count - 1, count, generator)
    others += (others >= torch.arange(count)[:, None]).long()
    measured = statistics(gram, gram.diagonal(), gram, others)
    values = measured.mean(0)
    tolerances = (measured - values).abs().quantile(share, dim=0)
    return Targets(*map(Target, values.tolist(), tolerances.tolist()))


def accept(candidates: Latents, references: References, targets: Targets, generator: Generator) -> Tested:
    """The three tests of each candidate against `LOOKS` of the references, which `generator` picks."""
    chosen = picks(len(references), len(candidates), generator)
    squares = torch.linalg.vector_norm(candidates.flatten(1), dim=1, dtype=torch.float64).square()
    measured = statistics(products(candidates, references), squares, gram_matrix(references), chosen)
    values, tolerances = targets.table().to(measured)
    passed = (measured - values).abs() <= tolerances
    return Tested(passed.all(1), passed, measured)


def picks(available: int, count: int, generator: Generator) -> Chosen:
    """Different references for each candidate."""
    return torch.stack([torch.randperm(available, generator=generator)[:LOOKS] for _ in range(count)])


def statistics(toward: Products, squares: Float64[Tensor, " batch"], gram: Gram, chosen: Chosen) -> Measured:
    """Mean distance, angle at the origin and angle of neighboring references as seen from the candidate.

    toward: scalar products of candidates and references. squares: of the candidates' lengths.
    gram: scalar products of the references.
    """
    to, there = toward.gather(1, chosen), gram.diagonal()[chosen]
    distances = (squares[:, None] + there - 2 * to).clamp(min=1e-300).sqrt()
    origin = (to / (squares[:, None] * there).sqrt()).clamp(-1, 1).acos()
    between = gram[chosen[:, :-1], chosen[:, 1:]] + squares[:, None] - to[:, :-1] - to[:, 1:]
    pair = (between / (distances[:, :-1] * distances[:, 1:])).clamp(-1, 1).acos()
    return torch.stack([distances.mean(1), origin.rad2deg().mean(1), pair.rad2deg().mean(1)], dim=1)
