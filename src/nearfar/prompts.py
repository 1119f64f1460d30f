"""Prompts as numbers: the text encoders of a diffusers folder, used once and let go.

diffusers' own pipelines encode (tokenizers, CLIP, T5); they are made without network and autoencoder.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nearfar.diffusers_folder import variant_of
from nearfar.errors import UsageError
from nearfar.networks import Prompt


@dataclass(frozen=True)
class Wish:
    """What a text model is asked for.

    guidance: 1 follows the model's own distribution, more sharpens the prompt. embedded: it was distilled into the
    network, which takes it as an input.
    """

    prompt: str
    negative: str
    guidance: float
    size: int
    device: torch.device
    embedded: bool = False

    @property
    def doubled(self) -> bool:
        """Whether every image is predicted with and without the prompt."""
        return self.guidance != 1 and not self.embedded


def encode_stable_diffusion(pipeline: Any, wish: Wish) -> Prompt:
    text, negative = pipeline.encode_prompt(wish.prompt, wish.device, 1, wish.doubled, wish.negative or None)
    return Prompt({"text": text}, {"text": negative} if wish.doubled else None, wish.guidance)


def encode_stable_diffusion_xl(pipeline: Any, wish: Wish) -> Prompt:
    text, negative, pooled, negative_pooled = pipeline.encode_prompt(
        wish.prompt,
        device=wish.device,
        do_classifier_free_guidance=wish.doubled,
        negative_prompt=wish.negative or None,
    )
    sizes = torch.tensor([[wish.size, wish.size, 0, 0, wish.size, wish.size]])
    away = {"text": negative, "pooled": negative_pooled, "sizes": sizes} if wish.doubled else None
    return Prompt({"text": text, "pooled": pooled, "sizes": sizes}, away, wish.guidance)


def encode_stable_diffusion_3(pipeline: Any, wish: Wish) -> Prompt:
    text, negative, pooled, negative_pooled = pipeline.encode_prompt(
        wish.prompt,
        None,
        None,
        device=wish.device,
        do_classifier_free_guidance=wish.doubled,
        negative_prompt=wish.negative or None,
    )
    away = {"text": negative, "pooled": negative_pooled} if wish.doubled else None
    return Prompt({"text": text, "pooled": pooled}, away, wish.guidance)


def encode_flux(pipeline: Any, wish: Wish) -> Prompt:
    text, pooled, _ = pipeline.encode_prompt(wish.prompt, None, device=wish.device)
    if not wish.doubled:
        return Prompt({"text": text, "pooled": pooled}, None, wish.guidance)
    negative, negative_pooled, _ = pipeline.encode_prompt(wish.negative, None, device=wish.device)
    return Prompt({"text": text, "pooled": pooled}, {"text": negative, "pooled": negative_pooled}, wish.guidance)


def encode(root: Path, pipeline: str, encoder: Callable[[Any, Wish], Prompt], wish: Wish, network: Any) -> Prompt:
    """Load the text encoders of a folder, encode, and let them go. network: the model's own, loaded."""
    try:
        import diffusers
        import transformers  # noqa: F401
    except ImportError:
        raise UsageError("text models need transformers: pip install 'nearfar[text]'") from None
    kind = getattr(diffusers, pipeline)
    variant = variant_of(root / "text_encoder")
    try:
        loaded = kind.from_pretrained(
            root,
            dtype=network.dtype,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            **replaced_parts(root, kind, network),
        )
        return encoder(loaded.to(wish.device), wish)
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"the text encoders of {root} cannot be used ({reason}): copy the whole folder again"
        ) from error


def replaced_parts(root: Path, kind: Any, network: Any) -> dict[str, Any]:
    """What a pipeline need not load: the network, which is there already, and all that has nothing to do with prompts.

    Text encoders that the folder lacks are left out too: SD3 may come without its T5.
    """
    options = inspect.signature(kind).parameters
    parts = [name for name, option in options.items() if not isinstance(option.default, bool)]
    texts = [name for name in parts if name.startswith(("text_encoder", "tokenizer")) and (root / name).is_dir()]
    networks = {name: network for name in ("unet", "transformer") if name in parts}
    checker = {"requires_safety_checker": False} if "requires_safety_checker" in options else {}
    return dict.fromkeys(set(parts) - set(texts)) | networks | checker
