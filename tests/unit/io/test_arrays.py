"""Arrays in and out: every format as other libraries write it, the same bytes, every refusal, the model's square."""

import gzip
import io
import math
import pickle
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from astropy.io import fits

from nearfar.errors import ImageError, UsageError
from nearfar.io.arrays import SCIENCE_SUFFIXES, fit_square, read_array, unfit_square, write_array
from nearfar.io.fitting import FitMode, fit, unfit
from nearfar.io.pictures import Frame, Picture

RNG = np.random.default_rng(3)
GRAY = RNG.normal(0, 1e3, (1, 6, 9))
RGB = RNG.normal(0, 1e-3, (3, 6, 9))
FOUR = RNG.normal(0, 1, (4, 6, 9))
each_suffix = pytest.mark.parametrize("suffix", [".npy", ".tif", ".fits"])
each_planes = pytest.mark.parametrize("planes", [GRAY, RGB, FOUR], ids=["gray", "rgb", "four"])


def as_tiff(pixels, **options):
    content = io.BytesIO()
    tifffile.imwrite(content, pixels, **options)
    return content.getvalue()


def as_fits(*units):
    content = io.BytesIO()
    fits.HDUList(list(units)).writeto(content)
    return content.getvalue()


def with_tag(number, value):
    """A tiled TIFF, a tag of which says something else."""
    content = as_tiff(np.zeros((16, 16), np.uint8), compression="zlib", tile=(16, 16))
    place = next(place for place in range(len(content)) if content[place : place + 2] == struct.pack("<H", number))
    return content[: place + 8] + struct.pack("<I", value) + content[place + 12 :]


def without_bits():
    """A TIFF that does not say how many bits its values have."""
    content = as_tiff(np.zeros((8, 9), np.float32))
    return content.replace(struct.pack("<HHI", 258, 3, 1), struct.pack("<HHI", 0, 3, 1), 1)


def packed_bomb():
    """A deflated strip of 16 MB, where 256 bytes are due."""
    content = as_tiff(np.zeros((16, 16), np.uint8), compression="zlib", rowsperstrip=16)
    bomb = zlib.compress(bytes(1 << 24))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tags = {tag.code: tag.valueoffset for tag in file.pages[0].tags.values()}
    content = bytearray(content + bomb)
    struct.pack_into("<I", content, tags[273], len(content) - len(bomb))
    struct.pack_into("<I", content, tags[279], len(bomb))
    return bytes(content)


def as_npy(array, **options):
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


def integers(dtype, shape=(6, 9)):
    """Values over the whole range of an integer type, both ends among them."""
    ends = np.iinfo(dtype)
    values = RNG.integers(ends.min, ends.max, shape, np.dtype(dtype).newbyteorder("="), endpoint=True)
    values.flat[:2] = ends.min, ends.max
    return values.astype(dtype)


# What nearfar writes


@each_suffix
@each_planes
def test_floats_come_back_as_float32_has_them(tmp_path, suffix, planes):
    path = tmp_path / f"x{suffix}"
    write_array(path, planes)
    again = read_array(path)
    assert again.dtype == np.float64
    np.testing.assert_array_equal(again, planes.astype(np.float32))


@each_suffix
@each_planes
def test_uint16_rounds_to_the_nearest(tmp_path, suffix, planes):
    path = tmp_path / f"x{suffix}"
    counts = RNG.uniform(0, 65535, planes.shape)
    counts.flat[:4] = 0, 65535, 0.51, 1000.49
    write_array(path, counts, "uint16")
    np.testing.assert_array_equal(read_array(path), np.rint(counts))


@each_suffix
@each_planes
def test_the_same_values_are_the_same_bytes_and_their_hash_is_returned(tmp_path, suffix, planes):
    hashes = {write_array(tmp_path / f"{name}{suffix}", planes) for name in "ab"}
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert len(hashes) == 1
    assert len(hashes.pop()) == 64


def test_other_libraries_read_what_is_written(tmp_path):
    for suffix in (".npy", ".tif", ".fits"):
        write_array(tmp_path / f"gray{suffix}", GRAY)
        write_array(tmp_path / f"rgb{suffix}", RGB)
    gray, rgb = GRAY.astype(np.float32), RGB.astype(np.float32)
    np.testing.assert_array_equal(np.load(tmp_path / "gray.npy"), gray[0])
    np.testing.assert_array_equal(np.load(tmp_path / "rgb.npy"), rgb)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "gray.tif"), gray[0])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "rgb.tif"), np.moveaxis(rgb, 0, -1))
    np.testing.assert_array_equal(fits.getdata(tmp_path / "gray.fits"), gray[0])
    np.testing.assert_array_equal(fits.getdata(tmp_path / "rgb.fits"), rgb)


# What others write


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i2", "<u2", ">u2", "<i4", ">u4"])
def test_npy_integers_of_any_byte_order(tmp_path, dtype):
    values = integers(dtype)
    (tmp_path / "x.npy").write_bytes(as_npy(values))
    np.testing.assert_array_equal(read_array(tmp_path / "x.npy")[0], values.astype(np.float64))


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_floats_of_any_byte_and_memory_order(tmp_path, dtype, order):
    values = RGB.astype(dtype, order=order)
    (tmp_path / "x.npy").write_bytes(as_npy(values))
    np.testing.assert_array_equal(read_array(tmp_path / "x.npy"), values.astype(np.float64))


def test_the_second_version_of_npy_is_read(tmp_path):
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, GRAY[0], version=(2, 0))
    np.testing.assert_array_equal(read_array(tmp_path / "x.npy"), GRAY)


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".TIF"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u2", "i2", "f4", "f8"])
def test_tiff_gray(tmp_path, suffix, order, dtype):
    values = integers(dtype) if dtype[0] in "iu" else GRAY[0].astype(dtype)
    (tmp_path / f"x{suffix}").write_bytes(as_tiff(values, byteorder=order, compression="zlib"))
    np.testing.assert_array_equal(read_array(tmp_path / f"x{suffix}")[0], values.astype(np.float64))


@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_tiff_colors_in_either_layout(tmp_path, layout, dtype):
    values = integers(dtype, (3, 6, 9)) if dtype == "u2" else RGB.astype(dtype)
    pixels = np.moveaxis(values, 0, -1) if layout == "contig" else values
    (tmp_path / "x.tif").write_bytes(as_tiff(pixels, photometric="rgb", planarconfig=layout))
    np.testing.assert_array_equal(read_array(tmp_path / "x.tif"), values.astype(np.float64))


def test_tiff_numbers_are_taken_as_stored_where_0_is_white(tmp_path):
    values = integers("u2")
    (tmp_path / "x.tif").write_bytes(as_tiff(values, photometric="miniswhite"))
    np.testing.assert_array_equal(read_array(tmp_path / "x.tif")[0], values)


@pytest.mark.parametrize("suffix", [".fits", ".fit", ".fts"])
def test_fits_integers_are_scaled_to_physical_values(tmp_path, suffix):
    header = fits.Header({"BSCALE": 0.25, "BZERO": -100.0})
    stored = integers("i2")
    unit = fits.PrimaryHDU(stored)
    unit.header.update(header)
    (tmp_path / f"x{suffix}").write_bytes(as_fits(unit))
    np.testing.assert_array_equal(read_array(tmp_path / f"x{suffix}")[0], stored * 0.25 - 100)


def test_fits_unsigned_integers_and_rows_in_the_files_order(tmp_path):
    counts = integers("u2")
    (tmp_path / "x.fits").write_bytes(as_fits(fits.PrimaryHDU(counts)))
    np.testing.assert_array_equal(read_array(tmp_path / "x.fits")[0], counts)


def test_fits_blank_pixels_are_not_a_number(tmp_path):
    unit = fits.PrimaryHDU(np.array([[1, 2], [-999, 4]], np.int16))
    unit.header["BLANK"] = -999
    (tmp_path / "x.fits").write_bytes(as_fits(unit))
    np.testing.assert_array_equal(read_array(tmp_path / "x.fits")[0], [[1, 2], [math.nan, 4]])


@pytest.mark.parametrize("kind", [fits.ImageHDU, fits.CompImageHDU])
def test_the_only_image_of_a_fits_file_may_lie_in_an_extension_among_tables(tmp_path, kind):
    table = fits.BinTableHDU.from_columns([fits.Column("x", "E", array=[1.0, 2.0])])
    (tmp_path / "x.fits").write_bytes(as_fits(fits.PrimaryHDU(), table, kind(integers("i2", (20, 30)))))
    with fits.open(tmp_path / "x.fits") as units:
        expected = units[2].data.astype(np.float64)
    np.testing.assert_array_equal(read_array(tmp_path / "x.fits")[0], expected)


def test_a_fits_header_that_breaks_a_rule_is_no_obstacle(tmp_path):
    content = as_fits(fits.PrimaryHDU(GRAY[0]))
    card = b"EXTEND  =                    T"
    assert card in content
    (tmp_path / "x.fits").write_bytes(content.replace(card, b"extend  =                    T"))
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(read_array(tmp_path / "x.fits"), GRAY)
    assert raised == []


@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 4), 0), ((5, 4, 3), 2), ((1, 5, 4), 0), ((5, 4, 1), 2)])
def test_the_smallest_axis_holds_the_channels(tmp_path, shape, axis):
    values = RNG.normal(size=shape)
    np.save(tmp_path / "x.npy", values)
    np.testing.assert_array_equal(read_array(tmp_path / "x.npy"), np.moveaxis(values, axis, 0))


def test_values_that_are_not_finite_are_read_as_they_are(tmp_path):
    values = np.array([[math.nan, math.inf], [-math.inf, 0]])
    np.save(tmp_path / "x.npy", values)
    np.testing.assert_array_equal(read_array(tmp_path / "x.npy")[0], values)


# Refused files


class Trap:
    """An object whose pickle writes a file when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("wrapped", [True, False], ids=["npy", "bare pickle"])
def test_a_pickle_is_refused_and_never_run(tmp_path, wrapped):
    marker = tmp_path / "marker"
    trap = np.array([[Trap(marker)]], dtype=object)
    content = as_npy(trap, allow_pickle=True) if wrapped else pickle.dumps(Trap(marker))
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ImageError, match=r"^x\.npy (holds values of type object|cannot be decoded as NPY)"):
        read_array(tmp_path / "x.npy")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Trap(marker)))
    assert marker.exists(), "the trap itself does not work"


def compressed_unit():
    return fits.CompImageHDU(RNG.normal(size=(40, 50)).astype(np.float32))


WHOLE = {
    "x.npy": lambda: as_npy(RNG.normal(size=(40, 50))),
    "x.tif": lambda: as_tiff(RNG.normal(size=(40, 50))),
    "deflated.tif": lambda: as_tiff(RNG.normal(size=(40, 50)), compression="zlib", rowsperstrip=8),
    "tiled.tif": lambda: as_tiff(RNG.normal(size=(40, 50)), compression="zlib", tile=(16, 16)),
    "x.fits": lambda: as_fits(fits.PrimaryHDU(RNG.normal(size=(40, 50)))),
    "compressed.fits": lambda: as_fits(fits.PrimaryHDU(), compressed_unit()),
}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.7])
@pytest.mark.parametrize("name", WHOLE)
def test_truncated_files_are_refused_without_a_warning(tmp_path, name, share):
    content = WHOLE[name]()
    (tmp_path / name).write_bytes(content)
    assert read_array(tmp_path / name).shape == (1, 40, 50)
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ImageError, match=rf"^{name} (is empty|cannot be decoded as (NPY|TIFF|FITS) \()"):
        read_array(tmp_path / name)


def with_damaged_extension():
    whole = as_fits(fits.PrimaryHDU(GRAY[0]), fits.ImageHDU(GRAY[0]))
    return whole[: 2 * 2880 + 2000]


def header_of(shape):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return content.getvalue()


def fits_header(columns, rows):
    cards = {"SIMPLE": True, "BITPIX": -64, "NAXIS": 2, "NAXIS1": columns, "NAXIS2": rows}
    return fits.Header(cards).tostring().encode()


PALETTE = {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}
REFUSED = {
    "text.npy": (lambda: b"this is no array", r"cannot be decoded as NPY"),
    "text.tif": (lambda: b"this is no array", r"cannot be decoded as TIFF"),
    "text.fits": (lambda: b"this is no array", r"does not begin as FITS files do"),
    "complex.npy": (lambda: as_npy(np.zeros((4, 5), complex)), r"holds values of type complex128: save them as"),
    "complex.tif": (lambda: as_tiff(np.zeros((4, 5), np.complex64)), r"holds values of type complex64: save them as"),
    "bool.npy": (lambda: as_npy(np.zeros((4, 5), bool)), r"holds values of type bool: save them as"),
    "text_values.npy": (lambda: as_npy(np.full((4, 5), "a")), r"holds values of type <U1: save them as"),
    "fields.npy": (lambda: as_npy(np.zeros((4, 5), [("a", "f4")])), r"holds values of type \[\('a', '<f4'\)\]"),
    "no_values.npy": (lambda: as_npy(np.zeros((0, 5))), r"has shape \(0, 5\) and so no values: restore it"),
    "number.npy": (lambda: as_npy(np.float64(3)), r"has shape \(\), and 2 or 3 axes are read: extract the image"),
    "row.npy": (lambda: as_npy(np.zeros(5)), r"has shape \(5,\), and 2 or 3 axes are read: extract the image"),
    "cube.fits": (lambda: as_fits(fits.PrimaryHDU(np.zeros((2, 1, 4, 5)))), r"has shape \(2, 1, 4, 5\), and 2 or 3"),
    "five.npy": (lambda: as_npy(np.zeros((5, 8, 9))), r"has shape \(5, 8, 9\): the smallest axis must hold 1, 3 or 4"),
    "two.npy": (lambda: as_npy(np.zeros((8, 9, 2))), r"has shape \(8, 9, 2\): the smallest axis must hold 1, 3 or 4"),
    "middle.npy": (lambda: as_npy(np.zeros((8, 3, 9))), r"has shape \(8, 3, 9\): .* and be first or last"),
    "ambiguous.npy": (
        lambda: as_npy(np.zeros((3, 9, 3))),
        r"has shape \(3, 9, 3\), which leaves open what the channels",
    ),
    "volume.tif": (
        lambda: as_tiff(np.zeros((16, 32, 32), np.float32), volumetric=True, tile=(16, 16, 16)),
        r"has shape \(16, 32, 32\): the smallest axis must hold 1, 3 or 4 channels",
    ),
    "pages.tif": (
        lambda: as_tiff(np.zeros((3, 8, 9)), photometric="minisblack"),
        r"has 3 pages, and exactly 1 is read",
    ),
    "palette.tif": (lambda: as_tiff(np.zeros((8, 9), np.uint8), **PALETTE), r"holds a palette's indices, which are no"),
    "bomb.tif": (lambda: packed_bomb(), r"has a strip or tile that unpacks to more than its pixels: save it anew"),
    "tile.tif": (lambda: with_tag(323, 1 << 24), r"has strips or tiles of 268,435,456 values, more than 100,000,000"),
    "lzma.tif": (lambda: as_tiff(np.zeros((16, 16), np.uint8), compression="lzma"), r"is compressed by LZMA, which is"),
    "zstd.tif": (lambda: with_tag(259, 50000), r"is compressed by ZSTD, which is not read: save it with deflate"),
    "no bits.tif": (
        lambda: without_bits(),
        r"holds values of shape \(0, 8, 9\), its header says \(8, 9\): save it anew",
    ),
    "packed.fits": (
        lambda: gzip.compress(as_fits(fits.PrimaryHDU(GRAY[0]))),
        r"does not begin as FITS files do \(SIMPLE\): u",
    ),
    "none.fits": (lambda: as_fits(fits.PrimaryHDU()), r"has 0 images, and exactly 1 is read"),
    "several.fits": (lambda: as_fits(fits.PrimaryHDU(GRAY[0]), fits.ImageHDU(GRAY[0])), r"has 2 images, and exactly 1"),
    "damaged.fits": (with_damaged_extension, r"cannot be decoded as FITS \(Error validating header for HDU #1"),
    "negative.fits": (lambda: fits_header(-5, 4), r"has shape \(4, -5\) and so no values: restore it"),
    "negative.npy": (lambda: header_of((-3, -40)), r"has shape \(-3, -40\) and so no values: restore it"),
    "promise.npy": (lambda: header_of((3000, 1000)), r"cannot be decoded as NPY \(.*[Ff]ailed to read all data"),
    "promise.fits": (lambda: fits_header(3000, 1000), r"cannot be decoded as FITS \("),
    "too_much.npy": (
        lambda: header_of((100_000, 100_000)),
        r"has 10,000,000,000 values, more than 100,000,000: make it",
    ),
    "too_much.fits": (lambda: fits_header(100_000, 100_000), r"has 10,000,000,000 values, more than 100,000,000: make"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_refused(tmp_path, name):
    make, sentence = REFUSED[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(ImageError, match=rf"^{name} {sentence}"):
        read_array(tmp_path / name)


@each_suffix
def test_the_limit_is_on_the_values_of_all_channels_and_nothing_is_decoded_above_it(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"x{suffix}"
    write_array(path, RGB)
    assert read_array(path, max_pixels=RGB.size).shape == RGB.shape

    def decode(*_, **__):
        pytest.fail("decoded")

    monkeypatch.setattr(np.lib.format, "read_array", decode)
    monkeypatch.setattr(tifffile.TiffFile, "asarray", decode)
    monkeypatch.setattr(fits.PrimaryHDU, "data", property(decode))
    with pytest.raises(ImageError, match=rf"^x{suffix} has 162 values, more than 161: make it smaller or raise"):
        read_array(path, max_pixels=RGB.size - 1)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ImageError, match=r"^folder\.npy is a folder: only regular files are read"):
        read_array(tmp_path / "folder.npy")
    with pytest.raises(ImageError, match=r"^missing\.fits is not there"):
        read_array(tmp_path / "missing.fits")


@pytest.mark.parametrize("name", ["x.png", "x", "x.npz", "x.fits.gz"])
def test_other_suffixes_are_refused(tmp_path, name):
    for call in (lambda: read_array(tmp_path / name), lambda: write_array(tmp_path / name, GRAY)):
        with pytest.raises(UsageError, match=rf"^{name} must end in {', '.join(SCIENCE_SUFFIXES)}: convert it"):
            call()


@pytest.mark.parametrize(("name", "library"), [("x.tif", "tifffile"), ("x.fits", "astropy.io.fits")])
def test_a_missing_library_is_named_with_its_remedy(tmp_path, monkeypatch, name, library):
    monkeypatch.setitem(sys.modules, library, None)
    for call in (lambda: read_array(tmp_path / name), lambda: write_array(tmp_path / name, GRAY)):
        with pytest.raises(UsageError, match=rf"^\w+ files need {library}: pip install 'nearfar\[science\]'$"):
            call()


# Refused values


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_values_that_are_not_finite_are_not_written(tmp_path, wrong):
    with pytest.raises(ImageError, match=r"^the array for x\.npy has 1 values that are not finite"):
        write_array(tmp_path / "x.npy", np.array([[[0.0, wrong]]]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "dtype", "sentence"),
    [
        (np.full((1, 2, 2), -0.4), "uint16", r"needs values from 0 to 65535 for uint16, got -0\.4 to -0\.4: change"),
        (np.full((1, 2, 2), 65536.0), "uint16", r"needs values from 0 to 65535 for uint16, got 65536 to 65536"),
        (np.full((1, 2, 2), 1e39), "float32", r"needs values from -3\.40282e\+38 to 3\.40282e\+38 for float32"),
        (np.zeros((1, 2, 2)), "int8", r"dtype must be one of float32, uint16, got 'int8'"),
    ],
)
def test_values_that_the_type_cannot_hold_are_refused(tmp_path, values, dtype, sentence):
    with pytest.raises(UsageError, match=rf"^x\.fits {sentence}"):
        write_array(tmp_path / "x.fits", values, dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(2, 6, 9), (5, 6, 9), (3, 3, 9), (4, 3, 9), (0, 6, 9), (1, 0, 9)])
def test_values_that_could_not_be_read_again_are_not_written(tmp_path, shape):
    with pytest.raises(ImageError, match=r"^x\.npy (needs values of shape \(1, 3 or 4, height, width\)|has shape)"):
        write_array(tmp_path / "x.npy", np.zeros(shape))
    assert list(tmp_path.iterdir()) == []


# The model's square


def in_range(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(4)) * 2 - 1


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 8), (1, 8, 3), (3, 1, 8)])
def test_what_has_the_models_size_comes_back_bit_for_bit(shape):
    image = in_range(*shape)
    square = fit_square(image, 8)
    assert square.shape == (shape[0], 8, 8)
    assert torch.equal(unfit_square(square, *shape[1:]), image)


def test_cover_brings_the_center_back_and_mirrors_it_into_the_margins():
    image = in_range(1, 6, 10)
    square = fit_square(image, 6, FitMode.COVER)
    assert torch.equal(square, image[..., 2:8])
    again = unfit_square(square, 6, 10, FitMode.COVER)
    assert torch.equal(again, torch.cat([square[..., :2].flip(-1), square, square[..., -2:].flip(-1)], -1))


@pytest.mark.parametrize("mode", [FitMode.PAD, FitMode.COVER])
@pytest.mark.parametrize("size", [5, 16, 40])
def test_arrays_are_fitted_as_pictures_are(mode, size):
    """A 16-bit picture and the same numbers as an array: the same square, and the same way back but for rounding."""
    pixels = integers("u2", (13, 21, 1))
    frame = Frame(13, 21, 1, 16, None, "PNG", {})
    array = torch.from_numpy(pixels[..., 0].astype(np.float32) / 32767.5 - 1)[None]
    square = fit_square(array, size, mode)
    assert torch.equal(square, fit(Picture(pixels, frame), size, 1, mode))
    picture = unfit(square, frame, mode).pixels[..., 0]
    back = (unfit_square(square, 13, 21, mode)[0] + 1) * 32767.5
    np.testing.assert_allclose(back, picture, atol=0.51)


def test_a_square_that_is_none_is_refused():
    with pytest.raises(UsageError, match=r"^the model's size must be above 0, got 0$"):
        fit_square(in_range(1, 4, 4), 0)
    with pytest.raises(UsageError, match=r"^the model's image must be \(channels, size, size\), got \(1, 4, 5\)$"):
        unfit_square(in_range(1, 4, 5), 4, 4)
    with pytest.raises(ImageError, match=r"^the model's image has 16 values that are not finite"):
        unfit_square(torch.full((1, 4, 4), math.nan), 4, 4)
