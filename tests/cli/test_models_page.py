"""Every line of docs/models.md is run, with a tiny model of its family under the name that the line gives."""

import re
import shlex
from functools import partial
from pathlib import Path

import pytest

import tiny_models

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
LINES = re.findall(r"^\|.*`nearfar (.+?)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
MODELS = {
    "google/ddpm-celebahq-256": tiny_models.ddpm_flat,
    "celeba_hq.ckpt": partial(tiny_models.original, name="ddpm"),
    "afhqdog_p2.pt": partial(tiny_models.original, name="afhq_like"),
    "my_cosine_model.pt": partial(tiny_models.original, name="improved"),
    "imagenet-classes": tiny_models.class_conditional,
    "google/ddpm-cifar10-32": tiny_models.ddpm,
    "64x64_cosin_300": tiny_models.keras,
    "eqx_hsc_ScoreNet32.eqx": tiny_models.equinox,
    "patched-ddpm": tiny_models.patched,
    "google/ncsnpp-celebahq-256": tiny_models.score,
    "edm-model": tiny_models.edm,
    "CompVis/ldm-celebahq-256": tiny_models.ldm_vq,
    "stable-diffusion-v1-5": tiny_models.stable_diffusion,
    "stable-diffusion-xl-base-1.0": tiny_models.stable_diffusion_xl,
    "stable-diffusion-3.5-medium": tiny_models.stable_diffusion_3,
    "FLUX.1-dev": tiny_models.flux,
    "sd-turbo": tiny_models.turbo,
}
CHEAPER = {"--size 512": "--size 32", "--model afhqdog_p2.pt": "--model afhqdog_p2.pt --size 32"}
"""What a line asks of a large model, and of its tiny likeness."""


def model_of(line):
    """The file or folder that a line names."""
    words = shlex.split(line)
    return words[words.index("convert") + 1] if "convert" in words else words[words.index("--model") + 1]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler schedulers
@pytest.mark.parametrize("line", LINES, ids=model_of)
def test_the_line_runs(line, nearfar, tmp_path, monkeypatch, write_pictures):
    monkeypatch.chdir(tmp_path)
    names = write_pictures(Path("photos"), 1)
    Path(model_of(line)).parent.mkdir(parents=True, exist_ok=True)
    MODELS[model_of(line)](Path(model_of(line)))
    for asked, cheaper in CHEAPER.items():
        line = line.replace(asked, cheaper)
    words = shlex.split(line)
    options = [] if "convert" in words else ["--device", "cpu", *([] if "--steps" in words else ["--steps", "2"])]
    options += ["--own-samples", "0"] if words[0] == "reconstruct" else []
    result = nearfar(*words, *options)
    assert (result.exit_code, result.stderr if result.exit_code else "") == (0, "")
    out = Path(words[3] if "convert" in words else words[2])
    expected = (
        {"model_index.json"} if "convert" in words else {f"{name}{'.npy' * (words[0] == 'invert')}" for name in names}
    )
    assert expected <= {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_the_page_has_a_line_for_every_model():
    assert {model_of(line) for line in LINES} == set(MODELS)
