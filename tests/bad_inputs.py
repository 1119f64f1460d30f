"""Files that must be refused with a sentence: one of every kind that folders of pictures have been seen to hold."""

import os
import stat
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

NOT_UTF8 = os.fsdecode(b"caf\xe9.png")
"""A name that is no text; the picture in it is fine, so `read_picture` reads it and only a planner may refuse it."""


def make_bad_inputs(folder: Path) -> dict[str, str]:
    """Fill `folder` with bad inputs; each name with a part of the sentence that must answer it.

    Under root a file without permissions can be read, so there is none then.
    """
    contents, fragments = bad_contents(), {}
    for name, (content, fragment) in contents.items():
        (folder / name).write_bytes(content)
        fragments[name] = fragment
    return fragments | make_entries_that_are_no_files(folder) | make_unreadable(folder)


def bad_contents() -> dict[str, tuple[bytes, str]]:
    """Name -> what is in the file, and a part of the sentence."""
    good = {form: encoded(pixels(), form) for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")}
    return {
        "empty.png": (b"", "0 bytes"),
        "text.png": (b"this is no picture", "convert it first"),
        "script.svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "convert it first"),
        "animation.png": (good["GIF"], "begins with b'GIF8"),
        "photo.jpg": (good["PNG"], "holds PNG data: rename it to photo.png"),
        "photo2.png": (good["JPEG"], "holds JPEG data: rename it to photo2.jpg"),
        "cut.png": (three_quarters(good["PNG"]), "cannot be decoded as PNG"),
        "cut_at_the_end.png": (good["PNG"][:-12], "cannot be decoded as PNG"),
        "cut_header.png": (good["PNG"][:20], "cannot be decoded as PNG"),
        "cut_header.jpg": (good["JPEG"][:300], "cannot be decoded as JPEG"),
        "cut.jpg": (three_quarters(good["JPEG"]), "cannot be decoded as JPEG"),
        "cut.webp": (three_quarters(good["WEBP"]), "cannot be decoded as WEBP"),
        "cut.tif": (three_quarters(good["TIFF"]), "cannot be decoded as TIFF"),
        "cut.bmp": (three_quarters(good["BMP"]), "cannot be decoded as BMP"),
        "flipped_bit.png": (with_flipped_bit(good["PNG"]), "cannot be decoded as PNG"),
        "bad_checksum.png": (with_bad_checksum(good["PNG"]), "checksum"),
        "no_data.png": (png(8, 8, b""), "cannot be decoded as PNG"),
        "bomb.png": (png(50_000, 50_000, zlib.compress(bytes(100))), "50000 x 50000 pixels, more than 100,000,000"),
        "animated.png": (animation("PNG"), "3 frames"),
        "animated.webp": (animation("WEBP"), "3 frames"),
        "animated.avif": (animation("AVIF"), "3 frames"),
        "float.tif": (encoded(pixels()[..., 0].astype(np.float32), "TIFF"), "32-bit F pixels"),
        "int32.tif": (encoded(pixels()[..., 0].astype(np.int32), "TIFF"), "32-bit I pixels"),
        "lab.tif": (encoded(pixels(), "TIFF", mode="LAB"), "8-bit LAB pixels"),
        "deep_color.png": (png(1, 1, zlib.compress(bytes(7)), depth=16), "16-bit RGB pixels"),
    }


def make_entries_that_are_no_files(folder: Path) -> dict[str, str]:
    """Folders, links, pipes and sockets with a picture's name; none may be opened: a pipe would wait for ever."""
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    os.mknod(folder / "socket.png", stat.S_IFSOCK | 0o600)
    return {
        "folder.png": "is a folder",
        "dangling.png": "is not there",
        "loop.png": "leads back to itself",
        "pipe.png": "is a pipe, socket or device",
        "socket.png": "is a pipe, socket or device",
    }


def make_unreadable(folder: Path) -> dict[str, str]:
    """A good picture without read permission, which root would read."""
    if os.geteuid() == 0:
        return {}
    path = folder / "forbidden.png"
    path.write_bytes(encoded(pixels(), "PNG"))
    path.chmod(0)
    return {path.name: "permission"}


def make_name_that_is_not_utf8(folder: Path) -> Path:
    """A good picture whose name cannot be written down as text."""
    path = folder / NOT_UTF8
    path.write_bytes(encoded(pixels(), "PNG"))
    return path


def pixels(height: int = 24, width: int = 32) -> np.ndarray:
    """Incompressible colors, so that a file cut anywhere has lost some."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(array: np.ndarray, form: str, mode: str | None = None) -> bytes:
    buffer = BytesIO()
    Image.fromarray(array, mode).save(buffer, form)
    return buffer.getvalue()


def animation(form: str, frames: int = 3) -> bytes:
    first, *others = (Image.fromarray(np.roll(pixels(), shift, axis=0)) for shift in range(frames))
    buffer = BytesIO()
    first.save(buffer, form, save_all=True, append_images=others, duration=100)
    return buffer.getvalue()


def png(width: int, height: int, data: bytes, depth: int = 8) -> bytes:
    """A color PNG with valid checksums whatever it claims to hold."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", data) if data else b"", chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def three_quarters(content: bytes) -> bytes:
    """An upload that broke off."""
    return content[: len(content) * 3 // 4]


def with_flipped_bit(content: bytes) -> bytes:
    """One wrong bit in the middle of the picture's data."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def with_bad_checksum(content: bytes) -> bytes:
    """Right data with a wrong IDAT checksum, which Pillow's `load` does not notice."""
    end = content.index(b"IEND") - 4
    return content[: end - 4] + bytes(4) + content[end:]
