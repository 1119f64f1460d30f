"""Tiny frozen models with random weights, one of each kind, as folders and files that `nearfar --model` takes.

Made by diffusers and transformers alone. Most predict the clean image: with random weights that stays in range, where
one grey level more or less is seen.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SMALL = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
PLAIN = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False}
CODER = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
CROSSED = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
CHECKPOINTS = ("ddpm.ckpt", "afhq_like.pt", "improved.pt")
"""Files in the layouts of the papers' own authors, by the golden file that has the names and shapes of the weights."""


def unet(channels: int = 3, size: int = 16, **options: Any) -> UNet2DModel:
    """41 thousand weights for 3 channels."""
    sides = {"sample_size": size, "in_channels": channels, "out_channels": channels}
    return UNet2DModel(**sides | SMALL | PLAIN | options)


def pixel(folder: Path, channels: int = 3, size: int = 16, **options: Any) -> None:
    """16x16 pixels; with 12 channels, 32x32 pixels in patches of 2."""
    scheduler = DDPMScheduler(prediction_type="sample")
    DDPMPipeline(unet(channels, size, **options), scheduler).save_pretrained(folder)


def noise_predicting(folder: Path) -> None:
    """Cosine schedule and a learned variance, in three more channels."""
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    DDPMPipeline(unet(out_channels=6), scheduler).save_pretrained(folder)


def latent(folder: Path) -> None:
    """A KL autoencoder of 32x32 pixels, 3 latent channels of half the size."""
    coder = AutoencoderKL(**SMALL, **CODER, latent_channels=3, sample_size=32)
    LDMPipeline(coder, unet(), DDIMScheduler(prediction_type="sample")).save_pretrained(folder)
    (folder / "vqvae").rename(folder / "vae")
    index = folder / "model_index.json"
    index.write_text(index.read_text("utf-8").replace("vqvae", "vae"), "utf-8")


def quantized(folder: Path) -> None:
    """The same with a VQ autoencoder."""
    coder = VQModel(**SMALL, **CODER, latent_channels=3, num_vq_embeddings=32, scaling_factor=0.5, sample_size=32)
    LDMPipeline(coder, unet(), DDIMScheduler(prediction_type="sample")).save_pretrained(folder)


def classes(folder: Path) -> None:
    """Five classes."""
    DDIMPipeline(unet(num_class_embeds=5), DDIMScheduler(prediction_type="sample")).save_pretrained(folder)


def score(folder: Path) -> None:
    """Fourier features of sigma, images in [0, 1]."""
    scheduler = ScoreSdeVeScheduler(sigma_max=50.0, num_train_timesteps=1000)
    ScoreSdeVePipeline(unet(time_embedding_type="fourier"), scheduler).save_pretrained(folder)


def preconditioned(folder: Path) -> None:
    """As EDM scales inputs and outputs of the network."""
    pixel(folder)
    shutil.rmtree(folder / "scheduler")
    EDMEulerScheduler().save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "EDMEulerScheduler"]}))


def prompted(folder: Path) -> None:
    """Stable Diffusion 1."""
    network = UNet2DConditionModel(sample_size=16, cross_attention_dim=32, attention_head_dim=4, **SMALL, **CROSSED)
    StableDiffusionPipeline(
        vae=AutoencoderKL(**SMALL, **CODER, latent_channels=4, sample_size=32, scaling_factor=0.18215),
        text_encoder=CLIPTextModel(text_config()).eval(),
        tokenizer=tokenizer(),
        unet=network,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def flow(folder: Path) -> None:
    """Stable Diffusion 3 without its T5 encoder: straight paths instead of a diffusion."""
    network = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64,
        pos_embed_max_size=32,
    )  # fmt: skip
    encoders = [CLIPTextModelWithProjection(text_config()).eval() for _ in range(2)]
    StableDiffusion3Pipeline(
        transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(**SMALL, **CODER, latent_channels=4, sample_size=32, scaling_factor=1.5, shift_factor=0.06),
        text_encoder=encoders[0],
        tokenizer=tokenizer(),
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder)


def tokenizer() -> CLIPTokenizer:
    """A tokenizer of single letters."""
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77)


def text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=54, hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=3,
        projection_dim=32, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip


MODELS: dict[str, Callable[[Path], None]] = {
    "pixel": pixel,
    "patched": partial(pixel, channels=12),
    "latent": latent,
    "quantized": quantized,
    "gray": partial(pixel, channels=1),
    "cosine": noise_predicting,
    "classes": classes,
    "score": score,
    "preconditioned": preconditioned,
    "prompted": prompted,
    "flow": flow,
}


def write_models(folder: Path) -> None:
    """All of them below a folder, by name; the same weights every time."""
    for name, write in MODELS.items():
        torch.manual_seed(0)
        write(folder / name)


def write_checkpoints(folder: Path, golden: Path) -> None:
    """Checkpoints with random weights; golden: where the golden files of the layouts lie (tests/golden/checkpoints)."""
    for name in CHECKPOINTS:
        with np.load(golden / f"{Path(name).stem}.npz") as file:
            listed = zip(file["names"], file["shapes"], strict=True)
            shapes = {str(key): [*map(int, str(text).split())] for key, text in listed}
        generator = torch.Generator().manual_seed(0)
        weights = {key: torch.randn(shape, generator=generator).mul(0.1).half() for key, shape in shapes.items()}
        torch.save(weights, folder / name)
