"""A program of somebody who uses nearfar, as type checkers see it: one mistake, at its end."""

from pathlib import Path

import torch

import nearfar


def make(folder: Path) -> list[str]:
    model: nearfar.FrozenModel = nearfar.load_model()
    size: int = model.image.size
    near: torch.Tensor = nearfar.local_sample(model, torch.zeros(1, 3, size, size), strength=0.3, solver=nearfar.DDIM())
    done = nearfar.anonymize_folder(model, folder, folder / "near", strength=0.3, key=nearfar.SecretKey.random())
    domain: nearfar.Domain = nearfar.load_domain(folder / "a.domain")
    made = nearfar.synthesize(model, domain, 4).images
    try:
        nearfar.reconstruct(model, near, strength=0.5)
    except nearfar.UsageError as error:
        raise SystemExit(str(error)) from None
    return [record.name for record in done.failed] + [str(made.shape)]


def misuse() -> None:
    nearfar.anonymize_folder("faces", "a", "b")
