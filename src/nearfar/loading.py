"""`load_model`: a frozen model put together from its parts, whatever pipeline they were saved in.

The network's class says how it is called, the scheduler's class which times, inputs and answers it has, an autoencoder
where its latents are. From diffusers come the networks and the numbers of the configs; no scheduler's `step` is used.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearfar.cards import card_of, is_noncommercial
from nearfar.checkpoints import apply_heads, convert
from nearfar.denoiser import Network, NetworkDenoiser
from nearfar.diffusers_folder import DiffusersFolder, Part, folder_digest, load_part, open_folder, read_licence
from nearfar.errors import ModelWarning, UsageError
from nearfar.hub import find_model
from nearfar.latent_space import Autoencoder, LatentSpace, PatchSpace, PixelSpace, UnitRange
from nearfar.model import FrozenModel, ImageContract, Provenance
from nearfar.networks import unconditional
from nearfar.prompts import Wish
from nearfar.schedulers import Conventions, read_scheduler
from nearfar.text_families import TEXT_NETWORKS, bind_prompt, text_family

BUNDLED = Path(__file__).parent / "models" / "faces"
FLUX_SIDE = 128
"""Latents along one side of the 1024 pixels that FLUX was trained on; its config does not say."""
PATCHED = {12: 2, 48: 4}
"""Channels of a network on patches of colours, and the side of its patches."""


DISTILLED_SCHEDULERS = ("LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler", "FlowMatchLCMScheduler")
DISTILLED_WORDS = ("turbo", "lightning", "lcm", "hyper", "schnell", "distilled")


@dataclass(frozen=True)
class Request:
    """How a model is asked to be used."""

    prompt: str | None
    negative_prompt: str
    guidance: float
    label: int | None
    size: int | None
    sampled: bool


@dataclass(frozen=True, eq=False)
class Parts:
    """What a model is made of, loaded. root: the folder or file it came from."""

    root: Path
    network: Any
    scheduler: dict[str, Any]
    autoencoder: Any | None = None
    notes: tuple[str, ...] = ()


def load_model(
    source: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
    *,
    prompt: str | None = None,
    negative_prompt: str = "",
    guidance: float = 1.0,
    label: int | None = None,
    size: int | None = None,
    sampled: bool = False,
    revision: str | None = None,
    download: bool = False,
    force: bool = False,
) -> FrozenModel:
    """Load a diffusers folder, an original checkpoint or a hub name; the bundled face model when no source is given.

    device: "auto" takes CUDA when it is there. dtype: the network's; the state stays float32.
    prompt, negative_prompt: text models need one, "" for none. guidance: 1 samples the model's own distribution;
    other values predict every image twice, and above 1 a warning is given. label: for class-conditional models.
    size: of the images, where it is not the size the model was trained on. sampled: draw latents from a KL encoder
    instead of taking its mode. revision, download: a hub name is read from the local cache, and downloaded only when
    asked, at a pinned commit. force: take a distilled few-step model all the same.
    Raises UsageError, naming the way out, for what is missing, incomplete, pickled code or of a family not read.
    Warns (ModelWarning) of a non-commercial licence, guidance, and what had to be assumed about a checkpoint.
    """
    path = find_model(source, revision=revision, download=download) if source is not None else BUNDLED
    device = pick_device(device)
    check_precision(device, dtype)
    parts = file_parts(path) if path.is_file() else folder_parts(open_folder(path), str(source or path), dtype, force)
    request = Request(prompt, negative_prompt, float(guidance), label, size, sampled)
    model = assemble(parts, request, device, dtype, str(source or "bundled"))
    for note in (*parts.notes, *notes_on(model)):
        warnings.warn(note, ModelWarning, stacklevel=2)
    return model


def file_parts(path: Path) -> Parts:
    """An original checkpoint, converted in memory."""
    converted = convert(path)
    notes = tuple(f"{path.name}: {assumption}" for assumption in converted.assumptions)
    return Parts(path, converted.unet, dict(converted.scheduler.config), notes=notes)


def folder_parts(folder: DiffusersFolder, source: str, dtype: torch.dtype, force: bool) -> Parts:
    """The parts of a diffusers folder; nothing large is loaded before it is known to be of use."""
    network, scheduler = folder.part("unet", "model", "transformer"), folder.part("scheduler")
    if network is None or scheduler is None or network.kind not in ("UNet2DModel", *TEXT_NETWORKS):
        kind = network.kind if network else "no network"
        raise UsageError(f"{folder.root} holds a {folder.family} ({kind}), which nearfar does not read: docs/models.md "
                         "lists those it reads")  # fmt: skip
    if folder.index.get("requires_aesthetics_score"):
        raise UsageError(f"{source} is a refiner, which only finishes what a base model began: take the base model")
    reason = distilled_reason(folder, source, network, scheduler)
    if reason and not force:
        raise UsageError(
            f"{source} is a distilled few-step model ({reason}): it was trained to jump to the end from a few fixed "
            "levels, so a strength between them means nothing: take the model it was distilled from, or --force"
        )
    loaded = load_part(network, dtype)
    if network.kind == "UNet2DModel":
        apply_heads(loaded)
    autoencoder = folder.part("vae", "vqvae")
    notes = (f"{source} is distilled ({reason}): results between its levels are undefined",) if reason else ()
    config = scheduler.config | {"_class_name": scheduler.kind}
    loaded_autoencoder = load_autoencoder(autoencoder, dtype) if autoencoder else None
    return Parts(folder.root, loaded, config, loaded_autoencoder, notes)


def distilled_reason(folder: DiffusersFolder, source: str, network: Part, scheduler: Part) -> str:
    """What shows that a model was distilled to a few steps; empty when nothing does."""
    paths = (source, *(str(part.get("_name_or_path", "")) for part in (folder.index, network.config)))
    words = {word for path in paths for word in re.split("[^a-z]+", Path(path).name.lower())}
    card = card_of(source)
    if scheduler.kind in DISTILLED_SCHEDULERS:
        return f"its scheduler is a {scheduler.kind}"
    if network.config.get("time_cond_proj_dim"):
        return "its network takes the guidance as an input, time_cond_proj_dim"
    if scheduler.kind == "EulerAncestralDiscreteScheduler" and scheduler.config.get("timestep_spacing") == "trailing":
        return "its scheduler is the one of SD-Turbo and SDXL-Turbo"
    if card is not None and card.distilled:
        return f"its card, {card.name}"
    return next((f'"{word}" in its name' for word in DISTILLED_WORDS if word in words), "")


def load_autoencoder(part: Part, dtype: torch.dtype) -> Any:
    """In the network's dtype, unless its config asks for float32."""
    if part.kind not in ("AutoencoderKL", "VQModel"):
        raise UsageError(f"{part.folder} holds an {part.kind}: nearfar reads AutoencoderKL and VQModel")
    network = load_part(part, torch.float32 if part.config.get("force_upcast", True) else dtype)
    if part.kind == "VQModel" and "scaling_factor" not in part.config:
        network.register_to_config(scaling_factor=1.0)  # diffusers' default is wrong for CompVis/ldm-celebahq-256
    return network


def assemble(parts: Parts, request: Request, device: torch.device, dtype: torch.dtype, source: str) -> FrozenModel:
    """The model that the parts make when they are used as asked."""
    parts.network.to(device, memory_format=torch.channels_last)
    conventions = read_scheduler(parts.scheduler, f"the scheduler of {source}")
    shape = shape_of(parts.network, source)
    space = latent_space(parts, conventions, shape, request.sampled, device)
    size = request.size or shape.side * space.factor
    if size < 1 or size % (shape.unit * space.factor):
        raise UsageError(f"size must be a multiple of {shape.unit * space.factor} for {source}, got {size}")
    network = bind(parts, conventions, request, size, device, source)
    return FrozenModel(
        denoiser=NetworkDenoiser(network, conventions.schedule, conventions.prediction, dtype, conventions.inputs),
        latent_space=space,
        image=ImageContract(size, image_channels(parts, shape, space, source)),
        latent_shape=(shape.channels, size // space.factor, size // space.factor),
        provenance=provenance(parts.root, source),
        device=device,
        dtype=dtype,
        parameters=sum(p.numel() for p in parts.network.parameters()),
        settings=bound_settings(parts, request),
    )


@dataclass(frozen=True)
class LatentShape:
    """What a network works on: its channels, the side it was trained on, and what a side must be a multiple of."""

    channels: int
    side: int
    unit: int


def shape_of(network: Any, source: str) -> LatentShape:
    config, kind = network.config, type(network).__name__
    if kind == "FluxTransformer2DModel":
        return LatentShape(config.in_channels // 4, FLUX_SIDE, 2)
    if not isinstance(config.sample_size, int):
        raise UsageError(
            f"{source} must have square images, got sample_size {config.sample_size}: choose another model"
        )
    if config.out_channels not in (config.in_channels, 2 * config.in_channels) or config.get("class_embed_type"):
        raise UsageError(
            f"{source} maps {config.in_channels} channels to {config.out_channels} (class_embed_type "
            f"{config.get('class_embed_type')}), so it needs more than a noisy image: choose another model"
        )
    unit = config.patch_size if "patch_size" in config else 2 ** (len(config.block_out_channels) - 1)
    return LatentShape(config.in_channels, config.sample_size, unit)


def bind(
    parts: Parts,
    conventions: Conventions,
    request: Request,
    size: int,
    device: torch.device,
    source: str,
) -> Network:
    """The network as a function of latents and time: its prompt or its class bound, as its family has it."""
    family = text_family(parts.network)
    if family is None:
        if request.prompt is not None or request.negative_prompt or request.guidance != 1:
            raise UsageError(f"{source} takes no prompt and no guidance: leave them out")
        return unconditional(parts.network, request.label)
    if parts.autoencoder is None or family.flow != conventions.is_flow:
        wanted = "an autoencoder and a scheduler of " + ("flow matching" if family.flow else "betas or EDM")
        raise UsageError(f"{source} must have {wanted}, got {parts.scheduler.get('_class_name')}: choose another model")
    return bind_prompt(family, parts.network, parts.root, wish_of(parts, request, size, device, source))


def wish_of(parts: Parts, request: Request, size: int, device: torch.device, source: str) -> Wish:
    """What a text model is asked for; it must have been said."""
    if request.prompt is None:
        raise UsageError(
            f'{source} is a text model: give a prompt (--prompt "a photo of a person"), or an empty one (--prompt "")'
        )
    if request.label is not None:
        raise UsageError(f"{source} knows no classes, got label {request.label}: say it in the prompt")
    if not 0 <= request.guidance < float("inf"):
        raise UsageError(f"guidance must be 0 or more, got {request.guidance:g}: 1 is the model's own distribution")
    embedded = bool(parts.network.config.get("guidance_embeds"))
    return Wish(request.prompt, request.negative_prompt, request.guidance, size, device, embedded)


def latent_space(
    parts: Parts, conventions: Conventions, shape: LatentShape, sampled: bool, device: torch.device
) -> LatentSpace:
    """Where the model denoises."""
    if parts.autoencoder is not None:
        return autoencoder_space(parts.autoencoder.to(device), shape, sampled)
    if shape.channels in PATCHED:
        return PatchSpace(PATCHED[shape.channels])
    return UnitRange() if conventions.unit_range else PixelSpace()


def autoencoder_space(network: Any, shape: LatentShape, sampled: bool) -> Autoencoder:
    """Scaling and shift from the config, tiles of the size that network and autoencoder were made for.

    Playground's autoencoder has them for each channel, as latents_std and latents_mean.
    """
    config = network.config
    factor = 2 ** (len(config.block_out_channels) - 1)
    return Autoencoder(
        network,
        scaling=config.scaling_factor / by_channel(config.get("latents_std") or 1.0),
        shift=by_channel(config.get("latents_mean") or config.get("shift_factor") or 0.0),
        factor=factor,
        tile=max(shape.side * factor, config.sample_size if isinstance(config.sample_size, int) else 0),
        sampled=sampled,
        dtype=network.dtype,
    )


def by_channel(values: float | list[float]) -> Tensor:
    """One number, or one for each channel as (channels, 1, 1)."""
    tensor = torch.tensor(values, dtype=torch.float32)
    return tensor[:, None, None] if tensor.ndim else tensor


def image_channels(parts: Parts, shape: LatentShape, space: LatentSpace, source: str) -> int:
    """Colours of the images; latents and autoencoder must agree."""
    if parts.autoencoder is None:
        channels = shape.channels // space.factor**2
    elif parts.autoencoder.config.latent_channels == shape.channels:
        channels = parts.autoencoder.config.in_channels
    else:
        made = parts.autoencoder.config.latent_channels
        raise UsageError(
            f"the network of {source} takes {shape.channels} channels, its autoencoder makes {made}: inpainting, depth "
            "and upscaling models need more than an image"
        )
    if channels not in (1, 3):
        raise UsageError(f"{source} takes images of {channels} channels, nearfar has 1 or 3: choose another model")
    return int(channels)


def provenance(root: Path, source: str) -> Provenance:
    """Licence from the model's own card, or from ours."""
    card = card_of(source)
    if root.is_file():
        with root.open("rb") as file:
            digest, licence = hashlib.file_digest(file, "sha256").hexdigest(), ""
    else:
        digest, licence = folder_digest(root), read_licence(root)
    return Provenance(source, digest, licence or (card.licence if card and card.licence else "not stated"))


def bound_settings(parts: Parts, request: Request) -> dict[str, Any]:
    """What decides the pixels beside the weights, as it goes into a run's record."""
    if text_family(parts.network) is None:
        chosen: dict[str, Any] = {} if request.label is None else {"label": request.label}
    else:
        chosen = {"prompt": request.prompt, "negative_prompt": request.negative_prompt, "guidance": request.guidance}
    return chosen | ({"sampled": True} if request.sampled else {}) | ({"size": request.size} if request.size else {})


def notes_on(model: FrozenModel) -> list[str]:
    """What a user should know before using the model."""
    notes = []
    card = card_of(model.provenance.source)
    if is_noncommercial(model.provenance.licence) or (card is not None and card.commercial is False):
        notes.append(f"{model.provenance.source} is not for commercial use: {model.provenance.licence}")
    if model.settings.get("guidance", 1) > 1:
        notes.append(
            f"guidance {model.settings['guidance']:g} sharpens the model's distribution: results follow the prompt "
            "more, vary less, and are no longer samples of the model; 1 is the model's own"
        )
    return notes


def pick_device(device: str | torch.device) -> torch.device:
    """The device to run on; "auto" prefers CUDA."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {str(device)!r} cannot be used ({reason}): use --device cpu") from None


def check_precision(device: torch.device, dtype: torch.dtype) -> None:
    """Half precision on a CPU is several times slower than float32, so it is refused."""
    if device.type == "cpu" and dtype != torch.float32:
        raise UsageError(f"a CPU runs {str(dtype).removeprefix('torch.')} several times slower: use float32")
