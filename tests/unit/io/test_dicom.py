"""DICOM: files that pydicom brings, changed where it brings none of a kind, and what is written for them."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import pixel_array

from nearfar.errors import ImageError
from nearfar.io.dicom import window
from nearfar.io.pictures import encode_pages, read_pages, read_picture

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")
MR, CT, FRAMES, RGB = "MR_small.dcm", "CT_small.dcm", "SC_rgb_rle_2frame.dcm", "examples_rgb_color.dcm"
SAME = ["MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm"]
REFUSED = {
    "rtplan.dcm": "holds no picture",
    "examples_palette.dcm": "has 1 x PALETTE COLOR pixels",
    "image_dfl.dcm": "is stored as Deflated Explicit VR Little Endian, which is not read: unpack it with dcmdjpeg",
    "JPEG-lossy.dcm": "is stored as JPEG Extended",
    "MR_truncated.dcm": "cannot be decoded as DICOM",
    "rtdose_1frame.dcm": "has 32 of 32 bits",
    "liver_1frame.dcm": "holds an enhanced object with functional groups",
}


def place(name):
    return Path(get_testdata_file(name, download=False))


def written(pages, tmp_path, keep=False):
    path = tmp_path / "written.dcm"
    path.write_bytes(encode_pages(pages, keep_metadata=keep))
    return path


def changed(name, tmp_path, **values):
    """A sample with other elements; None takes one out."""
    dataset = pydicom.dcmread(place(name))
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(tmp_path / "changed.dcm")
    return tmp_path / "changed.dcm"


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", [MR, CT, "J2K_pixelrep_mismatch.dcm", "examples_overlay.dcm"])
def test_values_within_the_window_come_back_exactly(name, keep, tmp_path):
    pages = read_pages(place(name))
    stored = pixel_array(pydicom.dcmread(place(name)))
    header = pages[0].frame.header
    again = pydicom.dcmread(written(pages, tmp_path, keep))
    np.testing.assert_array_equal(again.pixel_array, stored.clip(int(header.low), int(header.high)))
    assert (again.BitsStored, again.PixelRepresentation) == (
        pydicom.dcmread(place(name)).BitsStored,
        pydicom.dcmread(place(name)).PixelRepresentation,
    )


def test_every_value_comes_back_where_there_is_no_window(tmp_path):
    stored = pydicom.dcmread(place(CT)).pixel_array
    assert (stored.min(), stored.max()) == (128, 2191)
    np.testing.assert_array_equal(pydicom.dcmread(written(read_pages(place(CT)), tmp_path)).pixel_array, stored)


def test_all_encodings_of_one_image_are_read_alike():
    pixels = read_picture(place(MR)).pixels
    for name in SAME:
        np.testing.assert_array_equal(read_picture(place(name)).pixels, pixels)


def test_window_and_rescale():
    """MR_small: center 600, width 1600, no rescale: PS3.3 C.11.2.1.2 gives 600 - 0.5 -+ 1599 / 2."""
    dataset = pydicom.dcmread(place(MR))
    assert window(dataset) == (-200.0, 1399.0)
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.VOILUTFunction = 2, -1000, "LINEAR_EXACT"
    assert window(dataset) == (400.0, 1200.0)


def test_monochrome1_is_shown_and_written_the_other_way_round(tmp_path):
    path = changed(MR, tmp_path, PhotometricInterpretation="MONOCHROME1")
    pages, stored = read_pages(path), pydicom.dcmread(path).pixel_array
    np.testing.assert_array_equal(pages[0].pixels, 65535 - read_picture(place(MR)).pixels)
    again = pydicom.dcmread(written(pages, tmp_path))
    assert again.PhotometricInterpretation == "MONOCHROME1"
    np.testing.assert_array_equal(again.pixel_array, stored.clip(-200, 1399))


def test_frames_are_pages_and_come_back_as_one_file(tmp_path):
    pages = read_pages(place(FRAMES))
    again = pydicom.dcmread(written(pages, tmp_path))
    assert (len(pages), again.NumberOfFrames, again.SOPClassUID) == (
        2,
        2,
        pydicom.uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
    )
    assert (again.BurnedInAnnotation, again.FrameIncrementPointer) == ("YES", 0x00182001)
    np.testing.assert_array_equal(again.pixel_array, np.stack([page.pixels for page in pages]))
    with pytest.raises(ImageError, match="has 2 frames, more than 1"):
        read_picture(place(FRAMES))


def test_nothing_of_the_patient_is_written_unless_asked_for(tmp_path):
    source = pydicom.dcmread(place(CT))
    names = [
        str(source.PatientName),
        source.PatientID,
        source.StudyInstanceUID,
        source.SOPInstanceUID,
        source.StudyDate,
    ]
    content = written(read_pages(place(CT)), tmp_path).read_bytes()
    assert not [name for name in names if name.encode() in content]
    made = pydicom.dcmread(tmp_path / "written.dcm")
    assert (made.SOPClassUID, made.Modality, made.ConversionType) == (
        pydicom.uid.SecondaryCaptureImageStorage,
        "CT",
        "WSD",
    )
    assert made.PatientName == ""
    assert made.StudyInstanceUID.startswith("2.25.")
    assert made.RescaleIntercept == source.RescaleIntercept


def test_the_header_is_copied_when_asked_for_with_an_identity_of_its_own(tmp_path):
    source = pydicom.dcmread(place(CT))
    made = pydicom.dcmread(written(read_pages(place(CT)), tmp_path, keep=True))
    for name in ("PatientName", "StudyInstanceUID", "ImagePositionPatient", "SOPClassUID"):
        assert made[name].value == source[name].value
    assert made.SOPInstanceUID not in (source.SOPInstanceUID, "")
    assert made.SeriesInstanceUID != source.SeriesInstanceUID
    assert made.file_meta.MediaStorageSOPInstanceUID == made.SOPInstanceUID
    assert made.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert not [element for element in made if element.tag.is_private]


@pytest.mark.parametrize("keep", [False, True])
def test_a_derived_image_says_so(keep, tmp_path):
    made = pydicom.dcmread(written(read_pages(place("693_J2KI.dcm")), tmp_path, keep))
    assert list(made.ImageType)[:2] == ["DERIVED", "SECONDARY"]
    assert "not for diagnosis" in made.DerivationDescription
    assert made.LossyImageCompression == "01"  # its original was JPEG 2000 with loss
    assert made.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian


def test_the_same_image_gives_the_same_bytes():
    assert encode_pages(read_pages(place(MR))) == encode_pages(read_pages(place(MR)))


def test_overlays_and_icons_never_come_along(tmp_path):
    dataset = pydicom.dcmread(place("examples_overlay.dcm"))
    assert [element for element in dataset if element.tag.group == 0x6000]
    made = pydicom.dcmread(written(read_pages(place("examples_overlay.dcm")), tmp_path, keep=True))
    assert not [element for element in made if 0x5000 <= element.tag.group < 0x7000]


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        (MR, {}, ""),
        (MR, {"BurnedInAnnotation": "YES"}, "says that text is burned into its pixels (BurnedInAnnotation YES)"),
        (RGB, {}, "does not deny that text is burned into its pixels, as is common in modality US"),
        (RGB, {"BurnedInAnnotation": "NO"}, ""),
        (MR, {"Modality": None}, "does not deny that text is burned into its pixels, as is common in modality unknown"),
    ],
)
def test_text_in_the_pixels_is_told(name, values, text, tmp_path):
    assert read_picture(changed(name, tmp_path, **values)).frame.header.text == text


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused(name):
    with pytest.raises(ImageError) as refusal:
        read_picture(place(name))
    assert str(refusal.value).startswith(f"{name} {REFUSED[name]}")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"RescaleSlope": 0.0, "RescaleIntercept": 0}, None),
        ({"RescaleSlope": -1}, "has a rescale slope of -1, and above 0 is read"),
        ({"VOILUTFunction": "SIGMOID"}, "has a SIGMOID window of width 1600, and linear ones are read"),
        ({"Rows": 30000, "Columns": 30000}, "has 900,000,000 values in 1 frames, read are 1 to 100,000,000"),
    ],
)
def test_headers_that_mislead_are_refused(values, reason, tmp_path):
    path = changed(MR, tmp_path, **values)
    if reason is None:
        read_picture(path)  # 0 counts as absent
    else:
        with pytest.raises(ImageError, match=f"changed.dcm {reason}"):
            read_picture(path)


def test_several_frames_of_signed_gray_need_their_header(tmp_path):
    dataset = pydicom.dcmread(place(MR))
    dataset.NumberOfFrames, dataset.PixelData = 2, dataset.PixelData * 2
    dataset.save_as(tmp_path / "frames.dcm")
    pages = read_pages(tmp_path / "frames.dcm")
    with pytest.raises(ImageError, match="which no secondary capture holds"):
        encode_pages(pages)
    assert pydicom.dcmread(written(pages, tmp_path, keep=True)).NumberOfFrames == 2
