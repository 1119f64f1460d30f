"""Original checkpoints (.pt, .ckpt) turned into diffusers folders: the DDPM and the guided-diffusion layout.

`convert` infers the architecture from the weights' names and shapes (`original.layouts`); what these cannot tell is an
option with a default, and every default that was taken is a sentence in `Converted.assumptions`. A checkpoint is
never trusted: it is read as weights only, no code of it runs, and every weight must find its place.

Two things that diffusers' configs cannot say are kept as extra keys, which diffusers carries along but ignores:

    unet/config.json                     attention_heads      the same number of heads at several widths
    scheduler/scheduler_config.json      rescale_timesteps    the network's time is t * 1000 / num_train_timesteps

A folder with one of them names a NearfarPipeline in its model_index.json, so that diffusers refuses it.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from nearfar.errors import UsageError, first_line, printable
from nearfar.models.original.keras import INDEX, clipped_betas, read_keras
from nearfar.models.original.layouts import (
    Heads,
    Names,
    Plan,
    Weights,
    module_names,
    network_config,
    read_plan,
    rename,
    usual_heads,
)
from nearfar.models.original.mixer import read_equinox
from nearfar.models.original.network import Converted, SavedConfig
from nearfar.models.original.start import ZIP_START, check_start

SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
EMA_KEYS = ("ema", "model_ema", "ema_model", "ema_state_dict")
MODEL_KEYS = ("state_dict", "model", "model_state_dict")
EMA_PLACE = 4  # in a training file of ermongroup/ddim: model, optimizer, epoch, step, EMA
FEWEST_STEPS = 100  # below, the linear schedule's last beta nears 1
MODEL_STEPS = 1000  # the steps that rescaled times count in
KERAS_OPTIONS = ("size", "schedule", "timesteps")
ATTENTION_OPTIONS = ("heads", "head_channels", "new_attention_order", "rescale_timesteps")
EQUINOX_OPTIONS = ("low", "high", "curve", "unit")
LEGACY_ORDER = "Queries, keys and values are interleaved by head; guided-diffusion's 64x64 model has the new order"


@dataclass(frozen=True)
class Options:
    """What weights cannot tell; None is: choose the default, and say so."""

    size: int | None = None
    heads: int | None = None
    head_channels: int | None = None
    new_attention_order: bool = False
    schedule: str = "linear"
    timesteps: int = 1000
    rescale_timesteps: bool = False
    low: float = -1.0
    high: float = 1.0
    curve: str = "linear"
    unit: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UsageError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}: choose one")
        if self.timesteps < FEWEST_STEPS:
            raise UsageError(f"timesteps must be at least {FEWEST_STEPS}, got {self.timesteps}: most models have 1000")
        if self.heads is not None and self.head_channels is not None:
            got = f"{self.heads} and {self.head_channels}"
            raise UsageError(f"heads and head_channels exclude each other, got {got}: give one of them")
        for name in ("size", "heads", "head_channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}: leave it out for the default")


def convert(path: Path, **given: Any) -> Converted:
    """Read a checkpoint and build its network; memory is the file's and the weights' in float32.

    given: `Options`, by name. Raises UsageError for options that contradict each other, a file that cannot be read
    safely, and weights that are missing, left over or of another shape than the network's.
    """
    options = Options(**given)
    if path.is_dir() and (path / INDEX).is_file():
        return convert_keras(path, options, given)
    if path.suffix == ".eqx" and path.is_file():
        return convert_equinox(path, options, given)
    check_options(given, (*KERAS_OPTIONS, *ATTENTION_OPTIONS), "a checkpoint of torch")
    weights, said = read_weights(path)
    try:
        plan = read_plan(weights)
        size, by_size = pick_size(plan, options.size)
        picked, by_heads = pick_heads(plan, options)
        unet = build(plan, weights, picked, size)
    except UsageError as error:
        raise UsageError(f"{path} cannot be converted: {error}") from None
    return Converted(unet, build_scheduler(plan, options), said + by_size + by_heads + describe_times(options))


def convert_keras(folder: Path, options: Options, given: dict[str, Any]) -> Converted:
    """Keras' DDPM example as TensorFlow.js has it; see `original.keras`."""
    check_options(given, KERAS_OPTIONS, "a model of Keras' DDPM example")
    unet, said = read_keras(folder, options.size)
    betas = clipped_betas(options.schedule, options.timesteps)
    config = {"num_train_timesteps": len(betas), "trained_betas": betas, "beta_schedule": "linear"}
    return Converted(unet, SavedConfig("DDPMScheduler", config), (*said, describe_times(options)[0]))


def convert_equinox(path: Path, options: Options, given: dict[str, Any]) -> Converted:
    """A mixer of patches in an `.eqx` file; see `original.mixer`."""
    check_options(given, EQUINOX_OPTIONS, "an Equinox file")
    unet, scheduler = read_equinox(path, options.low, options.high, options.curve, options.unit)
    ends = f"Images from -1 to 1 are the network's values from {options.low:g} to {options.high:g} (low, high)"
    return Converted(unet, scheduler, (f"{ends}, which are {options.curve} values by {options.unit:g} (curve, unit).",))


def check_options(given: dict[str, Any], known: tuple[str, ...], what: str) -> None:
    if unknown := [name for name in given if name not in known]:
        raise UsageError(f"{unknown[0]} says nothing about {what}: leave it out ({', '.join(known)} do)")


# Reading


def read_weights(path: Path) -> tuple[Weights, tuple[str, ...]]:
    """The network's weights in float32 without a `module.` or `_orig_mod.` prefix, and which of several were taken."""
    check_start(path)
    room = path.stat().st_size
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path, room)
    weights, said = pick_weights(path, content)
    check_weights(path, weights, room)
    bare = {re.sub(r"^(module\.|_orig_mod\.)+", "", key): weight for key, weight in weights.items()}
    named = {key: weight.detach().float().contiguous() for key, weight in bare.items()}
    if len(named) < len(weights):
        raise UsageError(f"{path} holds weights twice, with and without 'module.': save one state_dict alone")
    return named, said


def read_safetensors(path: Path) -> Weights:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path} is no complete safetensors file ({first_line(error)}): get it again") from None


def read_torch(path: Path, room: int) -> Any:
    """What torch.save wrote, as far as it is weights and plain containers."""
    with path.open("rb") as file:
        zipped = file.read(len(ZIP_START)) == ZIP_START
    if zipped:
        check_zip(path, room)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(unpickling_sentence(path, str(error))) from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise UsageError(f"{path} is damaged, cut off or no state_dict ({first_line(error)}): get it again") from None


def check_zip(path: Path, room: int) -> None:
    """Refuse what would unpack to more than the file: torch.save never compresses."""
    try:
        with zipfile.ZipFile(path) as file:
            records = file.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UsageError(f"{path} is damaged or cut off ({first_line(error)}): get it again") from None
    if packed := [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]:
        raise UsageError(
            f"{path} is compressed within ({printable(packed[0])}), which torch.save never does: save it again"
        )
    if (total := sum(record.file_size for record in records)) > room:
        raise UsageError(f"{path} claims {total} bytes of records and has {room}: get it again")


def unpickling_sentence(path: Path, reason: str) -> str:
    """Code that the pickle asks for is named; what is no pickle of weights is damaged."""
    if code := re.search(r"GLOBAL (\S+)", reason):
        way = "save its state_dict alone, where you trust it"
        return f"{path} holds Python objects ({printable(code.group(1))}), not only weights: nothing was run; {way}"
    unknown = re.search(r"Unsupported [^\n]*", reason)
    detail = printable(unknown.group()) if unknown else "not written by torch.save"
    return f"{path} is damaged ({detail}): nothing was run; get it again"


def pick_weights(path: Path, content: Any) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The weights within what people save: smoothed ones (EMA) before the last ones of the training."""
    if is_weights(content):
        return content, ()
    for key, found in places(content):
        if is_weights(found):
            smoothed = key in (*EMA_KEYS, EMA_PLACE)
            kind = "smoothed weights (EMA)" if smoothed else "weights, as there are no smoothed ones (EMA),"
            return found, (f"The {kind} were taken, which lie at {key!r}.",)
    keys = f" with {printable(', '.join(map(str, list(content)[:4])))}" if isinstance(content, Mapping) else ""
    raise UsageError(f"{path} must hold weights by name, got a {type(content).__name__}{keys}: give a state_dict")


def places(content: Any) -> list[tuple[Any, Any]]:
    """Where weights may lie, the best first: by key, or by position in a list."""
    if isinstance(content, list | tuple):
        return [(place, content[place]) for place in (EMA_PLACE, 0) if place < len(content)]
    if isinstance(content, Mapping):
        return [(key, content[key]) for key in EMA_KEYS + MODEL_KEYS if key in content]
    return []


def is_weights(content: Any) -> bool:
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())


def check_weights(path: Path, weights: Mapping[str, Tensor], room: int) -> None:
    """Refuse what is no plain array of numbers, and views that would grow beyond the file."""
    for key, weight in weights.items():
        if key != printable(key):
            raise UsageError(f"{path}: {printable(key)} is no name of a network's weight: choose another file")
        if weight.layout != torch.strided or weight.device.type != "cpu" or not weight.is_floating_point():
            raise UsageError(f"{path}: {key} must be a dense array of floats, got {weight.dtype}: choose another file")
        if not weight.numel():
            raise UsageError(f"{path}: {key} is empty, got shape {tuple(weight.shape)}: get the file again")
    total = sum(weight.numel() * weight.element_size() for weight in weights.values())
    if total > room:
        raise UsageError(
            f"{path} claims {total} bytes of weights and has {room}: save copies of its weights, not views"
        )


# Defaults


def pick_size(plan: Plan, size: int | None) -> tuple[int, tuple[str, ...]]:
    """The side of the images: published networks attend at 16x16 alone, or at several sizes down to 8x8."""
    said: tuple[str, ...] = ()
    if size is None:
        if not plan.attended:
            raise UsageError("without attention outside its middle a network does not tell its size: give size")
        coarsest = 16 if len(plan.attended) == 1 else 8
        size = coarsest << plan.attended[-1]
        said = (f"Images are {size}x{size}: attention then ends at {coarsest}x{coarsest}, as is usual (size).",)
    if size % (unit := 2 ** (len(plan.widths) - 1)):
        raise UsageError(f"size must be a multiple of {unit}, as the network halves it, got {size}: give size")
    return size, said


def pick_heads(plan: Plan, options: Options) -> tuple[Heads, tuple[str, ...]]:
    """DDPM networks have one head; for the others the convention of their publishers."""
    given = options.heads is not None or options.head_channels is not None
    if not plan.guided:
        if (given and options.heads != 1) or options.new_attention_order:
            raise UsageError("a network of the DDPM layout has one attention head: leave out the options on attention")
        return Heads(count=1), ()
    said: tuple[str, ...] = ()
    heads = Heads(options.heads, options.head_channels, options.new_attention_order)
    if not given:
        heads, said = usual_heads(plan, options.new_attention_order)
    if heads.config(plan.attended_widths) != (None, None) and not options.new_attention_order:
        said += (f"{LEGACY_ORDER} (new_attention_order).",)
    return heads, said


def describe_times(options: Options) -> tuple[str, ...]:
    said = (f"The network predicts noise on a {options.schedule} schedule of {options.timesteps} steps (schedule).",)
    if options.timesteps == MODEL_STEPS:
        return said
    how = "is counted in thousandths of the whole" if options.rescale_timesteps else "counts these steps"
    return (*said, f"The time that the network is told {how} (rescale_timesteps).")


# Building


def build(plan: Plan, weights: Weights, heads: Heads, size: int) -> Any:
    """The network with exactly these weights; its skeleton takes no memory until they fit."""
    from diffusers import UNet2DModel

    dimension, count = heads.config(plan.attended_widths)
    names = module_names(plan)
    renamed = rename(weights, names, heads)
    with torch.device("meta"):
        unet = UNet2DModel(sample_size=size, attention_head_dim=dimension, **network_config(plan))
    check_fit(unet.state_dict(), renamed, names)
    unet.load_state_dict(renamed, strict=True, assign=True)
    if count is not None:
        unet.register_to_config(attention_heads=count)
        apply_heads(unet)
    return unet.eval()


def check_fit(expected: Mapping[str, Tensor], found: Weights, names: Names) -> None:
    """Every weight of the network must be there in its shape; named as the checkpoint names it."""
    origin = {ours: theirs for theirs, places in names.items() for ours in places}
    for key, weight in expected.items():
        module, _, kind = key.rpartition(".")
        name = f"{origin[module]}.{kind}"
        if key not in found:
            raise UsageError(f"the weights lack {name}: the file is incomplete or of another family, get it again")
        if found[key].shape != weight.shape:
            shapes = f"{tuple(weight.shape)}, got {tuple(found[key].shape)}"
            raise UsageError(f"{name} must have the shape {shapes}: the checkpoint is of another family")
    if surplus := found.keys() - expected.keys():
        module, _, kind = min(surplus).rpartition(".")
        raise UsageError(f"the weight {origin[module]}.{kind} has no place in the network: choose another checkpoint")


def apply_heads(unet: Any) -> None:
    """Give every attention the number of heads in the config's `attention_heads`; does nothing without that key.

    To be called after UNet2DModel.from_pretrained, which keeps the key but knows only one width of a head for all
    levels. Raises UsageError for a number that does not divide the channels.
    """
    from diffusers.models.attention_processor import Attention

    count = unet.config.get("attention_heads")
    if count is None:
        return
    if not isinstance(count, int) or count < 1:
        raise UsageError(f"attention_heads must be a number of heads, got {count!r}: convert the checkpoint again")
    for module in unet.modules():
        if isinstance(module, Attention):
            module.heads = Heads(count=count).at(module.inner_dim)
            module.scale = (module.inner_dim // count) ** -0.5


def build_scheduler(plan: Plan, options: Options) -> Any:
    """OpenAI's linear schedule keeps its noise when the number of steps changes; DDPM's does not."""
    from diffusers import DDPMScheduler

    scale = MODEL_STEPS / options.timesteps if plan.guided else 1.0
    scheduler = DDPMScheduler(
        num_train_timesteps=options.timesteps,
        beta_start=1e-4 * scale,
        beta_end=0.02 * scale,
        beta_schedule=SCHEDULES[options.schedule],
        variance_type="learned_range" if plan.learned_variance else "fixed_small",
        prediction_type="epsilon",
    )
    if options.rescale_timesteps and options.timesteps != MODEL_STEPS:
        scheduler.register_to_config(rescale_timesteps=True)
    return scheduler
