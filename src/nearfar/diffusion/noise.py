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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
        levels = image.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
        header = struct.pack("<dq3q", round(time, 3), variant, *image.shape)
        message = b"noise\0" + header + levels.cpu().contiguous().numpy().tobytes()
        return hmac.digest(self.secret, message, "sha256")[:16]


class NoiseStream:
    """Standard normal noise for a batch; row `i` depends on `keys[i]` and the number of draws so far, nothing else."""

    def __init__(self, keys: Sequence[bytes], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._generators = [np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))) for key in keys]
        self._shape = tuple(shape)
        self._device = torch.device(device)

    def draw(self) -> Images:
        """The next noise, float32 `(len(keys), *shape)`."""
        rows = [generator.standard_normal(self._shape, dtype=np.float32) for generator in self._generators]
        return torch.from_numpy(np.stack(rows)).to(self._device)


def fingerprint(key: SecretKey) -> str:
    """Tells whether two runs used the same key, and nothing else about it."""
    return key.tag("fingerprint")


def noise_for(images: Images, start: Times, key: SecretKey, variant: int | Sequence[int]) -> list[bytes]:
    """One stream key per image."""
    variants = [variant] * len(images) if isinstance(variant, int) else variant
    rows = zip(images, start, variants, strict=True)
    return [key.for_image(image, time.item(), number) for image, time, number in rows]
