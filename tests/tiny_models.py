"""Tiny models with random weights, saved to disk in the format that each family has."""

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
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
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LCMScheduler,
    LDMPipeline,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from safetensors.torch import load_file

from golden.make_checkpoints import draw_weights
from nearfar.models.original.checkpoints import convert
from nearfar.models.original.network import save_converted

CHECKPOINTS = Path(__file__).parent / "golden" / "checkpoints"
TINY = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
PLAIN = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False}
STABLE_DIFFUSION_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def seeded(function):
    """Call with torch's random state fixed, and put back afterward."""

    def call(*args, **options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return function(*args, **options)

    return call


def unet(channels=3, size=16, **options):
    return UNet2DModel(sample_size=size, in_channels=channels, **{"out_channels": channels, **TINY, **PLAIN, **options})


@seeded
def ddpm(folder, **options):
    """google/ddpm-... as save_pretrained writes it."""
    DDPMPipeline(unet(), DDPMScheduler(**options)).save_pretrained(folder)


def ddpm_flat(folder):
    """google/ddpm-... as the hub has it: network and scheduler beside the index."""
    ddpm(folder)
    for path in [*folder.glob("unet/*"), *folder.glob("scheduler/*")]:
        path.rename(folder / path.name)
    for name in ("unet", "scheduler"):
        (folder / name).rmdir()


@seeded
def cosine(folder):
    """Improved DDPM: cosine schedule and a learned variance in three more channels."""
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    DDPMPipeline(unet(out_channels=6), scheduler).save_pretrained(folder)


@seeded
def class_conditional(folder):
    DDIMPipeline(unet(num_class_embeds=5), DDIMScheduler()).save_pretrained(folder)


@seeded
def patched(folder, side=2):
    """A network on patches: 32x32 pixels as 3 * side^2 channels."""
    DDPMPipeline(unet(3 * side**2, 32 // side), DDPMScheduler()).save_pretrained(folder)


@seeded
def score(folder):
    """google/ncsnpp-...: Fourier features of sigma, images in [0, 1]."""
    network = unet(time_embedding_type="fourier")
    ScoreSdeVePipeline(network, ScoreSdeVeScheduler(sigma_max=50.0, num_train_timesteps=1000)).save_pretrained(folder)


@seeded
def edm(folder, **options):
    ddpm(folder)
    shutil.rmtree(folder / "scheduler")
    EDMEulerScheduler(**options).save_pretrained(folder / "scheduler")
    rename_part(folder, "scheduler", "EDMEulerScheduler")


def rename_part(folder, part, kind):
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    index[part] = ["diffusers", kind]
    path.write_text(json.dumps(index))


@seeded
def ldm_vq(folder):
    """CompVis/ldm-celebahq-256: a VQ autoencoder, half the size here."""
    vqvae = VQModel(**autoencoder(VQModel), latent_channels=3, num_vq_embeddings=32, scaling_factor=0.5, sample_size=32)
    LDMPipeline(vqvae, unet(), DDIMScheduler(**STABLE_DIFFUSION_BETAS)).save_pretrained(folder)


@seeded
def ldm_kl(folder):
    vae = autoencoder_kl(channels=3)
    LDMPipeline(vae, unet(), DDIMScheduler(**STABLE_DIFFUSION_BETAS)).save_pretrained(folder)
    (folder / "vqvae").rename(folder / "vae")
    path = folder / "model_index.json"
    path.write_text(path.read_text().replace("vqvae", "vae"))


def autoencoder(kind):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return {**TINY, **blocks}


def autoencoder_kl(channels=4, **options):
    return AutoencoderKL(**autoencoder(AutoencoderKL), latent_channels=channels, sample_size=32, **options)


def conditional_unet(**options):
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    defaults = {"sample_size": 16, "cross_attention_dim": 32, "attention_head_dim": 4, **TINY, **blocks}
    return UNet2DConditionModel(**{**defaults, **options})


LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]


def clip_tokenizer():
    """A tokenizer of single letters."""
    from transformers import CLIPTokenizer

    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def clip(projected=False):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=54, hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=3,
        projection_dim=32, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5():
    """A T5 encoder and a tokenizer of single letters."""
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in LETTERS)]
    tokenizer = T5TokenizerFast(tokenizer_object=Tokenizer(Unigram(pieces, unk_id=2)), extra_ids=0, model_max_length=77)
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return T5EncoderModel(config).eval(), tokenizer


@seeded
def stable_diffusion(folder, network=None, scheduler=None, **options):
    """Stable Diffusion 1 and, with prediction_type="v_prediction", 2."""
    StableDiffusionPipeline(
        vae=autoencoder_kl(scaling_factor=0.18215),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=network or conditional_unet(),
        scheduler=scheduler or DDIMScheduler(**STABLE_DIFFUSION_BETAS, steps_offset=1, clip_sample=False, **options),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


@seeded
def stable_diffusion_xl(folder):
    network = conditional_unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80,
        cross_attention_dim=64, transformer_layers_per_block=(1, 2), use_linear_projection=True,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=autoencoder_kl(scaling_factor=0.13025),
        text_encoder=clip(),
        text_encoder_2=clip(projected=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=network,
        scheduler=DDIMScheduler(**STABLE_DIFFUSION_BETAS, steps_offset=1, clip_sample=False),
    ).save_pretrained(folder)


@seeded
def stable_diffusion_3(folder):
    """Without the optional T5 encoder, as many people run it."""
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64,
        pos_embed_max_size=32,
    )  # fmt: skip
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder_kl(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip(projected=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(projected=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder)


@seeded
def flux(folder, guidance_embeds=True):
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=guidance_embeds,
    )  # fmt: skip
    encoder, tokenizer = t5()
    FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder_kl(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
    ).save_pretrained(folder)


def lcm(folder):
    stable_diffusion(folder, conditional_unet(time_cond_proj_dim=8), LCMScheduler())


def turbo(folder):
    stable_diffusion(folder, scheduler=EulerAncestralDiscreteScheduler(timestep_spacing="trailing", steps_offset=1))


def ddpm_pickled(folder):
    """The old repositories on the hub: the weights as a pickle and nothing else."""
    ddpm(folder)
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


@seeded
def ddpm_gray(folder):
    DDPMPipeline(unet(1), DDPMScheduler()).save_pretrained(folder)


def original(path, name):
    """A checkpoint in the layout of a network's own authors, from the golden files."""
    with np.load(CHECKPOINTS / f"{name}.npz") as file:
        shapes = [
            (str(key), tuple(map(int, str(shape).split())))
            for key, shape in zip(file["names"], file["shapes"], strict=True)
        ]
        torch.save(draw_weights(shapes, int(file["seed"])), path)


KERAS_WIDTHS, KERAS_SIZE, KERAS_SHARDS = (8, 16), 16, 2


def keras(folder, **changed):
    """Keras' DDPM example as TensorFlow.js writes it: `model.json`, and eight-bit weights in shards.

    Layers are numbered on from others, as a session does that made a model before. changed: of the index.
    """
    draw, entries, stored = np.random.default_rng(0), [], []
    for name, shape in keras_weights():
        low, scale = (0.5, 0.004) if name.endswith("Reshape_1/ReadVariableOp") else (-0.19, 0.0015)
        rule = {"dtype": "uint8", "min": low, "scale": scale, "original_dtype": "float32"}
        entries.append({"name": f"call/unet/{name}", "shape": shape, "dtype": "float32", "quantization": rule})
        stored.append(draw.integers(0, 256, math.prod(shape), dtype=np.uint8).tobytes())
    entries.insert(3, {"name": "call/unet/concatenate/axis", "shape": [], "dtype": "int32"})
    stored.insert(3, bytes(4))
    sides = [{"size": size} for size in ("-1", str(KERAS_SIZE), str(KERAS_SIZE), "3")]
    signature = {"inputs": {"image_input": {"name": "image_input:0", "tensorShape": {"dim": sides}}}}
    names = [f"group1-shard{number}of{KERAS_SHARDS}.bin" for number in range(1, KERAS_SHARDS + 1)]
    index = {"format": "graph-model", "signature": signature, "weightsManifest": [{"paths": names, "weights": entries}]}
    content = b"".join(stored)
    folder.mkdir()
    for number, name in enumerate(names):
        half = len(content) // KERAS_SHARDS
        (folder / name).write_bytes(content[number * half : (number + 1) * half if number + 1 < len(names) else None])
    (folder / "model.json").write_text(json.dumps(index | changed))


def keras_weights():
    """Name and shape of every weight of a network of two levels with one block each, attention in the coarser."""
    counts = {"conv2d": 5, "dense": 7, "group_normalization": 3, "attention_block": 0}

    def layer(kind, own, *lengths, within=""):
        name = f"{within}{kind}{f'_{counts[kind]}' if counts[kind] else ''}"
        counts[kind] += 1
        width = [lengths[-1]]
        return [(f"{name}/{own[0]}/ReadVariableOp", list(lengths)), (f"{name}/{own[1]}/ReadVariableOp", width)]

    def conv(side, inputs, width):
        return layer("conv2d", ("Conv2D", "BiasAdd"), side, side, inputs, width)

    def norm(width, within=""):
        return layer("group_normalization", ("Reshape_1", "Reshape_2"), width, within=within)

    def resnet(inputs, width):
        shortcut = conv(1, inputs, width) if inputs != width else []
        time = layer("dense", ("MatMul", "BiasAdd"), 4 * KERAS_WIDTHS[0], width)
        return [*shortcut, *time, *norm(inputs), *conv(3, inputs, width), *norm(width), *conv(3, width, width)]

    def attention(width):
        within = f"attention_block_{counts['attention_block']}/".replace("_0/", "/")
        counts["attention_block"] += 1
        dense = [layer("dense", ("Tensordot", "BiasAdd"), width, width, within=within) for _ in range(4)]
        return [*norm(width, within), *(part for one in dense for part in one)]

    fine, coarse = KERAS_WIDTHS
    waves = 4 * fine
    yield from conv(3, 3, fine)
    yield from layer("dense", ("MatMul", "BiasAdd"), waves, waves)
    yield from layer("dense", ("MatMul", "BiasAdd"), waves, waves)
    yield from [*resnet(fine, fine), *conv(3, fine, fine)]
    yield from [*resnet(fine, coarse), *attention(coarse)]
    yield from [*resnet(coarse, coarse), *attention(coarse), *resnet(coarse, coarse)]
    yield from [*resnet(2 * coarse, coarse), *attention(coarse), *resnet(coarse + fine, coarse), *attention(coarse)]
    yield from conv(3, coarse, coarse)
    yield from [*resnet(coarse + fine, fine), *resnet(2 * fine, fine), *norm(fine), *conv(3, fine, 3)]


MIXER_HIDDEN, MIXER_INNER, MIXER_PATCHES, MIXER_PATCH = 6, 10, 16, 4


def equinox_arrays():
    """A score network of galaxygrad's layout for gray images of 16 pixels, one block: its arrays in their order."""
    hidden, inner, patches, side = MIXER_HIDDEN, MIXER_INNER, MIXER_PATCHES, MIXER_PATCH
    shapes = [(hidden, 2, side, side), (hidden, 1, 1), (1, hidden, side, side), (1, 1, 1)]
    shapes += [(inner, patches), (inner,), (patches, inner), (patches,)]
    shapes += [(inner, hidden), (inner,), (hidden, inner), (hidden,)]
    shapes += [(hidden, patches)] * 2 + [(patches, hidden)] * 2 + [(hidden, patches)] * 2
    draw = np.random.default_rng(0)
    return [*(draw.normal(0, 0.3, shape).astype(np.float32) for shape in shapes), np.float64(10.0)]


def equinox(path, arrays=None):
    """The file that Equinox writes of them: one `.npy` array after the other."""
    with path.open("wb") as file:
        for array in equinox_arrays() if arrays is None else arrays:
            np.save(file, array)


def keras_converted(folder):
    with tempfile.TemporaryDirectory() as place:
        keras(Path(place) / "keras")
        save_converted(convert(Path(place) / "keras", timesteps=100, schedule="cosine"), folder)


@dataclass(frozen=True)
class Family:
    """How a tiny model comes to lie at a path, and the options of `load_model` that it is read back with."""

    write: Callable[[Path], None]
    options: dict[str, Any] = field(default_factory=dict)
    suffix: str = ""

    def at(self, folder, name):
        """Write it into a folder; its path."""
        path = folder / f"{name}{self.suffix}"
        self.write(path)
        return path


PROMPT = {"prompt": "a portrait"}

FAMILIES = {
    "ddpm": Family(ddpm),
    "ddpm_v": Family(partial(ddpm, prediction_type="v_prediction")),
    "ddpm_flat": Family(ddpm_flat),
    "ddpm_pickled": Family(ddpm_pickled),
    "ddpm_gray": Family(ddpm_gray),
    "ddpm_checkpoint": Family(partial(original, name="ddpm"), suffix=".ckpt"),
    "guided_checkpoint": Family(partial(original, name="afhq_like"), suffix=".pt"),
    "improved_checkpoint": Family(partial(original, name="improved"), suffix=".pt"),
    "cosine": Family(cosine),
    "keras": Family(keras_converted),
    "equinox": Family(equinox, suffix=".eqx"),
    "class_conditional": Family(class_conditional, {"label": 3}),
    "patched_2": Family(patched),
    "patched_4": Family(partial(patched, side=4)),
    "score": Family(score),
    "edm_karras": Family(edm),
    "edm_exponential": Family(partial(edm, sigma_schedule="exponential")),
    "edm_v": Family(partial(edm, prediction_type="v_prediction")),
    "ldm_vq": Family(ldm_vq),
    "ldm_kl": Family(ldm_kl),
    "ldm_kl_sampled": Family(ldm_kl, {"sampled": True}),
    "stable_diffusion": Family(stable_diffusion, PROMPT),
    "stable_diffusion_v": Family(partial(stable_diffusion, prediction_type="v_prediction"), PROMPT),
    "stable_diffusion_xl": Family(stable_diffusion_xl, PROMPT),
    "stable_diffusion_3": Family(stable_diffusion_3, PROMPT),
    "flux": Family(flux, PROMPT | {"size": 32}),
    "flux_without_guidance": Family(partial(flux, guidance_embeds=False), PROMPT | {"size": 32}),
}
