"""What cannot be meant is refused with exit code 2 and a sentence, before anything is written."""

import json
import shutil

import pytest

from folders import state


@pytest.fixture
def place(tmp_path, monkeypatch, model_folder, write_pictures):
    """The working directory of the command: images, a model, and things that can be in the way."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "in", 2)
    shutil.copytree(model_folder, "model")
    for folder in ("empty", "full", "other", "in/empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    (tmp_path / "other" / "notes.txt").write_text("no image")
    (tmp_path / "file").write_text("a file")
    return tmp_path


def key_file(place, name, content, mode):
    (place / name).write_text(content)
    (place / name).chmod(mode)


SENTENCES = {
    # folders
    "missing out": "missing must be a folder of images, or one image, got nothing there",
    "file out": "file must be a folder of images, or one image, got a file there",
    "empty out": "empty holds no images (0 other files): PNG, JPEG, WebP, AVIF,",
    "other out": "other holds no images (1 other files): PNG, JPEG, WebP, AVIF,",
    "in full": "full is not empty: give --resume to go on with it, or choose another output",
    "in full --resume": "full has no manifest (full.manifest.jsonl), so nothing can be resumed: choose another output",
    "in file": "file must be a folder, got a file: choose another output",
    "in in": "in and in must not contain each other: choose an output folder elsewhere",
    "in in/empty": "in and in/empty must not contain each other: choose an output folder elsewhere",
    "in .": "in and . must not contain each other: choose an output folder elsewhere",
    "in file/out": "/",
    # keys
    "in out --key-file out/key": "key file out/key must not lie in ",
    "in out --key-file in/key": "key file in/key must not lie in ",
    "in out --key-file in/empty/../key": "key file in/empty/../key must not lie in ",
    "in out --key-file open_key": "key file open_key can be read by others: run chmod 600 open_key",
    "in out --key-file short_key": "key file short_key must hold 64 hexadecimal digits: let nearfar write a new one",
    "in out --key-file odd_key": "key file odd_key must hold 64 hexadecimal digits: let nearfar write a new one",
    "in out --key-file missing/key": "cannot write key file missing/key (No such file or directory): choose",
    # levels
    "in out --strength 1.4": "strength must be in [0, 1], got 1.4",
    "in out --strength -0.1": "strength must be in [0, 1], got -0.1",
    "in out --strength nan": "strength must be in [0, 1], got nan",
    "in out --strength 0": "strength must be above 0, got 0: the originals would be copied",
    "in out --sigma 0": "sigma must be above 0, got 0: the originals would be copied",
    "in out --sigma -1": "sigma must be 0 or more, got -1",
    "in out --sigma 1e9": "sigma must be in [0, 157.4], got 1e+09",
    "in out --strength 0.5 --sigma 1": "give either strength or sigma, got both",
    # numbers and choices
    "in out --steps 0": "steps must be at least 1, got 0",
    "in out --steps -3": "steps must be at least 1, got -3",
    "in out --batch-size 0": "batch size must be at least 1, got 0",
    "in out --batch-size -2": "batch size must be at least 1, got -2",
    "in out --solver euler": "solver must be one of local-prior, dpm++sde, ancestral, ddim, dpm++, heun, got 'euler'",
    "in out --fit stretch": "fit must be one of pad, cover, got 'stretch'",
    "in out --device toaster": "device must be auto, cpu, cuda, cuda:1, ..., mps or xpu, got 'toaster'",
    "in out --precision float8": "precision must be one of auto, float32, float16, bfloat16, got 'float8'",
    "in out --precision bfloat16 --device cpu": "a CPU runs bfloat16 several times slower: use float32",
    # models
    "in out --model missing": "missing does not exist: give a model's folder or file, or owner/name with --download",
    "in out --model file": "file is no checkpoint (neither of torch.save nor safetensors): give the .pt or .ckpt file",
    "in out --model in": "in is no diffusers folder (no model_index.json): give one that a pipeline's save_pretrained",
}


@pytest.mark.parametrize("options", SENTENCES)
def test_what_cannot_be_meant_is_refused_and_nothing_written(place, nearfar, options):
    key_file(place, "open_key", "5e" * 32, 0o644)
    key_file(place, "short_key", "5e5e", 0o600)
    key_file(place, "odd_key", "my secret", 0o600)
    before = state(place)
    model = [] if "--model" in options else ["--model", "model"]
    result = nearfar("anonymize", *options.split(), *model)
    assert result.stderr.splitlines()[-1].startswith(f"nearfar: {SENTENCES[options]}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert state(place) == before


def no_weights(model):
    (model / "unet/diffusion_pytorch_model.safetensors").unlink()


def renamed_weights(model):
    weights = model / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def other_family(model):
    index = model / "model_index.json"
    index.write_text(
        json.dumps(json.loads(index.read_text()) | {"_class_name": "DiTPipeline", "unet": ["diffusers", "DiT"]})
    )


def broken_index(model):
    (model / "model_index.json").write_text("{")


def cut_weights(model):
    weights = model / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


MODELS = {
    no_weights: "model/unet holds no weights (.safetensors): copy the whole folder that save_pretrained wrote",
    renamed_weights: "model/unet/diffusion_pytorch_model.bin is no checkpoint (neither of torch.save nor safetensors)",
    other_family: "model holds a DiTPipeline (DiT), which nearfar does not read: the documentation (models)",
    broken_index: "model/model_index.json is not valid JSON (Expecting property name",
    cut_weights: "model/unet cannot be loaded (",
}


@pytest.mark.parametrize("damage", MODELS, ids=lambda damage: damage.__name__)
def test_a_model_that_cannot_be_used_is_refused_and_nothing_written(place, nearfar, damage):
    damage(place / "model")
    before = state(place)
    result = nearfar("anonymize", "in", "out", "--model", "model", "--key-file", "key")
    assert result.stderr.splitlines()[-1].startswith(f"nearfar: {MODELS[damage]}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert state(place) == before


@pytest.mark.parametrize(
    "arguments",
    [
        "anonymize",
        "anonymize in",
        "anonymize in out more",
        "anonymize in out --steps many",
        "anonymize in out --magic",
        "do",
    ],
)
def test_incomplete_or_unknown_words_are_refused(place, nearfar, arguments):
    before = state(place)
    result = nearfar(*arguments.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: nearfar" in result.stderr
    assert state(place) == before


def test_without_arguments_the_help_is_shown(nearfar):
    result = nearfar()
    assert "Commands:" in result.stdout + result.stderr


def test_output_in_the_working_directory_can_be_the_directory_itself(place, nearfar, monkeypatch):
    monkeypatch.chdir(place / "empty")
    result = nearfar("anonymize", "../in", ".", "--model", "../model", "--device", "cpu", "--steps", 1)
    assert result.exit_code == 0, result.stderr
    assert (place / "empty.manifest.jsonl").is_file()


@pytest.mark.parametrize("command", ["anonymize", "enhance", "reconstruct", "invert"])
def test_one_picture_is_taken_as_a_folder_of_one(tmp_path, nearfar, model_folder, smooth, command):
    for number in range(2):
        smooth(number).save(tmp_path / f"{number}.png")
    more = ("--own-samples", 0) if command == "reconstruct" else ()
    options = ("--model", model_folder, "--device", "cpu", "--steps", 2, *more)
    result = nearfar(command, tmp_path / "1.png", tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    assert [path.name.partition(".")[0] for path in (tmp_path / "out").iterdir()] == ["1"]


def test_augment_asks_for_a_folder(tmp_path, nearfar, model_folder, smooth):
    smooth(1).save(tmp_path / "1.png")
    result = nearfar("augment", tmp_path / "1.png", tmp_path / "out", "--model", model_folder, "--device", "cpu")
    assert result.exit_code == 2
    assert "must be a folder, whose labels are carried over: put the picture into one" in result.stderr
