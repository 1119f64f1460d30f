"""A network on a GPU: float32 products as its model has them, and CUDA graphs, one launch for a whole call.

Small batches leave a GPU waiting for Python: on an H100 a call of 64 patched images in bfloat16 takes 9.8 ms launched
kernel by kernel and 4.8 ms as a graph, with the same numbers (benchmarks/results/gpu_h100.json).
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nearfar.diffusion.denoiser import Network
from nearfar.errors import first_line

SHAPES = 4
"""Batch shapes of a network whose graphs are kept; that used longest ago gives way."""
WARM_UPS = 2
_LOCK = threading.RLock()
_LOG = logging.getLogger(__name__)


@contextmanager
def float32_products(device: torch.device, tf32: bool) -> Iterator[None]:
    """Products of float32 on a GPU in tf32 (10 bits of mantissa) or in full, for calls within; then as it was before.

    torch keeps this for the whole process, so threads that call networks take turns here. Nothing on other devices.
    """
    if device.type != "cuda":
        yield
        return
    with _LOCK:
        switches = switches_of(tf32)
        before = [getattr(place, name) for place, name, _ in switches]
        try:
            for place, name, value in switches:
                setattr(place, name, value)
            yield
        finally:
            for (place, name, _), value in zip(switches, before, strict=True):
                setattr(place, name, value)


def switches_of(tf32: bool) -> list[tuple[Any, str, Any]]:
    """Where torch's switches for convolutions and matrices are, and what they are set to.

    Newer torch has a second kind, and refuses to read the first where a program has used the second.
    """
    convolutions: Any = torch.backends.cudnn
    matrices: Any = torch.backends.cuda.matmul
    switches: list[tuple[Any, str, Any]] = [(convolutions, "allow_tf32", tf32), (matrices, "allow_tf32", tf32)]
    try:
        for place, name, _ in switches:
            getattr(place, name)
    except RuntimeError:
        word = "tf32" if tf32 else "ieee"
        return [(convolutions.conv, "fp32_precision", word), (matrices, "fp32_precision", word)]
    return switches


@dataclass(frozen=True, eq=False)
class Recording:
    """A call that can be repeated: it reads x and t and writes output, each in its own place of memory.

    pool: the memory of what lies between, which other recordings of the network may share: one is replayed at a time.
    """

    x: Tensor
    t: Tensor
    output: Tensor
    replay: Callable[[], Any]
    pool: Any = None

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The output of these inputs, in memory that the next call leaves alone."""
        self.x.copy_(x, non_blocking=True)
        self.t.copy_(t, non_blocking=True)
        self.replay()
        return self.output.clone()


Record = Callable[[Network, Tensor, Tensor, Any], Recording]
"""(network, x, t, pool or None) -> recording."""


class GpuNetwork:
    """A network as a GPU runs it best: recorded the first time it sees a batch shape, replayed afterwards.

    network: its answer must depend on its two arguments and on weights that stay where they are; it must not wait for
    the GPU. tf32: see `float32_products`. record: makes a recording; None runs every call as it is, as is done
    from the first recording on that fails, for a reason that is logged. Calls that want a gradient are not recorded.
    Where memory runs out the error is that of the plain call.
    Cost: the first call of a shape takes the time of four and keeps the memory of one.
    """

    def __init__(self, network: Network, tf32: bool, record: Record | None) -> None:
        self.network, self.tf32 = network, tf32
        self._record = record
        self._recordings: OrderedDict[Any, Recording] = OrderedDict()
        self._stream: Any = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        with float32_products(x.device, self.tf32), _LOCK:
            recording = None if self._record is None or is_watched(x) else self._recording_of(x, t)
            if recording is None:
                return self.network(x, t)
            self._after_other_streams(x.device)
            return recording(x, t)

    def _recording_of(self, x: Tensor, t: Tensor) -> Recording | None:
        """The shape's recording, made if need be; None where it cannot be made."""
        shape = x.shape, x.dtype, x.device, t.shape, t.dtype
        if shape not in self._recordings:
            if len(self._recordings) >= SHAPES:
                self._recordings.popitem(last=False)
            recording = self._attempt(x, t)
            if recording is None:
                return None
            self._recordings[shape] = recording
        self._recordings.move_to_end(shape)
        return self._recordings[shape]

    def _attempt(self, x: Tensor, t: Tensor) -> Recording | None:
        """Record a call; a failure is logged, its memory freed."""
        pool = next((recording.pool for recording in self._recordings.values()), None)
        try:
            return self._record(self.network, x, t, pool) if self._record else None
        except torch.OutOfMemoryError:
            _LOG.warning("memory does not hold a CUDA graph of %s: run without", tuple(x.shape))
        except RuntimeError as error:
            self._record = None
            _LOG.warning("no CUDA graphs for this network, which runs kernel by kernel: %s", first_line(error))
        self._recordings.clear()
        if x.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _after_other_streams(self, device: torch.device) -> None:
        """A recording's memory is free again when the stream that used it last has come so far."""
        if device.type == "cuda":
            now = torch.cuda.current_stream(device)
            if self._stream not in (None, now):
                now.wait_stream(self._stream)
            self._stream = now


def is_watched(x: Tensor) -> bool:
    """Whether somebody differentiates the call or records it already."""
    recorded = x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    return recorded or (torch.is_grad_enabled() and x.requires_grad)


@cache
def recording_stream(device: torch.device) -> Any:
    """The stream that calls are recorded on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def record_graph(network: Network, x: Tensor, t: Tensor, pool: Any) -> Recording:
    """A CUDA graph of the call, warmed up beside the main stream."""
    with torch.cuda.device(x.device), torch.inference_mode(False), torch.no_grad():
        x, t = torch.empty_like(x).copy_(x), torch.empty_like(t).copy_(t)
        now, beside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(now)
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                network(x, t)
        now.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        stream = recording_stream(x.device)
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            output = network(x, t)
    return Recording(x, t, output, graph.replay, graph.pool())
