"""Where a run may read and write, settled before anything that computes is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from nearfar.errors import UsageError
from nearfar.io.manifest import PART, check_no_links, manifest_path


def check_places(source: Path, out: Path, resume: bool) -> None:
    """Refuse folders of which one lies in the other: outputs would become inputs, or originals be overwritten."""
    a, b = source.resolve(), out.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise UsageError(f"{source} and {out} must not contain each other: choose an output folder elsewhere")
    check_out(out, resume)


def check_out(out: Path, resume: bool) -> None:
    """Refuse an output folder that holds something else than what shall be resumed."""
    for path in (out, *out.absolute().parents):
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} must be a folder, got a file: choose another output")
        if path.is_symlink() and not path.exists():
            raise UsageError(f"{path} is a link to nothing: make the folder that it names, or choose another output")
    check_writable(out.resolve().parent)
    check_no_links(out)
    manifest = manifest_path(out)
    has_files = out.is_dir() and any(out.iterdir())
    if has_files and not resume:
        raise UsageError(f"{out} is not empty: give --resume to go on with it, or choose another output")
    if has_files and not manifest.exists():
        raise UsageError(f"{out} has no manifest ({manifest.name}), so nothing can be resumed: choose another output")
    if manifest.exists() and not resume:
        raise UsageError(f"{manifest} is the record of an earlier run: give --resume, or remove it")


def check_writable(folder: Path) -> None:
    """Refuse a place in which neither the output folder nor the record beside it can be made. Leaves nothing there."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with TemporaryFile(dir=there) if there == folder else TemporaryDirectory(dir=there, prefix=PART):
            pass
    except OSError as error:
        raise UsageError(
            f"{there} cannot be written ({error.strerror}), so neither the output nor its record can be made there: "
            "choose an output elsewhere, or give yourself the right to write"
        ) from None


def page_beside(report: Path | None, out: Path, *sources: Path, keep: Sequence[Path] = ()) -> Path:
    """Where a page on what is in `out` goes: beside it unless told, and never among images or over files to keep."""
    whole = out.resolve()
    path = report or whole.with_name(whole.name + ".report.html")
    check_page(path, [*sources, out], keep)
    return path


def check_page(path: Path, folders: Sequence[Path], keep: Sequence[Path] = ()) -> None:
    """Refuse a page that is none, that would lie among images, or that would replace a file to keep with its JSON."""
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise UsageError(f"the report is a page, got {path}: give a file that ends in .html")
    for folder in folders:
        if folder.resolve() in path.resolve().parents:
            raise UsageError(f"report {path} must not lie in {folder}, which holds images: keep it elsewhere")
    written = {each.resolve() for each in (path, path.with_suffix(".json"))}
    if lost := next((file for file in keep if file.resolve() in written), None):
        raise UsageError(f"report {path} and the JSON beside it would replace {lost}: give the report another name")
