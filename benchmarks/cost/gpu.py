"""What a GPU makes of it: parity, precision, repeatability, speed, and diffusers' own loop beside it.

    python benchmarks/cost/gpu.py --json gpu.json [--seconds 150] [--only speed --only outside]
    python benchmarks/cost/gpu.py --quick --device cpu        # everywhere: every path that needs no GPU, tiny shapes

Sections, in this order; each has to be done by a share of the budget, and what one leaves over goes to the next. An
error is kept in the JSON and the next section runs. The JSON is written after each section.

* machine: matrix product in bf16, tf32 and fp32, and copy bandwidth: what the shares below are shares of.
* parity: local samples on CPU and GPU with the same key, in float32 and in the default, tf32.
* precision: tf32, bf16 and fp16 networks against float32: PSNR, and power by band of a cosine transform.
* bytes: whether a batch of the same shape gives the same bytes twice, in another order, with other neighbors.
* outside: whole local samples in each precision, with CUDA graphs and without: images a second, also with two batches
  under way as a folder run has them, and the share of the time that is not the network.
* diffusers: loops over diffusers' schedulers on the same network, same number of calls.
* speed: images a second of one network call, eager and as a CUDA graph.
* command: `nearfar anonymize` from files to files, and what of it is start-up.
* compiled: torch.compile, and cuDNN's search for the fastest algorithms; left out when time is short.

Networks but the bundled one have random weights: speed does not depend on them. "fp32" is torch.float32 in full, "tf32"
what `load_model` gives on a GPU when no precision is asked for. diffusers' "fp32" loop runs with torch's own flags
(convolutions in tf32, matrix products not), its "tf32" loop with both in tf32.
"""

from __future__ import annotations

import cProfile
import functools
import json
import math
import os
import pstats
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import typer
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import nearfar
from nearfar import FrozenModel, NoiseStream, SecretKey
from nearfar.diffusion.noise import noise_for
from nearfar.models.graphs import GpuNetwork, record_graph
from nearfar.models.lookup import BUNDLED as OF_THE_PACKAGE

Record = dict[str, Any]
Call = Callable[[], Any]
Network = Callable[[Tensor, Tensor], Tensor]

KEY = SecretKey.from_seed(13)
TIME = 300.0
STRENGTH = 0.35
PARITY_BOUND = 1e-4
OUTSIDE_AIM = 0.02
SPEED_AIM = 3.0
SPEED_ENDS, COMMAND_ENDS = 0.68, 0.97
"""Shares of the budget by which these sections must be done."""
AMPLE = 300.0
"""Seconds of budget that are enough for every row."""


class OutOfTime(BaseException):
    """A section's time is over. No Exception, so that no library takes it for an error of its own."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything. gemm: side of the matrices. copied: bytes. files: images of the whole command."""

    gemm: int = 8192
    copied: int = 1 << 31
    parity: int = 8
    images: int = 64
    steps: int = 20
    files: int = 512
    measured: float = 0.15
    repeats: int = 3


TINY = Sizes(gemm=512, copied=1 << 24, parity=2, images=4, steps=2, files=4, measured=0.02, repeats=1)


@dataclass(frozen=True)
class Precision:
    """What `load_model` is asked for, and how torch's flags have float32 products where its own networks run."""

    name: str
    asked: torch.dtype | None
    tf32: bool | None = False

    @property
    def dtype(self) -> torch.dtype:
        """The network's."""
        return self.asked or torch.float32


FP32 = Precision("fp32", torch.float32)
TF32 = Precision("tf32", None, True)
BF16 = Precision("bf16", torch.bfloat16)
FP16 = Precision("fp16", torch.float16)
AS_TORCH = Precision("fp32", torch.float32, None)
"""Convolutions in tf32, matrix products not."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A network to be measured. config: of a UNet2DModel, its weights random; none for the bundled model.

    few: the batches that are measured when time is short.
    """

    name: str
    batches: tuple[int, ...]
    few: tuple[int, ...]
    config: Record | None = None
    prediction: str = "epsilon"


def patched(widths: tuple[int, int, int], layers: int) -> Record:
    """64-pixel color images as 12 channels of 32x32, attention at 16 and 8."""
    return {
        "sample_size": 32,
        "in_channels": 12,
        "out_channels": 12,
        "block_out_channels": widths,
        "layers_per_block": layers,
        "attention_head_dim": 32,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    }


def pixels_256(guided: bool) -> Record:
    """Ho et al.'s CelebA-HQ network (113.7 million weights), or guided-diffusion's of AFHQ (93.6 million)."""
    down, up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if guided else ("DownBlock2D", "UpBlock2D")
    resampling = "resnet" if guided else "conv"
    return {
        "sample_size": 256,
        "in_channels": 3,
        "out_channels": 6 if guided else 3,
        "flip_sin_to_cos": guided,
        "freq_shift": 0 if guided else 1,
        "norm_eps": 1e-5 if guided else 1e-6,
        "attn_norm_num_groups": 32,
        "downsample_padding": 1 if guided else 0,
        "downsample_type": resampling,
        "upsample_type": resampling,
        "block_out_channels": (128, 128, 256, 256, 512, 512),
        "layers_per_block": 1 if guided else 2,
        "attention_head_dim": 64 if guided else None,
        "down_block_types": (down,) * 4 + ("AttnDownBlock2D", down),
        "up_block_types": (up, "AttnUpBlock2D") + (up,) * 4,
        "resnet_time_scale_shift": "scale_shift" if guided else "default",
    }


SMALL, LARGE = ((1, 8, 64, 256, 512), (1, 64, 256)), ((1, 8, 32), (8,))
BUNDLED = Subject("bundled 32", *SMALL)
PATCHED = Subject("patched 64", *SMALL, patched((96, 192, 256), 1), "v_prediction")
PATCHED_LARGE = Subject("patched 64 large", (1, 64, 256), (64,), patched((128, 192, 256), 2), "v_prediction")
AFHQ = Subject("afhq 256", *LARGE, pixels_256(guided=True))
CELEBAHQ = Subject("celebahq 256", *LARGE, pixels_256(guided=False))
SUBJECTS = (BUNDLED, PATCHED, AFHQ, CELEBAHQ, PATCHED_LARGE)


@dataclass(frozen=True, eq=False)
class Bench:
    """Where, how much, until when; and the record of everything."""

    device: torch.device
    sizes: Sizes
    folder: Path
    ends: float
    budget: float
    record: Record = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def quick(self) -> bool:
        return self.sizes is TINY

    def precisions(self, *wanted: Precision) -> tuple[Precision, ...]:
        """Those that the device can do: on a CPU float32 alone, which rehearses the rest."""
        return wanted if self.on_gpu else (FP32,)

    def left(self, share: float = 1.0) -> float:
        """Seconds left until this share of the budget is spent."""
        return self.ends - (1 - share) * self.budget - time.monotonic()


# Running, recording, timing


def say(text: str) -> None:
    print(text, flush=True)


def failure(error: BaseException) -> Record:
    """An error as it goes into the record."""
    say(f"  FAILED {type(error).__name__}: {str(error)[:300]}")
    return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def attempt(record: Record, name: str, action: Call) -> None:
    """Keep what the action returns or, if it fails, why; what it held on the GPU is freed."""
    try:
        record[name] = action()
    except Exception as error:
        record[name] = failure(error)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime within when the seconds are over, where the system has such timers."""

    def stop(*_: object) -> None:
        raise OutOfTime("the section's time is over")

    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def carry_out(bench: Bench, section: Section, file: Path | None) -> None:
    """One section within its time; its errors and what it found until then are kept."""
    found: Record = {}
    bench.record[section.name] = found
    say(f"\n== {section.name} ({bench.left():.0f} s left)")
    began, seconds = time.monotonic(), bench.left(section.share)
    try:
        if seconds < 1:
            raise OutOfTime("no time was left for it")
        with time_limit(seconds):
            section.action(bench, found)
    except (Exception, OutOfTime) as error:
        found["failure"] = failure(error)
    found["seconds"] = round(time.monotonic() - began, 1)
    say(f"-- {section.name}: {found['seconds']} s")
    write(bench.record, file)


def write(record: Record, file: Path | None) -> None:
    """The record so far, whole or not at all."""
    if file:
        part = file.with_name(file.name + ".part")
        part.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
        part.replace(file)


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """float32 products as the precision has them."""
    convolutions, matrices = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, matrices.allow_tf32
    if precision.tf32 is not None:
        convolutions.allow_tf32 = matrices.allow_tf32 = precision.tf32
    try:
        yield
    finally:
        convolutions.allow_tf32, matrices.allow_tf32 = before


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clocked(device: torch.device, call: Call, count: int) -> list[float]:
    """Seconds of each of `count` calls in a row, by the device's own clock."""
    wait(device)
    if device.type != "cuda":
        return [wall(device, call) for _ in range(count)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    wait(device)
    return [first.elapsed_time(second) / 1000 for first, second in pairwise(events)]


def seconds_of(bench: Bench, call: Call) -> float:
    """Median seconds of a call, warmed up."""
    first = clocked(bench.device, call, 3)[-1]
    count = max(3, min(30, int(bench.sizes.measured / first)))
    return statistics.median(clocked(bench.device, call, count))


def wall(device: torch.device, call: Call) -> float:
    """Seconds on the wall until the device is done."""
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


def median_wall(bench: Bench, call: Call) -> float:
    """Median over the repeats, after one that is not counted."""
    call()
    return statistics.median(wall(bench.device, call) for _ in range(bench.sizes.repeats))


# Models and images


def config_of(subject: Subject, quick: bool) -> Record:
    """The subject's configuration; a quick one is as deep and 64 channels wide."""
    config = dict(subject.config or {})
    if quick:
        config["block_out_channels"] = tuple(64 for _ in config["block_out_channels"])
        config["sample_size"] = min(config["sample_size"], 32)
    return config


@functools.cache
def folder_of(bench: Bench, subject: Subject) -> Path:
    """The model's diffusers folder, written if need be."""
    if subject.config is None:
        return OF_THE_PACKAGE["faces"]
    folder = bench.folder / subject.name.replace(" ", "-")
    with torch.device(bench.device):
        network = UNet2DModel(**config_of(subject, bench.quick))
    network.save_pretrained(folder / "unet")
    DDPMScheduler(prediction_type=subject.prediction).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


@functools.lru_cache(6)
def loaded(
    bench: Bench, subject: Subject, asked: torch.dtype | None, device: torch.device, graphs: bool = True
) -> FrozenModel:
    source = "bundled/faces" if subject.config is None else folder_of(bench, subject)
    return nearfar.load_model(source, device, asked, graphs=graphs)


def model_of(bench: Bench, subject: Subject, precision: Precision, graphs: bool = True) -> FrozenModel:
    return loaded(bench, subject, precision.asked, bench.device, graphs)


def network_of(model: FrozenModel) -> Network:
    """The bare network of a model whose denoiser has one."""
    network = model.denoiser.network  # type: ignore[attr-defined]
    return network.network if isinstance(network, GpuNetwork) else network  # type: ignore[no-any-return]


def sampled(model: FrozenModel, images: Tensor, strength: float, steps: int) -> Tensor:
    return nearfar.local_sample(model, images, strength=strength, steps=steps, key=KEY)


@functools.cache
def samples(bench: Bench) -> Tensor:
    """Images that the bundled model knows: its own, made in float32."""
    model, count = model_of(bench, BUNDLED, FP32), bench.sizes.images
    blank = torch.zeros(count, model.image.channels, model.image.size, model.image.size)
    return nearfar.local_sample(model, blank, strength=1.0, steps=bench.sizes.steps, key=KEY, variant=range(count))


def images_for(bench: Bench, model: FrozenModel) -> Tensor:
    """The samples in the model's size."""
    size = (model.image.size, model.image.size)
    return torch.nn.functional.interpolate(samples(bench), size=size, mode="bilinear").clamp(-1, 1)


def inputs(model: FrozenModel, batch: int) -> tuple[Tensor, Tensor]:
    """Noise and a time, as the denoiser hands them to the network."""
    x = torch.randn(batch, *model.latent_shape, device=model.device).to(model.dtype)
    return x, torch.full((batch,), TIME, device=model.device)


# 1. machine


def machine(bench: Bench, found: Record) -> None:
    found |= {"torch": torch.__version__, "diffusers": diffusers.__version__, "python": sys.version.split()[0]}
    found |= {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "device": str(bench.device)}
    found["flags"] = flags()
    if bench.on_gpu:
        attempt(found, "card", card)
    say(f"  {found}")
    found["peaks"] = {}
    for precision in (BF16, TF32, FP32):
        attempt(found["peaks"], precision.name, functools.partial(matrix_peak, bench, precision))
    attempt(found, "copy_gb_a_second", functools.partial(copy_rate, bench))


def flags() -> Record:
    """What torch's backends say of tf32 and of choosing algorithms."""
    cudnn, products_of = torch.backends.cudnn, torch.backends.cuda.matmul
    return {
        "cudnn.allow_tf32": cudnn.allow_tf32,
        "cuda.matmul.allow_tf32": products_of.allow_tf32,
        "cudnn.benchmark": cudnn.benchmark,
        "cudnn.deterministic": cudnn.deterministic,
        "cudnn.version": cudnn.version() if cudnn.is_available() else None,
    }


def card() -> str:
    """Name, driver and memory as the driver's tool prints them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return torch.cuda.get_device_name()


def matrix_peak(bench: Bench, precision: Precision) -> float:
    """TFLOP/s of a large square product of random matrices."""
    side = bench.sizes.gemm
    a, b = (torch.randn(side, side, device=bench.device).to(precision.dtype) for _ in range(2))
    with torch.inference_mode(), products(precision):
        rate = 2 * side**3 / seconds_of(bench, lambda: a @ b) / 1e12
    say(f"  {precision.name:5} matrix product {side}: {rate:.4g} TFLOP/s")
    return rate


def copy_rate(bench: Bench) -> float:
    """GB/s of a copy on the device, read and written counted."""
    source = torch.randn(bench.sizes.copied // 4, device=bench.device)
    target = torch.empty_like(source)
    rate = 2 * bench.sizes.copied / seconds_of(bench, lambda: target.copy_(source)) / 1e9
    say(f"  copy {rate:.4g} GB/s")
    return rate


# 2. parity


def parity(bench: Bench, found: Record) -> None:
    """Greatest difference between CPU and GPU; the noise is the same, as it comes from the key."""
    images = samples(bench)[: bench.sizes.parity]
    cpu = loaded(bench, BUNDLED, torch.float32, torch.device("cpu"))
    for strength in (0.2, 0.5, 0.8):
        expected = sampled(cpu, images, strength, bench.sizes.steps)
        for each in bench.precisions(FP32, TF32):
            action = functools.partial(compare_devices, bench, each, (images, strength, expected))
            attempt(found, f"{each.name}, strength {strength}", action)


def compare_devices(bench: Bench, each: Precision, case: tuple[Tensor, float, Tensor]) -> Record:
    images, strength, expected = case
    difference = (sampled(model_of(bench, BUNDLED, each), images, strength, bench.sizes.steps) - expected).abs()
    greatest = difference.max().item()
    row = {"greatest": greatest, "rms": difference.square().mean().sqrt().item(), "flags afterwards": flags()}
    verdict = "within" if greatest <= PARITY_BOUND else "OVER"
    say(f"  {each.name:5} strength {strength}: {greatest:.2e}, rms {row['rms']:.1e}, {verdict} 1e-4")
    return row | {"within_bound": greatest <= PARITY_BOUND}


# 3. precision


def precisions(bench: Bench, found: Record) -> None:
    """Images of cheaper networks against those of float32, with the same noise."""
    images = samples(bench)
    for strength in (0.35, 0.7):
        expected = sampled(model_of(bench, BUNDLED, FP32), images, strength, bench.sizes.steps)
        for each in bench.precisions(TF32, BF16, FP16):
            name = f"{each.name}, strength {strength}"
            attempt(found, name, functools.partial(compare_precision, bench, each, (images, strength, expected)))


def compare_precision(bench: Bench, each: Precision, case: tuple[Tensor, float, Tensor]) -> Record:
    images, strength, expected = case
    found = sampled(model_of(bench, BUNDLED, each), images, strength, bench.sizes.steps)
    errors = (found - expected).square().flatten(1).mean(1).clamp(min=1e-20)
    decibels = 10 * (4 / errors).log10()
    ratios = band_ratios(found, expected)
    row = {"psnr_median": decibels.median().item(), "psnr_least": decibels.min().item(), "power_ratio": ratios}
    shown = " ".join(f"{band}:{ratio - 1:+.4f}" for band, ratio in ratios.items())
    decibels_shown = f"PSNR {row['psnr_median']:.1f} dB, least {row['psnr_least']:.1f}"
    say(f"  {each.name:12} strength {strength}: {decibels_shown}; {shown}")
    return row


def band_ratios(found: Tensor, expected: Tensor) -> dict[str, float]:
    """Power of the found images over that of the expected, by octave of half cycles an image; 0 is the mean."""
    index = torch.arange(found.shape[-1], dtype=torch.float64)
    radius = (index[:, None].square() + index[None].square()).sqrt()
    edges = [0, 1, *(2**octave for octave in range(1, 1 + math.ceil(math.log2(radius.max().item()))))]
    powers = [cosine_transform(images).square().mean((0, 1)) for images in (found, expected)]
    ratios = {}
    for low, high in pairwise(edges):
        band = (radius >= low) & (radius < high)
        ratios[str(low)] = (powers[0][band].sum() / powers[1][band].sum()).item()
    return ratios


def cosine_transform(images: Tensor) -> Tensor:
    """The orthonormal cosine transform (DCT-II) over both axes, in float64."""
    side = images.shape[-1]
    index = torch.arange(side, dtype=torch.float64)
    basis = (math.pi / side * index[:, None] * (index[None] + 0.5)).cos() * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    return basis @ images.double() @ basis.T


# 4. bytes


def same_bytes(bench: Bench, found: Record) -> None:
    """The same images in a batch of the same shape: equal to the bit, whatever their order and their neighbors?"""
    for each in bench.precisions(FP32, TF32, BF16, FP16):
        attempt(found, each.name, functools.partial(repeat_batches, bench, each))


def repeat_batches(bench: Bench, each: Precision) -> Record:
    model, images = model_of(bench, BUNDLED, each), samples(bench)
    make = functools.partial(sampled, model, strength=STRENGTH, steps=bench.sizes.steps)
    count = len(images)
    order, half = torch.randperm(count, generator=torch.Generator().manual_seed(0)), count // 2
    strangers = torch.cat([images[:half], -images[half:]])
    first = make(images)
    row = {
        "twice": differing(make(images), first),
        "another order": differing(make(images[order]), first[order]),
        "other neighbors": differing(make(strangers)[:half], first[:half]),
        "half the batch shape": differing(make(images[:half]), first[:half]),
    }
    if bench.on_gpu:
        plain = sampled(model_of(bench, BUNDLED, each, graphs=False), images, STRENGTH, bench.sizes.steps)
        row["without graphs"] = differing(plain, first)
    shown = ", ".join(f"{name} {'EQUAL' if not diff else f'{diff:.1e}'}" for name, diff in row.items())
    say(f"  {each.name:12} batch {count}: {shown}")
    return row


def differing(found: Tensor, expected: Tensor) -> float:
    """The greatest difference; exactly 0 when all bytes are equal."""
    return 0.0 if torch.equal(found, expected) else max((found - expected).abs().max().item(), 1e-45)


# 5. speed


def speed(bench: Bench, found: Record) -> None:
    """Images a second of one network call."""
    for subject in SUBJECTS:
        rows = found.setdefault(subject.name, {})
        attempt(rows, "network", functools.partial(describe, bench, subject))
        for each in bench.precisions(TF32, BF16, FP16, FP32):
            for batch in batches_of(bench, subject, each):
                if bench.left(SPEED_ENDS) < 5:
                    raise OutOfTime("left out what comes after")
                action = functools.partial(speed_row, bench, subject, each, batch)
                attempt(rows, f"{each.name}, batch {batch}", action)
        loaded.cache_clear()


def batches_of(bench: Bench, subject: Subject, each: Precision) -> tuple[int, ...]:
    """The subject's batches; with little time a few."""
    if bench.quick:
        return (bench.sizes.images,)
    return subject.batches if bench.budget >= AMPLE else subject.few


def describe(bench: Bench, subject: Subject) -> Record:
    """Weights, operations of one image, and seconds to load."""
    folder_of(bench, subject)
    loading = wall(bench.device, lambda: model_of(bench, subject, FP32))
    model = model_of(bench, subject, FP32)
    row = {"parameters": model.parameters, "gflop": flops_of(bench, subject) / 1e9, "seconds_to_load": loading}
    say(f"  {subject.name}: {model.parameters / 1e6:.1f} M weights, {row['gflop']:.4g} GFLOP, loads in {loading:.1f} s")
    return row


@functools.cache
@torch.no_grad()
def flops_of(bench: Bench, subject: Subject) -> int:
    """Floating-point operations of one image in one call, a multiplication and an addition being two."""
    model = model_of(bench, subject, FP32)
    x, t = inputs(model, 1)
    with FlopCounterMode(display=False) as counter:
        network_of(model)(x, t)
    return int(counter.get_total_flops())


def speed_row(bench: Bench, subject: Subject, each: Precision, batch: int) -> Record:
    model, given = model_of(bench, subject, each), functools.partial(figures, bench, subject, each, batch)
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    row: Record = {}
    with products(each):
        attempt(row, "eager", lambda: given(seconds_of(bench, eager(model, batch))))
        row["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30 if bench.on_gpu else None
        if bench.on_gpu:
            attempt(row, "graph", lambda: replayed(bench, model, batch, given))
    shown = " | ".join(f"{mode} {shown_figures(row[mode])}" for mode in ("eager", "graph") if mode in row)
    say(f"  {subject.name:16} {each.name:5} batch {batch:3}: {shown}")
    return row


def replayed(bench: Bench, model: FrozenModel, batch: int, given: Callable[[float], Record]) -> Record:
    """Of the bare replay of a recorded call; and how far it is from the eager call."""
    x, t = inputs(model, batch)
    recording = record_graph(network_of(model), x, t, None)
    row = given(seconds_of(bench, recording.replay))
    expected = eager(model, batch, (recording.x, recording.t))()
    return row | {"greatest_difference": (recording.output.float() - expected.float()).abs().max().item()}


def figures(bench: Bench, subject: Subject, each: Precision, batch: int, seconds: float) -> Record:
    """Of one call: images a second, TFLOP/s, and share of the matrix product's."""
    rate = flops_of(bench, subject) * batch / seconds / 1e12
    peak = bench.record.get("machine", {}).get("peaks", {}).get(each.name)
    share = rate / peak if isinstance(peak, float) else None
    return {"images_a_second": batch / seconds, "ms": seconds * 1000, "tflops": rate, "share_of_peak": share}


def shown_figures(row: Record) -> str:
    if "error" in row:
        return "failed"
    share = f"{row['share_of_peak']:4.0%}" if row["share_of_peak"] is not None else "-"
    return f"{row['images_a_second']:9.1f}/s {row['ms']:8.2f} ms {row['tflops']:6.4g} TF {share}"


def eager(model: FrozenModel, batch: int, given: tuple[Tensor, Tensor] | None = None) -> Call:
    """One network call as a run makes it, on what is given or on noise."""
    network, (x, t) = network_of(model), given or inputs(model, batch)

    @torch.inference_mode()
    def call() -> Tensor:
        return network(x, t)

    return call


# 6. outside


def outside(bench: Bench, found: Record) -> None:
    """Whole local samples against their bare network calls; the default first, as its user gets it."""
    for subject in (PATCHED, BUNDLED):
        for each in bench.precisions(TF32, FP16, BF16, FP32):
            for graphs in (True, False) if bench.on_gpu and each is TF32 else (True,):
                name = f"{subject.name}, {each.name}{'' if graphs else ', eager'}"
                attempt(found, name, functools.partial(outside_row, bench, subject, each, graphs))
                if "share_outside" in found[name]:
                    say_outside(name, found[name])


def outside_row(bench: Bench, subject: Subject, each: Precision, graphs: bool) -> Record:
    """network: seconds of the bare calls, replayed where the model replays them. pair: of two batches under way."""
    model, steps = model_of(bench, subject, each, graphs), bench.sizes.steps
    images = images_for(bench, model)
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    whole = median_wall(bench, lambda: sampled(model, images, STRENGTH, steps))
    pair = wall(bench.device, lambda: both(model, images, steps))
    memory = torch.cuda.max_memory_allocated() / 2**30 if bench.on_gpu else None
    calls = steps * call_seconds(bench, model, each, len(images), graphs)
    busiest = profiled(lambda: sampled(model, images, STRENGTH, steps))
    row = {"seconds": whole, "network": calls, "share_outside": 1 - calls / whole, "memory_gib": memory}
    row |= {"pair": pair, "share_outside_of_a_pair": 1 - 4 * calls / pair, "images_a_second": len(images) / whole}
    return (
        row
        | {"images_a_second_of_a_pair": 4 * len(images) / pair, **suspects(bench, model, images)}
        | {"busiest": busiest}
    )


def both(model: FrozenModel, images: Tensor, steps: int) -> None:
    """Four batches by two threads, as the runner has them."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: sampled(model, images, STRENGTH, steps), range(4)))


def call_seconds(bench: Bench, model: FrozenModel, each: Precision, batch: int, graphs: bool) -> float:
    """Seconds of one bare network call."""
    with products(each):
        if not (graphs and bench.on_gpu):
            return seconds_of(bench, eager(model, batch))
        recording = record_graph(network_of(model), *inputs(model, batch), None)
        return seconds_of(bench, recording.replay)


def suspects(bench: Bench, model: FrozenModel, images: Tensor) -> Record:
    """Seconds of what a local sample does on the CPU, by one thread: noise for every step, a key for every image."""
    streams = NoiseStream([secrets.token_bytes(16) for _ in images], model.latent_shape)
    keys = median_wall(bench, lambda: noise_for(images, torch.full((len(images),), TIME).double(), KEY, 0))
    return {"noise": (bench.sizes.steps + 1) * median_wall(bench, streams.draw), "keys": keys}


def profiled(call: Call, shown: int = 10) -> list[str]:
    """The functions with most time of their own on the host; waiting for the device counts for whoever waits."""
    profile = cProfile.Profile()
    profile.runcall(call)
    rows = pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    most = sorted(rows, key=lambda row: -row[1][2])[:shown]
    return [f"{1000 * own:.1f} ms {calls}x {Path(file).name}:{name}" for (file, _, name), (_, calls, own, *_) in most]


def say_outside(name: str, row: Record) -> None:
    memory = f", {row['memory_gib']:.2f} GiB" if row["memory_gib"] is not None else ""
    verdict = "within" if row["share_outside"] <= OUTSIDE_AIM else "OVER"
    rate = f"{row['images_a_second']:.1f} images/s{memory}"
    say(f"  {name}: {row['seconds']:.4f} s, {rate}; network alone {row['network']:.4f} s")
    rate, share = row["images_a_second_of_a_pair"], row["share_outside_of_a_pair"]
    say(f"    two at a time: {rate:.1f} images/s, outside {share:.1%}")
    say(f"    outside {row['share_outside']:.1%}, {verdict} 2 %; noise {row['noise']:.4f} s, keys {row['keys']:.4f} s")
    for line in row["busiest"][:6]:
        say(f"      {line}")


# 7. diffusers


@dataclass(frozen=True, eq=False)
class Loop:
    """A loop over one of diffusers' schedulers, as its users write image to image."""

    unet: Any
    scheduler: Any
    steps: int
    patch: int

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images in, images out, both on the CPU; as many network calls as there are steps."""
        scheduler, unet = self.scheduler, self.unet
        scheduler.set_timesteps(round(self.steps / STRENGTH), device=unet.device)
        times = scheduler.timesteps[-self.steps :]
        if isinstance(scheduler, DPMSolverMultistepScheduler):
            scheduler.set_begin_index(len(scheduler.timesteps) - self.steps)
        latents = torch.nn.functional.pixel_unshuffle(images, self.patch).to(unet.device, unet.dtype)
        x = scheduler.add_noise(latents, torch.randn_like(latents), times[:1])
        for t in times:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
        return torch.nn.functional.pixel_shuffle(x.float(), self.patch).clamp(-1, 1).cpu()


def beside_diffusers(bench: Bench, found: Record) -> None:
    """Images a second of whole loops, theirs and ours."""
    for subject in (PATCHED, BUNDLED):
        rows = found.setdefault(subject.name, {})
        for each in (AS_TORCH, TF32, BF16, FP16) if bench.on_gpu else (AS_TORCH,):
            for name in ("sde-dpm++", "ddpm") if each is AS_TORCH else ("sde-dpm++",):
                action = functools.partial(their_rate, bench, subject, each, name)
                attempt(rows, f"diffusers {name}, {each.name}", action)
        for each in bench.precisions(TF32, FP16, BF16, FP32):
            attempt(rows, f"ours, {each.name}", functools.partial(our_rate, bench, subject, each))
        compare_rates(subject, rows)


def their_rate(bench: Bench, subject: Subject, each: Precision, name: str) -> float:
    unet = UNet2DModel.from_pretrained(folder_of(bench, subject), subfolder="unet").eval()
    unet = unet.to(device=bench.device, dtype=each.dtype)
    sde = {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero"}
    kind, options = (DDPMScheduler, {}) if name == "ddpm" else (DPMSolverMultistepScheduler, sde)
    scheduler = kind(beta_start=1e-4, beta_end=0.02, prediction_type=subject.prediction, **options)
    model = model_of(bench, subject, TF32)
    images, patch = images_for(bench, model), model.image.size // model.latent_shape[-1]
    loop = Loop(unet, scheduler, bench.sizes.steps, patch)
    with products(each):
        return len(images) / median_wall(bench, lambda: loop(images))


def our_rate(bench: Bench, subject: Subject, each: Precision) -> float:
    model = model_of(bench, subject, each)
    images = images_for(bench, model)
    return len(images) / median_wall(bench, lambda: sampled(model, images, STRENGTH, bench.sizes.steps))


def compare_rates(subject: Subject, rows: Record) -> None:
    """Each rate, and over the best that diffusers has as torch has float32."""
    theirs = [rate for name, rate in rows.items() if isinstance(rate, float) and "diffusers" in name and "fp32" in name]
    for name, rate in rows.items():
        if isinstance(rate, float):
            ratio = f"{rate / max(theirs):.2f} of diffusers' best in fp32 (aim {SPEED_AIM:g})" if theirs else ""
            say(f"  {subject.name} {name:36} {rate:9.1f} images/s {ratio}")


# 8. command


def command(bench: Bench, found: Record) -> None:
    """`nearfar anonymize` as its user runs it; a run of one image is all start-up."""
    one, many = bench.folder / "one", bench.folder / "many"
    write_files(bench, one, 1)
    write_files(bench, many, bench.sizes.files)
    options = command_help(bench, found)
    attempt(found, "default batch", functools.partial(run_command, bench, many, []))
    if bench.quick:
        return
    attempt(found, "one image", functools.partial(run_command, bench, one, []))
    wanted = [["--batch-size", "256"], ["--precision", "float16"]]
    for more in wanted:
        needs = 1.3 * found["default batch"].get("wall", 20.0)
        if all(word in options for word in more if word.startswith("--")) and bench.left(COMMAND_ENDS) > needs:
            attempt(found, " ".join(more), functools.partial(run_command, bench, many, more))


def write_files(bench: Bench, folder: Path, count: int) -> None:
    """The samples as PNG files; those beyond their number are turned and mirrored."""
    folder.mkdir()
    turns = list(Image.Transpose)
    pixels = samples(bench).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for number in range(count):
        turn, index = divmod(number, len(pixels))
        picture = Image.fromarray(pixels[index])
        picture = picture.transpose(turns[(turn - 1) % len(turns)]) if turn else picture
        picture.save(folder / f"{number:04}.png")


def environment() -> dict[str, str]:
    """This one, with the package that runs here, without colors."""
    home = str(Path(nearfar.__file__).parent.parent)
    paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": paths, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}


def command_help(bench: Bench, found: Record) -> str:
    """What options there are; empty, with the reason recorded, where it cannot be asked."""
    attempt(found, "help", lambda: nearfar_command(bench, "--help"))
    text = found.pop("help") if isinstance(found["help"], str) else ""
    return str(text)


def nearfar_command(bench: Bench, *arguments: str) -> str:
    """What `nearfar anonymize` prints; RuntimeError with its last words when it fails."""
    command = [sys.executable, "-m", "nearfar", "anonymize", *arguments]
    limit = max(1.0, bench.left())
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment(), check=False)
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode}: {done.stdout[-500:]} {done.stderr[-1500:]}")
    return done.stdout


def run_command(bench: Bench, source: Path, more: Sequence[str]) -> Record:
    """Wall seconds of a run, and how many of them went before and after the images."""
    out = Path(tempfile.mkdtemp(dir=bench.folder)) / "out"
    steps = ["--steps", str(bench.sizes.steps)]
    began = time.perf_counter()
    text = nearfar_command(bench, str(source), str(out), "--json", "--device", str(bench.device), *steps, *more)
    seconds = time.perf_counter() - began
    told = json.loads(text[text.index("{") :])
    row = {name: told[name] for name in ("done", "batches", "batch_size", "network_seconds")}
    row |= {"wall": seconds, "run": told["seconds"], "start": seconds - told["seconds"]}
    row |= {"images_a_second": row["done"] / seconds, "images_a_second_of_the_run": row["done"] / told["seconds"]}
    row["outside_transform"] = 1 - told["network_seconds"] / told["seconds"]
    say_command(f"{row['done']} images {' '.join(more)}", row)
    return row


def say_command(name: str, row: Record) -> None:
    share, rates = row["start"] / row["wall"], (row["images_a_second"], row["images_a_second_of_the_run"])
    say(f"  {name}: {row['wall']:.2f} s = start {row['start']:.2f} ({share:.0%}) + run {row['run']:.2f}")
    say(f"    batch {row['batch_size']}, {rates[0]:.1f} images/s, without the start {rates[1]:.1f}")


# 9. compiled


@dataclass(frozen=True)
class Case:
    """What to compile, and how many seconds must be left to begin with it."""

    subject: Subject
    each: Precision
    batch: int
    mode: str | None
    needs: float


def compiled(bench: Bench, found: Record) -> None:
    """Eager, compiled, and with cuDNN's search, one after the other in one state of the card."""
    cases = [
        Case(PATCHED, BF16, 64, None, 20),
        Case(AFHQ, BF16, 8, None, 35),
        Case(PATCHED, BF16, 64, "reduce-overhead", 25),
        Case(PATCHED, TF32, 64, None, 25),
    ]
    for case in cases if bench.on_gpu else [Case(PATCHED, FP32, bench.sizes.images, None, 0)]:
        name = f"{case.subject.name}, {case.each.name}, batch {case.batch}, {case.mode or 'default'}"
        if bench.left() > case.needs:
            attempt(found, name, functools.partial(compiled_row, bench, case))
        else:
            say(f"  {name}: left out, {bench.left():.0f} s left")
    if bench.on_gpu:
        attempt(found, "tuned", functools.partial(tuned_row, bench))


def compiled_row(bench: Bench, case: Case) -> Record:
    """Without a GPU the graph is only traced: that it can be is what is tested."""
    model = model_of(bench, case.subject, case.each)
    x, t = inputs(model, case.batch)
    torch.compiler.reset()
    backend = {"mode": case.mode} if bench.on_gpu else {"backend": "eager"}
    network = torch.compile(network_of(model), dynamic=False, **backend)
    given = functools.partial(figures, bench, case.subject, case.each, case.batch)
    with torch.no_grad(), products(case.each):
        row = {"eager": given(seconds_of(bench, eager(model, case.batch)))}
        seconds = wall(bench.device, lambda: network(x, t))
        say(f"  {case.subject.name} {case.each.name} {case.mode or 'default'}: compiled in {seconds:.1f} s")
        difference = (network(x, t).float() - network_of(model)(x, t).float()).abs().max().item()
        row["compiled"] = given(seconds_of(bench, lambda: network(x, t)))
    for name in ("eager", "compiled"):
        say(f"    {name:8} batch {case.batch}: {shown_figures(row[name])}")
    return row | {"seconds_to_compile": seconds, "greatest_difference": difference}


def tuned_row(bench: Bench) -> Record:
    """The eager call with the algorithms that cuDNN finds fastest. Last, as what it finds is kept."""
    row: Record = {}
    for each in (TF32, BF16):
        model = model_of(bench, PATCHED, each)
        with products(each):
            for searched in (False, True):
                torch.backends.cudnn.benchmark = searched
                name = f"{each.name}, {'searched' if searched else 'heuristics'}"
                row[name] = figures(bench, PATCHED, each, 64, seconds_of(bench, eager(model, 64)))
                say(f"  {PATCHED.name} batch 64 {name:24}: {shown_figures(row[name])}")
    torch.backends.cudnn.benchmark = False
    return row


# All of it


@dataclass(frozen=True)
class Section:
    """share: of the budget, by which it must be done."""

    name: str
    action: Callable[[Bench, Record], None]
    share: float


SECTIONS = (
    Section("machine", machine, 0.06),
    Section("parity", parity, 0.14),
    Section("precision", precisions, 0.22),
    Section("bytes", same_bytes, 0.3),
    Section("outside", outside, 0.42),
    Section("diffusers", beside_diffusers, 0.56),
    Section("speed", speed, SPEED_ENDS),
    Section("command", command, COMMAND_ENDS),
    Section("compiled", compiled, 1.0),
)


def main(
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Tiny shapes: does it run?")] = False,
    seconds: Annotated[float, typer.Option(help="Budget; importing torch and diffusers comes on top.")] = 150.0,
    file: Annotated[Path | None, typer.Option("--json", help="Where the figures go.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Sections to run, by name.")] = None,
) -> None:
    """Measure, print as it goes, and write the figures after each section."""
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        ends = time.monotonic() + seconds
        bench = Bench(torch.device(chosen), TINY if quick else Sizes(), Path(scratch), ends, seconds)
        for section in SECTIONS:
            if not only or section.name in only:
                carry_out(bench, section, file)
    say("\nfailed or cut short: " + (", ".join(failures(bench.record)) or "nothing"))


def failures(record: Record) -> list[str]:
    """Where in the record an error stands."""
    found = [name for name, value in record.items() if isinstance(value, dict) and "error" in value]
    for name, value in record.items():
        if isinstance(value, dict) and "error" not in value:
            found += [f"{name} > {below}" for below in failures(value)]
    return found


if __name__ == "__main__":
    typer.run(main)
