"""Galaxygrad's layout: the mixer answers as the classes of the wheel do, and a bad file is a sentence."""

import io
import json

import numpy as np
import pytest
import torch
from torch.nn import functional

import tiny_models
from nearfar.errors import ModelWarning, UsageError
from nearfar.io.stacks import own_values
from nearfar.models.loading import load_model
from nearfar.models.original.checkpoints import convert
from nearfar.models.original.network import save_converted
from nearfar.sampling.local_sampling import local_sample

FLUXES = {"low": -1.0, "high": 20.0, "curve": "log1p", "unit": 0.1}


@pytest.fixture
def file(tmp_path):
    tiny_models.equinox(tmp_path / "net.eqx")
    return tmp_path / "net.eqx"


@pytest.fixture
def model(file, tmp_path):
    save_converted(convert(file, **FLUXES), tmp_path / "converted")
    return load_model(tmp_path / "converted", "cpu")


def answer(x, t):
    """The score as the wheel's classes compute it, from the arrays in their order."""
    *arrays, end = tiny_models.equinox_arrays()
    conv, bias, out, out_bias, *block, scale, shift = [torch.from_numpy(array) for array in arrays]
    rows, side = tiny_models.MIXER_PATCH, tiny_models.MIXER_PATCH
    time = (t / float(end))[:, None, None, None].expand(len(x), 1, 16, 16)
    h = functional.conv2d(torch.cat([x, time], 1), conv, bias.flatten(), stride=side).flatten(2)

    def norm(h, weight, bias):
        spread = h.var((1, 2), unbiased=False, keepdim=True)
        return (h - h.mean((1, 2), keepdim=True)) / (spread + 1e-5).sqrt() * weight + bias

    w1, b1, w2, b2, w3, b3, w4, b4, n1, s1, n2, s2 = block
    h = h + ((norm(h, n1, s1) @ w1.T + b1).relu() @ w2.T + b2)
    h = h.transpose(1, 2)
    h = (h + ((norm(h, n2, s2) @ w3.T + b3).relu() @ w4.T + b4)).transpose(1, 2)
    h = norm(h, scale, shift).unflatten(2, (rows, rows))
    places = torch.einsum("bhij,ohkl->boikjl", h, out.flip(-1, -2))  # a kernel that is not turned around
    return places.reshape(len(x), 1, 16, 16) + out_bias.flatten()


def test_the_network_answers_as_the_wheels_classes(model):
    x, t = 3 * torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([1e-3, 2.0, 10.0])
    expected = answer(x, t)
    torch.testing.assert_close(model.denoiser.network(x, t), expected, rtol=0, atol=1e-5 * expected.abs().max())


def test_a_file_is_read_as_its_folder_is(file, model):
    x, t = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0.5, 5.0])
    with pytest.warns(ModelWarning, match="linear values by 1"):
        directly = load_model(file, "cpu")
    assert torch.equal(directly.denoiser.network(x, t), model.denoiser.network(x, t))


def test_noise_follows_continuous_time(model):
    times = torch.tensor([1e-3, 0.01, 0.3, 4.0, 10.0], dtype=torch.float64)
    alpha, sigma = model.schedule.coefficients(times)
    torch.testing.assert_close(alpha**2, (-times).exp(), rtol=0, atol=1e-5)
    torch.testing.assert_close(sigma**2, 1 - (-times).exp(), rtol=0, atol=1e-5)


def test_fluxes_go_in_and_come_out_beyond_one(model):
    fluxes = np.array([[-0.05, 0.0, 0.5, 6.0]] * 4)[None, None]
    values = own_values(model.image)
    images = values.to_image(fluxes)
    latents = model.latent_space.encode(images)
    np.testing.assert_allclose(latents.numpy(), np.log1p(fluxes) / 0.1, atol=1e-5)
    np.testing.assert_allclose(values.to_values(model.latent_space.decode(latents)), fluxes, atol=1e-5)


def test_near_images_are_made(model):
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(2)) - 0.5
    near = local_sample(model, images, strength=0.05, steps=2)
    assert near.shape == images.shape
    assert not torch.equal(near, images)


def arrays_with(place, array):
    arrays = tiny_models.equinox_arrays()
    arrays[place] = array
    return arrays


def header(**changed):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (2,), **changed})
    return buffer.getvalue()


CONTENTS = {
    "nothing": b"",
    "no arrays": b"GIF89a",
    "cut off": header(),
    "a claim": header(shape=(1 << 60,)),
    "an empty array": header(shape=(0,)),
    "integers": header(descr="<i8") + bytes(16),
    "objects": header(descr="|O") + bytes(16),
    "Fortran's order": header(fortran_order=True) + bytes(8),
    "the other byte order": header(descr=">f4") + bytes(8),
    "a header that is no value": b"\x93NUMPY\x01\x00\x10\x00[1][0](0)\x28\x28\x28\x28\x28\x28\x28",
    "one array": header() + bytes(8),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_a_bad_file_is_a_sentence(tmp_path, case):
    path = tmp_path / "net.eqx"
    path.write_bytes(CONTENTS[case])
    with pytest.raises(UsageError, match=r"net\.eqx (is no Equinox file|holds \d+ arrays)") as caught:
        convert(path)
    assert "\n" not in str(caught.value)


ARRAYS = {
    "another shape": (4, np.ones((10, 15), np.float32)),
    "no square": (4, np.ones((10, 12), np.float32)),
    "no kernel": (0, np.ones(3, np.float32)),
    "no time": (-1, np.float64(-1.0)),
    "times in a row": (-1, np.ones(2)),
    "no numbers": (5, np.full(10, np.nan, np.float32)),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_that_make_no_network_are_a_sentence(tmp_path, case):
    path = tmp_path / "net.eqx"
    tiny_models.equinox(path, arrays_with(*ARRAYS[case]))
    with pytest.raises(UsageError) as caught:
        convert(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"low": 3.0}, {"curve": "sine"}, {"unit": 0.0}, {"high": float("inf")}])
def test_ends_and_units_must_make_a_range(file, options):
    with pytest.raises(UsageError):
        convert(file, **options)


def test_options_of_other_layouts_are_refused(file):
    with pytest.raises(UsageError, match="timesteps says nothing about"):
        convert(file, timesteps=500)


CONFIGS = {"layers": 10**9, "hidden_size": -1, "sample_size": 1 << 20, "patch_size": 0, "end": 0.0, "low": "x"}


@pytest.mark.parametrize("key", CONFIGS)
def test_a_strangers_config_is_bounded(file, tmp_path, key):
    save_converted(convert(file), tmp_path / "converted")
    path = tmp_path / "converted/unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: CONFIGS[key]}))
    with pytest.raises(UsageError) as caught:
        load_model(tmp_path / "converted", "cpu")
    assert "\n" not in str(caught.value)
