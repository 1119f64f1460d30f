"""Fetching a model from the hub, once and only when asked: resumed where it stopped, and every byte checked.

A commit's files come into a folder that nothing else reads, and become the hub's own snapshot of that commit when all
of them have the hashes that the hub lists for the commit, and that the model's card states. From then on the model
loads by its name, offline. A file with another hash is removed; what has arrived of others waits for the next attempt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nearfar.errors import UsageError
from nearfar.models.cards import Card, read_cards
from nearfar.models.lookup import (
    HUB_NAME,
    PICKLE,
    VARIANTS,
    WANTED,
    cache_folder,
    check_revision,
    reason,
    where_commits,
)

BLOCK = 1 << 20


@dataclass(frozen=True)
class Listed:
    """A file of a commit, as the hub lists it. digest: its SHA-256, or where the hub has none git's of a blob."""

    path: str
    size: int
    algorithm: str
    digest: str

    def matches(self, file: Path) -> bool:
        return file.is_file() and file.stat().st_size == self.size and hash_of(file, self.algorithm) == self.digest


def hash_of(file: Path, algorithm: str) -> str:
    """`sha256`, or `git`: SHA-1 of a header and the content."""
    header = f"blob {file.stat().st_size}\0".encode() if algorithm == "git" else b""
    digest = hashlib.sha256() if algorithm == "sha256" else hashlib.sha1(header, usedforsecurity=False)
    with file.open("rb") as content:
        while block := content.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def named_card(name: str) -> Card | None:
    """The card of this name, whole or its last part."""
    known = {card.name.casefold(): card for card in read_cards()}
    known |= {whole.rpartition("/")[2]: card for whole, card in known.items()}
    return known.get(name.casefold())


def target_of(name: str, revision: str | None) -> tuple[str, str, Card | None]:
    """Repository, commit and card of what is to be fetched. Raises UsageError where one of the first two is unknown."""
    card = named_card(name)
    repository = card.name if card else name
    if card and card.name.startswith("bundled/"):
        raise UsageError(f"{name} comes with the package: give --model {card.name}")
    if not HUB_NAME.fullmatch(repository):
        place = f"it is published at {card.source}" if card else "give owner/name"
        raise UsageError(f"{name} is no repository on the hub, from which alone models are fetched: {place}")
    commit = revision or (card.commit if card else None)
    if commit is None:
        raise UsageError(f"no commit of {repository} is known: give --revision COMMIT, {where_commits(repository)}")
    check_revision(repository, commit, True)
    return repository, commit, card


def fetch_model(name: str, revision: str | None = None) -> tuple[str, Path]:
    """The repository and its snapshot in the hub's cache, fetched unless it is there.

    name: of a card, or owner/name. revision: the full commit, where the card states none. Files that an interrupted
    fetch left are gone on with. Raises UsageError for wrong hashes, and for whatever the hub refuses.
    """
    repository, commit, card = target_of(name, revision)
    snapshot = cache_folder(repository) / "snapshots" / commit
    files = wanted_files(listed(repository, commit))
    if snapshot.is_dir():
        lacking = [file.path for file in files if not file.matches(snapshot / file.path)]
        if lacking:
            raise UsageError(f"{snapshot} lacks {lacking[0]} or has another: remove that folder and fetch again")
        return repository, snapshot
    part = cache_folder(repository) / f".{commit}.nearfar-part"
    stated = card.sha256 if card and commit == card.commit else {}
    for file in files:
        fetch_file(repository, commit, file, part / file.path)
        check_stated(part / file.path, file.path, stated)
    snapshot.parent.mkdir(parents=True, exist_ok=True)
    part.rename(snapshot)
    return repository, snapshot


def listed(repository: str, commit: str) -> list[Listed]:
    """The files of a commit."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        entries = list(HfApi().list_repo_tree(repository, recursive=True, revision=commit))
    except Exception as error:  # the client of the hub passes on what its HTTP library raises
        raise UsageError(f"{repository} at {commit} was not fetched: {reason(repository, error)}") from error
    return [as_listed(entry) for entry in entries if isinstance(entry, RepoFile)]


def as_listed(entry: Any) -> Listed:
    if ".." in Path(entry.path).parts or Path(entry.path).is_absolute():
        raise UsageError(f"the hub lists {entry.path}, which is no place in a repository: nothing was fetched")
    algorithm, digest = ("sha256", entry.lfs.sha256) if entry.lfs else ("git", entry.blob_id)
    return Listed(entry.path, entry.size, algorithm, digest)


def wanted_files(files: Sequence[Listed]) -> list[Listed]:
    """What a model is loaded from: pickled weights only of parts that have no others."""
    chosen = [file for file in files if matches_any(file.path, WANTED) and not matches_any(file.path, VARIANTS)]
    safe = {Path(file.path).parent for file in chosen if file.path.endswith(".safetensors")}
    configured = {Path(file.path).parent for file in chosen if Path(file.path).name == "config.json"}
    pickled = {(parent / PICKLE).as_posix() for parent in configured - safe}
    chosen += [file for file in files if file.path in pickled]
    if not any(Path(file.path).name == "config.json" for file in chosen):
        raise UsageError("the repository holds no diffusers model (no config.json at its places): nothing was fetched")
    return chosen


def matches_any(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def fetch_file(repository: str, commit: str, file: Listed, target: Path) -> None:
    """One file, gone on with where an attempt before stopped; removed where it is another than the hub lists."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    if file.matches(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file() and target.stat().st_size >= file.size:
        target.unlink()
    try:
        with target.open("ab") as content:
            http_get(
                hf_hub_url(repository, file.path, revision=commit),
                content,
                resume_size=content.tell(),
                headers=build_hf_headers(),
                expected_size=file.size,
                displayed_filename=file.path,
            )
    except Exception as error:  # as above
        raise UsageError(f"{file.path} of {repository} was not fetched: {reason(repository, error)}") from error
    if not file.matches(target):
        target.unlink()
        raise UsageError(
            f"{file.path} of {repository} has another hash than the hub lists ({file.digest}): it was removed, "
            "fetch again"
        )


def check_stated(file: Path, path: str, stated: dict[str, str]) -> None:
    """Removes a file whose SHA-256 is not the one that the card states."""
    if path in stated and hash_of(file, "sha256") != stated[path]:
        file.unlink()
        raise UsageError(
            f"{path} has another SHA-256 than its card states ({stated[path]}): it was removed, do not use this model"
        )
