"""`nearfar enhance` from end to end with the tiny model."""

import json

import pytest
from PIL import Image

from folders import contents
from nearfar.io.manifest import manifest_path, read_manifest


@pytest.fixture
def source(tmp_path, write_pictures):
    write_pictures(tmp_path / "in", 2, size=(6, 4))
    return tmp_path / "in"


@pytest.fixture
def enhance(nearfar, model_folder):
    def call(source, out, *options):
        return nearfar("enhance", source, out, "--model", model_folder, "--device", "cpu", "--steps", 2, *options)

    return call


def test_every_image_is_enlarged_under_its_name_and_kept_when_resumed(source, tmp_path, enhance):
    out = tmp_path / "out"
    result = enhance(source, out, "--scale", 4)
    assert result.exit_code == 0
    assert "enlarge   4 times, results shrink to the images again" in result.stderr
    assert contents(out).keys() == contents(source).keys()
    for name in contents(source):
        with Image.open(out / name) as image:
            assert image.size == (24, 16)
    records = read_manifest(manifest_path(out)).records.values()
    assert all(0 <= record.figures["consistency_error"] < 1 for record in records)
    again = json.loads(enhance(source, out, "--scale", 4, "--resume", "--json").stdout)
    assert (again["kept"], again["done"]) == (2, 0)
    other = enhance(source, out, "--scale", 2, "--resume")
    assert other.exit_code == 2
    assert "was made with other settings" in other.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--scale", 9], "scale must be a whole number from 2 to 8, got 9"),
        (["--cascade", 0], "cascade must be at least 1, got 0"),
        (["--strength", 2], "strength must be in [0, 1], got 2"),
        (
            ["--solver", "euler"],
            "solver must be one of local-prior, dpm++sde, ancestral, ddim, dpm++, heun, got",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(source, tmp_path, enhance, options, sentence):
    result = enhance(source, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert not (tmp_path / "out").exists()
