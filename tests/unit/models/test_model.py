"""What `load_model` reads and refuses, and what identifies a model."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nearfar.diffusion.denoiser import PREDICTIONS, from_epsilon, from_sample
from nearfar.errors import UsageError
from nearfar.models.folder import folder_digest
from nearfar.models.loading import load_model
from nearfar.models.lookup import BUNDLED, open_folder
from nearfar.models.model import PixelSpace
from nearfar.models.networks import signal_table
from nearfar.tensors import ImageContract

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(model_folder, tmp_path):
    """A copy of the tiny model's folder, to be damaged."""
    return shutil.copytree(model_folder, tmp_path / "copy")


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(path, change):
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


# The contract


def test_model_is_what_its_folder_says(model, model_folder):
    assert model.image == ImageContract(size=16, channels=3)
    assert model.parameters == sum(weight.numel() for weight in load_file(model_folder / WEIGHTS).values())
    assert model.latent_space == PixelSpace()
    assert model.provenance.source == str(model_folder)
    assert model.device == torch.device("cpu")
    assert model.schedule is model.denoiser.schedule


def test_denoiser_is_the_network_of_diffusers(model, model_folder):
    from diffusers import DDPMPipeline

    unet = DDPMPipeline.from_pretrained(model_folder).unet
    x, t = torch.randn(2, 3, 16, 16, generator=torch.manual_seed(0)), torch.tensor([10.0, 700.0])
    with torch.no_grad():
        expected = unet(x, t).sample
        # Another memory layout adds in another order: float32 rounding of values of order 1 through 20 layers.
        torch.testing.assert_close(model.denoiser(x, t.double()), expected, rtol=0, atol=2e-6)


def test_schedule_is_the_one_of_diffusers(model, model_folder):
    from diffusers import DDPMPipeline

    table = DDPMPipeline.from_pretrained(model_folder).scheduler.alphas_cumprod.double()
    alpha, sigma = model.schedule.coefficients(torch.arange(1000, dtype=torch.float64))
    torch.testing.assert_close(alpha, table.sqrt(), rtol=0, atol=1e-12)
    torch.testing.assert_close(sigma, (1 - table).sqrt(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_prediction_is_read_from_the_scheduler(copy, prediction):
    change_json(copy / "scheduler/scheduler_config.json", prediction_type=prediction)
    assert load_model(copy, "cpu").denoiser.prediction is PREDICTIONS[prediction]


def test_prediction_is_the_noise_unless_stated(copy, model):
    path = copy / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text())
    del config["prediction_type"]
    path.write_text(json.dumps(config))
    assert load_model(copy, "cpu").denoiser.prediction is from_epsilon
    assert model.denoiser.prediction is from_sample


def test_nothing_can_be_trained_or_left_in_training_mode(model):
    x = torch.zeros(1, 3, 16, 16)
    output = model.denoiser(x, torch.tensor([500.0]).double())
    assert not output.requires_grad


def test_ddim_folders_are_read_too(copy):
    change_json(copy / "model_index.json", _class_name="DDIMPipeline")
    assert load_model(copy, "cpu").image.size == 16


def test_source_may_be_text(model_folder):
    assert load_model(str(model_folder), "cpu").provenance.source == str(model_folder)


# Provenance


def test_digest_does_not_depend_on_the_place(model, copy):
    assert load_model(copy, "cpu").provenance.sha256 == model.provenance.sha256
    assert len(bytes.fromhex(model.provenance.sha256)) == 32


def test_digest_changes_with_one_weight(model, copy):
    change_weights(copy / WEIGHTS, lambda weights: weights["conv_out.bias"].add_(torch.tensor([0, 1e-6, 0])))
    assert load_model(copy, "cpu").provenance.sha256 != model.provenance.sha256


@pytest.mark.parametrize(
    ("file", "changes"),
    [("scheduler/scheduler_config.json", {"beta_end": 0.03}), ("unet/config.json", {"norm_eps": 1e-3})],
)
def test_digest_changes_with_the_configuration(model, copy, file, changes):
    change_json(copy / file, **changes)
    assert load_model(copy, "cpu").provenance.sha256 != model.provenance.sha256


@pytest.mark.parametrize(
    ("card", "license"),
    [
        (None, "not stated"),
        ("# A model without a header\n", "not stated"),
        ("---\ntags: [x]\nlicense: apache-2.0\n---\n# A model\n", "apache-2.0"),
    ],
)
def test_license_comes_from_the_card(copy, card, license):
    if card:
        (copy / "README.md").write_text(card)
    assert load_model(copy, "cpu").provenance.license == license


# The bundled model, offline


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something reaches for the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("offline")
def test_bundled_model_loads_by_default_and_offline(monkeypatch):
    monkeypatch.delenv("NEARFAR_MODEL")
    model = load_model(device="cpu")
    assert model.image == ImageContract(size=64, channels=3)
    assert model.provenance.source == "bundled/faces64"
    x = torch.zeros(1, *model.latent_shape)
    assert model.denoiser(x, torch.tensor([500.0]).double()).isfinite().all()


def test_the_environment_names_another_default(monkeypatch):
    monkeypatch.setenv("NEARFAR_MODEL", "cells")
    assert load_model(device="cpu").provenance.source == "bundled/cells"
    monkeypatch.setenv("NEARFAR_MODEL", "no-such-model")
    with pytest.raises(UsageError, match=r"^the default model, NEARFAR_MODEL=no-such-model: .* does not exist: give"):
        load_model(device="cpu")
    with pytest.raises(UsageError, match=r"^nor-this does not exist"):
        load_model("nor-this", "cpu")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "source", "latent_shape", "size", "license"),
    [
        ("faces", "bundled/faces", (3, 32, 32), 32, "research only"),
        ("bundled", "bundled/faces64", (12, 32, 32), 64, "research only"),
        ("faces64", "bundled/faces64", (12, 32, 32), 64, "research only"),
        ("cells", "bundled/cells", (12, 32, 32), 64, "MIT"),
        ("bundled/cells", "bundled/cells", (12, 32, 32), 64, "MIT"),
    ],
)
def test_bundled_models_are_found_by_name(name, source, latent_shape, size, license, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    model = load_model(name, "cpu")
    assert model.provenance.source == source
    assert (model.latent_shape, model.image) == (latent_shape, ImageContract(size, 3))
    assert model.provenance.license.startswith(license)
    assert capfd.readouterr() == ("", "")
    x = torch.zeros(1, *latent_shape)
    assert model.denoiser(x, torch.tensor([500.0]).double()).isfinite().all()


def test_a_model_in_pieces_is_hashed_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BUNDLED["faces64"], "faces64")
    pieces = sorted(Path("faces64/unet").glob("*-of-00006.safetensors"))
    assert len(pieces) == 6
    whole = folder_digest(open_folder(BUNDLED["faces64"]))
    assert folder_digest(open_folder(Path("faces64"))) == whole
    for piece in [*pieces, Path("faces64/unet/diffusion_pytorch_model.safetensors.index.json")]:
        content = piece.read_bytes()
        piece.write_bytes(content[:-1] + b"\0")
        assert folder_digest(open_folder(Path("faces64"))) != whole
        piece.write_bytes(content)
    pieces[2].unlink()
    with pytest.raises(UsageError, match="lacks 24 of the network's weights"):
        load_model("faces64", "cpu")


def test_a_folder_here_comes_before_a_bundled_model(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, "cells")
    mine = load_model("cells", "cpu").provenance
    assert (mine.source, mine.sha256) == ("cells", load_model(model_folder, "cpu").provenance.sha256)
    assert load_model("bundled/cells", "cpu").provenance.sha256 != mine.sha256
    Path("cells/model_index.json").unlink()
    with pytest.raises(UsageError, match=r"cells is a folder here without a model .* give bundled/cells"):
        load_model("cells", "cpu")


@pytest.mark.usefixtures("offline")
def test_a_name_that_is_no_folder_is_not_looked_for_elsewhere():
    with pytest.raises(UsageError, match="google/ddpm-cifar10-32 is neither a path nor in the Hugging Face cache"):
        load_model("google/ddpm-cifar10-32")


# Refusals


def no_index(folder):
    (folder / "model_index.json").unlink()


def other_family(folder):
    change_json(folder / "model_index.json", _class_name="DiTPipeline", unet=["diffusers", "DiTTransformer2DModel"])


def broken_index(folder):
    (folder / "model_index.json").write_text('{"_class_name": ')


def index_of_another_kind(folder):
    (folder / "model_index.json").write_text("[1, 2]")


def broken_scheduler(folder):
    (folder / "scheduler/scheduler_config.json").write_text("not json")


def broken_unet(folder):
    (folder / "unet/config.json").write_text("not json")


def no_scheduler(folder):
    shutil.rmtree(folder / "scheduler")


def no_unet(folder):
    shutil.rmtree(folder / "unet")


def no_weights(folder):
    (folder / WEIGHTS).unlink()


def code_instead_of_weights(folder):
    (folder / WEIGHTS).unlink()
    torch.save({"conv_in.weight": change_json}, folder / "unet/diffusion_pytorch_model.bin")


def cut_weights(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:50_000])


def weights_of_another_network(folder):
    change_weights(folder / WEIGHTS, lambda weights: weights.update({"conv_out.bias": torch.zeros(7)}))


def too_few_weights(folder):
    change_weights(folder / WEIGHTS, lambda weights: weights.pop("conv_out.weight"))


def weights_under(prefix, pickled=False):
    def change(folder):
        weights = {prefix + name: weight for name, weight in load_file(folder / WEIGHTS).items()}
        save_file(weights, folder / WEIGHTS)
        if pickled:
            torch.save(weights, (folder / WEIGHTS).with_suffix(".bin"))
            (folder / WEIGHTS).unlink()

    return change


def sharded_pickles(folder):
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    for number, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), 1):
        file = folder / f"unet/diffusion_pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: weights[name] for name in names}, file)


def shards_by_number(folder):
    (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"conv_in.weight": 1}}')


def shards_in_a_list(folder):
    (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": ["a.safetensors"]}')


def shards_within_shards(folder):
    (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"conv_in.weight": {"a": "a.safetensors"}}}')


def shards_elsewhere(folder):
    (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"conv_in.weight": "../vae/a.safetensors"}}')


def unknown_prediction(folder):
    change_json(folder / "scheduler/scheduler_config.json", prediction_type="magic")


def unknown_block(folder):
    change_json(folder / "unet/config.json", down_block_types=["Magic", "Magic"])


def not_square(folder):
    change_json(folder / "unet/config.json", sample_size=[16, 24])


SENTENCES = {
    no_index: r"copy is no diffusers folder \(no model_index.json\): give one that a pipeline's save_pretrained",
    other_family: r"copy holds a DiTPipeline \(DiTTransformer2DModel\), which nearfar does not read: the documentation",
    broken_index: "model_index.json is not valid JSON \\(Expecting value: .*\\): copy the folder again",
    index_of_another_kind: "model_index.json must be a JSON object, got list: copy the folder again",
    broken_scheduler: "scheduler_config.json is not valid JSON \\(Expecting value: .*\\): copy the folder again",
    broken_unet: "unet/config.json is not valid JSON \\(Expecting value: .*\\): copy the folder again",
    no_scheduler: "lacks scheduler/scheduler_config.json: copy the whole folder that save_pretrained wrote",
    no_unet: "lacks unet/config.json: copy the whole folder that save_pretrained wrote",
    no_weights: r"copy/unet holds no weights \(.safetensors\): copy the whole folder that save_pretrained wrote",
    code_instead_of_weights: r"holds Python objects \(.*\), not only weights: nothing was run",
    cut_weights: r"copy/unet cannot be loaded \(Error while deserializing .*\): copy the whole folder again",
    weights_of_another_network: r"copy/unet cannot be loaded \(Error.*\): copy the whole folder again",
    too_few_weights: r"copy/unet lacks 1 of the network's weights \(conv_out.weight, ...\): copy it again",
    weights_under(
        "_orig_mod."
    ): r"holds weights of a wrapped network \(_orig_mod\.conv_in\.bias, \.\.\.\): load the bare",
    weights_under(
        "module."
    ): r"holds weights of a wrapped network \(module\.conv_in\.bias, \.\.\.\): load the bare network",
    weights_under("_orig_mod.", pickled=True): r"wrapped network \(_orig_mod\.conv_in\.bias, .*: load the bare network",
    sharded_pickles: r"has its weights in pickles that nearfar does not read: load .*safe_serialization",
    shards_by_number: r"is wrong at weight_map\.conv_in\.weight \(Input should be a valid string\): mend",
    shards_in_a_list: r"index\.json is wrong at weight_map \(Input should be an object\): mend it",
    shards_within_shards: r"is wrong at weight_map\.conv_in\.weight \(Input should be a valid string\): mend",
    shards_elsewhere: r"names \.\./vae/a\.safetensors, which is no shard beside it: copy it again",
    unknown_prediction: "prediction_type must be one of epsilon, .*, got 'magic'",
    unknown_block: r"copy/unet cannot be loaded \(Magic does not exist.\): copy the whole folder again",
    not_square: r"must have square images, got sample_size \[16, 24\]",
}


@pytest.mark.parametrize("damage", SENTENCES, ids=lambda damage: damage.__name__)
def test_a_folder_that_cannot_be_used_is_refused_with_a_sentence(copy, damage):
    damage(copy)
    with pytest.raises(UsageError, match=SENTENCES[damage]):
        load_model(copy, "cpu")


def test_a_pickle_is_never_opened(copy, tmp_path):
    # Loading this pickle would run a command.
    (copy / WEIGHTS).unlink()
    trace = tmp_path / "trace"
    (copy / "unet/diffusion_pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch %s'\ntR." % bytes(trace))
    with pytest.raises(UsageError):
        load_model(copy, "cpu")
    assert not trace.exists()


@pytest.mark.parametrize("device", ["toaster", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(model_folder, device):
    with pytest.raises(UsageError, match=rf"device '{device}' cannot be used \(.+\): use --device cpu"):
        load_model(model_folder, device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_cpu_is_refused(model_folder, dtype):
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UsageError, match=f"a CPU runs {name} several times slower: use float32"):
        load_model(model_folder, "cpu", dtype)


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_folder_with_one_half_precision_only_is_read(tmp_path, model_folder, variant):
    shutil.copytree(model_folder, tmp_path / "half")
    weights = tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
    assert load_model(tmp_path / "half", "cpu").image.size == 16


@pytest.mark.parametrize(("stored", "asked", "size"), [([16, 16], None, 16), ([16, 16], 32, 32), (None, 16, 16)])
def test_sizes_that_are_lists_or_null_are_read(tmp_path, model_folder, stored, asked, size):
    shutil.copytree(model_folder, tmp_path / "other")
    path = tmp_path / "other" / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample_size": stored}))
    assert load_model(tmp_path / "other", "cpu", size=asked).image.size == size
    if stored is None:
        with pytest.raises(UsageError, match="got none: give --size"):
            load_model(tmp_path / "other", "cpu")


TABLES = {
    "linear": {},
    "linear of 4000 steps": {"num_train_timesteps": 4000, "beta_start": 2.5e-5, "beta_end": 0.005},
    "scaled linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "cosine of 300 steps": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 300},
    "listed": {"trained_betas": [0.1, 0.2, 0.3]},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "zero SNR": {"rescale_betas_zero_snr": True},
}


@pytest.mark.parametrize("config", TABLES.values(), ids=TABLES)
def test_tables_of_betas_are_bit_by_bit_those_of_diffusers(config):
    from diffusers import DDPMScheduler

    assert torch.equal(signal_table(config), DDPMScheduler(**config).alphas_cumprod)
