"""Models that take a prompt: how each family's prompt is encoded, and how its network is called with it.

diffusers' own pipelines turn a prompt into numbers; they are made of the text encoders alone, used once and let go.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nearfar.diffusion.denoiser import Network
from nearfar.errors import UsageError
from nearfar.models import networks
from nearfar.models.folder import check_complete, check_size, check_weights, reading, variant_of
from nearfar.models.lookup import DiffusersFolder, Part, check_prompted, read_config
from nearfar.models.networks import Arguments, Prompt

TEXT_PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
TEXT_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "CLIPTokenizer", "T5Tokenizer")


@dataclass(frozen=True)
class Request:
    """How a model is asked to be used. guidance: 1 follows its own distribution, more sharpens the prompt."""

    prompt: str | None = None
    negative_prompt: str = ""
    guidance: float = 1.0
    label: int | None = None
    size: int | None = None
    sampled: bool = False


@dataclass(frozen=True)
class TextFamily:
    """pipeline: diffusers' class that encodes the prompt. flow: whether it is a rectified flow."""

    pipeline: str
    encode: Callable[[Any, Request, torch.device], Prompt]
    network: Callable[[Any, Prompt], Network]
    flow: bool = False


def encode_stable_diffusion(pipeline: Any, request: Request, device: torch.device) -> Prompt:
    text, negative = pipeline.encode_prompt(request.prompt, device, 1, True, request.negative_prompt or None)
    return guided(request, {"text": text}, {"text": negative})


def encode_stable_diffusion_xl(pipeline: Any, request: Request, device: torch.device) -> Prompt:
    """With the sizes that the network takes: of the original, no crop, of the result."""
    text, negative, pooled, negative_pooled = pipeline.encode_prompt(
        request.prompt, device=device, negative_prompt=request.negative_prompt or None
    )
    sizes = torch.tensor([[request.size, request.size, 0, 0, request.size, request.size]])
    toward = {"text": text, "pooled": pooled, "sizes": sizes}
    return guided(request, toward, {"text": negative, "pooled": negative_pooled, "sizes": sizes})


def encode_stable_diffusion_3(pipeline: Any, request: Request, device: torch.device) -> Prompt:
    text, negative, pooled, negative_pooled = pipeline.encode_prompt(
        request.prompt, None, None, device=device, negative_prompt=request.negative_prompt or None
    )
    return guided(request, {"text": text, "pooled": pooled}, {"text": negative, "pooled": negative_pooled})


def encode_flux(pipeline: Any, request: Request, device: torch.device) -> Prompt:
    """Where guidance was distilled into the network, it takes the number and no negative prompt."""
    text, pooled, _ = pipeline.encode_prompt(request.prompt, None, device=device)
    if pipeline.transformer.config.guidance_embeds:
        return Prompt({"text": text, "pooled": pooled}, None, request.guidance)
    negative, negative_pooled, _ = pipeline.encode_prompt(request.negative_prompt, None, device=device)
    return guided(request, {"text": text, "pooled": pooled}, {"text": negative, "pooled": negative_pooled})


def guided(request: Request, toward: Arguments, away: Arguments) -> Prompt:
    """Guidance 1 needs no second prediction."""
    return Prompt(toward, None if request.guidance == 1 else away, request.guidance)


STABLE_DIFFUSION = TextFamily("StableDiffusionPipeline", encode_stable_diffusion, networks.stable_diffusion)
STABLE_DIFFUSION_XL = TextFamily("StableDiffusionXLPipeline", encode_stable_diffusion_xl, networks.stable_diffusion_xl)
STABLE_DIFFUSION_3 = TextFamily(
    "StableDiffusion3Pipeline", encode_stable_diffusion_3, networks.stable_diffusion_3, flow=True
)
FLUX = TextFamily("FluxPipeline", encode_flux, networks.flux, flow=True)

UNETS = {None: STABLE_DIFFUSION, "text_time": STABLE_DIFFUSION_XL}
TRANSFORMERS = {"SD3Transformer2DModel": STABLE_DIFFUSION_3, "FluxTransformer2DModel": FLUX}


def text_family(part: Part) -> TextFamily | None:
    """The family of a network by its class and configuration; None for one of no family that is read."""
    if part.kind == "UNet2DConditionModel" and part.config.get("encoder_hid_dim_type") is None:
        return UNETS.get(part.config.get("addition_embed_type"))
    return TRANSFORMERS.get(part.kind)


def check_request(request: Request, embedded: bool, source: str) -> None:
    """Refuse a text model without a prompt, and what would have no effect."""
    check_prompted(request.prompt, source)
    if request.label is not None:
        raise UsageError(f"{source} knows no classes, got label {request.label}: say it in the prompt")
    if not 0 <= request.guidance < float("inf"):
        raise UsageError(f"guidance must be 0 or more, got {request.guidance:g}: 1 is the model's own distribution")
    if request.negative_prompt and (request.guidance == 1 or embedded):
        why = "its guidance is inside the network" if embedded else "guidance is 1"
        raise UsageError(f"a negative prompt has no effect on {source} ({why}): leave it out, or raise the guidance")


@torch.no_grad()
def encode_prompt(
    family: TextFamily, folder: DiffusersFolder, network: Any, request: Request, device: torch.device
) -> Prompt:
    """Load the text encoders of a folder, encode, and let them go. network: the model's own, wherever it lies."""
    try:
        import diffusers
        import transformers  # noqa: F401
    except ImportError:
        raise UsageError("text models need transformers: pip install 'nearfar[text]'") from None
    kind = getattr(diffusers, family.pipeline)
    options = inspect.signature(kind).parameters
    switches = {name: option.default for name, option in options.items() if isinstance(option.default, bool)}
    flags = {name: folder.index.get(name, default) for name, default in switches.items()}
    texts = {name: load_text_part(folder, name, network.dtype, device) for name in TEXT_PARTS if name in options}
    parts = {"unet": network, "transformer": network, **texts, **flags, "requires_safety_checker": False}
    with reading(f"the prompt of {folder.root}"):
        pipeline = kind(**{name: parts.get(name) for name in options})
        return family.encode(pipeline, request, device).to(device, network.dtype)


@torch.no_grad()
def encode_live_prompt(
    family: TextFamily, pipeline: Any, dtype: torch.dtype, request: Request, device: torch.device
) -> Prompt:
    """The same by the text encoders of a live pipeline, where they are."""
    with reading(f"the prompt of {type(pipeline).__name__}"):
        return family.encode(pipeline, request, pipeline.device).to(device, dtype)


def load_text_part(folder: DiffusersFolder, name: str, dtype: torch.dtype, device: torch.device) -> Any:
    """A text encoder or tokenizer; None where the index has none, as SD3 without its T5."""
    import transformers

    kind, path = folder.kind_of(name), folder.root / name
    if kind is None:
        return None
    if kind.removesuffix("Fast") not in TEXT_CLASSES:
        raise UsageError(f"{path} is a {kind}, nearfar reads {', '.join(TEXT_CLASSES)}: choose another model")
    loader = getattr(transformers, kind)
    with reading(path):
        if name.startswith("tokenizer"):
            return loader.from_pretrained(path, local_files_only=True)
        check_weights(path)
        check_size(path, read_config(path, path / "config.json"))
        options = {"variant": variant_of(path), "use_safetensors": True, "local_files_only": True}
        encoder, loading = loader.from_pretrained(path, dtype=dtype, output_loading_info=True, **options)
    check_complete(path, loading["missing_keys"])
    return encoder.to(device)
