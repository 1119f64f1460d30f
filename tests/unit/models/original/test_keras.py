"""Keras' DDPM example from TensorFlow.js: the network answers as its layers do, and a bad folder is a sentence."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional

import tiny_models
from nearfar.errors import UsageError
from nearfar.models.loading import load_model
from nearfar.models.original.checkpoints import convert
from nearfar.models.original.network import save_converted

INDEX, FIRST = "model.json", "group1-shard1of2.bin"


@pytest.fixture
def folder(tmp_path):
    tiny_models.keras(tmp_path / "keras")
    return tmp_path / "keras"


@pytest.fixture
def example(folder, tmp_path):
    """The converted model, read back."""
    save_converted(convert(folder, schedule="cosine", timesteps=100), tmp_path / "converted")
    return load_model(tmp_path / "converted", "cpu")


class Example:
    """The example's layers, one after the other as Keras makes and calls them, from the stored numbers."""

    def __init__(self, folder):
        index = json.loads((folder / INDEX).read_text())["weightsManifest"][0]
        content = b"".join((folder / name).read_bytes() for name in index["paths"])
        self.parts, place = {}, 0
        for entry in index["weights"]:
            rule, count = entry.get("quantization"), math.prod(entry["shape"])
            if rule:
                stored = np.frombuffer(content, np.uint8, count, place).reshape(entry["shape"])
                layer = re.search(r"(conv2d|dense|group_normalization)(?:_(\d+))?/", entry["name"])
                parts = self.parts.setdefault((layer[1], int(layer[2] or 0)), [])
                parts.append(torch.from_numpy(stored * rule["scale"] + rule["min"]).float())
            place += count * (1 if rule else 4)
        self.numbers = {"conv2d": 5, "dense": 7, "group_normalization": 3}

    def take(self, kind):
        self.numbers[kind] += 1
        return self.parts[(kind, self.numbers[kind] - 1)]

    def conv(self, x, stride=1):
        weight, bias = self.take("conv2d")
        x = functional.pad(x, (0, 1, 0, 1)) if stride == 2 else x
        padding = weight.shape[0] // 2 if stride == 1 else 0
        return functional.conv2d(x, weight.permute(3, 2, 0, 1), bias, stride, padding)

    def dense(self, x):
        weight, bias = self.take("dense")
        return x @ weight + bias

    def norm(self, x):
        return functional.group_norm(x, 8, *self.take("group_normalization"), eps=1e-3)

    def resnet(self, x, time, width):
        around = self.conv(x) if x.shape[1] != width else x
        time = self.dense(functional.silu(time))[:, :, None, None]
        x = self.conv(functional.silu(self.norm(x))) + time
        return self.conv(functional.silu(self.norm(x))) + around

    def attention(self, x):
        x = self.norm(x)
        points = x.flatten(2).transpose(1, 2)
        q, k, v = (self.dense(points) for _ in range(3))
        seen = torch.softmax(q @ k.transpose(1, 2) / x.shape[1] ** 0.5, -1) @ v
        return x + self.dense(seen).transpose(1, 2).reshape(x.shape)

    def __call__(self, x, t):
        fine, coarse = tiny_models.KERAS_WIDTHS
        rates = torch.exp(torch.arange(2 * fine) * -math.log(10000) / (2 * fine - 1))
        angles = t[:, None] * rates
        skips = [self.conv(x)]
        time = self.dense(functional.silu(self.dense(torch.cat([angles.sin(), angles.cos()], 1))))
        skips.append(self.resnet(skips[-1], time, fine))
        skips.append(self.conv(skips[-1], stride=2))
        skips.append(self.attention(self.resnet(skips[-1], time, coarse)))
        h = self.attention(self.resnet(skips[-1], time, coarse))
        h = self.resnet(h, time, coarse)
        for _ in range(2):
            h = self.attention(self.resnet(torch.cat([h, skips.pop()], 1), time, coarse))
        h = self.conv(functional.interpolate(h, scale_factor=2))
        for _ in range(2):
            h = self.resnet(torch.cat([h, skips.pop()], 1), time, fine)
        return self.conv(functional.silu(self.norm(h)))


def test_the_network_answers_as_the_examples_layers(folder, example):
    x, t = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 40.0, 99.0])
    expected = Example(folder)(x, t)
    torch.testing.assert_close(example.denoiser.network(x, t), expected, rtol=0, atol=1e-5 * expected.abs().max())


def test_the_schedule_is_clipped_as_its_authors_have_it(example):
    signal = np.cos((np.arange(101) / 100 + 0.008) / 1.008 * np.pi / 2) ** 2
    kept = np.cumprod(1 - np.clip(1 - signal[1:] / signal[:-1], 1e-4, 0.9999))
    alpha, _ = example.schedule.coefficients(torch.arange(100.0, dtype=torch.float64))
    np.testing.assert_allclose(alpha.numpy() ** 2, kept, rtol=1e-3)


def test_a_linear_schedule_is_that_of_the_example(folder):
    betas = convert(folder).scheduler.config["trained_betas"]
    assert (len(betas), betas[0], betas[-1]) == (1000, 1e-4, 0.02)


def test_the_size_is_the_graphs_or_the_one_given(folder):
    assert convert(folder).unet.config["sample_size"] == 16
    assert convert(folder, size=32).unet.config["sample_size"] == 32


def change(folder, edit):
    index = json.loads((folder / INDEX).read_text())
    edit(index, index["weightsManifest"][0])
    (folder / INDEX).write_text(json.dumps(index))


def drop_layers(kind):
    def edit(index, group):
        for entry in group["weights"]:
            entry["name"] = entry["name"].replace(kind, "other")

    return edit


EDITS = {
    "no manifest": (lambda index, group: index.pop("weightsManifest"), "wrong at weightsManifest"),
    "a path": (lambda index, group: group["paths"].__setitem__(0, "../x.bin"), "no shard beside it"),
    "an absolute path": (lambda index, group: group["paths"].__setitem__(0, "/etc/hostname"), "no shard beside it"),
    "a missing shard": (lambda index, group: group["paths"].append("group1-shard3of2.bin"), "no shard beside it"),
    "a shard too few": (lambda index, group: group["paths"].pop(), "their weights"),
    "another type": (lambda index, group: group["weights"][0].update(dtype="complex64"), "wrong at weightsManifest"),
    "a string": (lambda index, group: group["weights"][3].update(dtype="string"), "wrong at weightsManifest"),
    "a negative length": (lambda index, group: group["weights"][0].update(shape=[-1, 3]), "below 0"),
    "a huge length": (lambda index, group: group["weights"][0].update(shape=[1 << 40]), "their weights"),
    "an infinite scale": (
        lambda index, group: group["weights"][0]["quantization"].update(scale=1e300),
        "empty or not finite",
    ),
    "no convolutions": (drop_layers("conv2d"), "not those of Keras' DDPM example"),
    "no norms": (drop_layers("group_normalization"), "not in the order of Keras' DDPM example"),
    "no size": (lambda index, group: index.update(signature={}), "give size"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_bad_folder_is_a_sentence(folder, case):
    edit, says = EDITS[case]
    change(folder, edit)
    with pytest.raises(UsageError, match=says) as caught:
        convert(folder)
    assert "\n" not in str(caught.value)


def test_a_link_out_of_the_folder_is_no_shard(folder, tmp_path):
    shutil.move(folder / FIRST, tmp_path / "elsewhere.bin")
    (folder / FIRST).symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(UsageError, match="no shard beside it"):
        convert(folder)


def test_deep_json_is_a_sentence(folder):
    (folder / INDEX).write_text('{"weightsManifest": ' + "[" * 100_000)
    with pytest.raises(UsageError, match="not valid JSON"):
        convert(folder)


def test_options_of_other_layouts_are_refused(folder):
    with pytest.raises(UsageError, match="heads says nothing about"):
        convert(folder, heads=2)


def test_a_folder_with_our_keys_is_never_left_to_diffusers(folder, tmp_path):
    save_converted(convert(folder), tmp_path / "converted")
    config = tmp_path / "converted/unet/config.json"
    config.write_text(config.read_text().replace('"normed"', '"other"'))
    with pytest.raises(UsageError, match="attention_residual"):
        load_model(tmp_path / "converted", "cpu")
