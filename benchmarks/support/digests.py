"""What files hold, as hashes and texts that can be kept and compared; what differs from run to run is put aside.

Pictures, arrays, archives and data sets are hashed twice: their bytes and what they decode to. Texts are kept whole, so
that they can be read, and so that words which were renamed since can be taken for one another when they are compared.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SPELLINGS = {
    "colour": "color", "grey": "gray", "centre": "center", "licence": "license", "neighbour": "neighbor",
    "behaviour": "behavior", "judgement": "judgment", "recognis": "recogniz", "normalis": "normaliz",
    "synthesise": "synthesize", "synthesising": "synthesizing", "anonymis": "anonymiz", "standardis": "standardiz",
    "minimis": "minimiz", "maximis": "maximiz", "optimis": "optimiz", "summaris": "summariz", "labelled": "labeled",
    "modell": "model", "artefact": "artifact", "analys": "analyz",
}  # fmt: skip
"""British to American, in names and in texts."""

RENAMED = {"pull": "guidance", "mosaic": "regions"}
"""Whole words of newer versions, as the older ones had them. Add to it what is renamed on purpose."""

UNSTEADY = {"seconds", "network_seconds", "calibration"}
"""Names of what differs from run to run: times, and the hash of a calibration's file, which holds whole paths (the file
itself is compared)."""

PACE = re.compile(r"^.*\d+/\d+.*(/s\]?|step \d+ of \d+)$\n?", re.MULTILINE)
"""Lines about how far a run is, which come when time has passed."""
SECONDS = re.compile(r"\bin [\d.]+ s\b")
EMBEDDED = re.compile(r'(?:src="data:image/png;base64,[^"]*")|(?:<svg.*?</svg>)', re.DOTALL)
TAG = re.compile(r"<[^>]+>")

Digest = dict[str, Any]


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def sha_of(values: np.ndarray) -> str:
    """Of numbers, their type and their shape."""
    return sha(f"{values.dtype.str} {values.shape}".encode() + np.ascontiguousarray(values).tobytes())


def digest(path: Path) -> Digest:
    """What a file holds."""
    return READERS.get(path.suffix, raw)(path)


def raw(path: Path) -> Digest:
    return {"bytes": sha(path.read_bytes())}


def text(path: Path) -> Digest:
    return {"text": path.read_text("utf-8")}


def page(path: Path) -> Digest:
    """The words of a page, and what it shows."""
    whole = path.read_text("utf-8")
    body = whole[whole.index("<body>") :] if "<body>" in whole else whole
    lines = [line.strip() for line in TAG.sub("\n", EMBEDDED.sub("", body)).split("\n")]
    return {"text": "\n".join(filter(None, lines)), "shown": [sha(each.encode()) for each in EMBEDDED.findall(body)]}


def picture(path: Path) -> Digest:
    """Pixels, mode, and what lies beside them in the file."""
    with Image.open(path) as image:
        about = f"{image.mode} {sorted(map(str, image.info.items()))} {sorted(map(str, image.getexif().items()))}"
        return raw(path) | {"pixels": sha_of(np.asarray(image)), "about": sha(about.encode())}


def numbers(path: Path) -> Digest:
    return raw(path) | {"values": sha_of(np.load(path))}


def tiff(path: Path) -> Digest:
    """A picture's or an array's."""
    import tifffile

    try:
        return picture(path)
    except OSError:
        return raw(path) | {"values": sha_of(tifffile.imread(path))}


def sky(path: Path) -> Digest:
    from astropy.io import fits

    return raw(path) | {"values": sha_of(np.asarray(fits.getdata(path)))}


def archive(path: Path) -> Digest:
    with tarfile.open(path) as tar:
        return raw(path) | {"members": {m.name: sha(tar.extractfile(m).read()) for m in tar if m.isfile()}}


def table(path: Path) -> Digest:
    """Rows of a Parquet file, with the types of the columns."""
    from pyarrow.parquet import read_table

    found = read_table(path)
    return raw(path) | {"rows": sha(repr(found.to_pylist()).encode()), "types": str(found.schema.remove_metadata())}


def stream(path: Path) -> Digest:
    """The same of a saved data set, whose bytes hold an identifier that is drawn anew."""
    from pyarrow import ipc

    found = ipc.open_stream(path.read_bytes()).read_all()
    return {"rows": sha(repr(found.to_pylist()).encode()), "types": str(found.schema.remove_metadata())}


def tensors(path: Path) -> Digest:
    """Tensors by name, and the header's texts."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        found = {name: sha_of(file.get_tensor(name)) for name in sorted(file.keys())}
        return {"tensors": found, "text": "\n".join((file.metadata() or {}).values())}


READERS: dict[str, Callable[[Path], Digest]] = {
    **dict.fromkeys((".png", ".jpg", ".webp", ".bmp"), picture),
    **dict.fromkeys((".json", ".jsonl", ".csv", ".txt", ".yaml"), text),
    ".tif": tiff,
    ".npy": numbers,
    ".fits": sky,
    ".tar": archive,
    ".parquet": table,
    ".arrow": stream,
    ".html": page,
    ".domain": tensors,
    ".safetensors": tensors,
}


def digests(folder: Path) -> dict[str, Digest]:
    """Everything below a folder, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def spelled(words: str) -> str:
    """A text as both versions would write it."""
    for british, american in SPELLINGS.items():
        words = re.sub(british, american, words.replace(british.capitalize(), american.capitalize()))
    for new, old in RENAMED.items():
        words = re.sub(rf"\b{new}\b", old, words)
    return words


def steady(words: str) -> str:
    """Without what differs from run to run."""
    return SECONDS.sub("in some s", PACE.sub("", words))


def parsed(words: str) -> Any:
    """A text as JSON or as lines of JSON where it is that, else as its lines."""
    lines = [line for line in steady(words).split("\n") if line]
    for attempt in (lambda: json.loads(words), lambda: [json.loads(line) for line in lines]):
        try:
            return plain(attempt())
        except ValueError:
            continue
    return [spelled(line) for line in lines]


def plain(tree: Any) -> Any:
    """JSON with names and texts as both versions would write them."""
    if isinstance(tree, dict):
        return {spelled(name): plain(value) for name, value in tree.items() if name not in UNSTEADY}
    if isinstance(tree, list):
        return [plain(each) for each in tree]
    return spelled(tree) if isinstance(tree, str) else tree


def differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Where two trees differ, each place in one line."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            yield from differences(before.get(name, "(nothing)"), after.get(name, "(nothing)"), f"{place}/{name}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{place}[{number}]")
    elif before != after:
        yield f"{place}: {short(before)} -> {short(after)}"


def short(value: object) -> str:
    words = json.dumps(value, ensure_ascii=False)
    return words if len(words) <= 100 else words[:97] + "..."


def compared(before: Digest, after: Digest) -> Iterator[str]:
    """Where two digests of one file differ."""
    for kind in sorted({*before, *after}):
        one, other = (found.get(kind, "(nothing)") for found in (before, after))
        if one != other:
            one, other = (parsed(tree) if kind == "text" else plain(tree) for tree in (one, other))
        yield from differences(one, other, kind)
