"""Where noise comes from: one secret stream per image, derived from a key and the image's content.

Whoever knows an output, the model and the noise can walk the trajectory back to the original, and whoever has the key
can make certain of a guessed original, so the key is a secret and not a seed. A stream depends on key, content, level
and variant alone: batch, order, name, worker and device do not matter, and two copies of one picture get one output, so
that there is no second noisy view to average. The level is part of the derivation because one noise at two levels would
be two equations for one image.

torch's generator drops the seed's bits above 32 and would be searchable; Philox takes 128 (it is a statistical
generator, not a cipher). Draws are made on the CPU in float32 and then moved, so every device sees the same numbers.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import struct
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.errors import UsageError
from nearfar.tensors import Images, Times


@dataclass(frozen=True)
class SecretKey:
    """256 bits from which the noise of every image is derived. `repr` does not show them."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != 32:
            raise UsageError(f"a key has 32 bytes, got {len(self.secret)}: use SecretKey.random()")

    @classmethod
    def random(cls) -> SecretKey:
        """A fresh key from the operating system."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def from_seed(cls, seed: int) -> SecretKey:
        """A repeatable key for work that protects nobody. A seed can be guessed: never anonymize with it."""
        return cls(hashlib.sha256(f"nearfar seed {seed}".encode()).digest())

    @classmethod
    def load(cls, path: Path) -> SecretKey:
        """Read a key file; one that others may read is refused."""
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise UsageError(f"key file {path} can be read by others: run chmod 600 {path}")
        try:
            return cls(bytes.fromhex(path.read_text(encoding="ascii").strip()))
        except (ValueError, UsageError):
            raise UsageError(f"key file {path} must hold 64 hexadecimal digits: let nearfar write a new one") from None

    def save(self, path: Path) -> None:
        """Write a new key file with mode 0600; an existing file is never overwritten."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(self.secret.hex() + "\n")

    def tag(self, purpose: str, content: bytes = b"") -> str:
        """A 128-bit keyed hash in hexadecimal: tells equal contents apart from others only to those with the key."""
        return hmac.digest(self.secret, purpose.encode() + b"\0" + content, "sha256")[:16].hex()

    def for_image(self, image: Float[Tensor, "channel height width"], time: float, variant: int = 0) -> bytes:
        """The 128-bit stream key of one image in [-1, 1] (compared at 8 bits a channel), noised to `time`.

        The time counts to three decimals, so that 0.35 and its nearest float32 are one level.
        """
        return self._for_levels(eight_bits(image), time, variant)

    def _for_levels(self, levels: Tensor, time: float, variant: int) -> bytes:
        header = struct.pack("<dq3q", round(time, 3), variant, *levels.shape)
        return hmac.digest(self.secret, b"noise\0" + header + levels.numpy().tobytes(), "sha256")[:16]


def eight_bits(images: Tensor) -> Tensor:
    """Values in [-1, 1] as the nearest of 256 levels, uint8 on the CPU."""
    return images.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8).cpu().contiguous()


AHEAD = 2
"""Draws that are made, or on their way to the device, before they are asked for."""
THREADS = 8


class NoiseStream:
    """Standard normal noise for a batch; row `i` depends on `keys[i]` and the number of draws so far, nothing else.

    draws: how many will be asked for, as far as known. A GPU finds that many made by threads while it was at work;
    the threads end with the last of them, with `close`, and with the stream. On a CPU there are none.
    """

    _ahead: DrawnAhead | None = None

    def __init__(
        self, keys: Sequence[bytes], shape: Sequence[int], device: torch.device | str = "cpu", draws: int = 0
    ) -> None:
        self._generators = [np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))) for key in keys]
        self._shape = (len(keys), *shape)
        self._device = torch.device(device)
        self._on_gpu = self._device.type == "cuda"
        if self._on_gpu and draws:
            self._ahead = DrawnAhead(self._generators, self._shape, draws, pinned=True)
        self._underway: deque[Any] = deque()

    def draw(self) -> Images:
        """The next noise, float32 `(len(keys), *shape)`."""
        noise = self._ahead.draw() if self._ahead else None
        if noise is None:
            noise = torch.empty(self._shape, pin_memory=self._on_gpu)
            fill(self._generators, noise.numpy())
        return self._uploaded(noise) if self._on_gpu else noise.to(self._device)

    def close(self) -> None:
        """End the threads; nothing is drawn afterwards."""
        if self._ahead:
            self._ahead.close()

    def _uploaded(self, noise: Tensor) -> Images:
        """The noise on the GPU, copied beside what the GPU is doing.

        Waits where the GPU is more than `AHEAD` draws behind, so that memory does not grow with the steps.
        """
        now, beside = torch.cuda.current_stream(self._device), copying(self._device)
        if len(self._underway) > AHEAD:
            self._underway.popleft().synchronize()
        with torch.cuda.stream(beside):
            moved = noise.to(self._device, non_blocking=True)
        now.wait_stream(beside)
        moved.record_stream(now)
        self._underway.append(now.record_event())
        return moved


@cache
def copying(device: torch.device) -> Any:
    """The stream that noise goes to a GPU on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class DrawnAhead:
    """The next `left` draws of some generators, made by threads, at most `AHEAD` of them before they are asked for.

    Every thread has generators of its own and fills their rows draw by draw, so their number changes no number drawn.
    pinned: in memory that a GPU copies from by itself.
    """

    def __init__(
        self,
        generators: Sequence[np.random.Generator],
        shape: Sequence[int],
        left: int,
        pinned: bool = False,
        threads: int | None = None,
    ) -> None:
        threads = max(1, min(len(generators), threads or min(THREADS, usable_cores() - 1)))
        cuts = [len(generators) * number // threads for number in range(threads + 1)]
        self._shape, self._left, self._pinned = tuple(shape), left, pinned
        self._parts = [
            (ThreadPoolExecutor(1, "noise"), slice(low, high), generators[low:high]) for low, high in pairwise(cuts)
        ]
        self._pending: deque[tuple[Tensor, list[Future[None]]]] = deque()
        self._order()

    def draw(self) -> Tensor | None:
        """The next draw; None when all have been made."""
        if not self._pending:
            return None
        noise, parts = self._pending.popleft()
        self._order()
        for part in parts:
            part.result()
        return noise

    def close(self) -> None:
        """End the threads as soon as they are at the end of a row."""
        for pool, *_ in self._parts:
            pool.shutdown(wait=False, cancel_futures=True)
        self._pending.clear()
        self._left = 0

    def _order(self) -> None:
        """Have the threads make what may be made; let them go after the last."""
        while self._left and len(self._pending) < AHEAD:
            noise = torch.empty(self._shape, pin_memory=self._pinned)
            rows = noise.numpy()
            parts = [pool.submit(fill, generators, rows[of]) for pool, of, generators in self._parts]
            self._pending.append((noise, parts))
            self._left -= 1
        if not self._left:
            for pool, *_ in self._parts:
                pool.shutdown(wait=False)


def fill(generators: Sequence[np.random.Generator], rows: np.ndarray) -> None:
    """The next numbers of each generator, float32, into its row."""
    for generator, row in zip(generators, rows, strict=True):
        generator.standard_normal(dtype=np.float32, out=row)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fingerprint(key: SecretKey) -> str:
    """Tells whether two runs used the same key, and nothing else about it."""
    return key.tag("fingerprint")


def noise_for(images: Images, start: Times, key: SecretKey, variant: int | Sequence[int]) -> list[bytes]:
    """One stream key per image."""
    variants = [variant] * len(images) if isinstance(variant, int) else variant
    rows = zip(eight_bits(images), start.tolist(), variants, strict=True)
    return [key._for_levels(levels, time, number) for levels, time, number in rows]
