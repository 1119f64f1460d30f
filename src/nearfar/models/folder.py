"""The parts of a diffusers folder, loaded: their weights read and checked, the network made.

Weights are read from safetensors; those that an old repository has as a pickle only are read as weights alone, and
nothing in it is run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from nearfar.errors import NearfarError, RunError, UsageError, first_line, printable
from nearfar.models.lookup import PARTS, PICKLE, DiffusersFolder, Part, read_json
from nearfar.models.original.checkpoints import read_weights
from nearfar.models.original.mixer import MIXER, ScoreMixer, give_weights, make_mixer
from nearfar.models.unet import Config, PixelUNet
from nearfar.models.unet_files import UNKNOWN_TO_DIFFUSERS, count_weights, fill, pixel_unet, read_tensors, understood
from nearfar.structured import checked, safetensors_header

FLAT = ("config.json", "scheduler_config.json", "diffusion_pytorch_model.*")
HALF = re.compile(r"\.(fp|bf)16[.-]")
DESCRIPTIONS = (".json", ".txt", ".model")
MOST_LAYERS, MOST_LENGTH = 1000, 1 << 20
SAVE_AGAIN = "load the bare network with diffusers, and save it with save_pretrained(folder, safe_serialization=True)"


@dataclass(frozen=True)
class Shards:
    """The index of weights in several files: name of a weight -> its file."""

    weight_map: dict[str, str]


def load_part(part: Part, dtype: torch.dtype) -> Any:
    """The network of a part in evaluation mode, its gradients off; every weight must be there.

    A UNet2DModel that `PixelUNet` can be is read without diffusers.
    """
    if "quantization_config" in part.config:
        raise UsageError(f"{part.folder} is quantized, which nearfar does not read: take the model it was made from")
    check_weights(part.folder)
    check_size(part.folder, part.config)
    config = understood(part.config) if part.kind == "UNet2DModel" else None
    if config is not None or part.kind == MIXER:
        network: Any = load_own(part, config, dtype)
    elif unread := [key for key in UNKNOWN_TO_DIFFUSERS if key in part.config]:
        raise UsageError(f"{part.folder} has a {unread[0]} that fits no network read here: convert the model again")
    else:
        network = load_with_diffusers(part, dtype)
    return network.eval().requires_grad_(False)


def load_own(part: Part, config: Config | None, dtype: torch.dtype) -> PixelUNet | ScoreMixer:
    """A network of ours. Memory: the weights once in `dtype`, and those of the file meanwhile."""
    with reading(part.folder):
        network = pixel_unet(config) if config is not None else make_mixer(part.config, str(part.folder))
        check_room(part.folder, count_weights(network))
        files = weights_of(part.folder)
        pickled = files == [part.folder / PICKLE]  # and known to be weights alone
        weights = torch.load(files[0], weights_only=True) if pickled else read_tensors(files)
        give: Any = fill if isinstance(network, PixelUNet) else give_weights
        check_complete(part.folder, give(network, weights, dtype))
    return network


def load_with_diffusers(part: Part, dtype: torch.dtype) -> Any:
    """Memory: the weights once in `dtype` when accelerate is installed, twice when it is not."""
    import diffusers

    with reading(part.folder), without_bars():
        with torch.device("meta"):
            empty = getattr(diffusers, part.kind).from_config(part.config)
        check_room(part.folder, count_weights(empty))
        network, loading = getattr(diffusers, part.kind).from_pretrained(
            part.folder,
            dtype=dtype,
            variant=variant_of(part.folder),
            use_safetensors=has_safetensors(part.folder),
            local_files_only=True,
            low_cpu_mem_usage=find_spec("accelerate") is not None,
            output_loading_info=True,
        )
    check_complete(part.folder, loading["missing_keys"])
    return network if network.dtype == dtype else network.to(dtype)  # diffusers 0.42 leaves SD3's as it was


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bar of diffusers while weights in several files are read."""
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def reading(what: Path | str) -> Iterator[None]:
    """Turn errors of other libraries while `what` is read into a `UsageError`, or a `RunError` for the memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        text = f"{what} does not fit into the memory: use --precision bfloat16 on a GPU, or a smaller model"
        raise RunError(text) from error
    except NearfarError:
        raise
    except Exception as error:  # what a library makes of a stranger's file can be any
        raise UsageError(f"{what} cannot be loaded ({first_line(error)}): copy the whole folder again") from error


def check_weights(folder: Path) -> None:
    """Refuse a folder without weights, with a pickle that is not weights alone, and shards that lie elsewhere."""
    if not has_safetensors(folder):
        if not (folder / PICKLE).is_file():
            if any(folder.glob("*.bin")):
                raise UsageError(f"{folder} has its weights in pickles that nearfar does not read: {SAVE_AGAIN}")
            raise UsageError(
                f"{folder} holds no weights (.safetensors): copy the whole folder that save_pretrained wrote"
            )
        read_weights(folder / PICKLE)
    for index in folder.glob("*.safetensors.index.json"):
        for name in set(checked(Shards, read_json(index), str(index)).weight_map.values()):
            if not re.fullmatch(r"[\w.-]+\.safetensors", name):
                raise UsageError(f"{index} names {printable(str(name))}, which is no shard beside it: copy it again")


def check_size(where: Path, config: Any, name: str = "") -> None:
    """Refuse lengths and numbers of layers that no model has, before anything of that size is made."""
    most = MOST_LAYERS if "layer" in name else MOST_LENGTH
    if isinstance(config, int) and abs(config) > most:
        raise UsageError(f"{where} has {printable(name)} {config}, more than {most:,}: copy the folder again")
    for key, value in config.items() if isinstance(config, dict) else ():
        check_size(where, value, str(key))
    for value in config if isinstance(config, list) else ():
        check_size(where, value, name)


def check_room(folder: Path, count: int) -> None:
    """Refuse a network of more weights than its files have bytes."""
    room = sum(path.stat().st_size for path in weights_of(folder))
    if count > room:
        raise UsageError(f"{folder} asks for {count:,} weights, its files have {room:,} bytes: copy it again")


def check_complete(folder: Path, missing: Iterable[str]) -> None:
    """Refuse a network of which weights are missing, or have a prefix that another program has put before them."""
    if names := sorted(missing):
        found = {key for path in folder.glob("*.safetensors") for key in safetensors_header(path)}
        if not found and (folder / PICKLE).is_file():
            found = set(torch.load(folder / PICKLE, map_location="meta", weights_only=True))
        for prefix in ("_orig_mod.", "module."):
            if prefix + names[0] in found:
                raise UsageError(f"{folder} holds weights of a wrapped network ({prefix}{names[0]}, ...): {SAVE_AGAIN}")
        raise UsageError(f"{folder} lacks {len(names)} of the network's weights ({names[0]}, ...): copy it again")


def has_safetensors(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def variant_of(folder: Path) -> str | None:
    """ "fp16" or "bf16" where a part has its weights in half precision only, as `name.fp16.safetensors`."""
    names = [path.name for path in folder.glob("*.safetensors")]
    half = [kind for kind in ("fp16", "bf16") if any(f".{kind}" in name for name in names)]
    return half[0] if half and all(map(HALF.search, names)) else None


def read_license(root: Path) -> str:
    """The `license:` line of the model card's header, as the hub writes it; empty when there is none."""
    card = root / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    named = re.search(r"^license_name: *(.+)$", text, re.MULTILINE)
    license = named or re.search(r"^license: *(.+)$", text, re.MULTILINE)
    return printable(license.group(1)) if license else ""


def folder_digest(folder: DiffusersFolder) -> str:
    """SHA-256 over the files that are read, independent of where the folder lies. Cost: reads the weights once."""
    digest = hashlib.sha256()
    root = folder.root
    folders = [path for part in PARTS for path in root.glob(part) if path.is_dir()]
    files = [path for part in folders for path in part.iterdir() if path.suffix in DESCRIPTIONS]
    weights = [path for part in folders for path in weights_of(part)]
    flat = [path for pattern in FLAT for path in root.glob(pattern)]
    for path in sorted({*files, *weights, *flat}):
        with path.open("rb") as file:
            digest.update(path.relative_to(root).as_posix().encode() + hashlib.file_digest(file, "sha256").digest())
    flags = {name: value for name, value in folder.index.items() if isinstance(value, bool)}
    digest.update(json.dumps(flags, sort_keys=True).encode())
    return digest.hexdigest()


def weights_of(folder: Path) -> list[Path]:
    """The files of weights that are read: safetensors, of one precision, or else the pickle."""
    weights = list(folder.glob("*.safetensors"))
    full = [path for path in weights if not HALF.search(path.name) and ".non_ema." not in path.name]
    return full or weights or list(folder.glob(PICKLE))
