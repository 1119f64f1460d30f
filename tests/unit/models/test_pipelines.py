"""Live diffusers pipelines as models."""

import pytest
import torch
from diffusers import AutoencoderKL, DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, StableDiffusionPipeline

import tiny_models
from nearfar.diffusion.noise import SecretKey
from nearfar.errors import UsageError
from nearfar.models.loading import load_model
from nearfar.sampling.local_sampling import local_sample

KEY = SecretKey.from_seed(0)


def near(model):
    images = torch.rand(2, 3, model.image.size, model.image.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return local_sample(model, images, strength=0.5, steps=3, key=KEY)


@pytest.mark.parametrize(
    "pipeline", [lambda unet: DDPMPipeline(unet, DDPMScheduler()), lambda unet: DDIMPipeline(unet, DDIMScheduler())]
)
def test_a_live_pipeline_samples_as_its_folder_does(pipeline, tmp_path):
    live = pipeline(tiny_models.seeded(tiny_models.unet)())
    live.save_pretrained(tmp_path)
    assert torch.equal(near(load_model(live)), near(load_model(tmp_path)))


def test_training_the_pipeline_on_changes_nothing():
    live = DDPMPipeline(tiny_models.seeded(tiny_models.unet)(), DDPMScheduler())
    model = load_model(live)
    before = near(model)
    with torch.no_grad():
        for weights in live.unet.parameters():
            weights.add_(1.0)
    assert torch.equal(near(model), before)
    assert next(live.unet.parameters()).requires_grad
    assert load_model(live).provenance.sha256 != model.provenance.sha256


def test_a_text_model_encodes_its_prompt_with_its_own_encoders(tmp_path):
    tiny_models.stable_diffusion(tmp_path)
    live = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None, requires_safety_checker=False)
    assert isinstance(live.vae, AutoencoderKL)
    from_memory, from_folder = (load_model(source, prompt="a cat") for source in (live, tmp_path))
    assert from_memory.settings == from_folder.settings
    assert torch.allclose(near(from_memory), near(from_folder), atol=1e-5)


def test_other_networks_are_refused():
    class Pipeline:
        config, scheduler, components = {}, DDPMScheduler(), {}

    with pytest.raises(UsageError, match="Pipeline holds no network, which nearfar does not read"):
        load_model(Pipeline())


@pytest.mark.parametrize("source", [7, object()])
def test_what_names_no_model_is_refused(source):
    with pytest.raises(UsageError, match="a model is given as a folder, a file, a name or a diffusers pipeline, got"):
        load_model(source)
