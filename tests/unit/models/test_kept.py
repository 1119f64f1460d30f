"""What is kept of a model: the same numbers again, and nothing of another model, of other settings or damaged."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nearfar.models import kept as module
from nearfar.models.kept import cache_folder, find, kept

SETTINGS = {"steps": 3}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEARFAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Making:
    """Numbers of a series, each its place, and where it was begun."""

    def __init__(self, count):
        self.count, self.begun = count, []

    def __call__(self, begun):
        self.begun.append(begun)
        return torch.arange(begun, self.count, dtype=torch.float32)[:, None].expand(-1, 2)


def series(model, count, settings=SETTINGS, what="places"):
    making = Making(count)
    values = kept(model, what, settings, (count, 2), making)
    assert torch.equal(values, Making(count)(0))
    return making.begun


def only_file(cache):
    (file,) = cache.iterdir()
    return file


def test_numbers_are_made_once_and_a_series_is_only_made_longer(model, cache):
    assert series(model, 4) == [0]
    assert series(model, 4) == []
    assert series(model, 2) == []
    assert series(model, 7) == [4]
    assert series(model, 7) == []
    assert len(find(model, "places", SETTINGS, (2,))) == 7
    assert stat.S_ISREG(only_file(cache).stat().st_mode)


def test_others_are_not_taken_for_it(model, cache):
    series(model, 4)
    other = replace(model, provenance=replace(model.provenance, sha256="f" * 64))
    assert series(other, 4) == [0]
    assert series(replace(model, settings={"label": 3}), 4) == [0]
    assert series(replace(model, dtype=torch.bfloat16), 4) == [0]
    assert series(model, 4, {"steps": 4}) == [0]
    assert series(model, 4, what="others") == [0]
    assert series(model, 4) == []


def foreign(file):
    save_file({"values": torch.zeros(4, 2)}, file, metadata={"about": "another"})


def without_description(file):
    save_file({"values": torch.zeros(4, 2)}, file)


def other_shape(file):
    damaged(file, torch.zeros(4, 3))


def not_finite(file):
    damaged(file, torch.full((4, 2), float("nan")))


def damaged(file, values):
    from safetensors import safe_open

    with safe_open(file, framework="pt") as content:
        about = content.metadata()
    save_file({"values": values}, file, metadata=about)


DAMAGE = {
    "empty": lambda file: file.write_bytes(b""),
    "noise": lambda file: file.write_bytes(os.urandom(300)),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-3]),
    "foreign": foreign,
    "without a description": without_description,
    "other shape": other_shape,
    "not finite": not_finite,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_or_foreign_file_is_made_again_and_written_anew(damage, model, cache):
    series(model, 4)
    damage(only_file(cache))
    assert series(model, 4) == [0]
    assert series(model, 4) == []


def test_a_folder_in_the_place_of_the_file_is_done_without(model, cache):
    series(model, 4)
    file = only_file(cache)
    file.unlink()
    file.mkdir()
    assert series(model, 4) == [0]
    assert [path.name for path in cache.iterdir()] == [file.name]


def test_without_a_cache_numbers_are_made_each_time(model, monkeypatch):
    monkeypatch.setenv("NEARFAR_CACHE", os.devnull)
    assert series(model, 4) == [0]
    assert series(model, 4) == [0]


def test_what_comes_with_the_package_is_taken_and_made_longer_in_the_cache(model, cache, tmp_path, monkeypatch):
    series(model, 4)
    cache.rename(tmp_path / "shipped")
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "shipped")
    assert series(model, 4) == []
    assert not cache.exists()
    assert series(model, 6) == [4]
    assert series(model, 6) == []


@pytest.mark.parametrize(
    ("platform", "environment", "folder"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/nearfar"),
        ("linux", {"XDG_CACHE_HOME": ""}, "/home/me/.cache/nearfar"),
        ("darwin", {}, "/home/me/Library/Caches/nearfar"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/nearfar/cache"),
        ("linux", {"NEARFAR_CACHE": "~/elsewhere"}, "/home/me/elsewhere"),
    ],
)
def test_the_cache_lies_where_the_system_has_its_own(platform, environment, folder, monkeypatch):
    monkeypatch.setattr("sys.platform", platform)
    for name in ("NEARFAR_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/me"} | environment).items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)
