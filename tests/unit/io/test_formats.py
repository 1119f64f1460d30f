"""AVIF, HEIC and pages: files that other programs wrote, and what is written for them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nearfar.errors import ImageError
from nearfar.io.listing import list_folder
from nearfar.io.pictures import encode, encode_pages, read_pages, read_picture

SAMPLES = Path(__file__).parents[2] / "samples"
SOUND = ["alpha.avif", "alpha.heic", "color.avif", "color.heic", "gray.heic", "turned.avif"]
REFUSED = {
    "deep.avif": "deep.avif has 10-bit RGB pixels: save it in 8 bits, or as 16-bit gray without alpha",
    "several.heic": "several.heic has 2 frames: extract the one you want",
}


def rewritten(name, folder, **options):
    """A sample, and what is read of what is written for it."""
    picture = read_picture(SAMPLES / name)
    target = folder / name
    target.write_bytes(encode(picture, **options))
    return picture, read_picture(target)


@pytest.mark.parametrize("name", SOUND)
def test_a_picture_of_another_program_comes_back_close(name, tmp_path):
    picture, again = rewritten(name, tmp_path)
    assert (
        again.pixels.shape
        == picture.pixels.shape
        == ((64, 48, 3) if "turned" in name else (48, 64, 1 if "gray" in name else 3))
    )
    assert np.abs(picture.pixels.astype(int) - again.pixels).mean() < 1.5
    assert encode(picture) == encode(picture)


def test_both_formats_show_the_same_picture():
    avif, heic = (read_picture(SAMPLES / name).pixels.astype(int) for name in ("color.avif", "color.heic"))
    turned = read_picture(SAMPLES / "turned.avif").pixels.astype(int)
    assert np.abs(avif - heic).mean() < 6
    assert np.abs(np.rot90(avif) - turned).mean() < 2


@pytest.mark.parametrize("name", ["alpha.avif", "alpha.heic"])
def test_alpha_stays_what_it_is(name, tmp_path):
    picture, again = rewritten(name, tmp_path)
    np.testing.assert_array_equal(picture.frame.alpha, np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1)))
    np.testing.assert_array_equal(again.frame.alpha, picture.frame.alpha)


def test_metadata_of_heic_are_kept_when_asked_for(tmp_path):
    picture, again = rewritten("color.heic", tmp_path, keep_metadata=True)
    for kind in ("xmp", "exif"):
        assert b"Somebody" in again.frame.metadata[kind]
    assert b"Somebody" not in encode(picture)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_lose_is_refused(name):
    with pytest.raises(ImageError) as refusal:
        read_picture(SAMPLES / name)
    assert str(refusal.value) == REFUSED[name]


def test_heic_without_its_library_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"color.heic needs pillow_heif: pip install 'nearfar\[heic\]'"):
        read_picture(SAMPLES / "color.heic")


def test_a_file_under_another_name_is_told(tmp_path):
    for name, other in (("color.avif", "a.heic"), ("color.heic", "a.jpg"), ("color.heic", "IMG")):
        shutil.copy(SAMPLES / name, tmp_path / other)
    for name, form in (("a.heic", "AVIF"), ("a.jpg", "HEIC")):
        with pytest.raises(ImageError, match=f"holds {form} data: rename it"):
            read_picture(tmp_path / name)
    assert list_folder(tmp_path).rejected[0].reason == "holds HEIC data: rename it to IMG.heic"


DEEP = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
PAGES = [Image.new("RGB", (30, 20), (200, 90, 40)), DEEP, Image.new("LA", (9, 17), (90, 120))]


def pages_of(tmp_path, pages=PAGES):
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    return tmp_path / "a.tif"


def test_pages_are_pictures_each_with_its_size_and_depth(tmp_path):
    pages = read_pages(pages_of(tmp_path))
    assert [(page.pixels.shape, page.frame.depth, page.frame.alpha is None) for page in pages] == [
        ((20, 30, 3), 8, True),
        ((20, 30, 1), 16, True),
        ((17, 9, 1), 8, False),
    ]
    np.testing.assert_array_equal(pages[1].pixels[..., 0], np.asarray(DEEP))
    (tmp_path / "b.tif").write_bytes(encode_pages(pages))
    for page, again in zip(pages, read_pages(tmp_path / "b.tif"), strict=True):
        np.testing.assert_array_equal(page.pixels, again.pixels)


def test_too_much_of_pages_is_refused(tmp_path):
    path = pages_of(tmp_path)
    with pytest.raises(ImageError, match=r"a\.tif has 1,353 pixels in 3 pages, more than 1,300"):
        read_pages(path, max_pixels=1300)
    with pytest.raises(ImageError, match=r"a\.tif has 3 pages: extract the one you want"):
        read_picture(path)
    with pytest.raises(ImageError, match=r"a\.tif has 3 pages, more than 2"):
        read_pages(path, most=2)
