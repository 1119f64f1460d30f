"""Profiles are found again under their model's hash, and a damaged file is as good as none."""

from dataclasses import replace

import pytest
import torch

from gaussian_models import gaussian
from nearfar.models.lookup import BUNDLED
from nearfar.models.model import Provenance
from nearfar.models.profiles import keep_profile, kept_profile, key_of, place_of, read_profile
from oracle import profile_of_channels

PROFILE = profile_of_channels(torch.tensor([1.0, 2.0, 4.0]), 16)


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("NEARFAR_CACHE", str(tmp_path))
    return gaussian()


def test_a_kept_profile_is_found_again(model):
    assert kept_profile(model) is None
    keep_profile(PROFILE, place_of(model), key_of(model))
    assert kept_profile(model).digest() == PROFILE.digest()
    assert [path.suffix for path in place_of(model).parent.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("damage", [lambda whole: whole[:100], lambda whole: b"", lambda whole: whole[:-1] + b"\0" * 9])
def test_a_damaged_file_is_as_good_as_none(model, damage):
    keep_profile(PROFILE, place_of(model), key_of(model))
    place_of(model).write_bytes(damage(place_of(model).read_bytes()))
    assert kept_profile(model) is None


def test_another_model_or_prompt_does_not_take_it(model):
    keep_profile(PROFILE, place_of(model), key_of(model))
    other = replace(model, provenance=Provenance("other", "1" * 64, "none"))
    assert kept_profile(other) is None
    assert read_profile(place_of(model), key_of(replace(model, settings={"prompt": "a cat"}))) is None


def test_the_bundled_model_has_its_profile_with_it(model):
    from nearfar.diffusion.solver import LocalPrior
    from nearfar.models.loading import load_model
    from nearfar.sampling.inversion import solver_settings

    frozen = load_model(BUNDLED["faces"])
    settings = solver_settings(LocalPrior(), frozen.denoiser)
    assert settings == {"solver": "local-prior", "profile": frozen.denoiser.profile.digest()}
    without = solver_settings(LocalPrior(), model.denoiser)
    assert without == {"solver": "dpm++sde", "stands_in_for": "local-prior"}
