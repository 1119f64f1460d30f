"""Frozen models: a denoiser with its latent space, its image contract and its provenance.

`load_model` reads a diffusers folder with a pixel-space UNet (DDPMPipeline, DDIMPipeline): safetensors only, local
files only. From diffusers come the network and the table of the scheduler's config; its `step` is not used.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearfar.denoiser import PREDICTIONS, Denoiser, NetworkDenoiser
from nearfar.errors import UsageError
from nearfar.latent_space import LatentSpace, PixelSpace
from nearfar.schedule import NoiseSchedule
from nearfar.tensors import Images

BUNDLED = Path(__file__).parent / "models" / "faces"
PIPELINES = ("DDPMPipeline", "DDIMPipeline")
TABLE_PREDICTIONS = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True)
class ImageContract:
    """What the model takes: float32 `(batch, channels, size, size)` in [-1, 1]."""

    size: int
    channels: int

    def check(self, images: Images) -> None:
        """Refuse images of another shape, out of range or not finite."""
        expected = (self.channels, self.size, self.size)
        if images.ndim != 4 or images.shape[1:] != expected or not len(images):
            shape = f"(batch, {self.channels}, {self.size}, {self.size})"
            raise UsageError(f"images must be {shape}, got {tuple(images.shape)}")
        if not images.isfinite().all() or images.abs().max() > 1:
            span = f"{images.min().item():g} to {images.max().item():g}"
            raise UsageError(f"images must lie in [-1, 1], got values from {span}: divide 8-bit by 127.5, less 1")


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from. `sha256` covers its configuration and weights."""

    source: str
    sha256: str
    licence: str


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """A pretrained model, ready to be sampled; nothing here is ever trained."""

    denoiser: Denoiser
    latent_space: LatentSpace
    image: ImageContract
    provenance: Provenance
    device: torch.device
    dtype: torch.dtype
    parameters: int

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule


def load_model(
    source: str | Path | None = None, device: str | torch.device = "auto", dtype: torch.dtype = torch.float32
) -> FrozenModel:
    """Load a diffusers folder, or the bundled face model when no source is given.

    device: "auto" takes CUDA when it is there. dtype: the network's; the state stays float32.
    Raises UsageError, naming the way out, for a folder that is missing, incomplete, pickled or of another family.
    """
    folder = Path(source) if source is not None else BUNDLED
    check_folder(folder)
    device = pick_device(device)
    check_precision(device, dtype)
    unet = load_network(folder / "unet", dtype).to(device, memory_format=torch.channels_last)
    denoiser = NetworkDenoiser(channels_last(unet), *read_scheduler(folder / "scheduler"), dtype=dtype)
    return FrozenModel(
        denoiser=denoiser,
        latent_space=PixelSpace(),
        image=ImageContract(size=unet.config.sample_size, channels=unet.config.in_channels),
        provenance=Provenance(str(source or "bundled"), folder_digest(folder), read_licence(folder)),
        device=device,
        dtype=dtype,
        parameters=sum(p.numel() for p in unet.parameters()),
    )


def check_folder(folder: Path) -> None:
    """Refuse anything but a complete diffusers folder of a family that is read here."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UsageError(f"{folder} is no diffusers folder (no model_index.json): give one written by save_pretrained")
    family = read_json(index).get("_class_name")
    if family not in PIPELINES:
        raise UsageError(f"{folder} holds a {family}, nearfar reads {' and '.join(PIPELINES)}: choose another model")
    for part in ("unet/config.json", "scheduler/scheduler_config.json"):
        if not (folder / part).is_file():
            raise UsageError(f"{folder} lacks {part}: copy the whole folder that save_pretrained wrote")
    if not list((folder / "unet").glob("*.safetensors")):
        raise UsageError(f"{folder}/unet holds no .safetensors file; pickled weights can run code: save it again")


def load_network(folder: Path, dtype: torch.dtype) -> Any:
    """The UNet in evaluation mode, its gradients off."""
    from diffusers import UNet2DModel

    read_json(folder / "config.json")
    options = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False}
    try:
        unet, loading = UNet2DModel.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{folder} cannot be loaded ({reason}): copy the whole folder again") from error
    if missing := loading["missing_keys"]:
        raise UsageError(f"{folder} lacks {len(missing)} of the network's weights ({missing[0]}, ...): copy it again")
    if not isinstance(unet.config.sample_size, int) or unet.config.class_embed_type or unet.config.num_class_embeds:
        raise UsageError(f"{folder} must be square and unconditional, got sample_size {unet.config.sample_size}")
    return unet.eval().requires_grad_(False)


def channels_last(unet: Any) -> Any:
    """The network as a plain function of image and time, in the memory layout that convolutions like best."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        output: Tensor = unet(x.contiguous(memory_format=torch.channels_last), t).sample
        return output.contiguous()

    return network


def read_scheduler(folder: Path) -> tuple[NoiseSchedule, Any]:
    """Noise schedule and kind of prediction from a diffusers scheduler config."""
    from diffusers import DDPMScheduler

    config = read_json(folder / "scheduler_config.json")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in TABLE_PREDICTIONS:
        raise UsageError(
            f"prediction_type must be one of {', '.join(TABLE_PREDICTIONS)}, got {prediction!r} in {folder}"
        )
    if "beta_schedule" not in config:
        raise UsageError(f"{folder} describes a {config.get('_class_name')} without betas: choose a DDPM or DDIM model")
    try:
        table = DDPMScheduler.from_config(config).alphas_cumprod
    except (NotImplementedError, ValueError) as error:
        raise UsageError(f"{folder} has a beta_schedule that diffusers does not know ({error})") from None
    return NoiseSchedule.variance_preserving(table), PREDICTIONS[prediction]


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} must be JSON, got {error}: copy the folder again") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold a JSON object, got a {type(content).__name__}: copy the folder again")
    return content


def read_licence(folder: Path) -> str:
    """The `license:` line of the model card's header, as the hub writes it."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    found = re.search(r"^license: *(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else "not stated"


def folder_digest(folder: Path) -> str:
    """SHA-256 over the network's and the scheduler's files, independent of where the folder lies."""
    digest = hashlib.sha256()
    patterns = ("unet/*.json", "unet/*.safetensors", "scheduler/*.json")
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


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
