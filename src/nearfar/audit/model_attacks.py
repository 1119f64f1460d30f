"""Attacks with the model: membership by its loss, outputs walked back with the run's key; and the bound on all of them.

Membership: was this image among those that the model was trained on, or that outputs were made from? Each of two signs
gives every image a number that is higher for members; the figure is how often a member has a higher one than an image
that is no member (area under the curve, 0.5 for guessing), with DeLong's interval (Biometrics 44, 1988). Members and
others should differ in nothing else: the same source, the same preparation. The formal bound is that of local sampling
as a Gaussian mechanism on what the model is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp, inf
from typing import Any

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from nearfar.audit.pairs import Pairs
from nearfar.audit.view import Vectors, similarities
from nearfar.diffusion.noise import NoiseStream, SecretKey, fingerprint, noise_for
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import Heun, Sampling
from nearfar.errors import UsageError
from nearfar.io.fitting import FitMode, fit
from nearfar.io.listing import Item
from nearfar.io.manifest import Watch
from nearfar.io.pictures import read_picture
from nearfar.metrics.intervals import NORMAL, Figure
from nearfar.models.model import FrozenModel
from nearfar.sampling.local_sampling import ascend, decode, encode, encode_all
from nearfar.tensors import Images, per_image

BATCH = 32
"""Images of a network call."""
LEVELS, DRAWS = (0.1, 0.3, 0.5), 2
"""Strengths at which the model is asked for its members, and draws of noise at each."""
WALKED, STEPS = 32, 50
"""Outputs that are walked back, each in 50 steps of two calls."""
DELTA = 1e-5
MEANING = (
    "of two candidate originals at this distance, for a model that was not trained on them: no statement about any"
    " one attack. Useful protection needs mu of about 1 or below"
)

Signs = Float64[Tensor, " _"]


def membership_by_outputs(name: str, outputs: Vectors, members: Vectors, others: Vectors, note: str = "") -> Figure:
    """Whether members lie nearer to their nearest output than images that are none. name: of the network."""
    inside, outside = (similarities(some, outputs).amax(1) for some in (members, others))
    return area("membership by the nearest output, area under the curve", inside, outside, name, note)


def membership_by_loss(model: FrozenModel, members: Images, others: Images) -> list[Figure]:
    """Whether the model denoises its members better. The noise is that of a fixed key.

    Images: float32 in [-1, 1], of the model's size. Cost: 2 network calls for each batch of 32 images and each level.
    """
    figures = []
    for level in LEVELS:
        inside, outside = (-denoising_loss(model, some, level) for some in (members, others))
        name = f"membership by the denoising loss at strength {level:g}, area under the curve"
        figures.append(area(name, inside, outside, "the model itself"))
    return figures


@torch.inference_mode()
def denoising_loss(model: FrozenModel, images: Images, strength: float) -> Signs:
    """The mean squared error of the predicted image, in units of the noise: that of the predicted noise."""
    losses = [torch.zeros(0, dtype=torch.float64)]
    for number, some in enumerate(torch.split(images, BATCH)):
        start = Level(strength).times(model.schedule, len(some))
        key = SecretKey.from_seed(number)
        streams = [key.for_image(image, strength) for image in some]
        noise = NoiseStream(streams, model.latent_shape, model.device)
        latents = encode(model, some, noise)
        alpha, sigma = (per_image(values, latents) for values in model.schedule.coefficients(start))
        loss = torch.zeros(len(some), dtype=torch.float64)
        for _ in range(DRAWS):
            clean = model.denoiser(alpha * latents + sigma * noise.draw(), start)
            loss += ((clean - latents) * alpha / sigma).square().flatten(1).mean(1).double().cpu() / DRAWS
        losses.append(loss)
    return torch.cat(losses)


def area(name: str, members: Signs, others: Signs, network: str, note: str = "") -> Figure:
    """The area under the curve, with its interval."""
    if min(len(members), len(others)) < 2:
        raise UsageError(f"membership needs at least 2 of each, got {len(members)} members and {len(others)} others")
    over, under = placed(members, others), 1 - placed(others, members)
    value = over.mean().item()
    reach = NORMAL * (over.var() / len(members) + under.var() / len(others)).sqrt().item()
    counts = f"{len(members)} members, {len(others)} others"
    remark = "; ".join(text for text in (counts, note) if text)
    low, high = max(value - reach, 0.0), min(value + reach, 1.0)
    return Figure(name, value, len(members) + len(others), low, high, 0.5, network, note=remark)


def placed(signs: Signs, others: Signs) -> Signs:
    """The share of the others below each sign; those that equal it count half."""
    line = others.sort().values
    below = torch.searchsorted(line, signs) + torch.searchsorted(line, signs, right=True)
    return below.double() / (2 * len(line))


def no_way_back(model: FrozenModel, header: Mapping[str, Any], key: SecretKey) -> str:
    """Why outputs cannot be walked back, by the first line of their record; empty if they can.

    Raises UsageError for another model, and for another key: with that nothing comes back whatever leaked.
    """
    settings = header.get("run", {})
    if not made_by(model, settings) or not settings.get("strength"):
        raise UsageError("the record beside AFTER names no strength of this model: leave out the key, or give --model")
    if why := departure(settings):
        return why
    if header.get("key") != fingerprint(key):
        kept = "was made with another key" if header.get("key") else "was made with a key that was not kept"
        raise UsageError(f"AFTER {kept}, as its record says: give the key file of that run, or leave it out")
    return "at strength 1 nothing of an original is in its output" if settings["strength"] >= 1 else ""


def walk_back(
    model: FrozenModel, pairs: Pairs, settings: Mapping[str, Any], key: SecretKey, watch: Watch
) -> list[Figure]:
    """Of the first output of each original, by one who has the key of the run that made them."""
    first = {original: number for number, original in reversed(list(enumerate(pairs.of.tolist())))}
    originals, mode = sorted(first)[:WALKED], FitMode(settings.get("fit", "pad"))
    before = as_noised(model, [pairs.items[original] for original in originals], mode)
    after = as_noised(model, [pairs.output_items[first[original]] for original in originals], mode)
    watch("walk back", 0, 1)
    figures = walked_back(model, before, after, float(settings["strength"]), key)
    watch("walk back", 1, 1)
    return figures


def walked_back(model: FrozenModel, before: Images, after: Images, strength: float, key: SecretKey) -> list[Figure]:
    """How alike outputs are to their originals: as published, walked back with the right noise and with other noise.

    before, after: float32 in [-1, 1], of the model's size. key: of the run; with the original it stands for noise that
    leaked, because the noise depends on both. Wrong noise comes from a fixed other key. Reconstruction is best for
    outputs of a deterministic solver (DDIM, Heun); a stochastic one adds noise that is not taken out here. Cost: 100
    network calls for each batch of 32 images.
    """
    noisy = torch.cat([noised(model, some, strength) for some in torch.split(after, BATCH)])
    seen = {
        "as published": after,
        "walked back with its noise": noise_removed(model, noisy, before, strength, key),
        "walked back with other noise": noise_removed(model, noisy, before, strength, SecretKey.from_seed(1)),
    }
    return [
        mean_figure(f"correlation of pixels with the original, {way}", correlation(some, before))
        for way, some in seen.items()
    ]


def noised(model: FrozenModel, after: Images, strength: float) -> Tensor:
    """Outputs carried back to the noise level by Heun's method."""
    return ascend(model, encode(model, after), Sampling(Level(strength), STEPS, Heun()))


def noise_removed(model: FrozenModel, noisy: Tensor, before: Images, strength: float, key: SecretKey) -> Images:
    """The original, if the noise is that of this key and original: `(x_t - sigma eps) / alpha`."""
    start = Level(strength).times(model.schedule, len(before))
    stream = NoiseStream(noise_for(before, start, key, 0), model.latent_shape, model.device)
    alpha, sigma = (per_image(values, noisy) for values in model.schedule.coefficients(start))
    return decode(model, (noisy - sigma * stream.draw()) / alpha)


def correlation(x: Images, y: Images) -> Signs:
    """Of the pixels of each pair of images."""
    u, v = (some.double().flatten(1) - some.double().flatten(1).mean(1, keepdim=True) for some in (x, y))
    return torch.nn.functional.cosine_similarity(u, v)


def mean_figure(name: str, values: Signs) -> Figure:
    """The mean, with the interval of its standard error."""
    value, reach = values.mean().item(), NORMAL * values.std().item() / len(values) ** 0.5
    bounds = (value - reach, value + reach) if len(values) > 1 else (None, None)
    return Figure(name, value, len(values), *bounds)


def no_bound(model: FrozenModel, settings: Mapping[str, Any]) -> str:
    """Why nothing is proven of the outputs of a run with these settings; empty if something is."""
    named = made_by(model, settings) and settings.get("sigma") and settings.get("strength")
    other = "" if named else "the record beside AFTER names no noise level of this model: give the one that was used"
    return departure(settings) or other


def departure(settings: Mapping[str, Any]) -> str:
    """What a run with these settings did besides adding noise of one level to whole images; empty if nothing.

    Then the bound says nothing of its outputs.
    """
    if not settings:
        return "no record of the run was found beside the outputs"
    if settings.get("command") != "anonymize":
        return f"the outputs are of {settings.get('command')}, not of anonymize"
    if "regions" in settings:
        return "pixels outside the regions are copied"
    if settings.get("fit") == FitMode.TILE:
        return "images kept sizes of their own (--tile)"
    if "per_image" in settings:
        return "the strength of each image was chosen by looking at the original"
    return ""


def unbounded(settings: Mapping[str, Any]) -> str:
    """What a run copied, of which no bound says anything."""
    kept = ", and the metadata that were kept" if settings.get("keep_metadata") else ""
    return f"no bound for what is copied: sizes and names, alpha channels where images have them{kept}"


def formal_bound(model: FrozenModel, pairs: Pairs, settings: Mapping[str, Any]) -> list[Figure]:
    """Of the run that made the outputs; at strength 1 nothing of an original is used."""
    images = as_noised(model, pairs.items, FitMode(settings.get("fit", "pad")))
    with torch.inference_mode():
        latents = encode_all(model, images, BATCH)
    figures = bound(latents, inf if settings["strength"] >= 1 else float(settings["sigma"]))
    return [replace(figure, note="; ".join(filter(None, (figure.note, unbounded(settings))))) for figure in figures]


def bound(images: Shaped[Tensor, "images ..."], sigma: float, delta: float = DELTA) -> list[Figure]:
    """`mu = distance / sigma` for the least, mean and greatest distance of two of the images, and epsilon at delta.

    images: as the model noises them (pixels in [-1, 1], or latents). sigma: noise to signal; infinite for strength 1.
    By post-processing nothing that is made of the noisy image tells more (Dong et al., arXiv 1905.02383, theorem 2.7).
    """
    apart = torch.pdist(images.double().flatten(1))
    figures = []
    for name, distance in (("least", apart.min()), ("mean", apart.mean()), ("greatest", apart.max())):
        mu = distance.item() / sigma
        note = f"distance {distance:.4g}, sigma {sigma:.4g}, {MEANING}"
        figures.append(Figure(f"Gaussian mechanism, mu at the {name} distance", mu, len(apart), note=note))
        figures.append(
            Figure(f"Gaussian mechanism, epsilon at delta {delta:g}, {name} distance", epsilon(mu, delta), len(apart))
        )
    return figures


def epsilon(mu: float, delta: float = DELTA) -> float:
    """The least epsilon of a Gaussian mechanism with sensitivity over deviation `mu`: analytic, by bisection."""
    low, high = 0.0, 1.0
    if mu == 0 or spent(0.0, mu) <= delta:
        return 0.0
    if mu == inf:
        return inf
    while spent(high, mu) > delta:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle, mu) > delta else (low, middle)
    return high


def spent(eps: float, mu: float) -> float:
    """The least delta at epsilon: Phi(mu/2 - eps/mu) - exp(eps) Phi(-mu/2 - eps/mu) (Balle and Wang, ICML 2018, th. 8).

    The second term is made from logarithms, because exp(eps) overflows.
    """
    first, second = log_normal(mu / 2 - eps / mu), eps + log_normal(-mu / 2 - eps / mu)
    return exp(first) * -torch.expm1(torch.tensor(min(second - first, 0.0), dtype=torch.float64)).item()


def log_normal(x: float) -> float:
    """The logarithm of the normal distribution function."""
    return float(torch.special.log_ndtr(torch.tensor(x, dtype=torch.float64)))


def made_by(model: FrozenModel, settings: Mapping[str, Any]) -> bool:
    return settings.get("model") == model.provenance.sha256


def as_noised(model: FrozenModel, items: Sequence[Item], mode: FitMode) -> Tensor:
    """Images as a run hands them to the model."""
    contract = model.image
    return torch.stack([fit(read_picture(item.path), contract.size, contract.channels, mode) for item in items])
