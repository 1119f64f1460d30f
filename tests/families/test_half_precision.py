"""Half precision, which a CPU is refused for its slowness: every family's network and prompt in it, the state not."""

import pytest
import torch

import tiny_models
from nearfar.models import loading
from nearfar.sampling.local_sampling import local_sample

FAMILIES = [
    "ddpm",
    "ddpm_checkpoint",
    "guided_checkpoint",
    "class_conditional",
    "score",
    "edm_karras",
    "ldm_vq",
    "ldm_kl",
    "stable_diffusion",
    "stable_diffusion_xl",
    "stable_diffusion_3",
    "flux",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_network_is_half_and_the_state_is_not(name, tmp_path, monkeypatch):
    family = tiny_models.FAMILIES[name]
    monkeypatch.setattr(loading, "check_precision", lambda *_: None)
    with torch.random.fork_rng():
        path = family.at(tmp_path, name)
    options = family.options | ({"guidance": 1.0} if "prompt" in family.options else {})
    with pytest.warns() if "checkpoint" in name else torch.random.fork_rng():
        model = loading.load_model(path, "cpu", torch.bfloat16, **options)
    images = torch.rand(2, model.image.channels, model.image.size, model.image.size) * 2 - 1
    states = []
    outputs = local_sample(model, images, strength=0.5, steps=2, on_step=lambda _, state: states.append(state.dtype))
    assert outputs.isfinite().all()
    assert outputs.dtype == torch.float32
    assert states == [torch.float32] * 2
    assert model.dtype == torch.bfloat16


def test_sizes_end_where_an_sd3_knows_no_more_places(tmp_path):
    tiny_models.stable_diffusion_3(tmp_path / "sd3")
    with pytest.raises(loading.UsageError, match=r"size must be a multiple of 4, at most 128 for .*, got 160"):
        loading.load_model(tmp_path / "sd3", "cpu", prompt="", size=160)
