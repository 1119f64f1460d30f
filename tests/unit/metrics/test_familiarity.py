"""Own images are familiar, 95 % of them by construction; what the network sees otherwise is foreign."""

import pytest
import torch

import tiny_models
from nearfar.metrics.familiarity import Familiar
from nearfar.models.loading import load_model


@pytest.fixture(scope="module")
def familiar(tmp_path_factory):
    folder = tmp_path_factory.mktemp("familiar") / "model"
    tiny_models.ddpm(folder)
    return Familiar.fit(load_model(folder), images(40, 0))


def images(count, seed):
    """Soft pictures around gray."""
    small = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 0.2
    return torch.nn.functional.interpolate(small, size=16, mode="bilinear").clamp(-1, 1)


def test_images_of_the_same_kind_are_familiar(familiar):
    assert (familiar.foreign(images(40, 1)) > 1).double().mean() < 0.3
    assert familiar.foreign(images(40, 0)).amax() < 1e-6


def test_images_of_another_kind_are_foreign(familiar):
    """What even random weights see otherwise: they hardly tell noise from soft pictures."""
    stripes = torch.ones(1, 3, 16, 16)
    stripes[..., ::2] = -1
    assert familiar.foreign(torch.cat([stripes, torch.ones(1, 3, 16, 16)])).amin() > 1.5
