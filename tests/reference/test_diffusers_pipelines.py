"""Every family against its own pipeline in diffusers: same folder, same times, same noise.

Ours reads the folder with `load_model` and walks with its own solvers; theirs runs its own loop, scheduler, prompt
encoding, guidance and decoding. States and images may differ by 1e-4 of the largest value; float32 makes 2e-7 to 2e-5
of it, a time, prompt or guidance that is a little off 2e-3 to 2e-1.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    LDMPipeline,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DModel,
    VQModel,
)
from torch import Tensor

import tiny_models
from nearfar import load_model
from nearfar.diffusion.noise import NoiseStream
from nearfar.diffusion.solver import DDIM, solve
from nearfar.errors import ModelWarning

pytestmark = [
    # In diffusers 0.42.1 with numpy 2: "__array__ implementation doesn't accept a copy keyword".
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers"),
    # In diffusers 0.42.1, of what load_model passes to a pipeline.
]

TOLERANCE = 1e-4
BATCH, STEPS = 2, 9
PROMPT, NEGATIVE = "a portrait", "blurry"


def generator():
    return torch.Generator().manual_seed(1)


class Draws(NoiseStream):
    """What a pipeline draws from `generator()`, in its order; `scales` say how many times as large ours is."""

    def __init__(self, shape, scales=()):
        self.generator, self.shape, self.scales = generator(), (BATCH, *shape), iter(scales)

    def draw(self):
        return torch.randn(self.shape, generator=self.generator) * next(self.scales, 1.0)


@dataclass
class Walk:
    """Theirs: the times visited, the last state, and its images in [0, 1]."""

    times: Tensor
    state: Tensor
    images: Tensor


# Theirs


def run(pipeline, final=lambda moved: moved[0], **options):
    """Run a pipeline and watch its scheduler. final: the state that is decoded, from what the last step returned."""
    name = "step_pred" if isinstance(pipeline.scheduler, ScoreSdeVeScheduler) else "step"
    step, times, moves = getattr(pipeline.scheduler, name), [], []

    @wraps(step)
    def watched(output, t, *arguments, **rest):
        times.append(t)
        moves.append(step(output, t, *arguments, **rest))
        return moves[-1]

    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": STEPS, "generator": generator(), "output_type": "np", **options}
    with mock.patch.object(pipeline.scheduler, name, watched):
        images = torch.from_numpy(pipeline(**options).images).permute(0, 3, 1, 2)
    return Walk(torch.stack(times).double(), final(moves[-1]), images)


@torch.no_grad()
def loop(scheduler, network, scale=1.0):
    """The pipeline of those that have none."""
    scheduler.set_timesteps(STEPS)
    x = scale * torch.randn(BATCH, 3, 16, 16, generator=generator())
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    return Walk(scheduler.timesteps.double(), x, (x / 2 + 0.5).clamp(0, 1))


def without_clipping(pipeline):
    """Folders are saved with the default, to clip x_0, which we never do."""
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, clip_sample=False)
    return pipeline


# Ours


def load(folder, **options):
    warned = pytest.warns(ModelWarning, match="guidance") if options.get("guidance", 1) > 1 else nullcontext()
    with warned:
        return load_model(folder, "cpu", **options)


def error(ours, theirs):
    """Largest difference over largest value."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def check(model, walk, eta=0.0, begin=Draws.draw, end=None, scales=()):
    """Our walk is theirs, and a network that is told a time one too late is seen. begin: the first state."""
    end = model.schedule.clean_time if end is None else end
    grid = torch.cat([walk.times, torch.tensor([end], dtype=torch.float64)]).expand(BATCH, -1)

    def walked(network):
        noise = Draws(model.latent_shape, scales)
        return solve(replace(model.denoiser, network=network), begin(noise), grid, DDIM(eta), noise)

    network = model.denoiser.network
    state = walked(network)
    assert error(state, walk.state) <= TOLERANCE
    assert error((model.latent_space.decode(state) / 2 + 0.5).clamp(0, 1), walk.images) <= TOLERANCE
    assert walk.images.std() > 0.02
    assert error(begin(Draws(model.latent_shape, scales)), walk.state) > 0.1
    assert error(walked(lambda x, t: network(x, t + 1)), walk.state) > 2 * TOLERANCE


# Pixels

MILD = {"beta_end": 0.005}
"""An untrained epsilon network answers about 0, so the state grows by 1 / alpha: keep that small."""
PIXELS = {
    "epsilon": partial(tiny_models.ddpm, **MILD),
    "v": partial(tiny_models.ddpm, prediction_type="v_prediction"),
    "sample": partial(tiny_models.ddpm, prediction_type="sample"),
    "flat": tiny_models.ddpm_flat,
}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "model"


@pytest.mark.parametrize("write", PIXELS.values(), ids=PIXELS)
def test_ddpm(folder, write):
    write(folder)
    walk = run(without_clipping(DDPMPipeline.from_pretrained(folder)), batch_size=BATCH)
    check(load(folder), walk, eta=1.0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("write", PIXELS.values(), ids=PIXELS)
def test_ddim(folder, write, eta):
    write(folder)
    walk = run(without_clipping(DDIMPipeline.from_pretrained(folder)), batch_size=BATCH, eta=eta)
    check(load(folder), walk, eta=eta)


def unet_and_ddim(folder):
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet")
    return unet, DDIMScheduler.from_pretrained(folder, subfolder="scheduler", clip_sample=False)


@pytest.mark.parametrize("label", [0, 4])
def test_class_label(folder, label):
    tiny_models.class_conditional(folder)
    unet, scheduler = unet_and_ddim(folder)
    labels = torch.full((BATCH,), label)
    walk = loop(scheduler, lambda x, t: unet(x, t, class_labels=labels).sample)
    check(load(folder, label=label), walk)
    with pytest.raises(AssertionError, match=r"<= 0\.0001"):
        check(load(folder, label=2), walk)


def test_cosine_schedule_and_learned_variance(folder):
    tiny_models.cosine(folder)
    unet, scheduler = unet_and_ddim(folder)
    check(load(folder), loop(scheduler, lambda x, t: unet(x, t).sample[:, :3]))


def at_sigmas(model, walk, sigmas):
    """The walk with our times of its noise levels."""
    sigmas = torch.as_tensor(sigmas).double().clamp(max=model.schedule.levels[-1].item())
    return replace(walk, times=model.schedule.time_of_sigma(sigmas))


def test_score(folder):
    """Predictor only. Its noise is sqrt(t^2 - s^2), from sigma t to s, that of DDIM with eta 1 is s / t times that."""
    tiny_models.score(folder)
    pipeline = ScoreSdeVePipeline.from_pretrained(folder)
    # The network is told sigma at `sampling_eps` more than the step's: 1e-5 of the time is 1e-4 of sigma.
    pipeline.scheduler = ScoreSdeVeScheduler.from_config(pipeline.scheduler.config, correct_steps=0, sampling_eps=1e-6)
    walk = run(pipeline, final=lambda moved: moved.prev_sample_mean, batch_size=BATCH)
    sigmas = pipeline.scheduler.discrete_sigmas.flip(0)
    model = load(folder)
    scales = [pipeline.scheduler.init_noise_sigma, *(sigmas[:-1] / sigmas[1:])]
    check(model, at_sigmas(model, walk, sigmas), eta=1.0, scales=scales)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_edm(folder, prediction, schedule):
    tiny_models.edm(folder, prediction_type=prediction, sigma_schedule=schedule)
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet")
    scheduler = EDMEulerScheduler.from_pretrained(folder, subfolder="scheduler")
    walk = loop(scheduler, lambda x, t: unet(x, t).sample, scale=80.0)
    model = load(folder)
    check(model, at_sigmas(model, walk, scheduler.sigmas[:-1]), scales=[80.0])


# Latents


@pytest.mark.parametrize("kind", ["VQ", "KL"])
def test_latent_diffusion(folder, kind):
    (tiny_models.ldm_vq if kind == "VQ" else tiny_models.ldm_kl)(folder)
    autoencoder = VQModel if kind == "VQ" else AutoencoderKL
    pipeline = LDMPipeline(
        autoencoder.from_pretrained(folder, subfolder="vqvae" if kind == "VQ" else "vae"), *unet_and_ddim(folder)
    )
    check(load(folder), run(pipeline, batch_size=BATCH))


def pictures():
    return torch.rand(BATCH, 3, 32, 32, generator=generator()) * 2 - 1


@torch.no_grad()
def test_autoencoder_kl(folder):
    tiny_models.stable_diffusion_3(folder)
    space = load(folder, prompt="").latent_space
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    scaling, shift = vae.config.scaling_factor, vae.config.shift_factor
    latents = (vae.encode(pictures()).latent_dist.mode() - shift) * scaling
    assert error(space.encode(pictures()), latents) <= TOLERANCE
    assert error(space.decode(latents), vae.decode(latents / scaling + shift).sample) <= TOLERANCE
    assert latents.std() > 0.1


@torch.no_grad()
def test_autoencoder_with_a_mean_and_a_deviation_for_each_channel(folder):
    """Playground 2.5, whose encoding the pipeline does itself."""
    tiny_models.stable_diffusion_xl(folder)
    statistics = {"latents_mean": [-1.6574, 1.886, -1.383, 2.5155], "latents_std": [8.4927, 5.9022, 6.5498, 5.2299]}
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | statistics))
    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder)
    encoded = pipeline.vae.encode(pictures()).latent_dist.mode()
    pipeline.vae.encode = lambda _: SimpleNamespace(latents=encoded)
    latents = pipeline.prepare_latents(pictures(), None, BATCH, 1, torch.float32, "cpu", add_noise=False)
    assert error(load(folder, prompt="").latent_space.encode(pictures()), latents) <= TOLERANCE


@torch.no_grad()
def test_autoencoder_vq(folder):
    tiny_models.ldm_vq(folder)
    space = load(folder).latent_space
    vae = VQModel.from_pretrained(folder, subfolder="vqvae")
    latents = vae.encode(pictures()).latents * vae.config.scaling_factor
    assert error(space.encode(pictures()), latents) <= TOLERANCE
    assert error(space.decode(latents), vae.decode(latents / vae.config.scaling_factor).sample) <= TOLERANCE
    assert latents.std() > 0.1


# Prompts


@dataclass(frozen=True)
class Text:
    """A folder, what reads it as a pipeline, and what ours and theirs are asked for."""

    write: Callable[..., None]
    pipeline: Callable[..., Any]
    ours: dict[str, Any]
    theirs: dict[str, Any]
    end: float | None = None

    def wrong(self):
        """Requests that are a little off."""
        if self.ours["guidance"] != 1:
            yield {"prompt": PROMPT[:-1]}
            yield {"guidance": self.ours["guidance"] + 0.1}
        if self.ours["negative_prompt"]:
            yield {"negative_prompt": NEGATIVE[:-1]}


SIZE = {"height": 32, "width": 32}


def stable_diffusion(guidance=1.0, negative="", end=None, **options):
    return Text(
        partial(tiny_models.stable_diffusion, **options),
        StableDiffusionImg2ImgPipeline.from_pretrained,
        {"guidance": guidance, "negative_prompt": negative},
        {"guidance_scale": guidance, "negative_prompt": [negative] * BATCH},
        end,
    )


def stable_diffusion_xl(guidance=1.0, negative=""):
    return Text(
        tiny_models.stable_diffusion_xl,
        StableDiffusionXLImg2ImgPipeline.from_pretrained,
        {"guidance": guidance, "negative_prompt": negative},
        {"guidance_scale": guidance, "negative_prompt": [negative] * BATCH if negative else None},
    )


def stable_diffusion_3(guidance=1.0, negative=""):
    return Text(
        tiny_models.stable_diffusion_3,
        partial(StableDiffusion3Img2ImgPipeline.from_pretrained, text_encoder_3=None, tokenizer_3=None),
        {"guidance": guidance, "negative_prompt": negative},
        {"guidance_scale": guidance, "negative_prompt": [negative] * BATCH, **SIZE},
    )


def flux(guidance, negative="", embedded=False):
    scale = "guidance_scale" if embedded else "true_cfg_scale"
    return Text(
        partial(tiny_models.flux, guidance_embeds=embedded),
        FluxImg2ImgPipeline.from_pretrained,
        {"guidance": guidance, "negative_prompt": negative, "size": 32},
        {scale: guidance, "negative_prompt": [negative] * BATCH, **SIZE},
    )


EULER = EulerDiscreteScheduler(**tiny_models.STABLE_DIFFUSION_BETAS, steps_offset=1)
TEXT = {
    "SD 1": stable_diffusion(),
    "SD 1, guidance, negative prompt": stable_diffusion(7.5, NEGATIVE),
    "SD 1, ends at the first entry": stable_diffusion(end=0.0, set_alpha_to_one=False),
    "SD 1, Euler": stable_diffusion(scheduler=EULER),
    "SD 2": stable_diffusion(7.5, prediction_type="v_prediction"),
    "SD 2, zero SNR": stable_diffusion(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "SDXL": stable_diffusion_xl(),
    "SDXL, guidance": stable_diffusion_xl(5.0),
    "SDXL, negative prompt": stable_diffusion_xl(5.0, NEGATIVE),
    "SD 3": stable_diffusion_3(),
    "SD 3, guidance": stable_diffusion_3(5.0),
    "SD 3, negative prompt": stable_diffusion_3(5.0, NEGATIVE),
    "FLUX": flux(1.0),
    "FLUX, guidance": flux(3.5, NEGATIVE),
    "FLUX, embedded guidance": flux(3.5, embedded=True),
}


@pytest.mark.parametrize("text", TEXT.values(), ids=TEXT)
def test_image_to_image(folder, text):
    text.write(folder)
    model = load(folder, prompt=PROMPT, **text.ours)
    latents = model.latent_space.encode(pictures())
    pipeline = text.pipeline(folder)
    walk = run(pipeline, image=latents, strength=0.7, prompt=[PROMPT] * BATCH, **text.theirs)
    if isinstance(pipeline, FluxImg2ImgPipeline):
        walk = replace(walk, state=pipeline._unpack_latents(walk.state, 32, 32, pipeline.vae_scale_factor))

    def begin(noise):
        return model.schedule.add_noise(latents, walk.times[0].expand(BATCH), noise.draw())

    check(model, walk, begin=begin, end=text.end)
    for wrong in text.wrong():
        with pytest.raises(AssertionError, match=r"<= 0\.0001"):
            check(load(folder, **{"prompt": PROMPT, **text.ours, **wrong}), walk, begin=begin, end=text.end)
