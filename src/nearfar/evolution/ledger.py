"""What is kept of a run: noisy votes, written before anything is made of them, and the candidates they were cast for.

So an interrupted run goes on without asking the private images twice: a round whose votes stand here is never voted on
again, and a round without votes has cost nothing. Neither is confidential.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nearfar.errors import UsageError
from nearfar.evolution.population import Population
from nearfar.io.manifest import Manifest, Record, check_no_links, manifest_path, read_manifest, write_whole, writing


def rounds_folder(out: Path) -> Path:
    """Where the candidates of a run lie, beside its output."""
    whole = out.resolve()
    return whole.with_name(whole.name + ".rounds")


@dataclass(frozen=True, eq=False)
class Ledger:
    """The rounds of a run, open for writing. earlier: rounds that were voted on before, by name."""

    folder: Path
    manifest: Manifest
    earlier: Mapping[str, Record]

    @classmethod
    def open(cls, out: Path, settings: dict[str, Any], resume: bool) -> Ledger:
        """Begin, or go on. UsageError where a run stands that was begun with other settings, or is not to go on."""
        folder = rounds_folder(out)
        path = manifest_path(folder)
        check_no_links(folder, folder, path)
        earlier = read_manifest(path)
        if earlier.header and not resume:
            raise UsageError(f"{path} is the record of an earlier run's votes: give --resume, or choose another output")
        if changed := earlier.changed(settings):
            raise UsageError(
                f"{path} was begun with another {' and '.join(sorted(changed))}, and its votes are spent: repeat "
                "what it began with, or choose another output, which asks the private images anew"
            )
        return cls(folder, Manifest(path, {"run": settings}), earlier.records)

    def votes(self, name: str, population: Population, cast: Callable[[], Sequence[int]]) -> list[int]:
        """The noisy votes of a round: those that stand here, or new ones, which are on the disk when this returns."""
        record = self.earlier.get(name)
        if record is None:
            figures: dict[str, int | float] = {str(place): vote for place, vote in enumerate(cast())}
            record = Record(name, "done", target_sha256=digest(population), figures=figures)
            self.manifest.add(record)
            self.manifest.commit()
        elif record.target_sha256 != digest(population):
            raise UsageError(
                f"the candidates of {name} in {self.folder} are not those that were voted on: put that folder back as "
                "it was, or begin in another output"
            )
        return [int(record.figures[str(place)]) for place in range(len(population))]

    def population(self, name: str, make: Callable[[], Population]) -> Population:
        """The candidates of a round, from their file or made and kept."""
        path = self.folder / f"{name}.npy"
        record = self.earlier.get(name)
        if record is not None and (kept := read_population(path)) is not None and digest(kept) == record.target_sha256:
            return kept
        population = make()
        with writing(path):
            write_whole(path, as_file(population))
        return population

    def __enter__(self) -> Ledger:
        self.manifest.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self.manifest.__exit__(*details)


def digest(population: Population) -> str:
    return hashlib.sha256(as_file(population)).hexdigest()


def as_file(population: Population) -> bytes:
    content = io.BytesIO()
    np.save(content, population.numpy(), allow_pickle=False)
    return content.getvalue()


def read_population(path: Path) -> Population | None:
    """A file of candidates; nothing where there is none, or something else."""
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, EOFError, ValueError, TypeError):
        return None
