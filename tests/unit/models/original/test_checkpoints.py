"""Original checkpoints: the converted network answers as its authors' own code did, and a bad file is a sentence.

The golden files come from tests/golden/make_checkpoints.py, which runs the authors' code.
"""

import contextlib
import io
import json
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from golden.make_checkpoints import draw_weights
from nearfar.errors import RunError, UsageError
from nearfar.models.original.checkpoints import apply_heads, convert
from nearfar.models.original.network import save_converted
from nearfar.models.original.start import CHECKPOINT_SUFFIXES

GOLDEN = Path(__file__).parents[3] / "golden" / "checkpoints"
# float32 rounding through some twenty layers is 2e-6; a wrong order or number of heads is 1e-2 and more.
BOUND = 1e-5

OPTIONS = {
    "ddpm": {},
    "ddpm_deep": {},
    "afhq_like": {"head_channels": 16},
    "conditional": {"head_channels": 16},
    "new_order": {"heads": 4, "new_attention_order": True},
    "plain": {"heads": 4},
    "improved": {},
}


def golden(name):
    """Weights in half precision, inputs, and the authors' output."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        found = {key: file[key] for key in file.files}
    shapes = [
        (str(key), tuple(map(int, str(shape).split())))
        for key, shape in zip(found["names"], found["shapes"], strict=True)
    ]
    arrays = {key: torch.from_numpy(found[key]) for key in ("x", "t", "y", "output") if key in found}
    return draw_weights(shapes, int(found["seed"])), arrays


def write(path, content, legacy=False):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    """The tiny DDPM network in its file, to be damaged."""
    return write(tmp_path / "model.ckpt", golden("ddpm")[0])


def error_of(unet, arrays):
    with torch.no_grad():
        output = unet(arrays["x"], arrays["t"], class_labels=arrays.get("y")).sample
    return ((output - arrays["output"]).norm() / arrays["output"].norm()).item()


def reload(folder):
    from diffusers import UNet2DModel

    unet = UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    apply_heads(unet)
    return unet.eval()


def read(path):
    return json.loads(path.read_text())


# The same answers


@pytest.mark.parametrize("name", OPTIONS)
def test_the_network_answers_as_its_authors_code(name, tmp_path, figures):
    weights, arrays = golden(name)
    converted = convert(write(tmp_path / f"{name}.pt", weights), **OPTIONS[name])
    figures[f"checkpoint {name}, relative error"] = f"{error_of(converted.unet, arrays):.1e}"
    assert error_of(converted.unet, arrays) <= BOUND
    assert not converted.unet.training
    assert {weight.dtype for weight in converted.unet.parameters()} == {torch.float32}
    save_converted(converted, tmp_path / "folder")
    assert error_of(reload(tmp_path / "folder"), arrays) <= BOUND


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("afhq_like", {"head_channels": 32}),
        ("afhq_like", {"head_channels": 16, "new_attention_order": True}),
        ("new_order", {"heads": 4}),
        ("improved", {"heads": 2}),
        ("improved", {"head_channels": 16}),
    ],
)
def test_the_comparison_sees_a_wrong_option(name, options, tmp_path):
    weights, arrays = golden(name)
    converted = convert(write(tmp_path / "model.pt", weights), **options)
    assert error_of(converted.unet, arrays) > 1000 * BOUND


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ddpm", {"norm_eps": 1e-5}),
        ("ddpm", {"downsample_padding": 1}),
        ("ddpm", {"freq_shift": 0}),
        ("ddpm", {"flip_sin_to_cos": True}),
        ("improved", {"norm_eps": 1e-6}),
        ("improved", {"downsample_padding": 0}),
        ("improved", {"freq_shift": 1}),
        ("improved", {"flip_sin_to_cos": False}),
    ],
)
def test_the_comparison_sees_a_wrong_constant(name, change, tmp_path):
    from diffusers import UNet2DModel

    weights, arrays = golden(name)
    unet = convert(write(tmp_path / "model.pt", weights), **OPTIONS[name]).unet
    other = UNet2DModel.from_config(dict(unet.config) | change)
    other.load_state_dict(unet.state_dict())
    apply_heads(other)
    assert error_of(other.eval(), arrays) > 3 * BOUND


# What people have


def in_a_training_list(weights):
    last = {f"module.{key}": weight * 0 for key, weight in weights.items()}
    return [last, {"state": {}, "param_groups": [{"lr": 2e-4}]}, 3, 1000, weights]


def in_an_unsmoothed_list(weights):
    return [{f"module.{key}": weight for key, weight in weights.items()}, {"state": {}}, 3, 1000]


CONTAINERS = {
    "plain": (lambda weights: weights, None),
    "compiled": (lambda weights: {f"_orig_mod.{key}": weight for key, weight in weights.items()}, None),
    "compiled and parallel": (lambda weights: {f"module._orig_mod.{key}": one for key, one in weights.items()}, None),
    "parallel": (lambda weights: {f"module.{key}": weight for key, weight in weights.items()}, None),
    "state_dict": (lambda weights: {"state_dict": weights, "epoch": 3}, "'state_dict'"),
    "model": (lambda weights: {"model": weights, "optimizer": {"lr": 1e-4}}, "'model'"),
    "ema": (lambda weights: {"model": {"x": torch.zeros(1)}, "ema": weights}, "EMA.*'ema'"),
    "model_ema": (lambda weights: {"model_ema": weights, "state_dict": {"x": torch.zeros(1)}}, "EMA.*'model_ema'"),
    "ema_model": (lambda weights: {"step": 3, "ema_model": weights}, "EMA.*'ema_model'"),
    "training list": (in_a_training_list, r"smoothed weights \(EMA\) were taken, which lie at 4"),
    "unsmoothed list": (in_an_unsmoothed_list, r"there are no smoothed ones \(EMA\), were taken, which lie at 0"),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_weights_are_found_in_what_people_save(container, legacy, tmp_path):
    wrap, said = CONTAINERS[container]
    weights, arrays = golden("ddpm")
    converted = convert(write(tmp_path / "model.ckpt", wrap(weights), legacy))
    assert error_of(converted.unet, arrays) <= BOUND
    taken = [sentence for sentence in converted.assumptions if "were taken" in sentence]
    assert len(taken) == (said is not None)
    assert said is None or re.search(said, taken[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_any_precision_is_read(dtype, tmp_path):
    weights, arrays = golden("ddpm")
    path = write(tmp_path / "model.ckpt", {key: weight.to(dtype) for key, weight in weights.items()})
    assert error_of(convert(path).unet, arrays) <= BOUND


def test_safetensors_are_read(tmp_path):
    weights, arrays = golden("ddpm")
    save_file(weights, tmp_path / "model.safetensors")
    assert error_of(convert(tmp_path / "model.safetensors").unet, arrays) <= BOUND


def test_suffixes_are_those_of_weights():
    assert {".pt", ".ckpt", ".safetensors"} <= set(CHECKPOINT_SUFFIXES)


# What the weights do not tell


def test_every_default_is_said(checkpoint, tmp_path):
    assert convert(checkpoint).assumptions == (
        "Images are 32x32: attention then ends at 16x16, as is usual (size).",
        "The network predicts noise on a linear schedule of 1000 steps (schedule).",
    )
    said = convert(write(tmp_path / "model.pt", golden("improved")[0]), size=64).assumptions
    assert [sentence.partition(" (")[2] for sentence in said] == [
        "heads, head_channels).",
        "new_attention_order).",
        "schedule).",
    ]


@pytest.mark.parametrize(("name", "size"), [("ddpm", 32), ("ddpm_deep", 16), ("conditional", 16), ("plain", 32)])
def test_size_is_the_one_at_which_attention_ends_where_it_usually_does(name, size, tmp_path):
    path = write(tmp_path / "model.pt", golden(name)[0])
    options = OPTIONS[name]
    assert convert(path, **options).unet.config.sample_size == size
    assert convert(path, size=256, **options).unet.config.sample_size == 256


def test_classes_and_learned_variance_are_seen(tmp_path):
    converted = convert(write(tmp_path / "model.pt", golden("conditional")[0]), head_channels=16)
    assert converted.unet.config.num_class_embeds == 5
    assert (converted.unet.config.in_channels, converted.unet.config.out_channels) == (3, 6)
    assert converted.scheduler.config.variance_type == "learned_range"


def openai_betas(schedule, steps):
    """Nichol and Dhariwal, arXiv 2102.09672: equation 17, and the linear schedule with its noise kept."""
    if schedule == "linear":
        return np.linspace(0.1 / steps, 20 / steps, steps)
    level = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - level[1:] / level[:-1], 0.999)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1000, 4000])
def test_schedules_are_those_of_openai(schedule, steps, tmp_path):
    path = write(tmp_path / "model.pt", golden("plain")[0])
    converted = convert(path, heads=4, schedule=schedule, timesteps=steps)
    expected = np.cumprod(1 - openai_betas(schedule, steps))
    # diffusers keeps its table in float32: 4000 products of rounded factors.
    np.testing.assert_allclose(converted.scheduler.alphas_cumprod.numpy(), expected, rtol=0, atol=1e-6)


def test_ddpm_keeps_its_betas(checkpoint):
    config = convert(checkpoint, timesteps=500).scheduler.config
    assert (config.beta_start, config.beta_end, config.num_train_timesteps) == (1e-4, 0.02, 500)
    assert config.variance_type == "fixed_small"


# Folders


def test_a_plain_folder_is_one_of_diffusers(checkpoint, tmp_path):
    from diffusers import DDPMPipeline

    save_converted(convert(checkpoint), tmp_path / "new" / "folder", card="---\nlicense: mit\n---\n")
    folder = tmp_path / "new" / "folder"
    assert (folder / "README.md").read_text() == "---\nlicense: mit\n---\n"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model_index.json", "scheduler", "unet"]
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    assert error_of(DDPMPipeline.from_pretrained(folder).unet, golden("ddpm")[1]) <= BOUND


def test_no_path_is_kept(checkpoint, tmp_path):
    save_converted(convert(checkpoint), tmp_path / "folder")
    text = "".join(path.read_text() for path in (tmp_path / "folder").rglob("*.json"))
    assert "_name_or_path" not in text
    assert str(tmp_path) not in text


def improved_folder(tmp_path, **options):
    path = write(tmp_path / "model.pt", golden("improved")[0])
    save_converted(convert(path, **options), tmp_path / "folder")
    return tmp_path / "folder"


def test_fixed_heads_are_kept_and_diffusers_refuses_the_folder(tmp_path):
    from diffusers import DDPMPipeline, DiffusionPipeline

    folder = improved_folder(tmp_path)
    assert read(folder / "unet/config.json")["attention_heads"] == 4
    assert read(folder / "model_index.json")["_class_name"] == "NearfarPipeline"
    with pytest.raises(AttributeError, match="NearfarPipeline"):
        DiffusionPipeline.from_pretrained(folder)
    with pytest.raises((AttributeError, ValueError)):
        DDPMPipeline.from_pretrained(folder)


def test_rescaled_times_are_kept_where_they_matter(tmp_path):
    folder = improved_folder(tmp_path, head_channels=16, timesteps=4000, rescale_timesteps=True)
    assert read(folder / "scheduler/scheduler_config.json")["rescale_timesteps"] is True
    assert read(folder / "model_index.json")["_class_name"] == "NearfarPipeline"
    assert "attention_heads" not in read(folder / "unet/config.json")


def test_rescaling_a_thousand_steps_changes_nothing(tmp_path):
    folder = improved_folder(tmp_path, head_channels=16, rescale_timesteps=True)
    assert "rescale_timesteps" not in read(folder / "scheduler/scheduler_config.json")
    assert read(folder / "model_index.json")["_class_name"] == "DDPMPipeline"


@pytest.mark.parametrize("heads", [0, 5, "4"])
def test_heads_of_a_changed_config_are_checked(heads, tmp_path):
    folder = improved_folder(tmp_path)
    (folder / "unet/config.json").write_text(json.dumps(read(folder / "unet/config.json") | {"attention_heads": heads}))
    with pytest.raises(UsageError, match=r"attention_heads must be|5 attention heads must divide the 32 channels"):
        reload(folder)


def test_an_empty_folder_is_filled_and_a_full_one_refused(checkpoint, tmp_path):
    converted = convert(checkpoint)
    (tmp_path / "folder").mkdir()
    save_converted(converted, tmp_path / "folder")
    before = sorted(tmp_path.rglob("*"))
    for taken in ("folder", "model.ckpt"):
        with pytest.raises(UsageError, match=f"{taken} must be new or empty, but something lies there"):
            save_converted(converted, tmp_path / taken)
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_unfinished_is_left_behind(checkpoint, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    converted = convert(checkpoint)
    monkeypatch.setattr(converted.scheduler, "save_pretrained", full)
    with pytest.raises(RunError, match=r"folder cannot be written \(.*No space left.*\): make room"):
        save_converted(converted, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


# Options


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"heads": 4, "head_channels": 64}, "heads and head_channels exclude each other, got 4 and 64: give one"),
        ({"schedule": "quadratic"}, "schedule must be one of linear, cosine, got 'quadratic': choose one"),
        ({"timesteps": 0}, "timesteps must be at least 100, got 0: most models have 1000"),
        ({"size": 0}, "size must be at least 1, got 0: leave it out for the default"),
        ({"heads": -1}, "heads must be at least 1, got -1: leave it out for the default"),
        ({"size": 33}, "model.ckpt cannot be converted: size must be a multiple of 2, .* got 33: give size"),
        ({"heads": 4}, "DDPM layout has one attention head: leave out the options on attention"),
        ({"new_attention_order": True}, "DDPM layout has one attention head: leave out the options on attention"),
    ],
)
def test_options_that_cannot_be_are_refused(options, sentence, checkpoint):
    with pytest.raises(UsageError, match=sentence):
        convert(checkpoint, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"heads": 5}, "5 attention heads must divide the (32|64) channels there: give other heads"),
        ({"head_channels": 48}, "48 channels per attention head must divide the (32|64) channels there: give other"),
        ({}, "64 channels per attention head must divide the 32 channels there: give other heads"),
    ],
)
def test_heads_must_divide_the_channels(options, sentence, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        convert(write(tmp_path / "model.pt", golden("conditional")[0]), **options)


# Files that are none


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"A text about weights.\n" * 9, b"<!DOCTYPE html>" * 9])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused(content, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"is empty: get it|is no checkpoint \(|is no complete safetensors file \("):
        convert(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"model.pt does not exist: give a checkpoint file \(.pt, "):
        convert(tmp_path / "model.pt")
    with pytest.raises(UsageError, match=r"is a folder: give a checkpoint file \(.pt, "):
        convert(tmp_path)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_that_was_cut_off_is_refused(share, kind, tmp_path):
    path, weights = tmp_path / f"model.{kind}", golden("ddpm")[0]
    save_file(weights, path) if kind == "safetensors" else write(path, weights, legacy=kind == "legacy")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UsageError, match=r"is damaged|is no complete safetensors file"):
        convert(path)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_file_with_changed_bytes_is_a_sentence_or_other_weights(kind, tmp_path):
    path = write(tmp_path / "model.ckpt", golden("ddpm")[0], legacy=kind == "legacy")
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(30):
        changed = bytearray(whole)
        for place in random.integers(0, 20_000, 3):
            changed[place] ^= 1 << random.integers(8)
        path.write_bytes(changed)
        with contextlib.suppress(UsageError):
            convert(path)


class RunsCode:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_pickle_is_never_run(legacy, tmp_path):
    marker = tmp_path / "marker"
    path = write(tmp_path / "model.ckpt", golden("ddpm")[0] | {"extra": RunsCode(marker)}, legacy)
    with pytest.raises(UsageError, match=r"holds Python objects \(posix.mkdir\), not only weights: nothing was run"):
        convert(path)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_another_kind_is_never_opened(protocol, tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "model.pt").write_bytes(pickle.dumps(RunsCode(marker), protocol))
    with pytest.raises(UsageError, match="is no checkpoint"):
        convert(tmp_path / "model.pt")
    assert not marker.exists()


def test_objects_of_other_programs_are_named(tmp_path):
    path = write(tmp_path / "model.ckpt", {"state_dict": golden("ddpm")[0], "options": Path("x")})
    with pytest.raises(
        UsageError, match=r"holds Python objects \(pathlib.*\), not only weights: nothing was run; save"
    ):
        convert(path)


# Bombs


def test_a_compressed_file_is_never_unpacked(checkpoint):
    content = io.BytesIO(checkpoint.read_bytes())
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(checkpoint, "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
        new.writestr("model/data/999", bytes(50_000_000))
    assert checkpoint.stat().st_size < 2_000_000
    with pytest.raises(UsageError, match=r"is compressed within \(.+\), which torch.save never does: save it again"):
        convert(checkpoint)


def test_records_that_claim_more_than_the_file_are_refused(checkpoint):
    content = bytearray(checkpoint.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # the last record's entry in the central directory
    struct.pack_into("<II", content, entry + 20, 10**9, 10**9)
    checkpoint.write_bytes(content)
    with pytest.raises(UsageError, match=r"claims 10\d+ bytes of records and has \d+: get it again"):
        convert(checkpoint)


def test_views_that_would_grow_are_refused(tmp_path):
    weights = golden("ddpm")[0] | {"conv_in.weight": torch.zeros(1).expand(100_000, 100_000, 3, 3)}
    with pytest.raises(UsageError, match=r"claims \d+ bytes of weights and has \d+: save copies of its weights"):
        convert(write(tmp_path / "model.ckpt", weights))


def test_a_network_larger_than_its_weights_is_never_built(tmp_path):
    # A matrix of one column for each level: the whole network would have 10^11 weights.
    weights = golden("ddpm")[0]
    weights["down.1.block.0.conv1.weight"] = torch.zeros(96_000, 1, 1, 1).half()
    with pytest.raises(UsageError, match=r"must have the shape \(.*96000.*\): the checkpoint is of another family"):
        convert(write(tmp_path / "model.ckpt", weights))


# Weights that do not fit


def drop(*keys):
    return lambda weights: {key: weight for key, weight in weights.items() if key not in keys}


def put(key, weight):
    return lambda weights: weights | {key: weight}


FITS = {
    "foreign": (lambda _: {"encoder.weight": torch.ones(3, 3)}, r"weights \(encoder.weight, ...\) are of no family"),
    "no weights": (lambda _: {"epoch": 3}, "must hold weights by name, got a dict with epoch: give a state_dict"),
    "a number": (lambda _: 3, "must hold weights by name, got a int: give a state_dict"),
    "an array": (lambda _: torch.ones(3), "must hold weights by name, got a Tensor: give a state_dict"),
    "empty list": (lambda _: [], "must hold weights by name, got a list: give a state_dict"),
    "missing": (drop("up.1.attn.1.k.bias"), "the weights lack up.1.attn.1.k.bias: the file is incomplete"),
    "missing first": (drop("conv_in.weight"), "the weights lack conv_in.weight: the file is incomplete"),
    "missing level": (drop("down.0.block.0.conv1.weight"), "finest level must have as many channels .* got no"),
    "surplus": (put("logvar", torch.ones(1000)), "the weight logvar has no place in the network"),
    "surplus bias": (
        put("mid.block_1.nin_shortcut.bias", torch.ones(32)),
        "mid.block_1.nin_shortcut.bias has no place",
    ),
    "surplus kind": (put("conv_in.scale", torch.ones(32)), "the weight conv_in.scale has no place"),
    "shape": (
        put("conv_out.bias", torch.ones(4)),
        r"conv_out.bias must have the shape \(3,\), got \(4,\): the checkpoint is of another family",
    ),
    "dimensions": (put("conv_in.weight", torch.ones(3)), r"conv_in.weight must have 4 dimensions, got \(3,\)"),
    "numbers": (put("conv_in.bias", torch.ones(32, dtype=torch.int64)), "conv_in.bias must be a dense array of floats"),
    "nothing": (put("conv_in.weight", torch.ones(32, 0, 3, 3)), r"conv_in.weight is empty, got shape \(32, 0, 3, 3\)"),
    "name": (put("\x1b[2J", torch.ones(3)), r": \[2J is no name of a network's weight: choose another file"),
    "twice": (put("module.conv_in.bias", torch.ones(32)), "holds weights twice, with and without 'module.'"),
    "upsampler": (put("conv_in.weight", torch.ones(32, 6, 3, 3)), r"must take 1 to 4 channels, got 6 \(upsamplers"),
    "output": (put("conv_out.weight", torch.ones(5, 32, 3, 3)), "must return 3 channels, or twice .* got 5: choose"),
    "embedding": (put("temb.dense.0.weight", torch.ones(256, 64)), r"is embedded in \(64\), got 32: diffusers'"),
    "width": (put("down.1.block.0.conv1.weight", torch.ones(48, 32, 3, 3)), "a multiple of 32, got 48: choose"),
}


@pytest.mark.parametrize("damage", FITS)
def test_weights_that_do_not_fit_are_named(damage, tmp_path):
    change, sentence = FITS[damage]
    with pytest.raises(UsageError, match=rf"model.ckpt.*{sentence}"):
        convert(write(tmp_path / "model.ckpt", change(golden("ddpm")[0])))


GUIDED_FITS = {
    "classifier": (
        lambda weights: {key: weight for key, weight in weights.items() if not key.startswith("output_blocks")},
        r"make no U-net that diffusers can build, got 4 input and 0 output blocks with 0 upsamplers",
    ),
    "gap": (
        lambda weights: {key: weight for key, weight in weights.items() if not key.startswith("input_blocks.2.")},
        r"make no U-net that diffusers can build, got 3 input and 4 output blocks with 1 upsamplers",
    ),
    "qkv": (
        put("middle_block.1.qkv.weight", torch.ones(97, 32, 1)),
        r"middle_block.1.qkv.weight must hold queries, keys and values, got \(97, 32, 1\)",
    ),
    "qkv number": (
        put("middle_block.1.qkv.weight", torch.tensor(1.0)),
        r"must hold queries, keys and values, got \(\)",
    ),
    "missing qkv": (
        drop("middle_block.1.qkv.bias"),
        "the weights lack middle_block.1.qkv.bias: the file is incomplete",
    ),
    "no attention": (
        lambda weights: {key: weight for key, weight in weights.items() if not key.startswith("input_blocks.3.1")},
        "without attention outside its middle a network does not tell its size: give size",
    ),
    "classes": (put("label_emb.weight", torch.ones(5)), r"label_emb.weight must have 2 dimensions, got \(5,\)"),
}


@pytest.mark.parametrize("damage", GUIDED_FITS)
def test_guided_weights_that_do_not_fit_are_named(damage, tmp_path):
    change, sentence = GUIDED_FITS[damage]
    with pytest.raises(UsageError, match=rf"model.pt.*{sentence}"):
        convert(write(tmp_path / "model.pt", change(golden("new_order")[0])), **OPTIONS["new_order"])


def test_converting_draws_no_random_numbers(checkpoint):
    before = torch.get_rng_state()
    convert(checkpoint)
    assert torch.equal(torch.get_rng_state(), before)
