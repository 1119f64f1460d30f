"""Folders as diffusers writes them: an index, and a folder with configuration and weights for each part.

The first pixel models on the hub (google/ddpm-...) keep the network and the scheduler flat beside the index; diffusers
takes a part from the root when it has no folder of its own, and so does this. Weights are read from safetensors; those
that an old repository has as a pickle only are read as weights alone, and nothing in it is run. A name is looked for
as a path, then among the bundled models, then in the local cache of the hub.
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
from nearfar.models.original.checkpoints import read_weights
from nearfar.models.unet import Config, PixelUNet
from nearfar.models.unet_files import count_weights, fill, pixel_unet, read_tensors, understood
from nearfar.structured import checked, json_object, read_text, safetensors_header

PARTS = ("unet", "model", "transformer", "vae", "vqvae", "scheduler", "text_encoder*", "tokenizer*")
FLAT = ("config.json", "scheduler_config.json", "diffusion_pytorch_model.*")
HALF = re.compile(r"\.(fp|bf)16[.-]")
DESCRIPTIONS = (".json", ".txt", ".model")
MOST_LAYERS, MOST_LENGTH = 1000, 1 << 20
PICKLE = "diffusion_pytorch_model.bin"
SAVE_AGAIN = "load the bare network with diffusers, and save it with save_pretrained(folder, safe_serialization=True)"


@dataclass(frozen=True)
class Part:
    """One part of a model: its folder, its class and its configuration."""

    folder: Path
    kind: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Shards:
    """The index of weights in several files: name of a weight -> its file."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class DiffusersFolder:
    """A folder with a `model_index.json`."""

    root: Path
    index: dict[str, Any]

    @property
    def family(self) -> str:
        return printable(str(self.index.get("_class_name")))

    def kind_of(self, name: str) -> str | None:
        """The class of a part; None when the index has none."""
        entry = self.index.get(name)
        kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        return None if kind is None else printable(str(kind))

    def part(self, *names: str) -> Part | None:
        """The first of these parts that the index names."""
        for name in names:
            kind = self.kind_of(name)
            if kind is not None:
                file = "scheduler_config.json" if name == "scheduler" else "config.json"
                flat = not (self.root / name).is_dir() and (self.root / file).is_file()
                folder = self.root if flat else self.root / name
                return Part(folder, kind, read_config(self.root, folder / file))
        return None


def open_folder(root: Path) -> DiffusersFolder:
    """Read the index of a diffusers folder."""
    index = root / "model_index.json"
    if not index.is_file():
        raise UsageError(
            f"{root} is no diffusers folder (no model_index.json): give one that a pipeline's save_pretrained wrote"
        )
    return DiffusersFolder(root, read_json(index))


def read_config(root: Path, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"{root} lacks {path.relative_to(root)}: copy the whole folder that save_pretrained wrote")
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    return json_object(read_text(path), str(path), "copy the folder again")


def load_part(part: Part, dtype: torch.dtype) -> Any:
    """The network of a part in evaluation mode, its gradients off; every weight must be there.

    A UNet2DModel that `PixelUNet` can be is read without diffusers.
    """
    if "quantization_config" in part.config:
        raise UsageError(f"{part.folder} is quantized, which nearfar does not read: take the model it was made from")
    check_weights(part.folder)
    check_size(part.folder, part.config)
    config = understood(part.config) if part.kind == "UNet2DModel" else None
    network = load_with_diffusers(part, dtype) if config is None else load_pixel_unet(part, config, dtype)
    return network.eval().requires_grad_(False)


def load_pixel_unet(part: Part, config: Config, dtype: torch.dtype) -> PixelUNet:
    """Our own network. Memory: the weights once in `dtype`, and those of the file meanwhile."""
    network = pixel_unet(config)
    check_room(part.folder, count_weights(network))
    with reading(part.folder):
        files = weights_of(part.folder)
        pickled = files == [part.folder / PICKLE]  # and known to be weights alone
        weights = torch.load(files[0], weights_only=True) if pickled else read_tensors(files)
        check_complete(part.folder, fill(network, weights, dtype))
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


HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
BUNDLED = {name: Path(__file__).with_name(name) for name in ("faces", "faces64", "cells")}
"""The models in this package."""
KINDS = ("*.json", "*.txt", "*.model", "*.safetensors")
WANTED = [
    *("model_index.json", "README.md", "config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"),
    *(f"{part}/{kind}" for part in PARTS for kind in KINDS),
]
VARIANTS = ["*.fp16.*", "*.fp16-*", "*.non_ema.*"]  # the same weights once more


def find_model(source: str | Path, *, revision: str | None = None, download: bool = False) -> Path:
    """The path of a model: `source` itself where it exists, else a bundled model or a hub repository of that name.

    revision: the full commit. download: fetch what the cache lacks, which needs a revision.
    Raises UsageError, naming the way out, for what is not there, not pinned or not reachable.
    """
    path, name = Path(source).expanduser(), source.as_posix() if isinstance(source, Path) else source
    bundled = BUNDLED.get(bundled_name(name))
    if path.exists():
        check_namesake(path, bundled)
        return local_path(path, revision, download)
    if bundled:
        return local_path(bundled, revision, download)
    if not HUB_NAME.fullmatch(name):
        raise UsageError(
            f"{name} does not exist: give a model's folder or file, or owner/name with --download --revision COMMIT"
        )
    check_revision(name, revision, download)
    if download:
        return fetch(name, str(revision))
    commit = revision or only_commit(name)
    folder = cache_folder(name) / "snapshots" / commit
    if not folder.is_dir():
        raise UsageError(missing(name, f" at {commit}"))
    return folder


def bundled_name(source: str) -> str:
    """`bundled/cells` -> `cells`, `bundled` -> `faces`; other names as they are."""
    return "faces" if source == "bundled" else source.removeprefix("bundled/")


def check_namesake(path: Path, bundled: Path | None) -> None:
    """A path hides the bundled model of its name: say so where the path is no model."""
    if bundled and path.is_dir() and not (path / "model_index.json").is_file():
        raise UsageError(
            f"{path} is a folder here without a model (no model_index.json), which hides the bundled model of that "
            f"name: give bundled/{bundled.name}"
        )


def local_path(path: Path, revision: str | None, download: bool) -> Path:
    """An existing path as it is; --revision and --download say nothing about it."""
    if revision is not None or download:
        option = "--download" if download else "--revision"
        raise UsageError(f"{path} is a local path, {option} is for names on the hub: leave {option} out")
    return path


def check_revision(name: str, revision: str | None, download: bool) -> None:
    """Only a full commit names the same weights tomorrow; a branch or a tag moves."""
    if revision is None and not download:
        return
    if revision is None or not COMMIT.fullmatch(revision):
        got = "none" if revision is None else repr(revision)
        raise UsageError(f"--revision must be a commit of 40 hexadecimal digits, got {got}: {where_commits(name)}")


def where_commits(name: str) -> str:
    return f"copy one from https://huggingface.co/{name}/commits/main"


def only_commit(name: str) -> str:
    """The commit of the only cached snapshot."""
    snapshots = cache_folder(name) / "snapshots"
    commits = sorted(path.name for path in snapshots.iterdir() if path.is_dir()) if snapshots.is_dir() else []
    if not commits:
        raise UsageError(missing(name, ""))
    if len(commits) > 1:
        raise UsageError(f"{name} is cached at {len(commits)} commits: give --revision, one of {', '.join(commits)}")
    return commits[0]


def cache_folder(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def missing(name: str, at: str) -> str:
    folder = Path(name).parent
    here = f" (there is a folder {folder} here, without it)" if folder.is_dir() else ""
    cache = cache_folder(name).parent
    return (
        f"{name}{at} is neither a path{here} nor in the Hugging Face cache ({cache}), and nothing is downloaded "
        f"unasked: add --download --revision COMMIT ({where_commits(name)})"
    )


def fetch(name: str, commit: str) -> Path:
    """The snapshot, with what the cache lacks downloaded; pickled weights for parts that have no others."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(name, revision=commit, allow_patterns=WANTED, ignore_patterns=VARIANTS))
        if pickles := pickles_of(folder):
            snapshot_download(name, revision=commit, allow_patterns=pickles)
        return folder
    except HFValidationError as error:
        raise UsageError(f"{name} cannot be a name on the hub ({first_line(error)}): check it") from error
    except Exception as error:  # the client of the hub passes on what its HTTP library raises
        raise UsageError(f"{name} at {commit} was not downloaded: {reason(name, error)}") from error


def pickles_of(folder: Path) -> list[str]:
    """Where a network's weights can only be pickled: a part with a configuration and no safetensors."""
    parts = [path.parent for path in (folder / "config.json", *folder.glob("*/config.json")) if path.is_file()]
    lacking = [part for part in parts if not any(part.glob("*.safetensors"))]
    return [(part.relative_to(folder) / PICKLE).as_posix() for part in lacking]


def reason(name: str, error: Exception) -> str:
    """Why a download failed, and the way out."""
    from huggingface_hub import errors

    known = {
        errors.GatedRepoError: f"accept its terms on https://huggingface.co/{name}, then log in with `hf auth login`",
        errors.RepositoryNotFoundError: "the hub shows no such repository; check the name, or log in if it is private",
        errors.RevisionNotFoundError: f"it has no such commit; {where_commits(name)}",
        errors.LocalEntryNotFoundError: "the hub cannot be reached; go online (HF_HUB_OFFLINE must not be set), or "
        "copy the folder from another machine and give its path",
    }
    if isinstance(error.__cause__, errors.HfHubHTTPError):  # the hub was reached, and refused the listing
        error = error.__cause__
    texts = [text for kind, text in known.items() if isinstance(error, kind)]
    return texts[0] if texts else f"{first_line(error)}; try again, what has arrived is kept"
