"""What each family hands its network and does with the answer, against numbers computed here from the papers' formulas.

A spy stands in for the network of a loaded model: it notes what it is handed and answers what a test wants to see.
"""

import gc
import json
import math
import weakref
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    VQModel,
)

import tiny_models
from nearfar.diffusion.denoiser import NetworkDenoiser, from_v
from nearfar.diffusion.noise import NoiseStream
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.diffusion.solver import DDIM
from nearfar.errors import ModelWarning
from nearfar.models import loading
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel
from nearfar.models.unet import PixelUNet
from nearfar.sampling import local_sampling
from nearfar.sampling.local_sampling import local_sample

pytestmark = [
    # In diffusers 0.42.1 with numpy 2: "__array__ implementation doesn't accept a copy keyword".
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
]

BATCH = 2
KEYS = [bytes([number + 1]) * 16 for number in range(BATCH)]


def almost_nothing(x, *_, **__):
    return 0.1 * x


@dataclass
class Spy:
    """A network's `forward` that notes its arguments. answer: what it returns for them; wrapped: as diffusers does."""

    answer: Any = almost_nothing
    wrapped: bool = True
    calls: list = field(default_factory=list)

    def __call__(self, *arguments, **options):
        self.calls.append((*arguments, options))
        answer = self.answer(*arguments, **options)
        return SimpleNamespace(sample=answer) if self.wrapped else answer


@dataclass(frozen=True)
class Watched:
    """A model whose network is a spy; path: where it lies."""

    path: Any
    model: FrozenModel
    network: Any
    spy: Spy

    def denoised(self, x, t):
        return self.model.denoiser(x, torch.full((len(x),), t, dtype=torch.float64))

    def first_call(self, images, **options):
        """What the network is handed first, in a local sample with the noise of KEYS."""
        self.spy.calls.clear()
        with mock.patch.object(local_sampling, "noise_for", return_value=KEYS):
            local_sample(self.model, images, **{"steps": 1, **options})
        return self.spy.calls[0]


def watch(path, answer=almost_nothing, **options):
    """Load a model and put a spy in its network's place."""
    loaded, load_part = [], loading.load_part
    with mock.patch.object(loading, "load_part", lambda *part: loaded.append(load_part(*part)) or loaded[-1]):
        model = load_model(path, "cpu", **options)
    loaded[0].forward = Spy(answer, wrapped=not isinstance(loaded[0], PixelUNet))
    return Watched(path, model, loaded[0], loaded[0].forward)


@pytest.fixture(scope="session")
def path(tmp_path_factory):
    """Where a tiny model lies, by what writes it; written once."""
    written = {}

    def find(write, name, **options):
        key = (name, *sorted(options.items()))
        if key not in written:
            written[key] = tmp_path_factory.mktemp("conventions") / name
            write(written[key], **options)
        return written[key]

    return find


def change_json(file, without=(), **changes):
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if name not in without}))


def images(channels=3, size=16):
    return torch.rand(BATCH, channels, size, size, generator=torch.manual_seed(0)) * 1.6 - 0.8


def draws(shape, count):
    stream = NoiseStream(KEYS, shape)
    return [stream.draw() for _ in range(count)]


def close(actual, expected, tolerance=1e-5):
    """Float32 rounding of values of order 1, relative where they are larger."""
    torch.testing.assert_close(actual.double(), torch.as_tensor(expected).double(), rtol=tolerance, atol=tolerance)


# Tables of betas


def alphas_cumprod(path):
    return DDPMScheduler.from_pretrained(path, subfolder="scheduler").alphas_cumprod.double()


@pytest.mark.parametrize(("strength", "time"), [(0.25, 249.0), (0.3, 299.0), (0.5004, 499.4), (1.0, 999.0)])
def test_ddpm_is_told_the_place_of_the_strength_on_the_time_axis(path, strength, time):
    x, told, _ = watch(path(tiny_models.ddpm, "ddpm")).first_call(images(), strength=strength)
    assert (x.dtype, told.dtype) == (torch.float32, torch.float32)
    assert told.tolist() == pytest.approx([time] * BATCH, rel=1e-6)


@pytest.mark.parametrize("name", ["ddpm", "cosine"])
@pytest.mark.parametrize("entry", [0, 99, 499, 998])
def test_ddpm_is_handed_the_forward_jump_of_its_own_table(path, name, entry):
    watched = watch(path(getattr(tiny_models, name), name))
    x, told, _ = watched.first_call(images(), strength=(entry + 1) / 1000)
    signal, (noise,) = alphas_cumprod(watched.path)[entry], draws((3, 16, 16), 1)
    assert told.tolist() == pytest.approx([entry] * BATCH, abs=1e-6)
    close(x, signal.sqrt() * images() + (1 - signal).sqrt() * noise)


def test_at_strength_1_nothing_of_the_image_is_handed_over(path):
    watched = watch(path(tiny_models.ddpm, "ddpm"))
    x, _, _ = watched.first_call(images(), strength=1.0)
    close(x, (1 - alphas_cumprod(watched.path)[-1]).sqrt() * draws((3, 16, 16), 1)[0])


@pytest.mark.parametrize("steps", [1, 2, 20])
@pytest.mark.parametrize("sigma", [0.02, 0.31, 1.7, 40.0])
def test_a_level_between_two_entries_is_met_exactly_whatever_the_steps(path, sigma, steps):
    watched = watch(path(tiny_models.ddpm, "ddpm"))
    x, told, _ = watched.first_call(torch.zeros(BATCH, 3, 16, 16), sigma=sigma, steps=steps, solver=DDIM())
    (noise,) = draws((3, 16, 16), 1)
    close(x / noise, torch.full_like(x, sigma / math.sqrt(1 + sigma**2)), 1e-6)
    signal = alphas_cumprod(watched.path).numpy()
    angles = np.arctan(np.sqrt((1 - signal) / signal))
    assert np.tan(np.interp(told[0].item(), np.arange(1000), angles)) == pytest.approx(sigma, rel=1e-5)
    assert told[0].item() % 1 > 0.01
    assert len(watched.spy.calls) == steps


@pytest.mark.parametrize(("rescaled", "time"), [(True, 499.75), (False, 1999.0)])
def test_improved_ddpm_counts_in_thousandths_where_it_was_trained_so(path, rescaled, time):
    folder = path(tiny_models.ddpm, f"improved {rescaled}", num_train_timesteps=4000, beta_end=0.005)
    change_json(folder / "scheduler/scheduler_config.json", rescale_timesteps=rescaled)
    x, told, _ = watch(folder).first_call(images(), strength=0.5)
    signal = alphas_cumprod(folder)[1999]
    assert told.tolist() == [time] * BATCH
    close(x, signal.sqrt() * images() + (1 - signal).sqrt() * draws((3, 16, 16), 1)[0])


def test_a_class_is_handed_over_for_every_image(path):
    _, _, options = watch(path(tiny_models.class_conditional, "classes"), label=3).first_call(images(), strength=0.5)
    assert options["class_labels"].tolist() == [3] * BATCH
    assert not options["class_labels"].is_floating_point()
    _, _, options = watch(path(tiny_models.ddpm, "ddpm")).first_call(images(), strength=0.5)
    assert options["class_labels"] is None


def test_a_learned_variance_is_left_out(path):
    folder = path(tiny_models.cosine, "cosine")
    watched = watch(folder, lambda x, *_, **__: torch.cat([0.1 * x, torch.full_like(x, torch.nan)], dim=1))
    without = watch(folder)
    close(watched.denoised(images(), 400.0), without.denoised(images(), 400.0), 0)


def test_a_patched_network_is_handed_rows_columns_and_colors_of_each_patch(path):
    watched = watch(path(tiny_models.patched, "patched", side=4))
    picture = images(size=32)
    x, _, _ = watched.first_call(picture, strength=0.3)
    signal, (noise,) = alphas_cumprod(watched.path)[299], draws((48, 8, 8), 1)
    clean = (x.double() - (1 - signal).sqrt() * noise) / signal.sqrt()
    for row, column, color in [(0, 0, 0), (0, 0, 2), (0, 3, 1), (2, 1, 0), (3, 3, 2)]:
        close(clean[:, (row * 4 + column) * 3 + color], picture[:, color, row::4, column::4])


# What the network's answer means


def ddpm_signal(path):
    return alphas_cumprod(path)[400]


def karras(share, low=0.002, high=80.0, rho=7):
    return (low ** (1 / rho) + share * (high ** (1 / rho) - low ** (1 / rho))) ** rho


LEVELS = {"karras": karras, "exponential": lambda share: 0.002 * (80 / 0.002) ** share}


def score_sigma(entry):
    return 0.01 * 5000 ** (entry / 999)


def from_epsilon(x, output, path):
    return (x - (1 - ddpm_signal(path)).sqrt() * output) / ddpm_signal(path).sqrt()


def from_velocity(x, output, path):
    return ddpm_signal(path).sqrt() * x - (1 - ddpm_signal(path)).sqrt() * output


def from_score(x, output, path):
    return x + score_sigma(400) ** 2 * output


def from_edm(x, output, path, data=0.5, sign=1):
    sigma = karras(400 / 999)
    skip = data**2 / (sigma**2 + data**2)
    return skip * x + sign * sigma * data / math.sqrt(sigma**2 + data**2) * output


ANSWERS = {
    "epsilon": (tiny_models.ddpm, {}, from_epsilon),
    "sample": (tiny_models.ddpm, {"prediction_type": "sample"}, lambda x, output, path: output),
    "v": (tiny_models.ddpm, {"prediction_type": "v_prediction"}, from_velocity),
    "score": (tiny_models.score, {}, from_score),
    "EDM": (tiny_models.edm, {}, from_edm),
    "EDM, other data": (tiny_models.edm, {"sigma_data": 1.0}, partial(from_edm, data=1.0)),
    "EDM, v": (tiny_models.edm, {"prediction_type": "v_prediction"}, partial(from_edm, sign=-1)),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_becomes_the_clean_image_by_the_formula_of_its_family(path, name):
    write, options, formula = ANSWERS[name]
    output = torch.randn(BATCH, 3, 16, 16, generator=torch.manual_seed(1))
    watched = watch(path(write, name, **options), lambda *_, **__: output)
    x = torch.randn(BATCH, 3, 16, 16, generator=torch.manual_seed(2))
    expected = formula(x.double(), output.double(), watched.path)
    close(watched.denoised(x, 400.0), expected)
    assert (expected - x).abs().mean() > 0.05


# Noise levels instead of times


@pytest.mark.parametrize("strength", [0.001, 0.25, 0.6, 1.0])
def test_a_score_model_is_told_sigma_and_sees_pixels_from_0_to_1(path, strength):
    x, told, _ = watch(path(tiny_models.score, "score")).first_call(images(), strength=strength)
    sigma = score_sigma(1000 * strength - 1)
    assert told.tolist() == pytest.approx([sigma] * BATCH, rel=1e-6)
    clean = (images() + 1) / 2 if strength < 1 else 0
    close((x - clean) / sigma, draws((3, 16, 16), 1)[0], 1e-4)


def test_a_quarter_of_the_way_is_the_level_of_the_boomerang_paper(path):
    # Luzi et al., arXiv 2210.12100: 25 % of a geometric scale from 0.01 to 50, where the network's table has 1000.
    _, told, _ = watch(path(tiny_models.score, "score")).first_call(images(), strength=0.25)
    assert told[0].item() == pytest.approx(0.01 * 5000**0.25, rel=0.01)
    assert f"{told[0].item():.3f}" == "0.084"


@pytest.mark.parametrize("schedule", LEVELS)
@pytest.mark.parametrize("data", [0.5, 1.0])
def test_edm_is_handed_unit_variance_and_a_quarter_of_log_sigma(path, schedule, data):
    folder = path(tiny_models.edm, f"edm {schedule} {data}", sigma_schedule=schedule, sigma_data=data)
    x, told, _ = watch(folder).first_call(images(), strength=0.6)
    sigma = LEVELS[schedule](599 / 999)
    assert told.tolist() == pytest.approx([math.log(sigma) / 4] * BATCH, rel=1e-5)
    close(x * math.sqrt(sigma**2 + data**2), images() + sigma * draws((3, 16, 16), 1)[0])


# Autoencoders


AUTOENCODERS = {
    "ldm_vq": ("vqvae", VQModel, {}, 0.5, 0.0),
    "ldm_kl": ("vae", AutoencoderKL, {}, 0.18215, 0.0),
    "stable_diffusion": ("vae", AutoencoderKL, tiny_models.PROMPT, 0.18215, 0.0),
    "stable_diffusion_3": ("vae", AutoencoderKL, tiny_models.PROMPT, 1.5305, 0.0609),
    "flux": ("vae", AutoencoderKL, tiny_models.PROMPT | {"size": 32}, 0.3611, 0.1159),
}


def encoder_latents(autoencoder, picture):
    """The mode of a KL encoder, the unquantized latents of a VQ encoder."""
    encoded = autoencoder.encode(picture)
    return encoded.latents if isinstance(autoencoder, VQModel) else encoded.latent_dist.mode()


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_latents_are_scaled_and_shifted_as_the_config_says(path, name):
    part, kind, options, scaling, shift = AUTOENCODERS[name]
    folder = path(getattr(tiny_models, name), name)
    space, autoencoder = load_model(folder, "cpu", **options).latent_space, kind.from_pretrained(folder / part)
    with torch.no_grad():
        latents = encoder_latents(autoencoder, images(size=32))
        decoded = autoencoder.decode(latents).sample
    close(space.encode(images(size=32)), (latents - shift) * scaling)
    close(space.decode((latents - shift) * scaling), decoded)
    assert latents.std() > 0.05


def test_a_vq_autoencoder_without_a_scaling_has_none(path):
    folder = path(tiny_models.ldm_vq, "without scaling")
    change_json(folder / "vqvae/config.json", without=["scaling_factor"])
    with torch.no_grad():
        latents = VQModel.from_pretrained(folder / "vqvae").encode(images(size=32)).latents
    close(load_model(folder, "cpu").latent_space.encode(images(size=32)), latents)


@pytest.mark.parametrize("sampled", [False, True])
def test_a_kl_encoder_is_sampled_from_the_stream_of_its_image_when_asked(path, sampled):
    folder = path(tiny_models.ldm_kl, "ldm_kl")
    watched = watch(folder, sampled=sampled)
    x, told, _ = watched.first_call(images(size=32), strength=0.5)
    again, _, _ = watched.first_call(images(size=32), strength=0.5)
    with torch.no_grad():
        encoded = AutoencoderKL.from_pretrained(folder / "vae").encode(images(size=32)).latent_dist
    first, second = draws((3, 16, 16), 2)
    latents, noise = (encoded.mean + encoded.std * first, second) if sampled else (encoded.mean, first)
    signal = alphas_cumprod(folder)[499]
    close(x, signal.sqrt() * 0.18215 * latents + (1 - signal).sqrt() * noise)
    assert torch.equal(x, again)
    assert told.tolist() == [499.0] * BATCH


@pytest.mark.parametrize(("size", "calls", "longest"), [(16, 1, 16), (32, 1, 32), (48, 4, 32), (64, 9, 32)])
def test_only_pictures_beyond_the_trained_size_go_through_the_autoencoder_in_tiles(path, size, calls, longest):
    space = load_model(path(tiny_models.ldm_kl, "ldm_kl"), "cpu", size=size).latent_space
    with mock.patch.object(space.network, "encode", wraps=space.network.encode) as encode:
        latents = space.encode(images(size=size))
    with mock.patch.object(space.network, "decode", wraps=space.network.decode) as decode:
        decoded = space.decode(latents)
    assert (latents.shape, decoded.shape) == ((BATCH, 3, size // 2, size // 2), (BATCH, 3, size, size))
    for calling, side in ((encode, longest), (decode, longest // 2)):
        assert calling.call_count == BATCH * calls
        assert {call.args[0].shape[-1] for call in calling.call_args_list} == {side}


# Text models


PROMPT, NEGATIVE = "a portrait", "blurry"


def say(x, t, *, encoder_hidden_states, **_):
    """An answer that tells which prompt it was given."""
    return torch.ones_like(x) * encoder_hidden_states[:, :, 0].mean(1)[:, None, None, None]


LEFT_OUT = dict.fromkeys(["text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"])


def encoded(kind, folder, negative, guided=True):
    """diffusers' own encoding: text and what is to be avoided, and the pooled ones where there are such."""
    parts = LEFT_OUT if kind is StableDiffusion3Pipeline else {}
    others = {StableDiffusionXLPipeline: 1, StableDiffusion3Pipeline: 2}.get(kind, 0)
    options = {"num_images_per_prompt": 1, "do_classifier_free_guidance": guided, "negative_prompt": negative}
    with torch.no_grad():
        return kind.from_pretrained(folder, **parts).encode_prompt(PROMPT, *[None] * others, device="cpu", **options)


def handed(call):
    """Text and pooled text that a network was handed, whatever the family calls them."""
    *arguments, options = call
    if "timestep" in options and "img_ids" not in options:  # SD3 takes them in order
        return arguments[1], arguments[2]
    text = options["encoder_hidden_states"]
    return text, options.get("added_cond_kwargs", {}).get("text_embeds", options.get("pooled_projections"))


def per_picture(embedding):
    return embedding.expand(BATCH, *embedding.shape[1:])


GUIDED = {
    "stable_diffusion": StableDiffusionPipeline,
    "stable_diffusion_xl": StableDiffusionXLPipeline,
    "stable_diffusion_3": StableDiffusion3Pipeline,
}


@pytest.mark.parametrize("name", GUIDED)
def test_without_guidance_every_picture_is_predicted_once_with_the_prompt_as_diffusers_encodes_it(path, name):
    folder = path(getattr(tiny_models, name), name)
    call = watch(folder, prompt=PROMPT).first_call(images(size=32), strength=0.5)
    text, _, *pooled = encoded(GUIDED[name], folder, None, guided=False)
    assert len(call[0]) == BATCH
    close(handed(call)[0], per_picture(text), 1e-6)
    if pooled:
        close(handed(call)[1], per_picture(pooled[0]), 1e-6)


@pytest.mark.parametrize("negative", [NEGATIVE, ""])
@pytest.mark.parametrize("name", GUIDED)
def test_with_guidance_the_batch_is_doubled_with_what_is_to_be_avoided_first(path, name, negative):
    folder = path(getattr(tiny_models, name), name)
    with pytest.warns(ModelWarning, match="guidance 3 sharpens"):
        watched = watch(folder, prompt=PROMPT, negative_prompt=negative, guidance=3.0)
    call = watched.first_call(images(size=32), strength=0.5)
    text, away, *pooled = encoded(GUIDED[name], folder, negative or None)
    assert torch.equal(call[0][:BATCH], call[0][BATCH:])
    assert len(call[0]) == 2 * BATCH
    close(handed(call)[0], torch.cat([per_picture(away), per_picture(text)]), 1e-6)
    if pooled:
        close(handed(call)[1], torch.cat([per_picture(pooled[1]), per_picture(pooled[0])]), 1e-6)
    assert not torch.allclose(text, away, atol=1e-3)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0])
def test_guidance_goes_from_the_answer_without_the_prompt_past_the_one_with_it(path, guidance):
    folder = path(tiny_models.stable_diffusion, "stable_diffusion")
    with pytest.warns(ModelWarning, match="guidance") if guidance > 1 else nullcontext():
        watched = watch(folder, say, prompt=PROMPT, negative_prompt=NEGATIVE, guidance=guidance)
    x = torch.randn(BATCH, 4, 16, 16, generator=torch.manual_seed(2))
    text, away = (one[:, :, 0].double().mean() for one in encoded(StableDiffusionPipeline, folder, NEGATIVE))
    output = away + guidance * (text - away)
    signal = alphas_cumprod(folder)[400]
    close(watched.denoised(x, 400.0), (x - (1 - signal).sqrt() * output) / signal.sqrt())
    assert (text - away).abs() > 1e-3


def test_stable_diffusion_is_told_its_place_in_the_table_and_handed_noisy_latents(path):
    watched = watch(path(tiny_models.stable_diffusion, "stable_diffusion"), prompt=PROMPT)
    x, told, _ = watched.first_call(images(size=32), strength=0.3)
    signal, (noise,) = alphas_cumprod(watched.path)[299], draws((4, 16, 16), 1)
    assert told.tolist() == [299.0] * BATCH
    close(x, signal.sqrt() * watched.model.latent_space.encode(images(size=32)) + (1 - signal).sqrt() * noise)


@pytest.mark.parametrize("guidance", [1.0, 0.5])
def test_sdxl_is_told_that_the_picture_is_whole_and_of_this_size(path, guidance):
    folder = path(tiny_models.stable_diffusion_xl, "stable_diffusion_xl")
    watched = watch(folder, prompt=PROMPT, guidance=guidance, size=48)
    _, _, options = watched.first_call(images(size=48), strength=0.5)
    doubling = 1 if guidance == 1 else 2
    assert options["added_cond_kwargs"]["time_ids"].tolist() == [[48, 48, 0, 0, 48, 48]] * BATCH * doubling


def test_the_text_encoders_are_let_go_once_the_prompt_is_encoded(path, monkeypatch):
    weights, encode = [], StableDiffusionPipeline.encode_prompt

    def encode_prompt(pipeline, *arguments):
        weights.extend(weakref.ref(weight) for weight in pipeline.text_encoder.parameters())
        return encode(pipeline, *arguments)

    monkeypatch.setattr(StableDiffusionPipeline, "encode_prompt", encode_prompt)
    watched = watch(path(tiny_models.stable_diffusion, "stable_diffusion"), say, prompt=PROMPT)
    gc.collect()
    assert weights
    assert not any(weight() is not None for weight in weights)
    assert not watched.denoised(torch.zeros(BATCH, 4, 16, 16), 400.0).requires_grad


# Rectified flow


@pytest.mark.parametrize(
    ("name", "size", "longest"), [("stable_diffusion_3", 32, 1000), ("flux", 32, 1), ("flux", 48, 1)]
)
def test_a_flow_model_is_handed_a_straight_line_to_noise_and_how_far_it_is(path, name, size, longest):
    watched = watch(path(getattr(tiny_models, name), name), prompt=PROMPT, size=size)
    x, *_, given = watched.first_call(images(size=size), strength=0.3)
    latents = watched.model.latent_space.encode(images(size=size))
    expected = 0.7 * latents + 0.3 * draws(latents.shape[1:], 1)[0]
    if name == "flux":
        expected = FluxPipeline._pack_latents(expected, BATCH, 4, size // 2, size // 2)
    close(x, expected)
    assert given["timestep"].tolist() == pytest.approx([0.3 * longest] * BATCH, rel=1e-6)


def test_the_answer_of_a_flow_model_is_the_way_from_the_image_to_the_noise(path):
    watched = watch(path(tiny_models.stable_diffusion_3, "stable_diffusion_3"), prompt=PROMPT)
    x = torch.randn(BATCH, 4, 16, 16, generator=torch.manual_seed(2))
    close(watched.denoised(x, 300.0), x - 0.3 * 0.1 * x)


def test_the_answer_of_flux_is_taken_from_its_patches(path):
    watched = watch(path(tiny_models.flux, "flux"), prompt=PROMPT, size=32)
    weights = torch.randn(64, 16, generator=torch.manual_seed(3))
    watched.network.forward = Spy(lambda patches, **_: patches * weights)
    x = torch.randn(BATCH, 4, 16, 16, generator=torch.manual_seed(2))
    packed = FluxPipeline._pack_latents(x, BATCH, 4, 16, 16) * weights
    close(watched.denoised(x, 300.0), x - 0.3 * FluxPipeline._unpack_latents(packed, 32, 32, 2))


def test_flux_is_told_the_places_and_the_prompt_as_diffusers_makes_them(path):
    folder = path(tiny_models.flux, "flux")
    *_, options = watch(folder, prompt=PROMPT, size=32).first_call(images(size=32), strength=0.3)
    with torch.no_grad():
        text, pooled, places = FluxPipeline.from_pretrained(folder).encode_prompt(PROMPT, None, device="cpu")
    close(options["encoder_hidden_states"], per_picture(text), 1e-6)
    close(options["pooled_projections"], per_picture(pooled), 1e-6)
    close(options["txt_ids"], places, 0)
    close(options["img_ids"], FluxPipeline._prepare_latent_image_ids(BATCH, 8, 8, "cpu", torch.float32), 0)


@pytest.mark.parametrize(
    ("embedded", "guidance", "told", "predictions"),
    [(True, 1.0, [1.0, 1.0], BATCH), (True, 0.5, [0.5, 0.5], BATCH), (False, 1.0, None, BATCH), (False, 0.5, None, 4)],
)
def test_guidance_is_an_input_of_flux_where_it_was_distilled_into_it(path, embedded, guidance, told, predictions):
    folder = path(tiny_models.flux, f"flux {embedded}", guidance_embeds=embedded)
    x, options = watch(folder, prompt=PROMPT, size=32, guidance=guidance).first_call(images(size=32), strength=0.3)
    assert len(x) == predictions
    assert (options["guidance"] if told is None else options["guidance"].tolist()) == told


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_network_runs_in_its_own_precision_and_the_rest_in_float32(dtype):
    calls = []

    def network(x, t):
        calls.append((x, t))
        return x

    schedule = NoiseSchedule.variance_preserving(torch.linspace(0.999, 0.01, 100))
    x = torch.randn(BATCH, 3, 8, 8, generator=torch.manual_seed(2))
    clean = NetworkDenoiser(network, schedule, from_v, dtype)(x, torch.full((BATCH,), 40.5, dtype=torch.float64))
    ((handed_over, told),) = calls
    assert (handed_over.dtype, told.dtype, clean.dtype) == (dtype, torch.float32, torch.float32)
    assert told.tolist() == [40.5] * BATCH
    alpha, sigma = schedule.coefficients(torch.tensor([40.5], dtype=torch.float64))
    close(clean, alpha * x - sigma * x.to(dtype).float())
