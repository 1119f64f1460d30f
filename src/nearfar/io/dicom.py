"""DICOM images in and out: stored values as 16 bits of the file's window, and what a derived image must say of itself.

Read are MONOCHROME1 and 2 of 8 to 16 bits, RGB and YBR of 8, one frame or several, uncompressed, RLE, JPEG and JPEG
2000. Gray from the lower to the upper end of the file's first window, or of its values where it has none, becomes 0 to
65535; what lies beyond comes back as the end. Written are the stored values again, with the same bits, rescale, window
and photometric interpretation, uncompressed.

* Nothing of the patient, the study or the machine is written unless the header is asked for: then all of it but private
  elements, overlays, curves, icons, signatures and padding. What is written without is a secondary capture.
* Every file has a new UID, which follows from what it holds. Image type is DERIVED, SECONDARY; the derivation is
  described; pixels that were once compressed with loss still say so.
* What is not understood is refused: palettes, modality LUTs, functional groups. Bits that are none of the pixels', as
  of overlays within them, are cleared.
* Text that is part of the pixels is not looked for. `Header.text` tells where it is likely.
* Reading silences pydicom in the whole process: its warnings, and its checks of values.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import ImageError
from nearfar.io.extras import needed

TOP = 65535
MONOCHROME, COLORS = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
SYNTAXES = {
    **dict.fromkeys(("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5"), False),
    **dict.fromkeys(("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.91"), True),
    "1.2.840.10008.1.2.4.90": False,
}
"""Transfer syntaxes that are read (implicit, explicit, big endian, RLE, JPEG, JPEG 2000): whether they may lose."""

WITH_TEXT = ("US", "IVUS", "ES", "XC", "GM", "SM", "OP", "OPT", "OT", "SC", "DOC", "XA", "RF", "DG", "HC", "ECG")
"""Modalities whose pictures often have names and dates in their pixels."""

NOT_READ = {
    "SharedFunctionalGroupsSequence": "holds an enhanced object with functional groups: convert it to single frames",
    "PerFrameFunctionalGroupsSequence": "holds an enhanced object with functional groups: convert it to single frames",
    "ModalityLUTSequence": "has a modality LUT, which is not understood: apply it first",
    "FloatPixelData": "holds floats: save it as integers with a rescale slope",
    "DoubleFloatPixelData": "holds floats: save it as integers with a rescale slope",
}
DROPPED = """PixelData IconImageSequence PixelPaddingValue PixelPaddingRangeLimit SmallestImagePixelValue
LargestImagePixelValue SmallestPixelValueInSeries LargestPixelValueInSeries ExtendedOffsetTable
ExtendedOffsetTableLengths OriginalAttributesSequence EncryptedAttributesSequence MACParametersSequence
DigitalSignaturesSequence RedPaletteColorLookupTableDescriptor ICCProfile VOILUTSequence"""
DROPPED_GROUPS = (0x0400, 0x4FFE, 0xFFFA, 0xFFFC)
"""Of encryption, signatures and padding; curves and overlays are those from 0x5000 and 0x6000."""

TECHNICAL = """Modality SpecificCharacterSet PixelSpacing RescaleSlope RescaleIntercept RescaleType WindowCenter
WindowWidth VOILUTFunction PresentationLUTShape LossyImageCompression LossyImageCompressionRatio
LossyImageCompressionMethod BurnedInAnnotation"""
"""What every written file has of its original, where that has it."""

EMPTY = """PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID
AccessionNumber SeriesNumber InstanceNumber PatientOrientation"""
SECONDARY = {  # SOP classes of secondary captures, by what they hold: one frame, gray bytes, gray words, colors
    "single": "1.2.840.10008.5.1.4.1.1.7",
    "bytes": "1.2.840.10008.5.1.4.1.1.7.2",
    "words": "1.2.840.10008.5.1.4.1.1.7.3",
    "colors": "1.2.840.10008.5.1.4.1.1.7.4",
}
SAID = "Made by a diffusion model (nearfar) from another image: not a recording, not for diagnosis"


@dataclass(frozen=True, eq=False)
class Header:
    """All of a file but its pixels. low, high: the stored values that became 0 and 65535. frames: how many.

    text: why names may be burned into its pixels; empty where the file denies it or where it is unusual.
    """

    dataset: Any
    low: float
    high: float
    frames: int
    text: str

    @property
    def inverted(self) -> bool:
        return bool(self.dataset.PhotometricInterpretation == "MONOCHROME1")

    @property
    def gray(self) -> bool:
        return self.dataset.PhotometricInterpretation in MONOCHROME


def read_frames(file: BinaryIO, max_pixels: int, most: int) -> tuple[NDArray[Any], Header]:
    """The frames of a file, (frame, height, width, 1 or 3), gray as uint16 with 0 black and colors as uint8.

    most: how many frames there may be. Raises ImageError for what is not understood, and whatever pydicom raises.
    """
    library = quiet_library()
    check(library.dcmread(file, stop_before_pixels=True), max_pixels, most)
    file.seek(0)
    dataset = library.dcmread(file)
    if "PixelData" not in dataset:
        raise ImageError("holds no picture (no pixel data): leave it out")
    stored = library.pixels.pixel_array(dataset)
    frames = int(dataset.get("NumberOfFrames") or 1)
    stored = stored.reshape(frames, dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
    low, high = (0.0, 255.0) if dataset.SamplesPerPixel == 3 else value_range(dataset, stored)
    lossy = SYNTAXES[dataset.file_meta.TransferSyntaxUID]
    kept = without_pixels(dataset)
    if lossy:
        kept.LossyImageCompression = "01"
    header = Header(kept, low, high, frames, likely_text(dataset))
    return (to_words(stored, header) if header.gray else stored), header


def quiet_library() -> Any:
    """pydicom, which would warn of every value that breaks a rule; many files do."""
    library = needed("pydicom", "medical")
    needed("pydicom.pixels", "medical")
    warnings.filterwarnings("ignore", module="pydicom")
    config = library.config
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE
    return library


def check(dataset: Any, max_pixels: int, most: int) -> None:
    """Refuse by what the header says: no picture, too much, and what is not understood."""
    for name, reason in NOT_READ.items():
        if name in dataset:
            raise ImageError(reason)
    kind, samples = str(dataset.get("PhotometricInterpretation", "")), dataset.get("SamplesPerPixel", 0)
    if "Rows" not in dataset or not kind:
        raise ImageError("holds no picture (no rows or no photometric interpretation): leave it out")
    syntax = dataset.file_meta.get("TransferSyntaxUID", "none")
    if syntax not in SYNTAXES:
        name = getattr(syntax, "name", syntax)
        raise ImageError(f"is stored as {name}, which is not read: unpack it with dcmdjpeg or gdcmconv --raw")
    if samples != (1 if kind in MONOCHROME else 3) or kind not in (*MONOCHROME, *COLORS):
        raise ImageError(f"has {samples} x {kind} pixels, read are MONOCHROME1, MONOCHROME2, RGB and YBR: convert it")
    frames = int(dataset.get("NumberOfFrames") or 1)
    count = int(dataset.Rows) * int(dataset.Columns) * samples * frames
    if not 0 < count <= max_pixels:
        raise ImageError(f"has {count:,} values in {frames} frames, read are 1 to {max_pixels:,}: make it smaller")
    if frames > most:
        raise ImageError(f"has {frames} frames, more than {most:,}: extract the ones you want")
    check_bits(dataset, samples)


def check_bits(dataset: Any, samples: int) -> None:
    """8 to 16 bits of gray and 8 of colors, in the lowest places of 8 or 16."""
    bits, room = int(dataset.BitsStored), int(dataset.BitsAllocated)
    good = room in (8, 16) and 2 <= bits <= room and dataset.HighBit == bits - 1 and (samples == 1 or room == bits == 8)
    if not good or dataset.PixelRepresentation not in (0, 1):
        places = f"{bits} of {room} bits, the highest at {dataset.HighBit}"
        raise ImageError(f"has {places}: read are up to 16 bits of gray and 8 of color, from bit 0 on")


def limits(dataset: Any) -> tuple[int, int]:
    """The least and the greatest value that the stored bits can hold."""
    bits = int(dataset.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)


def value_range(dataset: Any, stored: NDArray[Any]) -> tuple[float, float]:
    """The stored values that become black and white: the window's where that meets the values, else theirs."""
    least, greatest = limits(dataset)
    inside = stored
    if (padding := dataset.get("PixelPaddingValue")) is not None:
        inside = stored[stored != padding]
    if not inside.size:
        raise ImageError("holds nothing but padding: leave it out")
    low, high = float(inside.min()), float(inside.max())
    shown = window(dataset)
    if shown and max(shown[0], low) < min(shown[1], high):
        low, high = max(math.floor(shown[0]), least), min(math.ceil(shown[1]), greatest)
    return float(low), float(max(high, low + 1))


def window(dataset: Any) -> tuple[float, float] | None:
    """The ends of the first window, in stored values; none where the file has none."""
    slope, intercept = (
        float(dataset.get(name) or default) for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    if not (slope > 0 and math.isfinite(slope) and math.isfinite(intercept)):
        raise ImageError(f"has a rescale slope of {slope:g}, and above 0 is read: rescale it first")
    center, width = (first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return None
    kind = str(dataset.get("VOILUTFunction") or "LINEAR")
    exact = kind == "LINEAR_EXACT"
    if kind not in ("LINEAR", "LINEAR_EXACT") or not (width > 0 if exact else width >= 1):
        raise ImageError(f"has a {kind} window of width {width:g}, and linear ones are read: take it out")
    middle, half = (center, width / 2) if exact else (center - 0.5, (width - 1) / 2)
    return (middle - half - intercept) / slope, (middle + half - intercept) / slope


def first(value: Any) -> float | None:
    """The first of one or several numbers."""
    values = [value] if isinstance(value, int | float | str) else list(value or ())
    number = float(values[0]) if values else None
    if number is not None and not math.isfinite(number):
        raise ImageError("has a window that is not finite: take it out")
    return number


def likely_text(dataset: Any) -> str:
    """Why text may be burned into the pixels."""
    said, modality = str(dataset.get("BurnedInAnnotation") or ""), str(dataset.get("Modality") or "")
    if said == "NO":
        return ""
    if said:
        return f"says that text is burned into its pixels (BurnedInAnnotation {said[:16]})"
    if not modality or modality in WITH_TEXT:
        return f"does not deny that text is burned into its pixels, as is common in modality {modality or 'unknown'}"
    return ""


def without_pixels(dataset: Any) -> Any:
    """The header alone: without pixels, private elements, overlays, and what holds pictures or signatures."""
    dataset.remove_private_tags()
    for element in list(dataset):
        group = element.tag.group
        if element.keyword in DROPPED.split() or group in DROPPED_GROUPS or 0x5000 <= group < 0x7000:
            del dataset[element.tag]
    return dataset


def to_words(stored: NDArray[Any], header: Header) -> NDArray[np.uint16]:
    """Stored values as 0 to 65535, 0 black."""
    shares = (stored.astype(np.float64) - header.low) / (header.high - header.low)
    words = np.rint(shares.clip(0, 1) * TOP).astype(np.uint16)
    return np.asarray(TOP - words if header.inverted else words)


def to_stored(words: NDArray[Any], header: Header) -> NDArray[Any]:
    """The inverse of `to_words`, exact for values within the window."""
    upright = TOP - words if header.inverted else words
    values = np.rint(header.low + upright.astype(np.float64) / TOP * (header.high - header.low))
    kind = "i" if header.dataset.PixelRepresentation else "u"
    return values.clip(*limits(header.dataset)).astype(f"<{kind}{header.dataset.BitsAllocated // 8}")


def encode_frames(frames: Sequence[NDArray[Any]], header: Header, keep_header: bool) -> bytes:
    """The content of a file of new frames, each as `read_frames` gave the one in its place.

    keep_header: whether it says all that the original's header says, the patient's name among it.
    """
    library = quiet_library()
    pixels = np.stack(frames)
    stored = to_stored(pixels, header) if header.gray else pixels
    source = header.dataset
    made = copy_of(source, library) if keep_header else secondary(source, len(frames), library)
    content = np.ascontiguousarray(stored).tobytes()
    made.Rows, made.Columns, made.SamplesPerPixel = stored.shape[1], stored.shape[2], stored.shape[3]
    made.PhotometricInterpretation = source.PhotometricInterpretation if header.gray else "RGB"
    for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(made, name, getattr(source, name))
    if not header.gray:
        made.PlanarConfiguration = 0
    if len(frames) > 1:
        made.NumberOfFrames = len(frames)
    kind = [*source.get("ImageType", [])][2:] if keep_header else []
    made.ImageType, made.DerivationDescription = ["DERIVED", "SECONDARY", *kind], SAID
    made.add_new("PixelData", "OB" if made.BitsAllocated == 8 else "OW", content + b"\0" * (len(content) % 2))
    new_identity(made, source, keep_header, hashlib.sha256(content).hexdigest())
    return as_file(made, library)


def copy_of(source: Any, library: Any) -> Any:
    """The original's header, with a reference to the original."""
    made = library.Dataset()
    made.update(source)
    if "SOPClassUID" not in source or "SOPInstanceUID" not in source:
        raise ImageError("has no UID or class of its own, without which its header cannot be kept: leave that out")
    reference = library.Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    made.SourceImageSequence = [reference]
    return made


def secondary(source: Any, frames: int, library: Any) -> Any:
    """A secondary capture of nobody: what a viewer needs, and the elements that must be there, empty."""
    made = library.Dataset()
    for name in EMPTY.split():
        setattr(made, name, None)
    for name in TECHNICAL.split():
        if name in source:
            made[name] = source[name]
    made.Modality, made.ConversionType = source.get("Modality") or "OT", "WSD"
    gray, words = source.PhotometricInterpretation in MONOCHROME, source.BitsAllocated == 16
    made.SOPClassUID = SECONDARY["single" if frames == 1 else ("words" if words else "bytes") if gray else "colors"]
    if frames > 1:
        check_several(source, gray)
        made.BurnedInAnnotation = source.get("BurnedInAnnotation") or "YES"  # it must be said, and nobody has looked
        made.PageNumberVector, made.FrameIncrementPointer = [str(n + 1) for n in range(frames)], 0x00182001
        if gray:
            made.RescaleIntercept, made.RescaleSlope, made.RescaleType = 0, 1, "US"
            made.PresentationLUTShape = "IDENTITY"
    return made


def check_several(source: Any, gray: bool) -> None:
    """Refuse several frames of gray that no secondary capture can hold."""
    plain = float(source.get("RescaleSlope") or 1) == 1 and float(source.get("RescaleIntercept") or 0) == 0
    if gray and (not plain or source.PixelRepresentation or source.PhotometricInterpretation == "MONOCHROME1"):
        raise ImageError(
            "has several frames with signs, a rescale or MONOCHROME1, which no secondary capture holds: "
            "take it apart into single frames, or keep its header (--keep-metadata)"
        )


def new_identity(made: Any, source: Any, keep_header: bool, content: str) -> None:
    """UIDs that no other image has; of an original, no trace but in what is kept of its header."""
    if keep_header:
        content += str(source.get("SOPInstanceUID", ""))
        made.SeriesInstanceUID = uid_of("series", str(source.get("SeriesInstanceUID", "")))
    else:
        made.StudyInstanceUID, made.SeriesInstanceUID = uid_of("study", content), uid_of("series", content)
    made.SOPInstanceUID = uid_of("image", content)


def uid_of(*parts: str) -> str:
    """A UID under 2.25, that of numbers which nobody gives out twice."""
    return f"2.25.{int(hashlib.sha256('/'.join(parts).encode()).hexdigest()[:32], 16)}"


def as_file(made: Any, library: Any) -> bytes:
    """The bytes of the file: explicit little endian, an empty preamble."""
    made.file_meta = library.dataset.FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = (
        made.SOPClassUID,
        made.SOPInstanceUID,
    )
    made.file_meta.TransferSyntaxUID = library.uid.ExplicitVRLittleEndian
    buffer = BytesIO()
    library.dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()
