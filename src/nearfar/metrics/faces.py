"""Faces in pictures: where they are, and whose they look like, by two networks that the user names (ONNX files).

Pictures are uint8 `(height, width, 3)` in sRGB order, coordinates in their pixels. Networks run in OpenCV on the CPU.
Nothing here is random. A detector and a recognizer may be shared by threads.

What an ONNX file says of itself, its image input and the operators at its start, is read without its weights and
without another library: a file is one protocol buffer, its field numbers are those of onnx.proto (ModelProto,
GraphProto, ValueInfoProto).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, UInt8
from torch import Tensor

from nearfar.errors import ImageError, UsageError, first_line
from nearfar.io.fitting import rgb_of
from nearfar.io.listing import Item
from nearfar.io.manifest import Watch
from nearfar.io.pictures import read_picture
from nearfar.io.regions import similarity

Pixels = UInt8[np.ndarray, "_ _ 3"]
Points = Float64[np.ndarray, "5 2"]
Embeddings = Float32[Tensor, "pictures numbers"]

SMALL, LARGE, OVERLAP, SHARED = 320, 1280, 0.3, 256
"""Longer sides, in pixels, at which a picture is searched, the overlap at which two finds are one face, and how much
tiles of the larger side have in common at least: what is cut by one of them, and smaller, is whole in the next."""

SPHEREFACE = ((30.29, 51.70), (65.53, 51.50), (48.03, 71.74), (33.55, 92.37), (62.73, 92.20))
ARCFACE = ((38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20))
"""Where eyes, nose and corners of the mouth must lie: SphereFace (112 high, 96 wide) and ArcFace (112 x 112)."""

GRAPH, NODE, OPERATOR, INPUT = 7, 1, 4, 11
NAME, TYPE, TENSOR, SHAPE, DIMENSION, VALUE = 1, 2, 1, 2, 1, 1
FIRST_NODES, MOST_BYTES, MOST_FIELDS = 8, 1 << 29, 1 << 16


@dataclass(frozen=True, eq=False)
class Face:
    """A face that was found. box: left, top, width, height. landmarks: (x, y) of the right eye (on the left in the
    picture), left eye, nose, right and left corner of the mouth. score: in [0, 1]."""

    box: tuple[float, float, float, float]
    landmarks: Points
    score: float


@dataclass(frozen=True, eq=False)
class FaceDetector:
    """YuNet and whatever else `cv2.FaceDetectorYN` takes."""

    network: Any
    name: str
    lock: Any = field(default_factory=Lock)

    @classmethod
    def load(cls, path: Path | str, least_score: float = 0.6) -> FaceDetector:
        """A detector from an ONNX file. Raises UsageError if there is no such file or OpenCV refuses it."""
        cv2, path = opencv(), Path(path)
        read_header(path)
        try:
            network = cv2.FaceDetectorYN.create(str(path), "", (SMALL, SMALL), least_score, OVERLAP)
            network.detect(np.zeros((SMALL, SMALL, 3), np.uint8))
        except cv2.error as error:
            text = f"{path} is no face detector that OpenCV's FaceDetectorYN takes: name YuNet's ONNX file"
            raise UsageError(text) from error
        return cls(network, path.name)

    def find(self, picture: Pixels) -> list[Face]:
        """All faces, the surest first.

        The picture is searched at 320 pixels for large faces, at its own length (1280 at most) for smaller ones, and
        where it is longer in tiles of 1280 for the smallest. Cost: one network call, two for pictures longer than 320
        pixels, and one for each tile (12 for 4000 x 3000 pixels, 0.1 s each on one core).
        """
        longer = max(picture.shape[:2])
        found = [face for side in {SMALL, min(max(longer, SMALL), LARGE)} for face in self.at(picture, side / longer)]
        if longer > LARGE:
            found += [face for y, x in product(*map(starts, picture.shape[:2])) for face in self.in_tile(picture, y, x)]
        kept: list[Face] = []
        for face in sorted(found, key=lambda face: (-face.score, face.box)):
            if all(overlap(face.box, other.box) < OVERLAP for other in kept):
                kept.append(face)
        return kept

    def in_tile(self, picture: Pixels, top: int, left: int) -> list[Face]:
        """The faces that a tile with this corner shows whole."""
        tile = picture[top : top + LARGE, left : left + LARGE]
        ends = (left, top, left + tile.shape[1], top + tile.shape[0])
        corner = np.array([left, top])
        moved = [
            Face((face.box[0] + left, face.box[1] + top, *face.box[2:]), face.landmarks + corner, face.score)
            for face in self.at(tile, 1.0)
        ]
        return [face for face in moved if not is_cut(face.box, ends, picture.shape[:2])]

    def at(self, picture: Pixels, scale: float) -> list[Face]:
        """The faces of the picture enlarged by `scale`."""
        cv2 = opencv()
        height, width = (max(1, round(length * scale)) for length in picture.shape[:2])
        method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        try:
            resized = cv2.cvtColor(cv2.resize(picture, (width, height), interpolation=method), cv2.COLOR_RGB2BGR)
            with self.lock:
                self.network.setInputSize((width, height))
                _, rows = self.network.detect(resized)
        except cv2.error as error:
            raise ImageError(f"cannot be searched for faces: {first_line(error)}") from error
        rows = np.zeros((0, 15)) if rows is None else rows.astype(np.float64)
        x, y = picture.shape[1] / width, picture.shape[0] / height
        boxes = rows[:, :4] * (x, y, x, y)
        points, scores = rows[:, 4:14].reshape(-1, 5, 2) * (x, y), rows[:, 14].tolist()
        return [Face(tuple(box), at, score) for box, at, score in zip(boxes.tolist(), points, scores, strict=True)]


@dataclass(frozen=True, eq=False)
class FaceRecognizer:
    """A network that gives pictures of one person like vectors.

    size: height and width of its input. reference: where the five landmarks are brought to in it. mean, scale: the
    network is handed `(value - mean) / scale`, values in 0 to 255, RGB.
    """

    network: Any
    name: str
    size: tuple[int, int]
    reference: Points
    mean: float
    scale: float
    lock: Any = field(default_factory=Lock)

    @classmethod
    def load(cls, path: Path | str) -> FaceRecognizer:
        """A recognizer with the input of SphereFace (MobileFaceNet; 112 high, 96 wide) or of ArcFace and SFace
        (112 x 112). Raises UsageError for other files."""
        cv2, path = opencv(), Path(path)
        header = read_header(path)
        size, reference, mean, scale = layout(header, path)
        try:
            network = cv2.dnn.readNetFromONNX(str(path))
        except cv2.error as error:
            raise UsageError(f"{path} is refused by OpenCV: name another face recognizer (ONNX)") from error
        return cls(network, path.name, size, reference, mean, scale)

    def embed(self, pictures: Sequence[Pixels], landmarks: Sequence[Points | None]) -> Embeddings:
        """Vectors of unit length. Without landmarks a picture is cropped to the middle. Cost: one call per picture."""
        aligned = [self.align(picture, points) for picture, points in zip(pictures, landmarks, strict=True)]
        return torch.stack([self.vector(face) for face in aligned]) if aligned else torch.zeros(0, 1)

    def align(self, picture: Pixels, points: Points | None) -> Pixels:
        """The face brought to the reference; without landmarks the middle of the picture."""
        cv2, (height, width) = opencv(), self.size
        if points is None:
            points = self.reference
            scale = max(height / picture.shape[0], width / picture.shape[1])
            points = (points - (width / 2, height / 2)) / scale + (picture.shape[1] / 2, picture.shape[0] / 2)
        matrix = alignment(points, self.reference)
        return np.asarray(cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR))

    def vector(self, face: Pixels) -> Float32[Tensor, " numbers"]:
        values = (face.transpose(2, 0, 1)[None].astype(np.float32) - self.mean) / self.scale
        with self.lock:
            self.network.setInput(values)
            output = torch.from_numpy(self.network.forward().reshape(-1).astype(np.float32))
        return torch.nn.functional.normalize(output, dim=0)


@dataclass(frozen=True, eq=False)
class Embedded:
    """vectors: unit length. found: whether a face was found. landmarks: those that were used, None for the middle."""

    vectors: Embeddings
    found: Bool[Tensor, " pictures"]
    landmarks: list[Points | None]

    @property
    def missed(self) -> int:
        """In how many pictures no face was found."""
        return int((~self.found).sum())

    @property
    def note(self) -> str:
        return f"no face was found in {self.missed} of {len(self.found)}" if self.missed else ""


@dataclass(frozen=True, eq=False)
class Faces:
    """A detector and a recognizer, which see pictures at their own size."""

    detector: FaceDetector
    recognizer: FaceRecognizer

    @classmethod
    def load(cls, detector: str | Path | None, recognizer: str | Path | None) -> Faces | None:
        """From two ONNX files, both or none."""
        if detector is None and recognizer is None:
            return None
        if detector is None or recognizer is None:
            raise UsageError("a face recognizer needs a detector and the other way round: give both ONNX files")
        return cls(FaceDetector.load(detector), FaceRecognizer.load(recognizer))

    def embed(self, pictures: Sequence[Pixels], known: Sequence[Points | None] = ()) -> Embedded:
        """The largest face of each picture as a vector.

        known: landmarks to use where no face is found, such as those of the originals: an attacker knows that a face
        stays where it was. Without them the middle of the picture is taken; both are counted in `note`.
        """
        faces = [largest(self.detector.find(picture)) for picture in pictures]
        others = known or [None] * len(pictures)
        used = [other if face is None else face.landmarks for face, other in zip(faces, others, strict=True)]
        found = torch.tensor([face is not None for face in faces], dtype=torch.bool)
        return Embedded(self.recognizer.embed(pictures, used), found, used)

    def see(self, items: Sequence[Item], watch: Watch, stage: str, known: Sequence[Points | None] = ()) -> Embedded:
        """The same of files, read one after another."""
        parts = []
        for number, item in enumerate(items):
            parts.append(self.embed([rgb_of(read_picture(item.path))], known[number : number + 1]))
            watch(stage, number + 1, len(items))
        vectors, found = (torch.cat([getattr(part, name) for part in parts]) for name in ("vectors", "found"))
        return Embedded(vectors, found, [part.landmarks[0] for part in parts])


def largest(faces: Sequence[Face]) -> Face | None:
    """The face with the largest box; the surest of equals."""
    return max(faces, key=lambda face: face.box[2] * face.box[3], default=None)


def layout(header: OnnxHeader, path: Path) -> tuple[tuple[int, int], Points, float, float]:
    """Size, reference points and normalization. As in insightface, a network that begins with a subtraction (those
    exported from MXNet, whose input is called `data`) takes values as they are."""
    height, width = header.shape[2:]
    if (height, width) == (112, 96):
        return (height, width), np.array(SPHEREFACE), 127.5, 128.0
    if (height, width) == (112, 112):
        raw = header.name == "data" or {"Sub", "Mul"} <= set(header.operators)
        return (height, width), np.array(ARCFACE), *((0.0, 1.0) if raw else (127.5, 127.5))
    text = f"{path} takes images of {height} x {width}; a face recognizer must take 112 x 96 (MobileFaceNet) or"
    raise UsageError(f"{text} 112 x 112 (ArcFace, SFace): name one of these")


def alignment(points: Points, reference: Points) -> Float64[np.ndarray, "2 3"]:
    """Rotation, scale and shift that bring points to the reference with the least squared error."""
    here, there = (some @ (1, 1j) for some in (points, reference))
    turn = similarity(here, there)
    shift = there.mean() - turn * here.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def starts(length: int) -> list[int]:
    """Where tiles begin along a side."""
    count = max(1, math.ceil((length - SHARED) / (LARGE - SHARED)))
    return [round(number * (length - LARGE) / max(1, count - 1)) for number in range(count)]


def is_cut(box: tuple[float, ...], ends: tuple[int, int, int, int], shape: tuple[int, ...]) -> bool:
    """Whether a border of the tile, left, upper, right and lower, that is none of the picture's cuts through a box."""
    left, top, right, bottom = ends
    across = (left > 0 and box[0] <= left) or (right < shape[1] and box[0] + box[2] >= right)
    return across or (top > 0 and box[1] <= top) or (bottom < shape[0] and box[1] + box[3] >= bottom)


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union of two boxes (left, top, width, height)."""
    sides = [min(one[i] + one[i + 2], other[i] + other[i + 2]) - max(one[i], other[i]) for i in (0, 1)]
    common = max(sides[0], 0) * max(sides[1], 0)
    return float(common / max(one[2] * one[3] + other[2] * other[3] - common, 1e-9))


def opencv() -> Any:
    """OpenCV, quiet; the networks of a file that was refused would speak for themselves."""
    try:
        import cv2
    except ImportError as error:
        raise UsageError("faces need OpenCV: pip install 'nearfar[faces]'") from error
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    return cv2


@dataclass(frozen=True)
class OnnxHeader:
    """name: of the image input. shape: of it, 0 where the file leaves a length open. operators: of the first nodes."""

    name: str
    shape: tuple[int, ...]
    operators: tuple[str, ...]


def read_header(path: Path | str) -> OnnxHeader:
    """The first input with four axes and 1 or 3 channels. Raises UsageError where there is none, or no ONNX file."""
    try:
        if Path(path).stat().st_size > MOST_BYTES:
            raise UsageError(f"{path} has more than {MOST_BYTES:,} bytes: name a smaller network")
        graph = first(memoryview(Path(path).read_bytes()), GRAPH)
        nodes = [text_of(first(node, OPERATOR)) for node in islice(messages(graph, NODE), FIRST_NODES)]
        inputs = {text_of(first(value, NAME)): shape_of(value) for value in messages(graph, INPUT)}
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): name an ONNX file") from error
    except (IndexError, StopIteration, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not an ONNX file: its content is no ONNX network; name another") from error
    images = [(name, shape) for name, shape in inputs.items() if len(shape) == 4 and shape[1] in (1, 3)]
    if not images:
        raise UsageError(f"{path} takes no image (batch, channel, height, width), but {inputs}: name another network")
    return OnnxHeader(*images[0], tuple(nodes))


def text_of(field: memoryview) -> str:
    """A name, cut at 60 bytes."""
    return bytes(field[:60]).decode()


def shape_of(value: memoryview) -> tuple[int, ...]:
    """The lengths of an input's axes, 0 where they are open."""
    tensor = first(first(value, TYPE), TENSOR)
    axes = messages(first(tensor, SHAPE), DIMENSION)
    return tuple(next((cast(int, field) for number, field in fields(axis) if number == VALUE), 0) for axis in axes)


def first(message: memoryview, number: int) -> memoryview:
    return next(messages(message, number))


def messages(message: memoryview, number: int) -> Iterator[memoryview]:
    return (field for its_number, field in fields(message) if its_number == number and isinstance(field, memoryview))


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and content of each field: an integer, or what is inside. ValueError for more than any network has."""
    place = count = 0
    while place < len(message):
        count += 1
        if count > MOST_FIELDS:
            raise ValueError("too many fields")
        tag, place = variable_length(message, place)
        if tag & 7 == 0:
            content, place = variable_length(message, place)
            yield tag >> 3, content
            continue
        length = {1: 8, 5: 4}.get(tag & 7)
        if length is None:
            if tag & 7 != 2:
                raise ValueError("not a protocol buffer")
            length, place = variable_length(message, place)
        if place + length > len(message):
            raise ValueError("cut short")
        yield tag >> 3, message[place : place + length]
        place += length


def variable_length(message: memoryview, place: int) -> tuple[int, int]:
    """An integer of 64 bits in groups of seven, lowest first, and where the next field begins."""
    number = shift = 0
    while message[place] & 128:
        if shift > 56:
            raise ValueError("a number of more than 64 bits")
        number |= (message[place] & 127) << shift
        place, shift = place + 1, shift + 7
    return number | message[place] << shift, place + 1
