"""What an ONNX file says of itself: its image input and the operators at its start. No weights, no other library.

A file is one protocol buffer; the field numbers are those of onnx.proto (ModelProto, GraphProto, ValueInfoProto).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from nearfar.errors import UsageError

GRAPH, NODE, OPERATOR, INPUT = 7, 1, 4, 11
NAME, TYPE, TENSOR, SHAPE, DIMENSION, VALUE = 1, 2, 1, 2, 1, 1
FIRST_NODES = 8


@dataclass(frozen=True)
class OnnxHeader:
    """name: of the image input. shape: of it, 0 where the file leaves a length open. operators: of the first nodes."""

    name: str
    shape: tuple[int, ...]
    operators: tuple[str, ...]


def read_header(path: Path | str) -> OnnxHeader:
    """The first input with four axes and 1 or 3 channels. Raises UsageError where there is none, or no ONNX file."""
    try:
        graph = first(Path(path).read_bytes(), GRAPH)
        nodes = [first(node, OPERATOR).decode() for node in messages(graph, NODE)]
        inputs = {first(value, NAME).decode(): shape_of(value) for value in messages(graph, INPUT)}
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): name an ONNX file") from error
    except (IndexError, StopIteration, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not an ONNX file: its content is no ONNX network; name another") from error
    images = [(name, shape) for name, shape in inputs.items() if len(shape) == 4 and shape[1] in (1, 3)]
    if not images:
        raise UsageError(f"{path} takes no image (batch, channel, height, width), but {inputs}: name another network")
    return OnnxHeader(*images[0], tuple(nodes[:FIRST_NODES]))


def shape_of(value: bytes) -> tuple[int, ...]:
    """The lengths of an input's axes, 0 where they are open."""
    tensor = first(first(value, TYPE), TENSOR)
    axes = messages(first(tensor, SHAPE), DIMENSION)
    return tuple(next((cast(int, field) for number, field in fields(axis) if number == VALUE), 0) for axis in axes)


def first(message: bytes, number: int) -> bytes:
    return next(messages(message, number))


def messages(message: bytes, number: int) -> Iterator[bytes]:
    return (field for found, field in fields(message) if found == number and isinstance(field, bytes))


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and content of each field: an integer, or the bytes of what is inside."""
    place = 0
    while place < len(message):
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


def variable_length(message: bytes, place: int) -> tuple[int, int]:
    """An integer in groups of seven bits, lowest first, and where the next field begins."""
    number = shift = 0
    while message[place] & 128:
        number |= (message[place] & 127) << shift
        place, shift = place + 1, shift + 7
    return number | message[place] << shift, place + 1
