"""Where a model lies and what its folder says of it, found without loading anything that computes.

A name is looked for as a path, then among the bundled models, then in the local cache of the hub. A folder is read as
diffusers writes it: an index, and a folder with configuration and weights for each part. The first pixel models on the
hub (google/ddpm-...) keep the network and the scheduler flat beside the index; diffusers takes a part from the root
when it has no folder of its own, and so does this.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nearfar.errors import UsageError, first_line, printable
from nearfar.structured import json_object, read_text

PARTS = ("unet", "model", "transformer", "vae", "vqvae", "scheduler", "text_encoder*", "tokenizer*")
PICKLE = "diffusion_pytorch_model.bin"


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


TEXT_NETWORK = re.compile(r"UNet2DConditionModel|(SD3|Flux)Transformer2DModel")
DEVICE = re.compile(r"auto|[a-z]+(:\d+)?")


def check_asked(folder: DiffusersFolder, source: str, asked: Mapping[str, Any]) -> None:
    """Refuse a prompt where none is taken, none where one is needed, and a class that the network does not know.

    asked: prompt, negative_prompt, guidance and label.
    """
    network = folder.part("unet", "model", "transformer")
    if network is not None and TEXT_NETWORK.fullmatch(network.kind):
        check_prompted(asked["prompt"], source)
    elif network is not None and network.kind == "UNet2DModel":
        check_unprompted(asked, source)
        classes = network.config.get("num_class_embeds")
        check_label(classes if isinstance(classes, int) else None, asked["label"])


def check_prompted(prompt: str | None, source: str) -> None:
    if prompt is None:
        raise UsageError(
            f'{source} is a text model: give a prompt (--prompt "a photo of a person"), or an empty one (--prompt "")'
        )


def check_unprompted(asked: Mapping[str, Any], source: str) -> None:
    if asked["prompt"] is not None or asked["negative_prompt"] or asked["guidance"] != 1:
        raise UsageError(f"{source} takes no prompt and no guidance: leave them out")


def check_label(classes: int | None, label: int | None) -> None:
    if classes is None and label is not None:
        raise UsageError(f"this model knows no classes, got label {label}: leave it out")
    if classes is not None and (label is None or not 0 <= label < classes):
        came = "none" if label is None else label
        raise UsageError(f"this model is class-conditional: give a label (--label) from 0 to {classes - 1}, got {came}")


def check_device(device: str) -> None:
    """Refuse what is the name of no device, and CUDA where PyTorch was built without it."""
    if not DEVICE.fullmatch(device) or device.split(":")[0] not in ("auto", "cpu", "cuda", "mps", "xpu"):
        raise UsageError(f"device must be auto, cpu, cuda, cuda:1, ..., mps or xpu, got {device!r}: use --device cpu")
    if device.startswith("cuda") and version("torch").endswith("+cpu"):
        raise UsageError(f"device {device!r} cannot be used (this PyTorch is built for CPUs only): use --device cpu")


def shown_name(source: str | Path, path: Path) -> str:
    """What records and messages call a model: what it was asked for by, or `bundled/` and its name."""
    return str(source) if path not in BUNDLED.values() or str(source) == str(path) else f"bundled/{path.name}"


HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
BUNDLED = {name: Path(__file__).with_name(name) for name in ("faces", "faces64", "cells")}
"""The models in this package."""
DEFAULT, CHOSEN = "faces64", "NEARFAR_MODEL"
"""The model where none is named, and the environment variable that names another one for all commands and calls."""
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
    """`bundled/cells` -> `cells`, `bundled` -> the default; other names as they are."""
    return DEFAULT if source == "bundled" else source.removeprefix("bundled/")


def default_model() -> str:
    """What is loaded where no model is named: `NEARFAR_MODEL`, or the bundled default."""
    return os.environ.get(CHOSEN) or f"bundled/{DEFAULT}"


def asked_or_default(source: str | Path | None, **where: Any) -> tuple[str, Path]:
    """The name that a model goes by, and its path: of the one that was asked for, else of the default.

    where: options of `find_model`, whose refusal says so where the name came from `NEARFAR_MODEL`.
    """
    asked = default_model() if source is None else source
    try:
        path = find_model(asked, **where)
    except UsageError as error:
        if source is None and asked == os.environ.get(CHOSEN):
            raise UsageError(f"the default model, {CHOSEN}={asked}: {error}") from error
        raise
    return shown_name(asked, path), path


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
