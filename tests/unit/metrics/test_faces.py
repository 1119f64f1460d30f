"""Faces by networks that the user names: hand-made ONNX files whose answers are known, and detectors that are stubs."""

import time

import numpy as np
import pytest
import torch

from nearfar.errors import ImageError, UsageError
from nearfar.io.fitting import as_rgb, rgb_of
from nearfar.io.pictures import Frame, Picture
from nearfar.metrics.faces import (
    ARCFACE,
    Embedded,
    FaceDetector,
    FaceRecognizer,
    Faces,
    alignment,
    overlap,
    read_header,
)

pytest.importorskip("cv2", reason="needs the extra 'faces'")


def field(number, content):
    """A protocol buffer's field: an integer, a text or what is inside."""
    if isinstance(content, int):
        return (
            bytes([number << 3, content]) if content < 128 else bytes([number << 3, content & 127 | 128, content >> 7])
        )
    content = content.encode() if isinstance(content, str) else content
    length = len(content)
    assert length < 1 << 14
    return bytes([number << 3 | 2, length & 127 | 128, length >> 7]) + content


def value(name, *shape):
    axes = b"".join(field(1, field(1, length)) for length in shape)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, axes)))


def node(operator, given, made):
    return field(1, given) + field(2, made) + field(4, operator)


def onnx_file(path, height, width, name="image"):
    """A network that returns the mean of each channel."""
    graph = field(1, node("GlobalAveragePool", name, "mean")) + field(1, node("Flatten", "mean", "embedding"))
    graph += field(2, "means") + field(11, value(name, 1, 3, height, width)) + field(12, value("embedding", 1, 3))
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(2, 13)))
    return path


class OneFace:
    """Finds a face of a tenth of the picture, in its middle, if the picture has any light."""

    def setInputSize(self, size):  # noqa: N802
        self.width, self.height = size

    def detect(self, picture):
        w, h = self.width, self.height
        box = [0.45 * w, 0.45 * h, 0.1 * w, 0.1 * h]
        points = [0.47 * w, 0.48 * h, 0.53 * w, 0.48 * h, 0.5 * w, 0.5 * h, 0.48 * w, 0.53 * h, 0.52 * w, 0.53 * h]
        return None, np.array([box + points + [0.9]], np.float32) if picture.any() else None


def picture(height, width, *color):
    return np.broadcast_to(np.array(color or (200, 100, 50), np.uint8), (height, width, 3)).copy()


def test_a_header_tells_name_shape_and_first_operators(tmp_path):
    header = read_header(onnx_file(tmp_path / "net.onnx", 112, 96))
    assert (header.name, header.shape, header.operators) == ("image", (1, 3, 112, 96), ("GlobalAveragePool", "Flatten"))


@pytest.mark.parametrize("content", [b"", b"\x08\x08", b"PK\x03\x04 a zip file", b"\x3a\xff\x01cut short"])
def test_what_is_no_onnx_file_is_refused(tmp_path, content):
    file = tmp_path / "net.onnx"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"net\.onnx is not an ONNX file: its content is no ONNX network"):
        FaceRecognizer.load(file)


def test_a_similarity_is_found_exactly():
    turn = 3 * np.exp(0.7j)
    moved = np.array(ARCFACE) @ [[turn.real, turn.imag], [-turn.imag, turn.real]] + [5, -2]
    matrix = alignment(moved, np.array(ARCFACE))
    np.testing.assert_allclose(moved @ matrix[:, :2].T + matrix[:, 2], ARCFACE, atol=1e-12)


def test_overlap_is_intersection_over_union():
    assert overlap((0.0, 0.0, 2.0, 2.0), (1.0, 0.0, 2.0, 2.0)) == pytest.approx(1 / 3)
    assert overlap((0.0, 0.0, 2.0, 2.0), (2.0, 2.0, 2.0, 2.0)) == 0


@pytest.mark.parametrize(
    ("height", "width", "name", "mean"), [(112, 96, "image", 127.5), (112, 112, "image", 127.5), (112, 112, "data", 0)]
)
def test_a_recognizer_is_handed_what_its_layout_asks_for(tmp_path, height, width, name, mean):
    recognizer = FaceRecognizer.load(onnx_file(tmp_path / "net.onnx", height, width, name))
    vectors = recognizer.embed([picture(112, 112), picture(300, 150, 10, 20, 30)], [np.array(ARCFACE), None])
    expected = torch.nn.functional.normalize(torch.tensor([[200.0, 100, 50], [10, 20, 30]]) - mean, dim=1)
    # The reference of ArcFace brought to that of SphereFace shows no border, so every pixel has the one color.
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-3)


def test_networks_of_another_size_are_refused(tmp_path):
    with pytest.raises(UsageError, match="takes images of 160 x 160"):
        FaceRecognizer.load(onnx_file(tmp_path / "net.onnx", 160, 160))


def test_a_picture_that_opencv_does_not_take_is_one_that_fails():
    cv2 = pytest.importorskip("cv2")

    class Refuses(OneFace):
        def detect(self, picture):
            raise cv2.error("Insufficient memory")

    with pytest.raises(ImageError, match="cannot be searched for faces: Insufficient memory"):
        FaceDetector(Refuses(), "stub").find(picture(64, 64))


class Blobs:
    """Finds every wholly white square of at least ten pixels as a face."""

    def setInputSize(self, size):  # noqa: N802
        pass

    def detect(self, picture):
        cv2 = pytest.importorskip("cv2")
        _, _, boxes, _ = cv2.connectedComponentsWithStats((picture[..., 0] > 250).astype(np.uint8))
        rows = [[*box[:4], *np.tile(box[:2] + box[2:4] / 2, 5), 0.9] for box in boxes[1:] if min(box[2:4]) >= 10]
        return None, np.array(rows, np.float32) if rows else None


def test_small_faces_of_a_large_picture_are_found_once_also_where_tiles_meet():
    image = np.zeros((1500, 4000, 3), np.uint8)
    # In one tile, in the part that two have in common, cut by the border of one of them, in a corner; a large one.
    wanted = {(100, 100, 14, 14), (1130, 700, 14, 14), (1273, 900, 14, 14), (3986, 1486, 14, 14), (1500, 200, 900, 900)}
    for x, y, width, height in wanted:
        image[y : y + height, x : x + width] = 255
    found = FaceDetector(Blobs(), "stub").find(image)
    assert len(found) == len(wanted)
    for x, y, width, height in wanted:
        (face,) = [face for face in found if overlap(face.box, tuple(map(float, (x, y, width, height)))) > 0.9]
        assert face.landmarks[2] == pytest.approx((x + width / 2, y + height / 2), abs=4)


@pytest.mark.parametrize("height", [64, 320, 600])
def test_faces_are_told_in_the_pixels_of_the_picture_whatever_its_size(height):
    (face,) = FaceDetector(OneFace(), "stub").find(picture(height, 2 * height))
    np.testing.assert_allclose(face.box, np.array([0.9, 0.45, 0.2, 0.1]) * height, rtol=1e-2)
    np.testing.assert_allclose(face.landmarks[2], [height, height / 2], rtol=1e-6)


def test_pictures_without_a_face_are_counted_and_take_the_landmarks_of_others(tmp_path):
    recognizer, detector = (
        FaceRecognizer.load(onnx_file(tmp_path / "n.onnx", 112, 112)),
        FaceDetector(OneFace(), "stub"),
    )
    dark = picture(112, 112, 0, 0, 0)
    embedded = Faces(detector, recognizer).embed([picture(112, 112), dark, dark], [None, np.array(ARCFACE), None])
    assert embedded.found.tolist() == [True, False, False]
    assert embedded.note == "no face was found in 2 of 3"
    assert embedded.landmarks[1] is not None
    assert embedded.landmarks[2] is None
    assert Embedded(embedded.vectors[:1], embedded.found[:1], embedded.landmarks[:1]).note == ""


def test_images_become_pictures():
    gray = torch.tensor([-1.0, 0.0, 1.0, 1.2]).view(1, 1, 2, 2)
    assert as_rgb(gray)[0].tolist() == [[[0] * 3, [128] * 3], [[255] * 3, [255] * 3]]


def test_sixteen_bits_become_the_nearest_eight():
    pixels = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    eight = rgb_of(Picture(pixels, Frame(256, 256, 1, 16, None, "PNG", {})))
    assert eight.dtype == np.uint8
    assert eight.shape == (256, 256, 3)
    np.testing.assert_array_equal(eight[..., :1], np.rint(pixels / 257))


def many_fields():
    return b"\x08\x01" * (1 << 18)


def long_number():
    return b"\x08" + b"\x80" * (1 << 20) + b"\x01"


def long_name():
    return b"\x3a\x84\x80\x40\x0a\x80\x80\x40" + b"x" * (1 << 20)


@pytest.mark.parametrize("content", [many_fields, long_number, long_name])
def test_headers_beyond_all_bounds_are_refused_in_a_moment(tmp_path, content):
    (tmp_path / "n.onnx").write_bytes(content())
    began = time.process_time()
    with pytest.raises(UsageError) as refusal:
        read_header(tmp_path / "n.onnx")
    assert time.process_time() - began < 2
    assert len(str(refusal.value)) < 1000


def test_a_file_of_more_than_half_a_gigabyte_is_not_read(tmp_path):
    with (tmp_path / "n.onnx").open("wb") as file:
        file.truncate((1 << 29) + 1)
    with pytest.raises(UsageError, match=r"has more than 536,870,912 bytes: name a smaller network"):
        read_header(tmp_path / "n.onnx")
