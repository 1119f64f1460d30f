"""Each rule that `nearfar.io.pictures` promises. Expected values are exact round trips or closed forms."""

import os
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, ImageFile, PngImagePlugin

from bad_inputs import chunk, encoded, make_bad_inputs, make_name_that_is_not_utf8, png
from nearfar.errors import ImageError, NearfarError, UsageError
from nearfar.io import metadata
from nearfar.io import pictures as images
from nearfar.io.fitting import FitMode, fit, unfit
from nearfar.io.pictures import SUFFIXES, Frame, Picture, encode, read_picture

RNG = np.random.default_rng(7)
COLORS = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
RAMP = np.arange(256, dtype=np.uint8)[None]
SUFFIX = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "AVIF": ".avif", "TIFF": ".tif", "BMP": ".bmp"}
LOSSLESS = ["PNG", "TIFF", "BMP"]


@pytest.fixture
def read(tmp_path):
    """Save a Pillow image (or bytes) under a suitable name and read it with nearfar."""

    def save_and_read(image, form="PNG", **options):
        path = tmp_path / f"x{SUFFIX[form]}"
        path.write_bytes(image if isinstance(image, bytes) else saved(image, form, **options))
        return read_picture(path)

    return save_and_read


def saved(image, form, **options):
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def reopened(content):
    image = Image.open(BytesIO(content))
    image.load()
    return image


def make_frame(height, width, channels=3, depth=8, form="PNG"):
    return Frame(height, width, channels, depth, None, form, {})


# Formats


@pytest.mark.parametrize("form", LOSSLESS)
@pytest.mark.parametrize("array", [COLORS, GRAY], ids=["color", "gray"])
def test_lossless_formats_come_back_bit_by_bit(read, form, array):
    picture = read(Image.fromarray(array), form)
    again = reopened(encode(picture))
    assert again.format == form
    np.testing.assert_array_equal(np.asarray(again), array)


def test_webp_without_loss_is_read_bit_by_bit(read):
    picture = read(Image.fromarray(COLORS), "WEBP", lossless=True)
    np.testing.assert_array_equal(picture.pixels, COLORS)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_formats_come_back_within_a_few_levels(read, form):
    """A smooth picture: what is lost is rounding, not detail. Halved color resolution would do worse in JPEG."""
    smooth = np.stack(np.broadcast_arrays(RAMP.T[::8], RAMP[:, ::8], 128), axis=-1).astype(np.uint8)
    again = reopened(encode(replace(read(Image.fromarray(smooth)), frame=make_frame(32, 32, form=form))))
    assert again.format == form
    assert np.abs(np.asarray(again).astype(int) - smooth).mean() < 2


def test_jpeg_keeps_the_full_color_resolution(read):
    content = encode(read(Image.fromarray(COLORS), "JPEG"))
    start = content.index(
        b"\xff\xc0"
    )  # the frame header: length, depth, height, width, count, then (id, factors, table)
    assert content[start + 9] == 3
    assert [content[start + 11 + 3 * component] for component in range(3)] == [0x11, 0x11, 0x11]


@pytest.mark.parametrize("form", SUFFIX)
def test_same_picture_gives_same_bytes(read, form):
    picture = read(Image.fromarray(COLORS), form)
    assert encode(picture) == encode(picture)


@pytest.mark.parametrize(("suffix", "form"), [one for one in SUFFIXES.items() if one[1] in SUFFIX])
def test_every_suffix_is_read_in_either_case(tmp_path, suffix, form):
    for name in (f"a{suffix}", f"b{suffix.upper()}"):
        (tmp_path / name).write_bytes(saved(Image.fromarray(COLORS), form))
        assert read_picture(tmp_path / name).frame.format == form


def test_suffix_must_agree_with_the_content(tmp_path):
    for name in ("x.jpg", "x.gif", "x"):
        (tmp_path / name).write_bytes(saved(Image.fromarray(COLORS), "PNG"))
        with pytest.raises(ImageError, match=rf"^{name} holds PNG data: rename it to x\.png$"):
            read_picture(tmp_path / name)


def test_main_picture_of_a_multi_picture_jpeg_is_used(tmp_path):
    first, second = Image.fromarray(COLORS), Image.fromarray(255 - COLORS)
    content = saved(first, "MPO", save_all=True, append_images=[second], quality=100, subsampling=0)
    assert reopened(content).n_frames == 2
    (tmp_path / "phone.jpg").write_bytes(content)
    pixels = read_picture(tmp_path / "phone.jpg").pixels.astype(int)
    assert np.abs(pixels - COLORS).max() <= 3


# Kinds of pixels


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_deep_gray_keeps_all_its_levels(read, form):
    picture = read(Image.fromarray(DEEP), form)
    assert (picture.frame.depth, picture.frame.channels, picture.pixels.dtype) == (16, 1, np.uint16)
    np.testing.assert_array_equal(np.asarray(reopened(encode(picture))), DEEP)


def test_deep_gray_in_big_endian_order(read):
    image = Image.frombytes("I;16B", (30, 20), DEEP.astype(">u2").tobytes())
    np.testing.assert_array_equal(read(image, "TIFF").pixels[..., 0], DEEP)


@pytest.mark.parametrize("array", [GRAY, DEEP], ids=["8 bits", "16 bits"])
def test_gray_where_zero_is_white_is_inverted(read, array):
    """Pillow inverts 8-bit data when it writes and when it reads such files, and 16-bit data never."""
    picture = read(Image.fromarray(array), "TIFF", tiffinfo={262: 0})
    expected = array if array.dtype == np.uint8 else 65535 - array
    np.testing.assert_array_equal(picture.pixels[..., 0], expected)


def test_one_bit_becomes_gray(read):
    bits = GRAY > 127
    picture = read(Image.fromarray(bits))
    np.testing.assert_array_equal(picture.pixels[..., 0], np.where(bits, 255, 0))
    assert reopened(encode(picture)).mode == "L"


def test_palette_becomes_colors(read):
    image = Image.fromarray(COLORS).quantize(16)
    picture = read(image)
    assert picture.frame.alpha is None
    np.testing.assert_array_equal(picture.pixels, np.asarray(image.convert("RGB")))


def test_palette_with_transparency_becomes_colors_and_alpha(read):
    image = Image.fromarray(COLORS).quantize(4)
    picture = read(image, transparency=bytes([0, 85, 170, 255]))
    np.testing.assert_array_equal(picture.frame.alpha, np.asarray(image) * 85)
    np.testing.assert_array_equal(picture.pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("array", "color"), [(COLORS, tuple(int(v) for v in COLORS[3, 4])), (GRAY, int(GRAY[3, 4]))])
def test_one_transparent_color_becomes_alpha(read, array, color):
    picture = read(Image.fromarray(array), transparency=color)
    opaque = np.atleast_3d(array != np.array(color)).any(axis=-1)
    np.testing.assert_array_equal(picture.frame.alpha, np.where(opaque, 255, 0))
    np.testing.assert_array_equal(picture.pixels[opaque], np.atleast_3d(array)[opaque])


def test_transparent_white_of_one_bit_becomes_alpha(read):
    bits = GRAY > 127
    picture = read(Image.fromarray(bits), transparency=1)
    np.testing.assert_array_equal(picture.frame.alpha, np.where(bits, 0, 255))
    assert reopened(encode(picture)).mode == "LA"


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("array", [COLORS, GRAY], ids=["color", "gray"])
def test_alpha_is_copied_unchanged_whatever_the_model_returns(read, form, array):
    picture = read(Image.fromarray(np.dstack([array, ALPHA])), form)
    np.testing.assert_array_equal(picture.pixels.squeeze(), array)
    again = reopened(encode(unfit(torch.zeros(3, 16, 16), picture.frame)))
    assert again.mode == ("RGBA" if array.ndim == 3 else "LA")
    np.testing.assert_array_equal(np.asarray(again)[..., -1], ALPHA)


def test_alpha_of_webp_is_not_lossy(read):
    picture = read(Image.fromarray(np.dstack([COLORS, ALPHA])), "WEBP")
    np.testing.assert_array_equal(picture.frame.alpha, ALPHA)
    np.testing.assert_array_equal(np.asarray(reopened(encode(picture)))[..., 3], ALPHA)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(read, form):
    """Full cyan ink absorbs red only, full black absorbs all; flat areas survive JPEG within a level or two."""
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, :16, 0], inks[:, 16:, 3] = 255, 255
    picture = read(Image.fromarray(inks, "CMYK"), form)
    assert np.abs(picture.pixels[8, 8] - np.array([0, 255, 255])).max() <= 2
    assert np.abs(picture.pixels[8, 24] - np.array([0, 0, 0])).max() <= 2
    assert reopened(encode(picture)).mode == "RGB"


@pytest.mark.parametrize(
    ("content", "form", "sentence"),
    [
        (png(1, 1, zlib.compress(bytes(7)), depth=16), "PNG", "16-bit RGB"),
        (saved(Image.fromarray(DEEP), "PNG", transparency=5), "PNG", "16-bit I;16"),
        (saved(Image.fromarray(COLORS).convert("LAB"), "TIFF"), "TIFF", "8-bit LAB"),
        (saved(Image.fromarray(DEEP.astype(np.float32)), "TIFF"), "TIFF", "32-bit F"),
        (saved(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), "TIFF", "32-bit I"),
    ],
)
def test_pixels_that_would_lose_precision_are_refused(read, content, form, sentence):
    with pytest.raises(ImageError, match=f"has {sentence} pixels: save it in 8 bits, or as 16-bit gray"):
        read(content, form)


def test_deep_gray_with_alpha_is_refused(read):
    header = struct.pack(">IIBBBBB", 1, 1, 16, 4, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(5))), chunk(b"IEND", b"")]
    with pytest.raises(ImageError, match="16-bit"):
        read(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def test_twelve_bit_gray_is_refused(read):
    """Its white is 4095, so read as 16 bits it would be almost black."""
    content = bytearray(saved(Image.fromarray(DEEP), "TIFF"))
    entry = content.index(struct.pack("<HHI", 258, 3, 1))
    content[entry + 8] = 12
    with pytest.raises(ImageError, match="12-bit"):
        read(bytes(content), "TIFF")


def test_bmp_with_alpha_is_refused(read):
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, 1, 1, 1, 32, 3, 4, 0, 0, 0, 0) + masks + bytes(52)
    content = b"BM" + struct.pack("<IHHI", 14 + 108 + 4, 0, 0, 14 + 108) + info + bytes([1, 2, 3, 128])
    with pytest.raises(ImageError, match=r"alpha channel.*save it as PNG"):
        read(content, "BMP")


# Color profiles


def test_profile_is_converted_and_never_written(read):
    """sRGB with its red and blue primaries exchanged: converting it must exchange red and blue."""
    picture = read(Image.fromarray(COLORS), icc_profile=profile_with_red_and_blue_exchanged())
    assert np.abs(picture.pixels.astype(int) - COLORS[..., ::-1]).max() <= 1  # lcms computes in fixed point
    for keep in (False, True):
        assert "icc_profile" not in reopened(encode(picture, keep_metadata=keep)).info


def test_srgb_profile_changes_nothing(read):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(read(Image.fromarray(COLORS), icc_profile=profile).pixels, COLORS)


def test_gray_profile_is_converted(read):
    """A gray profile says light = level ** 1.8; the sRGB curve of that light gives the expected levels."""
    pixels = read(Image.fromarray(RAMP), icc_profile=gray_profile()).pixels[..., 0]
    assert np.abs(pixels - srgb_of_gamma_1_8(RAMP)).max() <= 1  # lcms interpolates in a table
    assert np.abs(pixels - RAMP.astype(int)).max() > 15


def test_gray_with_a_color_profile_is_converted_and_stays_gray(read):
    """sRGB with its curve replaced by level ** 1.8, as wrongly attached to many gray pictures."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    curve = profile.index(b"para")
    gamma = b"para" + struct.pack(">3I", 0, 0, 0x1CD << 8)
    pixels = read(Image.fromarray(RAMP), icc_profile=profile[:curve] + gamma + profile[curve + 12 + 4 :]).pixels
    assert pixels.shape == (1, 256, 1)
    assert np.abs(pixels[..., 0] - srgb_of_gamma_1_8(RAMP)).max() <= 1


def test_profile_of_deep_gray_is_ignored(read):
    picture = read(Image.fromarray(DEEP), icc_profile=gray_profile())
    np.testing.assert_array_equal(picture.pixels[..., 0], DEEP)


@pytest.mark.parametrize("profile", [b"nonsense", None], ids=["broken", "of another space"])
def test_unusable_profile_counts_as_srgb(read, profile):
    picture = read(Image.fromarray(COLORS), icc_profile=profile or gray_profile())
    np.testing.assert_array_equal(picture.pixels, COLORS)


def srgb_of_gamma_1_8(levels):
    light = (levels / 255) ** (0x1CD / 256)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def profile_with_red_and_blue_exchanged():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")


def gray_profile():
    """Gamma 1.8 (0x1CD / 256), as Macintosh computers once had it."""
    white = b"XYZ " + struct.pack(">4I", 0, 0xF6D6, 0x10000, 0xD32D)
    curve = b"curv" + struct.pack(">2IHH", 0, 1, 0x1CD, 0)
    tags = b"".join(struct.pack(">4s2I", *tag) for tag in [(b"wtpt", 156, 20), (b"kTRC", 176, 14)])
    body = struct.pack(">I", 2) + tags + white + curve
    start = struct.pack(">I4sI", 128 + len(body), b"none", 0x02100000) + b"mntrGRAYXYZ " + bytes(12) + b"acsp"
    header = start + bytes(28) + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    return header + bytes(128 - len(header)) + body


# Orientation and metadata


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
"""EXIF 2.3, table 6: what turns the stored picture upright."""


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_orientation_is_applied_once_and_not_written(read, form, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for array in (COLORS, DEEP):
        picture = read(Image.fromarray(array), form, exif=exif)
        np.testing.assert_array_equal(picture.pixels.squeeze(), TURNS[orientation](array))
        for keep in (False, True):
            again = reopened(encode(picture, keep_metadata=keep))
            assert ExifTags.Base.Orientation not in again.getexif()
            np.testing.assert_array_equal(np.asarray(again), TURNS[orientation](array))


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6" dc:title="holiday"/></x:xmpmeta>'
METADATA_FORMATS = ["PNG", "JPEG", "WEBP", "TIFF"]


def photo(form, xmp=XMP, thumbnail=b"THUMBNAIL OF THE ORIGINAL"):
    """A file with all the metadata that the format can hold, from description to position and embedded previews."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    exif[ExifTags.Base.Artist] = "Ada"
    exif[ExifTags.Base.ImageResources] = thumbnail
    exif.get_ifd(ExifTags.IFD.Exif).update({ExifTags.Base.DateTimeOriginal: "2026:01:02 03:04:05"})
    exif.get_ifd(ExifTags.IFD.Exif).update({ExifTags.Base.MakerNote: thumbnail})
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({ExifTags.GPS.GPSLatitudeRef: "N"})
    options = {"exif": exif, "xmp": xmp, "dpi": (300, 300), "comment": "secret"}
    if form == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("comment", "secret")
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    if form == "TIFF":
        exif[700] = xmp
        options["exif"] = exif.tobytes()
    return saved(Image.fromarray(COLORS), form, icc_profile=profile_with_red_and_blue_exchanged(), **options)


@pytest.mark.parametrize("form", [*METADATA_FORMATS, "BMP"])
def test_no_metadata_by_default(read, form):
    """What Pillow finds in the output is what the bare format says about itself, and no word of the input is left."""
    content = encode(read(photo(form), form))
    again = reopened(content)
    file_structure = {
        "JPEG": {"jfif", "jfif_version", "jfif_unit", "jfif_density"},
        "WEBP": {"loop", "background", "timestamp", "duration"},
        "TIFF": {"compression", "dpi", "resolution"},
        "BMP": {"compression", "dpi"},
    }
    assert set(again.info) <= file_structure.get(form, set())
    assert again.info.get("dpi", (1, 1)) in ((0, 0), (1, 1))  # Pillow's ways of saying that there is none
    assert again.info.get("jfif_density", (1, 1)) == (1, 1)
    structural = {256, 257, 258, 259, 262, 273, 277, 278, 279, 284}
    assert set(again.getexif()) <= structural
    for word in (b"Ada", b"2026", b"secret", b"holiday", b"THUMBNAIL", b"Exif", b"ICC"):
        assert word not in content


@pytest.mark.parametrize("form", METADATA_FORMATS)
def test_metadata_is_kept_on_request(read, form):
    content = encode(read(photo(form), form), keep_metadata=True)
    again = reopened(content)
    exif = again.getexif()
    assert exif[ExifTags.Base.Artist] == "Ada"
    if form != "TIFF":
        assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == "2026:01:02 03:04:05"
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
    assert again.info["xmp"] == XMP.replace(b'Orientation="6"', b'Orientation="1"')
    if form != "WEBP":
        assert again.info["dpi"] == pytest.approx((300, 300), abs=0.01)  # PNG counts dots per metre
    for word in (b"THUMBNAIL", b"secret", b"icc_profile"):
        assert word not in content


def test_bmp_keeps_dpi_on_request(read):
    picture = read(photo("BMP"), "BMP")
    assert reopened(encode(picture, keep_metadata=True)).info["dpi"] == pytest.approx((300, 300), abs=0.01)


def test_thumbnail_in_the_second_exif_directory_is_not_kept(read):
    """Cameras put a small copy of the original there: directory 1 follows directory 0, with the JPEG behind it."""
    thumbnail = saved(Image.fromarray(COLORS[::2, ::2]), "JPEG")
    directory_0 = struct.pack("<HHHI4sI", 1, 315, 2, 4, b"Ada\0", 26)
    directory_1 = struct.pack("<HHHIIHHIII", 2, 513, 4, 1, 56, 514, 4, 1, len(thumbnail), 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory_0 + directory_1 + thumbnail
    content = saved(Image.fromarray(COLORS), "JPEG", exif=exif)
    assert reopened(content).getexif().get_ifd(ExifTags.IFD.IFD1)[514] == len(thumbnail)
    kept = encode(read(content, "JPEG"), keep_metadata=True)
    assert reopened(kept).getexif()[ExifTags.Base.Artist] == "Ada"
    assert thumbnail not in kept
    assert not reopened(kept).getexif().get_ifd(ExifTags.IFD.IFD1)


@pytest.mark.parametrize("form", METADATA_FORMATS)
def test_xmp_with_an_embedded_picture_is_not_kept(read, form):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><xmpGImg:image>THUMBNAIL</xmpGImg:image></x:xmpmeta>'
    assert b"THUMBNAIL" not in encode(read(photo(form, xmp=xmp), form), keep_metadata=True)


@pytest.mark.parametrize("form", METADATA_FORMATS)
def test_every_descriptive_tag_is_kept(read, form):
    """Also the ones with unusual types, which Pillow's TIFF writer may refuse."""
    exif = Image.Exif()
    values = {tag: f"tag {tag}" for tag in metadata.DESCRIPTIVE_EXIF}
    values |= {tag: f"tag {tag}".encode("utf-16le") for tag in range(40091, 40096)} | {18246: 4}
    exif.update(values)
    picture = read(saved(Image.fromarray(COLORS), form, exif=exif.tobytes()), form)
    kept = reopened(encode(picture, keep_metadata=True)).getexif()
    assert {tag: kept.get(tag) for tag in values} == values


def test_metadata_that_the_format_cannot_hold_is_dropped_when_it_is_read(read, monkeypatch):
    """Not when the result is written: the work would be lost. JPEG holds 64 KiB of XMP."""
    monkeypatch.setattr(metadata, "kept_xmp", lambda _: bytes(70_000))
    picture = read(photo("JPEG"), "JPEG")
    assert encode(picture, keep_metadata=True) == encode(picture)


def test_xmp_that_is_no_text_is_dropped(tmp_path):
    """A PNG may hold an XMP packet that is no text; a picture must not fail for it when it is written."""
    pnginfo = PngImagePlugin.PngInfo()
    pnginfo.add(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0\xff\xfe")
    (tmp_path / "x.png").write_bytes(saved(Image.fromarray(COLORS), "PNG", pnginfo=pnginfo))
    picture = read_picture(tmp_path / "x.png")
    assert encode(picture, keep_metadata=True) == encode(picture)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_exif_that_cannot_be_parsed_counts_as_absent(read, form):
    content = saved(Image.fromarray(COLORS), form, exif=b"Exif\0\0" + b"no directory at all")
    picture = read(content, form)
    assert picture.pixels.shape == (20, 30, 3)
    assert "exif" not in reopened(encode(picture, keep_metadata=True)).info


# Refusals


def test_bad_inputs_get_their_sentences(tmp_path):
    for name, fragment in make_bad_inputs(tmp_path).items():
        with pytest.raises(ImageError) as refusal:
            read_picture(tmp_path / name)
        assert str(refusal.value).startswith(name)
        assert fragment in str(refusal.value)
        assert str(refusal.value).isprintable()


@pytest.mark.filterwarnings("default")
def test_bad_inputs_get_their_sentences_when_warnings_are_no_errors(tmp_path):
    """As in production; what Pillow only warns about must not decide."""
    test_bad_inputs_get_their_sentences(tmp_path)


@pytest.mark.parametrize("form", SUFFIX)
def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path, form):
    """A hundred files with 1 to 8 wrong bytes each: what Pillow raises for them must not get out."""
    path, rng = tmp_path / f"x{SUFFIX[form]}", np.random.default_rng(3)
    content = np.frombuffer(photo(form), np.uint8)
    for _ in range(100):
        damaged = content.copy()
        damaged[rng.integers(0, min(len(content), 1000), rng.integers(1, 9))] = rng.integers(0, 256)
        path.write_bytes(damaged.tobytes())
        with suppress(ImageError):
            encode(read_picture(path, max_pixels=10_000), keep_metadata=True)


def test_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    refused = []

    def read():
        with pytest.raises(ImageError):
            read_picture(tmp_path / "pipe.png")
        refused.append(True)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert refused


def test_file_without_permission(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(saved(Image.fromarray(COLORS), "PNG"))

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(ImageError, match=r"^x\.png may not be read: give yourself permission"):
        read_picture(path)


def test_absent_file_and_impossible_name(tmp_path):
    with pytest.raises(ImageError, match=r"^absent\.png is not there"):
        read_picture(tmp_path / "absent.png")
    with pytest.raises(ImageError, match=r"cannot be read .*null (byte|character)"):
        read_picture(tmp_path / "a\0b.png")
    with pytest.raises(ImageError, match=r"cannot be read .*too long"):
        read_picture(tmp_path / ("a" * 300 + ".png"))


def test_file_that_vanishes_while_it_is_read(tmp_path, monkeypatch):
    """A network folder may go away at any time; the sentence carries the reason of the system."""
    path = tmp_path / "x.png"
    path.write_bytes(saved(Image.fromarray(COLORS), "PNG"))

    def gone(*_):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(images, "check_header", gone)
    with pytest.raises(ImageError, match="Stale file handle"):
        read_picture(path)


def test_memory_that_does_not_suffice(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(saved(Image.fromarray(COLORS), "PNG"))

    def too_little(*_):
        raise MemoryError

    monkeypatch.setattr(images, "to_picture", too_little)
    with pytest.raises(ImageError, match="does not fit into the memory"):
        read_picture(path)


def test_sentence_is_one_printable_line_whatever_the_name(tmp_path):
    path = tmp_path / "two\nlines\x1b[2J.png"
    path.write_bytes(b"x")
    with pytest.raises(ImageError, match=r"^two\\nlines\\x1b\[2J\.png holds no") as refusal:
        read_picture(path)
    assert str(refusal.value).isprintable()


def test_name_that_is_not_utf8_can_be_read(tmp_path):
    assert read_picture(make_name_that_is_not_utf8(tmp_path)).frame.format == "PNG"


def test_limit_of_pixels_is_inclusive_and_can_be_chosen(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(saved(Image.fromarray(COLORS), "PNG"))
    assert read_picture(path, max_pixels=600).pixels.shape == (20, 30, 3)
    with pytest.raises(ImageError, match="has 30 x 20 pixels, more than 599: make it smaller or raise"):
        read_picture(path, max_pixels=599)


@pytest.mark.parametrize("form", ["PNG", "BMP"])
def test_limit_is_ours_and_not_pillows(read, monkeypatch, form):
    """Between Pillow's limit and ours nothing is warned about: `warnings` may not be silenced in threads."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read(Image.fromarray(COLORS), form).pixels.shape == (20, 30, 3)


def test_nothing_global_is_changed_by_importing():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert Image.MAX_IMAGE_PIXELS == 1024**3 // 4 // 3


def test_reading_and_writing_in_threads(tmp_path):
    paths = []
    for index, form in enumerate([*SUFFIX] * 8):
        paths.append(tmp_path / f"{index}{SUFFIX[form]}")
        paths[-1].write_bytes(photo(form))
    expected = [encode(read_picture(path)) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda path: encode(read_picture(path)), paths)) == expected


def test_errors_are_a_tree():
    assert issubclass(ImageError, NearfarError)
    assert issubclass(UsageError, NearfarError)
    assert not issubclass(ImageError, UsageError)


# fit and unfit: what no property in tests/properties/test_fit.py says


def test_all_levels_survive_the_way_through_the_model():
    for levels in (np.arange(256, dtype=np.uint8), np.arange(65536, dtype=np.uint16)):
        side = int(np.sqrt(len(levels)))
        picture = Picture(levels.reshape(side, side, 1), make_frame(side, side, 1, 8 * levels.itemsize))
        for channels in (1, 3):
            image = fit(picture, side, channels)
            assert (image.min(), image.max(), image.dtype) == (-1, 1, torch.float32)
            np.testing.assert_array_equal(unfit(image, picture.frame).pixels, picture.pixels)


def test_levels_are_rounded_and_clipped():
    image = torch.tensor([[[-2.0, -1 + 0.4 / 127.5], [-1 + 0.6 / 127.5, 2.0]]])
    assert unfit(image, make_frame(2, 2, 1)).pixels[..., 0].tolist() == [[0, 0], [1, 255]]


def test_luma_of_a_color_picture():
    """Rec. 601: 0.299, 0.587 and 0.114 of a full red, green and blue."""
    pixels = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    picture = Picture(pixels, make_frame(2, 2))
    gray = fit(picture, 2, 1)
    assert gray.shape == (1, 2, 2)
    torch.testing.assert_close((gray.flatten() + 1) / 2, torch.tensor([0.299, 0.587, 0.114, 1.0]))
    assert unfit(gray, picture.frame).pixels[1, 0].tolist() == [29, 29, 29]
    assert unfit(fit(picture, 2, 3), make_frame(2, 2, 1)).pixels[..., 0].tolist() == [[76, 150], [29, 255]]


def test_pad_mirrors_the_picture_around_itself():
    pixels = np.arange(8, dtype=np.uint8).reshape(2, 4, 1)
    image = fit(Picture(pixels, make_frame(2, 4, 1)), 4, 1)
    rows = ((image[0] + 1) * 127.5).round().int().tolist()
    assert rows == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7]]


def test_cover_shows_the_center_and_mirrors_the_output():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 6, 1)
    picture = Picture(pixels, make_frame(2, 6, 1))
    image = fit(picture, 2, 1, FitMode.COVER)
    assert ((image[0] + 1) * 127.5).round().int().tolist() == [[2, 3], [8, 9]]
    assert unfit(image, picture.frame, FitMode.COVER).pixels[..., 0].tolist() == [
        [3, 2, 2, 3, 3, 2],
        [9, 8, 8, 9, 9, 8],
    ]


def test_shrinking_averages_instead_of_skipping():
    """Alternating black and white lines become gray, not one of the two: the resize is antialiased."""
    lines = np.zeros((64, 64, 1), np.uint8)
    lines[::2] = 255
    image = fit(Picture(lines, make_frame(64, 64, 1)), 8, 1)
    assert image[:, 2:-2].abs().max() < 0.05


def test_overshoot_of_the_resize_is_clipped():
    edge = np.zeros((8, 8, 1), np.uint8)
    edge[:, 4:] = 255
    image = fit(Picture(edge, make_frame(8, 8, 1)), 64, 1)
    assert (image.min(), image.max()) == (-1, 1)


def test_image_of_any_float_type_comes_back():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert unfit(torch.ones(3, 4, 4, dtype=dtype), make_frame(4, 4)).pixels.min() == 255


def test_image_that_is_not_finite_is_refused():
    image = torch.zeros(3, 4, 4)
    image[0, 0, :2] = torch.tensor([torch.nan, torch.inf])
    with pytest.raises(ImageError, match="2 values that are not finite"):
        unfit(image, make_frame(4, 4))


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 4), (2, 4, 4), (1, 3, 4, 4)])
def test_image_of_another_shape_is_refused(shape):
    with pytest.raises(UsageError, match="must be"):
        unfit(torch.zeros(shape), make_frame(4, 4))


@pytest.mark.parametrize(("size", "channels"), [(0, 3), (8, 4), (8, 2)])
def test_impossible_model_sizes_are_refused(size, channels):
    with pytest.raises(UsageError, match="1 or 3 channels and a size above 0"):
        fit(Picture(COLORS, make_frame(20, 30)), size, channels)


def test_fragments_are_specific():
    """The helper's own guard: a good file of each kind is read, so every refusal has its own cause."""
    for form in SUFFIX:
        assert reopened(encoded(COLORS, form)).format == form


@pytest.mark.parametrize("kind", ["compressed text", "compressed international text", "profile", "plain text"])
def test_much_text_refuses_no_sound_pixels(tmp_path, kind):
    about, more = PngImagePlugin.PngInfo(), {}
    if kind == "profile":
        more = {"icc_profile": b"\0" * 3_000_000}
    elif kind == "compressed international text":
        about.add_itxt("Comment", "x" * 3_000_000, zip=True)
    else:
        about.add_text("Comment", "x" * 3_000_000, zip=kind == "compressed text")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "a.png", pnginfo=about, **more)
    assert read_picture(tmp_path / "a.png").pixels[0, 0].tolist() == [1, 2, 3]


# What a file claims of itself


def tiff_of(tags, data):
    """A TIFF of 16x16 gray pixels, deflated, with these tags (number -> type and value) before its one part."""
    tags = {256: (4, 16), 257: (4, 16), 258: (3, 8), 259: (3, 8), 262: (3, 1), 277: (3, 1)} | tags
    entries = [struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(tags.items())]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + data


def at_the_end(tags):
    """Where data lie behind so many tags and the six of every file."""
    return 14 + 12 * (6 + len(tags) + 1)


TILES = {322: (4, 40_000), 323: (4, 40_000), 325: (4, 1000)}


def test_tiles_of_a_tiff_are_bounded_before_room_is_made_for_them(read):
    with pytest.raises(ImageError, match=r"has tiles of 1,600,000,000 pixels, more than 100,000,000: save it anew"):
        read(tiff_of(TILES | {324: (4, at_the_end(TILES))}, zlib.compress(bytes(256))), "TIFF")


@pytest.mark.parametrize("harm", ["a checksum", "a code", "a count of samples"])
def test_libraries_do_not_speak_for_themselves_of_broken_files(read, capfd, harm):
    tags = {278: (4, 16), 279: (4, 20)}
    packed = bytearray(zlib.compress(bytes(256)))
    packed[-1 if harm == "a checksum" else 4] ^= 0xFF
    more = {277: (3, 60_000)} if harm.endswith("samples") else {}
    with pytest.raises(ImageError, match="cannot be decoded as TIFF"):
        read(tiff_of(tags | {273: (4, at_the_end(tags))} | more, bytes(packed)), "TIFF")
    assert capfd.readouterr().err == ""
