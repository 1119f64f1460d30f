"""Folders as diffusers writes them: an index, and a folder with configuration and weights for each part.

The first pixel models on the hub (google/ddpm-...) keep the network and the scheduler flat beside the index; diffusers
takes a part from the root when it has no folder of its own, and so does this. Weights are read from safetensors; those
that an old repository has as a pickle only are read as weights alone, and nothing in it is run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from nearfar.checkpoints import read_weights
from nearfar.errors import UsageError

PARTS = ("unet", "transformer", "vae", "vqvae", "scheduler", "text_encoder*", "tokenizer*")
FLAT = ("config.json", "scheduler_config.json", "diffusion_pytorch_model*")
DIGESTED = (".json", ".safetensors", ".bin", ".txt", ".model")


@dataclass(frozen=True)
class Part:
    """One part of a model: its folder, its class and its configuration."""

    folder: Path
    kind: str
    config: dict[str, Any]


@dataclass(frozen=True)
class DiffusersFolder:
    """A folder with a `model_index.json`."""

    root: Path
    index: dict[str, Any]

    @property
    def family(self) -> str:
        return str(self.index.get("_class_name"))

    def part(self, *names: str) -> Part | None:
        """The first of these parts that the index names."""
        for name in names:
            entry = self.index.get(name)
            if isinstance(entry, list) and entry[1:2] not in ([], [None]):
                file = "scheduler_config.json" if name == "scheduler" else "config.json"
                flat = not (self.root / name).is_dir() and (self.root / file).is_file()
                folder = self.root if flat else self.root / name
                return Part(folder, str(entry[1]), read_config(self.root, folder / file))
        return None


def open_folder(root: Path) -> DiffusersFolder:
    """Read the index of a diffusers folder."""
    index = root / "model_index.json"
    if not index.is_file():
        raise UsageError(f"{root} is no diffusers folder (no model_index.json): give one written by save_pretrained")
    return DiffusersFolder(root, read_json(index))


def read_config(root: Path, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"{root} lacks {path.relative_to(root)}: copy the whole folder that save_pretrained wrote")
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} must be JSON, got {error}: copy the folder again") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold a JSON object, got a {type(content).__name__}: copy the folder again")
    return content


def load_part(part: Part, dtype: torch.dtype) -> Any:
    """The network of a part in evaluation mode, its gradients off; every weight must be there."""
    with safe_folder(part) as folder:
        network, loading = from_folder(part, folder, dtype)
    if missing := loading["missing_keys"]:
        raise UsageError(
            f"{part.folder} lacks {len(missing)} of the network's weights ({missing[0]}, ...): copy it again"
        )
    return network.eval().requires_grad_(False)


def from_folder(part: Part, folder: Path, dtype: torch.dtype) -> Any:
    """What diffusers makes of a folder with safetensors, and what it says about the weights."""
    import diffusers

    options = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False}
    try:
        return getattr(diffusers, part.kind).from_pretrained(
            folder, dtype=dtype, variant=variant_of(folder), output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{part.folder} cannot be loaded ({reason}): copy the whole folder again") from error


@contextmanager
def safe_folder(part: Part) -> Iterator[Path]:
    """A folder with the part's weights as safetensors: its own, or one for the time of loading."""
    pickled = part.folder / "diffusion_pytorch_model.bin"
    if list(part.folder.glob("*.safetensors")):
        yield part.folder
    elif pickled.is_file():
        weights, _ = read_weights(pickled)
        with TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(part.config), encoding="utf-8")
            save_file(weights, Path(folder) / "diffusion_pytorch_model.safetensors", {"format": "pt"})
            yield Path(folder)
    else:
        raise UsageError(
            f"{part.folder} holds no weights (.safetensors): copy the whole folder that save_pretrained wrote"
        )


def variant_of(folder: Path) -> str | None:
    """ "fp16" where a part has its weights in half precision only, as `name.fp16.safetensors`."""
    names = [path.name for path in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16." in name or ".fp16-" in name for name in names) else None


def read_licence(root: Path) -> str:
    """The `license:` line of the model card's header, as the hub writes it; empty when there is none."""
    card = root / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    named = re.search(r"^license_name: *(.+)$", text, re.MULTILINE)
    found = named or re.search(r"^license: *(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def folder_digest(root: Path) -> str:
    """SHA-256 over the files of every part, independent of where the folder lies."""
    digest = hashlib.sha256()
    folders = [folder for part in PARTS for folder in root.glob(part) if folder.is_dir()]
    files = [path for folder in folders for path in folder.iterdir() if path.suffix in DIGESTED]
    flat = [path for pattern in FLAT for path in root.glob(pattern)]
    for path in sorted(files + flat):
        with path.open("rb") as file:
            digest.update(path.relative_to(root).as_posix().encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
