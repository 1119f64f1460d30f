"""What cannot be meant, or is not safe, is one sentence of UsageError, and exit code 2 before anything is written."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image
from typer.testing import CliRunner

import tiny_models
from nearfar.cli.app import app
from nearfar.errors import ModelWarning, UsageError
from nearfar.models.loading import load_model
from tiny_models import FAMILIES, PROMPT, Family

pytestmark = [
    # In diffusers 0.42.1 with numpy 2: "__array__ implementation doesn't accept a copy keyword".
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
    # LCMScheduler and the turbo scheduler have other defaults than StableDiffusionPipeline likes.
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
]

WEIGHTS = "diffusion_pytorch_model.safetensors"


@tiny_models.seeded
def two_channels(folder):
    DDPMPipeline(tiny_models.unet(2), DDPMScheduler()).save_pretrained(folder)


def guidance_as_input(folder):
    tiny_models.stable_diffusion(folder, tiny_models.conditional_unet(time_cond_proj_dim=8))


def inpainting(folder):
    tiny_models.stable_diffusion(folder, tiny_models.conditional_unet(in_channels=9, out_channels=4))


def other_latents(folder):
    tiny_models.stable_diffusion(folder, tiny_models.conditional_unet(in_channels=3, out_channels=3))


MODELS = FAMILIES | {
    "two_channels": Family(two_channels),
    "inpainting": Family(inpainting, PROMPT),
    "other_latents": Family(other_latents, PROMPT),
    "lcm": Family(tiny_models.lcm, PROMPT),
    "turbo": Family(tiny_models.turbo, PROMPT),
    "guidance_as_input": Family(guidance_as_input, PROMPT),
}


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    """A fresh copy of a tiny model, which is written once."""
    store, written = tmp_path_factory.mktemp("refusals"), {}

    def make(family, target):
        if family not in written:
            written[family] = MODELS[family].at(store, family)
        source = written[family]
        target.parent.mkdir(exist_ok=True)
        return shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)

    return make


# Damage


def change(file, **changes):
    return lambda model: (model / file).write_text(json.dumps(json.loads((model / file).read_text()) | changes))


def remove(name):
    return lambda model: shutil.rmtree(model / name) if (model / name).is_dir() else (model / name).unlink()


def scheduler(kind, **config):
    """Another scheduler in the place of the model's own."""

    def damage(model):
        change("model_index.json", scheduler=["diffusers", kind])(model)
        (model / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": kind, **config}))

    return damage


def network(kind):
    return change("model_index.json", unet=["diffusers", kind])


def intact(model):
    pass


DDIM = scheduler("DDIMScheduler", beta_schedule="linear")
FLOW = scheduler("FlowMatchEulerDiscreteScheduler")
WITHOUT = "holds no weights (.safetensors)"
UNREAD = "which nearfar does not read"
NO_PROMPT = " takes no prompt and no guidance: leave them out"
LABEL = "this model is class-conditional: give a label (--label) from 0 to 4, got "
DISTILLED = " looks like a distilled few-step model ("


@dataclass(frozen=True)
class Refusal:
    """A model, what is done to it, how it is asked for, and what must be said. None: the family's own options."""

    family: str
    sentence: str
    damage: Callable[[Any], Any] = intact
    options: dict[str, Any] | None = None
    name: str = "model"

    @property
    def asked(self):
        return MODELS[self.family].options if self.options is None else self.options


REFUSALS = {
    "no index": Refusal("ddpm", "is no diffusers folder (no model_index.json)", remove("model_index.json")),
    "no network": Refusal("ddpm", "lacks unet/config.json: copy the whole folder", remove("unet")),
    "no weights": Refusal("ddpm", f"/unet {WITHOUT}", remove(f"unet/{WEIGHTS}")),
    "no weights beside the index": Refusal("ddpm_flat", f"/model {WITHOUT}", remove(WEIGHTS)),
    "no weights of the autoencoder": Refusal("ldm_kl", f"/vae {WITHOUT}", remove(f"vae/{WEIGHTS}")),
    "no autoencoder": Refusal("stable_diffusion", "lacks vae/config.json: copy the whole folder", remove("vae")),
    "no text encoder": Refusal("stable_diffusion", f"/text_encoder {WITHOUT}", remove("text_encoder")),
    "no tokenizer": Refusal("stable_diffusion_xl", "/tokenizer_2 cannot be ", remove("tokenizer_2")),
    "unknown scheduler": Refusal("ddpm", f"is a KarrasVeScheduler, {UNREAD}", scheduler("KarrasVeScheduler")),
    "SD3 with betas": Refusal("stable_diffusion_3", "a scheduler of flow matching, got DDIMScheduler", DDIM),
    "FLUX with betas": Refusal("flux", "a scheduler of flow matching, got DDIMScheduler", DDIM),
    "SD with flow": Refusal("stable_diffusion", "of betas or EDM, got FlowMatchEulerDiscreteScheduler", FLOW),
    "unknown network": Refusal("ddpm", f"(DiTTransformer2DModel), {UNREAD}", network("DiTTransformer2DModel")),
    "no class at all": Refusal("ddpm", f"(), {UNREAD}", network("")),
    "no prompt": Refusal("stable_diffusion", " is a text model: give a prompt (--prompt ", options={}),
    "no prompt for SD3": Refusal("stable_diffusion_3", " is a text model: give a prompt (--prompt ", options={}),
    "a prompt for pixels": Refusal("ddpm", NO_PROMPT, options=PROMPT),
    "a negative prompt for pixels": Refusal(
        "ldm_vq", NO_PROMPT, options={"negative_prompt": "blurry"}
    ),
    "guidance for classes": Refusal(
        "class_conditional", NO_PROMPT, options={"label": 1, "guidance": 2.0}
    ),
    "a prompt for a checkpoint": Refusal("ddpm_checkpoint", NO_PROMPT, options=PROMPT),
    "no label": Refusal("class_conditional", f"{LABEL}none", options={}),
    "label too large": Refusal("class_conditional", f"{LABEL}5", options={"label": 5}),
    "label below 0": Refusal("class_conditional", f"{LABEL}-1", options={"label": -1}),
    "a label without classes": Refusal("ddpm", "this model knows no classes, got label 0", options={"label": 0}),
    "a label for text": Refusal(
        "stable_diffusion", " knows no classes, got label 1: say it in the prompt", options=PROMPT | {"label": 1}
    ),
    **{
        f"guidance {value}": Refusal(
            "stable_diffusion", f"guidance must be 0 or more, got {value:g}", options=PROMPT | {"guidance": value}
        )
        for value in (float("nan"), -1.0, float("inf"))
    },
    **{
        f"{family} of {size}": Refusal(
            family, f"size must be a multiple of {unit}", options=MODELS[family].options | {"size": size}
        )
        for family, size, unit in [
            ("ddpm", 17, 2), ("ddpm", -16, 2), ("ddpm", 0, 2), ("patched_4", 28, 8), ("stable_diffusion", 30, 4),
            ("stable_diffusion_3", 34, 4), ("flux", 30, 4),
        ]
    },
    "inpainting": Refusal("inpainting", " maps 9 channels to 4 "),
    "other latents": Refusal("other_latents", " takes 3 channels, its autoencoder makes 4: inpainting"),
    "two channels": Refusal("two_channels", " takes images of 2 channels, nearfar has 1 or 3"),
    "LCM": Refusal("lcm", f"{DISTILLED}its scheduler is a LCMScheduler)"),
    "guidance as an input": Refusal("guidance_as_input", f"{DISTILLED}its network takes the guidance as an input"),
    "the scheduler of turbo": Refusal("turbo", f"{DISTILLED}its scheduler is the one of SDXL-Turbo)"),
    "sd-turbo by name": Refusal("stable_diffusion", f"{DISTILLED}its card, stabilityai/sd-turbo)", name="sd-turbo"),
    "lightning by name": Refusal("stable_diffusion", f'{DISTILLED}"lightning" in its name)', name="My-XL-Lightning"),
    "schnell by its former name": Refusal(
        "flux", f'{DISTILLED}"schnell" in its name)', change("transformer/config.json", _name_or_path="flux-schnell")
    ),
}  # fmt: skip


# Both ways in


def typed(options):
    return [text for name, value in options.items() for text in ([f"--{name.replace('_', '-')}={value}"])]


def pictures(folder):
    folder.mkdir()
    Image.new("RGB", (16, 16), "teal").save(folder / "picture.png")
    return folder


def refused_by_command(model, out, options, tmp_path):
    """What the command says last, below the bars of those who load; nothing lies where results would go, nor beside."""
    source = pictures(tmp_path / "in")
    before = sorted(tmp_path.rglob("*"))
    arguments = ["anonymize", str(source), str(out), "--model", str(model), "--device", "cpu", "--steps", "1"]
    result = CliRunner().invoke(app, [*arguments, *typed(options)], catch_exceptions=False)
    assert result.exit_code == 2, result.stderr
    assert sorted(tmp_path.rglob("*")) == before
    assert result.stdout == ""
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize("case", REFUSALS)
def test_a_wrong_model_or_wish_is_one_sentence_and_exit_code_2(case, copy, tmp_path):
    refusal = REFUSALS[case]
    model = copy(refusal.family, tmp_path / "models" / f"{refusal.name}{MODELS[refusal.family].suffix}")
    refusal.damage(model)
    with pytest.raises(UsageError, match=re.escape(refusal.sentence)) as caught:
        load_model(model, "cpu", **refusal.asked)
    said = refused_by_command(model, tmp_path / "out", refusal.asked, tmp_path)
    assert said == f"nearfar: {caught.value}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.ckpt", "owner/nowhere"])
def test_a_model_that_is_not_there_is_one_sentence_and_exit_code_2(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"^{re.escape(name)} (does not exist|is neither a path)") as caught:
        load_model(name, "cpu")
    assert refused_by_command(name, tmp_path / "out", {}, tmp_path) == f"nearfar: {caught.value}"


def test_without_transformers_a_text_model_says_how_to_get_them(copy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    model = copy("stable_diffusion", tmp_path / "model")
    sentence = "text models need transformers: pip install 'nearfar[text]'"
    with pytest.raises(UsageError, match=re.escape(sentence)):
        load_model(model, "cpu", **PROMPT)
    assert refused_by_command(model, tmp_path / "out", PROMPT, tmp_path) == f"nearfar: {sentence}"
    assert load_model(copy("ddpm", tmp_path / "pixels"), "cpu").image.size == 16


# Taken, with a warning


def noncommercial(model):
    (model / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A model\n")


@pytest.mark.parametrize("case", ["LCM", "guidance as an input", "the scheduler of turbo", "sd-turbo by name"])
def test_a_distilled_model_is_taken_by_force_with_a_warning(case, copy, tmp_path):
    refusal = REFUSALS[case]
    model = copy(refusal.family, tmp_path / refusal.name)
    reason = refusal.sentence.removeprefix(DISTILLED).rstrip(")")
    with pytest.warns(ModelWarning, match=re.escape(f"is used by force ({reason}")):
        loaded = load_model(model, "cpu", **refusal.asked, force=True)
    assert loaded.denoiser(torch.zeros(1, 4, 16, 16), torch.tensor([500.0]).double()).isfinite().all()


@pytest.mark.parametrize(
    ("family", "damage", "options", "note"),
    [
        ("lcm", intact, {"force": True}, "is used by force (its scheduler is a LCMScheduler)"),
        ("stable_diffusion", intact, {"guidance": 7.5}, "guidance 7.5 sharpens the model's distribution"),
        ("ddpm", noncommercial, {}, "restricts commercial use: cc-by-nc-4.0"),
    ],
)
def test_what_a_user_should_know_is_a_warning_and_a_note_of_the_command(family, damage, options, note, copy, tmp_path):
    model = copy(family, tmp_path / "model")
    damage(model)
    options = MODELS[family].options | options
    with pytest.warns(ModelWarning, match=re.escape(note)):
        load_model(model, "cpu", **options)
    flags = [f"--{name}" for name in ("force",) if options.pop(name, False)]
    out = tmp_path / "out"
    arguments = ["anonymize", str(pictures(tmp_path / "in")), str(out), "--model", str(model), "--steps", "1"]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu", *flags, *typed(options)], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert re.search(f"^note +.*{re.escape(note)}", result.stderr, re.MULTILINE)


# Code in the place of weights


@dataclass(frozen=True)
class Touch:
    """Unpickling this makes a file."""

    marker: Any

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def pickled(file, marker):
    """As torch.save writes it, the code among weights."""
    torch.save({"conv_in.weight": torch.zeros(3), "code": Touch(marker)}, file)


def pickled_plain(file, marker):
    """A pickle of the oldest kind."""
    file.write_bytes(b"cposix\nmkdir\n(S'%s'\ntR." % bytes(marker))


def instead_of(weights, name="diffusion_pytorch_model.bin"):
    """Where the pickle lies in a folder: in the place of the safetensors of a part."""

    def place(model):
        (model / weights).unlink()
        return (model / weights).with_name(name)

    return place


PLACES = {
    "network": ("ddpm", instead_of(f"unet/{WEIGHTS}")),
    "flat network": ("ddpm_flat", instead_of(WEIGHTS)),
    "autoencoder": ("ldm_kl", instead_of(f"vae/{WEIGHTS}")),
    "transformer": ("flux", instead_of(f"transformer/{WEIGHTS}")),
    "text encoder": ("stable_diffusion", instead_of("text_encoder/model.safetensors", "pytorch_model.bin")),
    "checkpoint .pt": ("guided_checkpoint", lambda model: model),
    "checkpoint .ckpt": ("ddpm_checkpoint", lambda model: model),
}


@pytest.mark.parametrize("write", [pickled, pickled_plain])
@pytest.mark.parametrize("place", PLACES)
def test_code_in_the_place_of_weights_is_refused_and_not_run(place, write, copy, tmp_path):
    family, find = PLACES[place]
    model, marker = copy(family, tmp_path / f"model{MODELS[family].suffix}"), tmp_path / "marker"
    write(find(model), marker)
    options = MODELS[family].options
    with pytest.raises(UsageError) as caught:
        load_model(model, "cpu", **options)
    assert refused_by_command(model, tmp_path / "out", options, tmp_path) == f"nearfar: {caught.value}"
    assert not marker.exists()


@pytest.mark.parametrize("write", [pickled, pickled_plain])
def test_the_code_would_have_run(write, tmp_path):
    write(tmp_path / "weights.bin", tmp_path / "marker")
    if write is pickled:
        torch.load(tmp_path / "weights.bin", weights_only=False)
    else:
        import pickle

        pickle.loads((tmp_path / "weights.bin").read_bytes())
    assert (tmp_path / "marker").exists()


SCRIPT = "import os\n\nos.mkdir({!r})\n\nfrom transformers import CLIPTextModel as Evil\n"


def component_script(model, script):
    """A part whose class the index looks for in a file of the folder."""
    (model / "text_encoder/evil.py").write_text(script)
    change("model_index.json", text_encoder=["evil", "Evil"])(model)


def pipeline_script(model, script):
    """A pipeline whose class the index looks for in a file of the folder."""
    (model / "evil.py").write_text(script)
    change("model_index.json", _class_name=["evil", "Evil"])(model)


def pipeline_by_chance(model, script):
    """The name that diffusers looks for when no pipeline of the user's own was asked for."""
    (model / "None.py").write_text(script)


@pytest.mark.parametrize("write", [component_script, pipeline_script, pipeline_by_chance])
def test_a_script_in_the_folder_is_not_run(write, copy, tmp_path):
    model, marker = copy("stable_diffusion", tmp_path / "model"), tmp_path / "marker"
    write(model, SCRIPT.format(str(marker)))
    with suppress(UsageError):
        load_model(model, "cpu", **PROMPT)
    assert not marker.exists()
    exec(SCRIPT.format(str(marker)))
    assert marker.exists()
