"""Domain files: everything comes back, nothing is run, and what is no domain file is refused with a sentence."""

import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nearfar.domain.domain import Gaussian
from nearfar.domain.file import KEY, load_domain, load_thumbnails, save_domain
from nearfar.domain.guards import Guards
from nearfar.domain.synthesis import synthesize
from nearfar.errors import RunError, UsageError
from nearfar.latents.covariance import posterior_mean
from nearfar.metrics.copied_area import PATCHES
from oracle_domains import fit, fitted, oracle, unseen

PREPROCESSING = {"fit": "cover", "values": {"curve": "asinh", "low": [0.0], "high": [12.5], "softening": [0.1]}}


@pytest.fixture(scope="module")
def domain():
    model = oracle(settings={"label": 3, "size": None})
    found = fit(model, unseen(), strength=0.6, steps=6, preprocessing=PREPROCESSING)
    return replace(found, mixing={"parents": 2, "margin": 0.2})


@pytest.fixture
def file(domain, tmp_path):
    path = tmp_path / "unseen.safetensors"
    save_domain(domain, path)
    assert path.stat().st_mode & 0o777 == 0o600
    return path


def test_everything_comes_back(domain, file):
    again = load_domain(file)
    assert torch.equal(again.latents, domain.latents)
    assert torch.equal(again.clean, domain.clean)
    assert again.targets == domain.targets
    for name in ("model", "settings", "strength", "steps", "diagnostics", "preprocessing", "mixing"):
        assert getattr(again, name) == getattr(domain, name)
    assert again.preprocessing == PREPROCESSING
    assert again.mixing == {"parents": 2, "margin": 0.2}
    assert again.settings == {"label": 3}
    again.check(oracle(settings={"label": 3, "size": 8}))


def test_the_own_gaussian_comes_back_in_single_precision(domain, file):
    again, (alpha, sigma) = load_domain(file).own, torch.tensor([[0.8], [0.6]], dtype=torch.float64)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before, after = (posterior_mean(own.mean.double(), own.covariance, x, alpha, sigma) for own in (domain.own, again))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    ours, theirs = (asdict(own.covariance) for own in (domain.own, again))
    for name, values in ours.pop("spectral").items():
        torch.testing.assert_close(theirs["spectral"][name], values, rtol=0, atol=1e-6)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-6)


def test_guards_come_back_and_judge_alike(domain, file):
    again, outputs = load_domain(file).guards, torch.cat([unseen(3), unseen(3, seed=9)])
    before, after = (guards.judge(oracle(), outputs) for guards in (domain.guards, again))
    assert [one.verdict for one in after] == [one.verdict for one in before]
    assert [one.nearest for one in after] == [one.nearest for one in before]
    assert [one.captured for one in after] == pytest.approx([one.captured for one in before], abs=1e-6)
    assert again.numbers() == domain.guards.numbers()


def test_samples_of_a_loaded_domain_are_those_of_the_fitted_one(domain, file):
    model = oracle(settings={"label": 3, "size": None})
    before, after = (synthesize(model, each, 4).images for each in (domain, load_domain(file)))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_a_file_is_the_same_whenever_it_is_written(domain, file, tmp_path):
    again = tmp_path / "folder" / "again.safetensors"
    assert save_domain(load_domain(file), again) == save_domain(domain, file)
    assert again.read_bytes() == file.read_bytes()
    assert [path.name for path in again.parent.iterdir()] == [again.name]  # no part is left


def test_thumbnails_are_there_only_if_given(domain, file, tmp_path):
    assert load_thumbnails(file) is None
    small = torch.randint(0, 256, (16, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_domain(domain, tmp_path / "seen", small)
    assert torch.equal(load_thumbnails(tmp_path / "seen"), small)
    assert torch.equal(load_domain(tmp_path / "seen").latents, domain.latents)


def test_200_images_of_3x64x64_take_less_than_10_mib(domain, tmp_path, figures):
    """With the most that guards keep: 512 features of each image."""
    latents, clean = torch.randn(2, 200, 3, 64, 64, generator=torch.Generator().manual_seed(0)).half().float()
    tensors = {"places": torch.arange(200), "vectors": torch.zeros(200, 512).half()}
    tensors |= {name: torch.zeros(512, dtype=torch.float64) for name in ("center", "scale", "weights")}
    tensors |= {"isolation": torch.ones(200, PATCHES).half()}
    assert tensors.keys() == domain.guards.tensors().keys()
    guards = Guards.from_parts(clean, tensors, domain.guards.numbers())
    large = replace(domain, latents=latents, clean=clean, own=Gaussian.fit(clean), guards=guards)
    save_domain(large, tmp_path / "large")
    size = (tmp_path / "large").stat().st_size
    figures["domain file of 200 images of 3x64x64"] = f"{size / 2**20:.2f} MiB"
    assert 2 * 2 * latents.numel() < size < 10 * 2**20
    assert torch.equal(load_domain(tmp_path / "large").latents, latents)


class Bomb:
    """A pickle that writes a file when it is read."""

    def __reduce__(self):
        return Path.touch, (Path("run"),)


def text(folder):
    (folder / "x").write_text("not a domain")


def noise(folder):
    (folder / "x").write_bytes(bytes(range(256)) * 40)


def empty(folder):
    (folder / "x").touch()


def pickled(folder):
    (folder / "x").write_bytes(pickle.dumps(Bomb()))


def torch_pickled(folder):
    torch.save({"latents": torch.zeros(3)}, folder / "x")


def other(folder):
    save_file({"latents": torch.zeros(4, 3, 8, 8)}, folder / "x")


NO_DOMAINS = {
    "text": (text, "is no domain file, or a damaged one"),
    "noise": (noise, "is no domain file, or a damaged one"),
    "empty": (empty, "is no domain file, or a damaged one"),
    "pickle": (pickled, "is no domain file, or a damaged one"),
    "torch file": (torch_pickled, "is no domain file, or a damaged one"),
    "other tensors": (other, "is no domain file of format 4, got None: fit it again"),
    "folder": (lambda folder: (folder / "x").mkdir(), "must be a domain file, got a folder there"),
    "nothing": (lambda folder: None, "must be a domain file, got nothing there"),
}


@pytest.mark.parametrize(("make", "sentence"), NO_DOMAINS.values(), ids=NO_DOMAINS)
def test_what_is_no_domain_file_is_refused(make, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    for load in (load_domain, load_thumbnails):
        with pytest.raises(UsageError, match=sentence) as error:
            load(tmp_path / "x")
        assert str(error.value).startswith(f"{tmp_path / 'x'} ")
    assert not Path("run").exists()


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.5, 0.99])
def test_truncated_files_are_refused(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UsageError, match=r"is no domain file, or a damaged one \(.+\): fit it again"):
        load_domain(file)


def rewritten(file, change):
    """The same file with another header."""
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["nearfar domain"])
    change(about)
    save_file(load_file(file), file, {"nearfar domain": json.dumps(about)})


@pytest.mark.parametrize("format", [1, 2, 3, "4", None])
def test_files_of_another_format_are_refused(file, format):
    rewritten(file, lambda about: about.update(format=format))
    with pytest.raises(UsageError, match=f"is no domain file of format 4, got {format}: fit it again"):
        load_domain(file)


@pytest.mark.parametrize("part", ["strength", "targets", "own", "guards", "settings"])
def test_files_with_parts_missing_are_refused(file, part):
    rewritten(file, lambda about: about.pop(part))
    with pytest.raises(UsageError, match=f"is wrong at {part} .Field required.: fit it again"):
        load_domain(file)


WRONG = [
    ("targets", None),
    ("targets", [1]),
    ("strength", "0.5"),
    ("strength", 0),
    ("strength", float("nan")),
    ("steps", 2.5),
    ("steps", 0),
    ("steps", 10**9),
    ("steps", 10**400),
    ("model", 3),
    ("model", "\ud800"),
    ("model", "a\0b"),
    ("settings", []),
    ("diagnostics", {"images": "6"}),
    ("diagnostics", {"images": {"a": 1}}),
    ("preprocessing", {"fit": "crop"}),
    ("preprocessing", {"values": -1}),
    ("preprocessing", {"values": {"curve": "log", "low": [0.0], "high": [1.0], "softening": [1.0]}}),
    ("mixing", {"reach": 0.2}),
    ("mixing", {"parents": [3]}),
    ("pull", 1e300),
    ("guards", {}),
    ("own", {}),
    ("settings", json.loads("[" * 70 + "]" * 70)),
]


@pytest.mark.parametrize(("part", "value"), WRONG, ids=[f"{part} {str(value)[:20]!r}" for part, value in WRONG])
def test_files_with_parts_of_another_kind_are_refused(file, part, value):
    rewritten(file, lambda about: about.update({part: value}))
    with pytest.raises(UsageError, match=r": (fit it again|use 'asinh' or clip more)$"):
        load_domain(file)


TENSORS = {
    "latents": lambda tensor: tensor[:-1],
    "clean": lambda tensor: tensor * float("inf"),
    "own.mean": lambda tensor: tensor[0],
    "own.values": lambda tensor: tensor.long(),
    "guards.places": lambda tensor: tensor + len(tensor),
    "guards.scale": lambda tensor: tensor[:0],
    "guards.vectors": lambda tensor: tensor.T.contiguous(),
    "own.directions": lambda tensor: tensor[:4, :4].contiguous(),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit_are_refused(file, name):
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    tensors = load_file(file)
    save_file(tensors | {name: TENSORS[name](tensors[name])}, file, header)
    with pytest.raises(UsageError, match=r"is a domain file with parts missing or wrong \(.+\): fit it again"):
        load_domain(file)


@pytest.mark.parametrize("header", ["[]", "{", "1", "null"])
def test_headers_that_are_none_are_refused(file, header):
    save_file(load_file(file), file, {"nearfar domain": header})
    with pytest.raises(UsageError, match="is no domain file"):
        load_domain(file)


def test_a_place_that_cannot_be_written_is_named(domain, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(RunError, match=r"cannot write .*taken"):
        save_domain(domain, tmp_path / "taken" / "file")


def test_a_domain_of_the_bundled_kind_has_no_more_in_it_than_is_told(file):
    with safe_open(file, "pt") as opened:
        assert set(opened.metadata()) == {"nearfar domain"}
        names = {name for name in opened.keys() if not name.startswith(("own.", "guards."))}  # noqa: SIM118
    assert names == {"latents", "clean"}
    assert fitted().preprocessing == {}


@pytest.mark.parametrize("header", [{}, {KEY: json.dumps({"format": 2})}, {"format": "pt"}])
def test_tensors_of_another_file_are_not_read(tmp_path, monkeypatch, header):
    save_file({"a": torch.zeros(4)}, tmp_path / "a.domain", header)
    monkeypatch.setattr("nearfar.domain.file.load_file", None)
    with pytest.raises(UsageError, match=r"is no domain file of format 4, got (None|2): fit it again"):
        load_domain(tmp_path / "a.domain")
