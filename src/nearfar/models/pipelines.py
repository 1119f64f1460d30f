"""A live diffusers pipeline as the parts of a model: what was found in a folder otherwise, taken from memory."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from nearfar.errors import UsageError
from nearfar.models.cards import refuse_distilled
from nearfar.models.loading import Parts, as_ours
from nearfar.models.lookup import DiffusersFolder, Part
from nearfar.models.model import Provenance
from nearfar.models.prompts import text_family


def pipeline_parts(pipeline: Any, dtype: torch.dtype, force: bool) -> Parts:
    """The parts of a live pipeline, copied: its network, its autoencoder and the numbers of its scheduler.

    Text encoders stay the pipeline's own; they are used once. Memory: that of the networks, once more.
    Raises UsageError for a network that is not read.
    """
    parts, name = pipeline.components, type(pipeline).__name__
    network = next((parts[part] for part in ("unet", "model", "transformer") if parts.get(part) is not None), None)
    network_part = described(network, name)
    family = text_family(network_part)
    if family is None and network_part.kind != "UNet2DModel":
        what = "no network" if network is None else network_part.kind
        raise UsageError(
            f"{name} holds {what}, which nearfar does not read: the documentation (models) lists those it reads"
        )
    scheduler, folder = described(pipeline.scheduler, name), DiffusersFolder(Path(name), dict(pipeline.config))
    note = refuse_distilled(folder, name, network_part, scheduler, force)
    coder = parts.get("vae") or parts.get("vqvae")
    return Parts(
        name,
        as_ours(deepcopy(network), dtype) if family is None else own_copy(network, dtype),
        scheduler.config | {"_class_name": scheduler.kind},
        Provenance(name, digest(scheduler, network, coder), "not stated"),
        own_copy(coder, torch.float32 if coder.config.get("force_upcast", True) else dtype) if coder else None,
        folder,
        family,
        (note,) if note else (),
        pipeline,
    )


def described(part: Any, name: str) -> Part:
    """Class and configuration of what is in memory."""
    return Part(Path(name), type(part).__name__, dict(getattr(part, "config", {})))


def own_copy(network: Any, dtype: torch.dtype) -> Any:
    """A network of one's own, in evaluation mode, its gradients off."""
    copied = deepcopy(network)
    return (copied if copied.dtype == dtype else copied.to(dtype)).eval().requires_grad_(False)


def digest(scheduler: Part, *networks: Any) -> str:
    """SHA-256 over the weights and configurations of what is in memory."""
    made = hashlib.sha256(json.dumps(scheduler.config, sort_keys=True, default=str).encode())
    for network in (one for one in networks if one is not None):
        made.update(json.dumps(dict(network.config), sort_keys=True, default=str).encode())
        for name, weights in sorted(network.state_dict().items()):
            made.update(name.encode() + weights.float().cpu().contiguous().numpy().tobytes())
    return made.hexdigest()
