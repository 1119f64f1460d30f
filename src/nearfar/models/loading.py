"""`load_model`: a frozen model put together from its parts, whatever pipeline they were saved in.

The network's class says how it is called, the scheduler's class which times, inputs and answers it has, an autoencoder
where its latents are. From diffusers come the networks and the numbers of the configs; no scheduler's `step` is used.
Where a network runs, and in which precision, is decided here too.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from nearfar.diffusion.denoiser import Network, NetworkDenoiser
from nearfar.errors import ModelWarning, UsageError, first_line
from nearfar.models.cards import card_of, notes_on, refuse_distilled
from nearfar.models.folder import folder_digest, load_part, read_license, reading
from nearfar.models.graphs import GpuNetwork, record_graph
from nearfar.models.lookup import (
    DiffusersFolder,
    Part,
    asked_or_default,
    check_unprompted,
    open_folder,
)
from nearfar.models.model import Autoencoder, FrozenModel, LatentSpace, PatchSpace, PixelSpace, Provenance, ValueRange
from nearfar.models.networks import Conventions, read_scheduler, unconditional
from nearfar.models.original.checkpoints import apply_heads, convert
from nearfar.models.original.mixer import MIXER, ScoreMixer, give_weights, make_mixer
from nearfar.models.original.network import SavedNetwork, kind_of
from nearfar.models.profiles import kept_profile
from nearfar.models.prompts import Request, TextFamily, check_request, encode_live_prompt, encode_prompt, text_family
from nearfar.models.unet import PixelUNet
from nearfar.models.unet_files import count_weights, fill, pixel_unet, understood
from nearfar.tensors import ImageContract

FLUX_SIDE = 128
"""Latents along one side of the 1024 pixels that FLUX was trained on; its config does not say."""
PATCHED = {12: 2, 48: 4}
"""Channels of a network on patches of colors, and the side of its patches."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What a model is made of, loaded. source: what it was asked for by. folder: where text encoders lie, if any.

    pipeline: the live one that has them loaded.
    """

    source: str
    network: Any
    scheduler: dict[str, Any]
    provenance: Provenance
    autoencoder: Any | None = None
    folder: DiffusersFolder | None = None
    family: TextFamily | None = None
    notes: tuple[str, ...] = ()
    pipeline: Any | None = None


@dataclass(frozen=True)
class LatentShape:
    """What a network works on: its channels, the side it was trained on, and what a side must be a multiple of."""

    channels: int
    side: int
    unit: int
    most: int = 1 << 20


def load_model(
    source: Any = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
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
    graphs: bool = True,
) -> FrozenModel:
    """Load a diffusers folder, an original checkpoint, a bundled model (faces, faces64, cells) or a hub name.

    source: an existing path before a bundled model before a hub name; what `NEARFAR_MODEL` names, or the bundled
    faces64, when it is not given. Or a live diffusers pipeline, whose networks are copied, so that training it on
    changes nothing here.
    device: "auto" takes CUDA when it is there. dtype: the network's; the state stays float32.
    None is float32, on CUDA with products in tf32 (about 86 dB from torch.float32, which is the CPU's to 1e-5, and 2 to
    3 times its speed).
    prompt, negative_prompt: text models need one, "" for none. guidance: 1 samples the model's own distribution;
    other values predict every image twice, and above 1 a warning is given. label: for class-conditional models.
    size: of the images, where it is not the size the model was trained on. sampled: draw latents from a KL encoder
    instead of taking its mode. revision, download: a hub name is read from the local cache, and downloaded only when
    asked, at a pinned commit. force: take a distilled few-step model all the same.
    graphs: on CUDA, record networks without a prompt as CUDA graphs (`graphs.GpuNetwork`).
    Nothing is random. Cost: every weight is read twice, to be hashed and to be loaded.
    Raises UsageError, naming the way out, for what is missing, incomplete, pickled code or of a family not read, and
    RunError when the memory does not hold it.
    Warns (ModelWarning) of a license that restricts commercial use, guidance, and what was assumed of a checkpoint.
    """
    device = pick_device(device)
    tf32, dtype = dtype is None and device.type == "cuda", dtype or torch.float32
    check_precision(device, dtype)
    request = Request(prompt, negative_prompt, float(guidance), label, size, sampled)
    parts = parts_of(source, dtype, force, revision=revision, download=download)
    with reading(parts.source):
        model = with_profile(assemble(parts, request, device, dtype), parts.folder)
    if device.type == "cuda":
        model = on_gpu(model, tf32, graphs and parts.family is None)
    for note in (*parts.notes, *notes_on(model)):
        warnings.warn(note, ModelWarning, stacklevel=2)
    return model


def with_profile(model: FrozenModel, folder: DiffusersFolder | None) -> FrozenModel:
    """The model with the profile that was kept of it, if one was."""
    profile = kept_profile(model, folder.root if folder else None)
    return replace(model, denoiser=replace(cast(NetworkDenoiser, model.denoiser), profile=profile))


def parts_of(source: Any, dtype: torch.dtype, force: bool, **where: Any) -> Parts:
    """The parts of what was asked for, loaded. where: options of `find_model`."""
    from nearfar.models.pipelines import pipeline_parts

    if hasattr(source, "components") and hasattr(source, "scheduler"):
        return pipeline_parts(source, dtype, force)
    if not isinstance(source, str | Path | None):
        got = type(source).__name__
        raise UsageError(f"a model is given as a folder, a file, a name or a diffusers pipeline, got {got}")
    name, path = asked_or_default(source, **where)
    return file_parts(path, name, dtype) if path.is_file() else folder_parts(open_folder(path), name, dtype, force)


def on_gpu(model: FrozenModel, tf32: bool, graphs: bool) -> FrozenModel:
    """The model with its networks as a GPU runs them."""
    denoiser, space = cast(NetworkDenoiser, model.denoiser), model.latent_space
    network = GpuNetwork(denoiser.network, tf32, record_graph if graphs else None)
    space = replace(space, tf32=tf32) if isinstance(space, Autoencoder) else space
    return replace(model, denoiser=replace(denoiser, network=network), latent_space=space, tf32=tf32)


def file_parts(path: Path, source: str, dtype: torch.dtype) -> Parts:
    """An original checkpoint, converted in memory; what it does not say comes from its card, if it has one."""
    card = card_of(source)
    converted = convert(path, **(card.checkpoint if card else {}))
    notes = tuple(f"{path.name}: {assumption}" for assumption in converted.assumptions)
    network = as_ours(converted.unet, dtype)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    scheduler = dict(converted.scheduler.config) | {"_class_name": kind_of(converted.scheduler)}
    return Parts(source, network, scheduler, provenance(source, digest, ""), notes=notes)


def as_ours(unet: Any, dtype: torch.dtype) -> Any:
    """A UNet2DModel as the network that a folder with its weights would be read as."""
    config = understood(unet.config)
    if isinstance(unet, SavedNetwork) and unet.kind == MIXER:
        network: Any = make_mixer(unet.config, MIXER)
        give_weights(network, unet.weights, dtype)
    elif config is None:
        network = unet.to(dtype)
    else:
        network = pixel_unet(config)
        fill(network, unet.state_dict(), dtype)
    return network.eval().requires_grad_(False)


def folder_parts(folder: DiffusersFolder, source: str, dtype: torch.dtype, force: bool) -> Parts:
    """The parts of a diffusers folder; nothing large is loaded before it is known to be of use."""
    network, scheduler = folder.part("unet", "model", "transformer"), folder.part("scheduler")
    pixels = network is not None and network.kind in ("UNet2DModel", MIXER)
    family = None if network is None or pixels else text_family(network)
    if network is None or scheduler is None or (family is None and not pixels):
        kind = network.kind if network else "no network"
        raise UsageError(
            f"{folder.root} holds a {folder.family} ({kind}), which nearfar does not read: "
            "the documentation (models) lists those it reads"
        )
    if folder.index.get("requires_aesthetics_score"):
        raise UsageError(f"{source} is a refiner, which only finishes what a base model began: take the base model")
    note = refuse_distilled(folder, source, network, scheduler, force)
    autoencoder = folder.part("vae", "vqvae")
    loaded = load_part(network, dtype)
    if "attention_heads" in loaded.config and not isinstance(loaded, PixelUNet):
        apply_heads(loaded)
    return Parts(
        source,
        loaded,
        scheduler.config | {"_class_name": scheduler.kind},
        provenance(source, folder_digest(folder), read_license(folder.root)),
        load_autoencoder(autoencoder, dtype) if autoencoder else None,
        folder,
        family,
        (note,) if note else (),
    )


def provenance(source: str, digest: str, license: str) -> Provenance:
    """With the license of the model's own card, or else of ours."""
    card = card_of(source)
    return Provenance(source, digest, license or (card.license if card and card.license else "not stated"))


def load_autoencoder(part: Part, dtype: torch.dtype) -> Any:
    """In float32 where its config asks for it or, as diffusers has it, says nothing; else in the network's dtype."""
    if part.kind not in ("AutoencoderKL", "VQModel"):
        raise UsageError(f"{part.folder} is an {part.kind}: nearfar reads AutoencoderKL and VQModel")
    network = load_part(part, torch.float32 if part.config.get("force_upcast", True) else dtype)
    if part.kind == "VQModel" and "scaling_factor" not in part.config:
        network.register_to_config(scaling_factor=1.0)  # diffusers' default is wrong for CompVis/ldm-celebahq-256
    return network


def assemble(parts: Parts, request: Request, device: torch.device, dtype: torch.dtype) -> FrozenModel:
    """The model that the parts make when they are used as asked."""
    conventions = read_scheduler(parts.scheduler, f"the scheduler of {parts.source}")
    shape = shape_of(parts)
    space = latent_space(parts, conventions, shape, request.sampled, device)
    size = image_size(parts.source, shape, space, request.size)
    request = replace(request, size=size)
    network = bind(parts, conventions, request, device)
    parts.network.to(device, memory_format=torch.channels_last)
    return FrozenModel(
        denoiser=NetworkDenoiser(network, conventions.schedule, conventions.prediction, dtype, conventions.inputs),
        latent_space=space,
        image=ImageContract(size, image_channels(parts, shape, space), values_of(parts)),
        latent_shape=(shape.channels, size // space.factor, size // space.factor),
        provenance=parts.provenance,
        device=device,
        dtype=dtype,
        parameters=count_weights(parts.network),
        settings=bound_settings(parts, request),
    )


def image_size(source: str, shape: LatentShape, space: LatentSpace, asked: int | None) -> int:
    """The size that was asked for, where the network can have it, or else its own."""
    size = shape.side * space.factor if asked is None else asked
    unit, most = shape.unit * space.factor, shape.most * space.factor
    if not 0 < size <= most or size % unit:
        limit = f", at most {most}" if shape.most < LatentShape.most else ""
        raise UsageError(f"size must be a multiple of {unit}{limit} for {source}, got {size or 'none: give --size'}")
    return size


def shape_of(parts: Parts) -> LatentShape:
    """What the network works on, as its config says."""
    config, kind = parts.network.config, type(parts.network).__name__
    if kind == "FluxTransformer2DModel":
        return LatentShape(config.in_channels // 4, FLUX_SIDE, 2)
    came = config.sample_size or 0  # then only with --size
    side = came[0] if isinstance(came, list | tuple) and len({*came}) == 1 else came
    if not isinstance(side, int):
        raise UsageError(f"{parts.source} must have square images, got sample_size {came}: choose another model")
    if config.out_channels not in (config.in_channels, 2 * config.in_channels) or config.get("class_embed_type"):
        raise UsageError(
            f"{parts.source} maps {config.in_channels} channels to {config.out_channels} (class_embed_type "
            f"{config.get('class_embed_type')}), so it needs more than a noisy image: choose another model"
        )
    if kind == "SD3Transformer2DModel":
        most = config.pos_embed_max_size * config.patch_size
        return LatentShape(config.in_channels, side, config.patch_size, most)
    if kind == MIXER:
        return LatentShape(config.in_channels, side, side, side)
    return LatentShape(config.in_channels, side, 2 ** (len(config.block_out_channels) - 1))


def bind(parts: Parts, conventions: Conventions, request: Request, device: torch.device) -> Network:
    """The network as a function of latents and time: its prompt or its class bound, as its family has it."""
    family, source = parts.family, parts.source
    if family is None or parts.folder is None:
        check_unprompted(vars(request), source)
        return unconditional(parts.network, request.label)
    if parts.autoencoder is None or family.flow != conventions.is_flow:
        wanted = "an autoencoder and a scheduler of " + ("flow matching" if family.flow else "betas or EDM")
        raise UsageError(f"{source} must have {wanted}, got {parts.scheduler['_class_name']}: choose another model")
    check_request(request, bool(parts.network.config.get("guidance_embeds")), source)
    if parts.pipeline is not None:
        prompt = encode_live_prompt(family, parts.pipeline, parts.network.dtype, request, device)
    else:
        prompt = encode_prompt(family, parts.folder, parts.network, request, device)
    return family.network(parts.network, prompt)


def latent_space(
    parts: Parts, conventions: Conventions, shape: LatentShape, sampled: bool, device: torch.device
) -> LatentSpace:
    """Where the model denoises."""
    if sampled and type(parts.autoencoder).__name__ != "AutoencoderKL":
        raise UsageError(f"{parts.source} has no KL autoencoder whose latents could be drawn: leave out --sampled")
    if parts.autoencoder is not None:
        return autoencoder_space(parts.autoencoder.to(device), shape, sampled)
    if shape.channels in PATCHED:
        return PatchSpace(PATCHED[shape.channels])
    if isinstance(parts.network, ScoreMixer):
        return ValueRange(parts.network.config.low, parts.network.config.high)
    return ValueRange() if conventions.unit_range else PixelSpace()


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
    )


def by_channel(values: float | list[float]) -> Tensor:
    """One number, or one for each channel as (channels, 1, 1)."""
    tensor = torch.tensor(values, dtype=torch.float32)
    return tensor[:, None, None] if tensor.ndim else tensor


def image_channels(parts: Parts, shape: LatentShape, space: LatentSpace) -> int:
    """Colors of the images; latents and autoencoder must agree."""
    if parts.autoencoder is None:
        channels = shape.channels // space.factor**2
    elif parts.autoencoder.config.latent_channels == shape.channels:
        channels = parts.autoencoder.config.in_channels
    else:
        made = parts.autoencoder.config.latent_channels
        raise UsageError(
            f"the network of {parts.source} takes {shape.channels} channels, its autoencoder makes {made}: inpainting, "
            "depth and upscaling models need more than an image"
        )
    if channels not in (1, 3):
        raise UsageError(
            f"{parts.source} takes images of {channels} channels, nearfar has 1 or 3: choose another model"
        )
    return int(channels)


def values_of(parts: Parts) -> str | None:
    """How physical values become the model's images, where it says so."""
    values = parts.network.config.get("values") if isinstance(parts.network, ScoreMixer) else None
    return None if values is None else json.dumps(values)


def bound_settings(parts: Parts, request: Request) -> dict[str, Any]:
    """What decides the pixels beside the weights, as it goes into a run's record."""
    if parts.family is None:
        bound: dict[str, Any] = {"label": request.label}
    else:
        bound = {"prompt": request.prompt, "negative_prompt": request.negative_prompt, "guidance": request.guidance}
    return bound | {"size": request.size, "sampled": request.sampled}


def pick_device(device: str | torch.device) -> torch.device:
    """The device to run on; "auto" prefers CUDA."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {str(device)!r} cannot be used ({first_line(error)}): use --device cpu") from None


def check_precision(device: torch.device, dtype: torch.dtype) -> None:
    """Half precision on a CPU is several times slower than float32, so it is refused."""
    if device.type == "cpu" and dtype != torch.float32:
        raise UsageError(f"a CPU runs {str(dtype).removeprefix('torch.')} several times slower: use float32")
