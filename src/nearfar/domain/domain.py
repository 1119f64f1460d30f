"""An unseen domain, found in the latent space of one frozen model (arXiv 2310.09213), and the pull toward it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.diffusion.denoiser import Denoiser
from nearfar.diffusion.noise import NoiseStream
from nearfar.diffusion.schedule import Level, NoiseSchedule
from nearfar.diffusion.solver import DDIM, STEPS, OnStep, Sampling, Solver, solve
from nearfar.domain.guards import Guards, distinct
from nearfar.domain.presets import Preset, preset_of, way_down, way_up
from nearfar.errors import ModelWarning, UsageError
from nearfar.io.conversion import as_images
from nearfar.io.manifest import differing
from nearfar.io.notebook import html_table, summary
from nearfar.latents.covariance import Covariance, Latent, LowRank, Structured, posterior_mean, shrunk_mean
from nearfar.latents.shell import FEWEST, Targets, measure
from nearfar.metrics.quality import psnr
from nearfar.models.model import FrozenModel, checked_model
from nearfar.sampling.inversion import INVERTER, traced_inversion
from nearfar.sampling.local_sampling import BATCH, decode, descend, encode_all
from nearfar.sampling.own_domain import own_domain
from nearfar.tensors import Images, Latents, Times

PULL = 0.15
"""Weight of the density ratio."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, covariance) over clean latents."""

    mean: Latent
    covariance: Covariance

    @classmethod
    def fit(cls, latents: Latents) -> Gaussian:
        """Mean and structured covariance of clean latents, at least 2 different ones."""
        return cls(latents.mean(0, dtype=torch.float64).to(latents.dtype), Structured.fit(latents))


@dataclass(frozen=True, eq=False)
class Pulled:
    """A denoiser of `model x (domain / own)^weight` at each noise level, the last two taken for Gaussian.

        D(x_t, t) = D_model(x_t, t) + weight (D_domain(x_t, t) - D_own(x_t, t))

    D_domain and D_own are exact denoisers of Gaussians. Where the model is as sure of its own domain as D_own is, the
    difference takes it to the new one; where both Gaussians agree (fine detail), the model works alone. Where the model
    is the Gaussian `own`, weight 1 gives exactly the domain's denoiser; otherwise a product of noised densities is not
    that of the clean ones, noised, as with all guidance.
    weight: 0 is the model itself. Cost: one network call; the rest is linear.
    """

    denoiser: Denoiser
    domain: Gaussian
    own: Gaussian
    weight: float

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Images, t: Times) -> Images:
        alpha, sigma = self.schedule.coefficients(t)
        ours, its_own = (
            posterior_mean(one.mean.to(x_t), one.covariance, x_t, alpha, sigma) for one in (self.domain, self.own)
        )
        return self.denoiser(x_t, t) + self.weight * (ours - its_own)


def pulled(denoiser: Denoiser, domain: Gaussian, own: Gaussian, weight: float) -> Denoiser:
    """The denoiser with a pull of a weight in [0, 1], or as it is at weight 0."""
    if not 0 <= weight <= 1:
        raise UsageError(f"pull must be in [0, 1], got {weight:g}")
    return Pulled(denoiser, domain, own, weight) if weight else denoiser


STRENGTH = 0.5
OWN_SAMPLES = 200
FEW = 10

OwnImages = Float[Tensor, "_ channel height width"]


@dataclass(frozen=True, eq=False, repr=False)
class Domain:
    """Where the images of a domain lie in one model's latent space, and what the model takes for its own.

    model: sha256 of the model. settings: what is bound to its network (prompt, guidance, label).
    strength, steps: the level, and the inversion that led there; `steps` lead back.
    latents: of the fitted images at that level, as float16 holds them. clean: the same at the clean end.
    own: the model's own domain as a Gaussian over clean latents.
    targets: of the paper's three tests, each latent against the others.
    guards: judge of new images. diagnostics: figures of the fit, by name.
    preprocessing: how files became images, kept for those who make files of new images.
    mixing: how latents are mixed in a mosaic unless told otherwise, see `pilot`.
    pull: weight of the density ratio on the way there, and on the way back unless told otherwise.
    preset: of `presets.PRESETS`, by which latents were found and new ones are drawn; none unless given.
    From `latents` the fitted images can be had back: a domain is as confidential as they are.
    """

    model: str
    strength: float
    steps: int
    latents: Latents
    clean: Latents
    own: Gaussian
    targets: Targets
    guards: Guards
    diagnostics: Mapping[str, float]
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    mixing: Mapping[str, Any] = field(default_factory=dict)
    pull: float = 0.0
    preset: str = ""

    @classmethod
    def fit(
        cls,
        model: FrozenModel,
        images: Any,
        *,
        strength: float = STRENGTH,
        steps: int = STEPS,
        pull: float = PULL,
        own: OwnImages | None = None,
        seed: int = 0,
        batch_size: int = BATCH,
        symmetry: str = "none",
        preprocessing: Mapping[str, Any] | None = None,
        preset: str = "",
        on_step: OnStep | None = None,
    ) -> Domain:
        """Find a domain from its images, float32 `(batch, channel, height, width)` in [-1, 1], at least 4 different.

        Pictures are taken, too: a list of PIL images or arrays of any sizes.

        strength: the level of the latents; `survey` proposes one. steps: of the fixed-point inversion.
        pull: in [0, 1]; images are inverted with the pulled model, so that the way back, pulled too, ends at them.
        own: samples of the model's own domain, `own_domain` of `seed` unless given. seed: besides, which latents the
        targets of the tests are measured on. Nothing else is random. symmetry: in what ways a copy may lie, of
        `guards.SYMMETRIES`.
        preset: "paper-v1" or "paper-v2", the published method (`presets`); then strength, steps and pull are its own.
        Warns below 10 images. Cost in network calls for each batch of `batch_size`: about 5 `steps` for the images,
        20 for each batch of the 200 own samples, and what the guards' features take.
        """
        images, _ = as_images(images, checked_model(model).image)
        check_images(model, images)
        if preset:
            strength, steps, pull = settings_of(preset_of(preset), model)
        sampling = Sampling(Level(strength), steps, INVERTER)
        if own is None:
            own = own_domain(model, OWN_SAMPLES, seed=seed, batch_size=batch_size, on_step=on_step)
        model.image.check(own)
        clean, its_own = encode_all(model, images, batch_size).half().float(), encode_all(model, own, batch_size)
        toward = replace(model, denoiser=pulled(model.denoiser, Gaussian.fit(clean), Gaussian.fit(its_own), pull))
        invert = partial(as_published, preset_of(preset)) if preset else inverted
        parts = [invert(toward, part, sampling, on_step) for part in torch.split(images, batch_size)]
        latents = torch.cat([there for there, _ in parts]).half().float()
        generator = torch.Generator().manual_seed(seed)
        return cls(
            model=model.provenance.sha256,
            strength=strength,
            steps=steps,
            latents=latents,
            clean=clean,
            own=Gaussian.fit(its_own),
            targets=measure(latents, generator),
            guards=Guards.fit(model, images, own, batch_size=batch_size, symmetry=symmetry),
            diagnostics=sampling.level.describe(model.schedule) | diagnose(latents, [figures for _, figures in parts]),
            preprocessing=preprocessing or {},
            settings=bound(model),
            pull=pull,
            preset=preset,
        )

    def facts(self) -> dict[str, object]:
        """What `repr` says and a notebook shows; nothing from which the images could be had."""
        return {
            "images": len(self.latents),
            "strength": f"{self.strength:g}",
            "steps": self.steps,
            "latents": "x".join(map(str, self.latents.shape[1:])),
            "model": f"sha256:{self.model[:12]}",
            "pull": f"{self.pull:g}",
        }

    def __repr__(self) -> str:
        return summary("Domain", self.facts())

    def _repr_html_(self) -> str:
        return html_table("Domain", self.facts())

    def sampling(self, solver: Solver = INVERTER) -> Sampling:
        """The way between the clean end and the domain's level."""
        return Sampling(Level(self.strength), self.steps, solver)

    def descend(
        self, model: FrozenModel, latents: Latents, eta: float, noise: NoiseStream | None, on_step: OnStep | None
    ) -> Latents:
        """Clean latents from those at the level, on the way that the domain was found by. Cost: `steps` calls."""
        if not self.preset:
            return descend(model, latents, self.sampling(DDIM(eta)), noise, on_step)
        times = way_down(preset_of(self.preset), model.schedule).expand(len(latents), -1)
        return solve(model.denoiser, latents.to(model.device, torch.float32), times, DDIM(eta), noise, on_step)

    def pulled(self, model: FrozenModel, weight: float | None = None) -> FrozenModel:
        """The model with the pull of this domain, of the domain's own weight unless another is given."""
        weight = self.pull if weight is None else weight
        return replace(model, denoiser=pulled(model.denoiser, Gaussian.fit(self.clean), self.own, weight))

    def check(self, model: FrozenModel) -> None:
        """Refuse another model than the one that the domain was found in, or the same with another prompt or size."""
        if model.provenance.sha256 != self.model:
            raise UsageError(
                f"domain was fitted with model sha256:{self.model[:12]}..., this model is "
                f"sha256:{model.provenance.sha256[:12]}...: fit it again, or name that model"
            )
        fitted = {**self.settings, "latents": tuple(self.latents.shape[1:])}
        given = {**bound(model), "latents": tuple(model.latent_shape)}
        for name in differing(fitted, given):
            was, comes = fitted.get(name), given.get(name)
            raise UsageError(f"domain was fitted with {name} {was!r}, this model has {comes!r}: load it as it was")


def bound(model: FrozenModel) -> dict[str, Any]:
    """What is bound to a model's network and changes its trajectories; the size shows in the latents' shape."""
    return {name: value for name, value in model.settings.items() if name != "size"}


def check_images(model: FrozenModel, images: Images) -> None:
    """Refuse what makes no domain, and warn of few images."""
    model.image.check(images)
    different = len(distinct(images))
    if different < FEWEST:
        raise UsageError(
            f"a domain needs at least {FEWEST} different images, got {different} of {len(images)}: add some"
        )
    if different < FEW:
        text = f"{different} different images say little of a domain: outputs will be near-copies, give {FEW} or more"
        warnings.warn(text, ModelWarning, stacklevel=3)


def inverted(
    model: FrozenModel, images: Images, sampling: Sampling, on_step: OnStep | None
) -> tuple[Latents, dict[str, Tensor]]:
    """Latents at the level, on the CPU, and figures of each image's way there and back."""
    way = traced_inversion(model, images, sampling, on_step)
    again = decode(model, descend(model, way.latents, sampling, on_step=on_step))
    figures = {
        "psnr": psnr(images.cpu(), again),
        "residual": way.residuals.amax(1),
        "fell_back": way.fell_back.sum(1),
        "calls": way.calls.sum(1),
    }
    return way.latents.cpu(), figures


def settings_of(preset: Preset, model: FrozenModel) -> tuple[float, int, float]:
    """Strength, network calls of the way back, and pull of a preset."""
    way_up(preset, model.schedule)
    time = torch.tensor([float(preset.time)], dtype=torch.float64)
    return model.schedule.strength_of_time(time).item(), preset.nodes, 0.0


def as_published(
    preset: Preset, model: FrozenModel, images: Images, sampling: Sampling, on_step: OnStep | None
) -> tuple[Latents, dict[str, Tensor]]:
    """`inverted` in the steps of a preset; the explicit inverter solves nothing, so it has no residual."""
    up, down = (way(preset, model.schedule).expand(len(images), -1) for way in (way_up, way_down))
    latents = solve(model.denoiser, encode_all(model, images, len(images)).to(model.device), up, DDIM(), None, on_step)
    again = decode(model, solve(model.denoiser, latents, down, DDIM(), None, on_step))
    nothing = torch.zeros(len(images), dtype=torch.float64)
    figures = {"psnr": psnr(images.cpu(), again), "residual": nothing, "fell_back": nothing.long()}
    return latents.cpu(), figures | {"calls": nothing.long() + preset.nodes - 1}


def diagnose(latents: Latents, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Figures of a fit: how well images come back, and the shape of their latents' cloud."""
    figures = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {
        "images": float(len(latents)),
        "psnr_least": figures["psnr"].min().item(),
        "psnr_median": figures["psnr"].median().item(),
        "residual_most": figures["residual"].max().item(),
        "steps_fallen_back": float(figures["fell_back"].sum()),
        "calls_per_image": figures["calls"].double().mean().item(),
        "latent_deviation": latents.std().item(),
        "mean_kept": shrunk_mean(latents)[1],
        "shrinkage": LowRank.fit(latents).shrinkage,
    }


if TYPE_CHECKING:
    from torch import Tensor
