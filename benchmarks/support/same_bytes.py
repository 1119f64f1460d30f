"""Do two versions of the package write the same bytes? Every job on small inputs, before a change and after it.

    OMP_NUM_THREADS=1 python -m benchmarks.support.same_bytes record before.json
    OMP_NUM_THREADS=1 python -m benchmarks.support.same_bytes compare before.json

`record` runs the jobs by the command line alone and keeps hashes of what they wrote (pixels, values, tensors, bytes)
and the texts (manifests, figures, annotations, words of reports, what was said). `compare` runs them again, or takes a
second record with --after, and tells every difference; its exit code is 1 if there is one in what was written or
returned. What is said on stderr is shown, too, and does not count. Words that were renamed are taken for one another
(`digests.SPELLINGS` and `RENAMED`), options are looked up in `--help` (`RENAMES`).

Runs that are killed with SIGKILL and resumed must end in the files of the undisturbed run: that is checked by `record`.
Bytes are those of one machine and one torch: record both sides in the same place.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.support.digests import compared, differences, digests, parsed
from benchmarks.support.shell import ONE_THREAD, Ended, help_of, killed, nearfar
from benchmarks.support.small_inputs import write_faces, write_inputs, write_key, write_portraits
from benchmarks.support.small_models import write_checkpoints, write_models
from benchmarks.support.small_runs import chosen

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "checkpoints"
RENAMES = {
    "--recogniser": ("--recognizer",),
    "--pull": ("--ratio", "--density-ratio", "--ratio-guidance"),
    "regions": ("mosaic",),
}
"""Options and values as the older version calls them, and what newer ones may: the first that `--help` has is taken."""
GROUPED = ("fit", "survey", "inspect", "sample", "convert")
"""Second words of commands."""
LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow", "scikit-learn", "scipy", "pyarrow", "matplotlib")
ENOUGH = 7
"""Lines in the records of a run at which it is killed."""


@dataclass(frozen=True)
class Run:
    """What came of a command. files: digests of what it wrote, by name."""

    code: int
    out: str
    err: str
    files: dict[str, Any]


def command_line(line: str, out: str, as_json: bool = True) -> list[str]:
    """The words of a line as this version knows them; on the CPU, and telling the outcome as JSON where it can."""
    words = line.replace("OUT", out).split()
    command = words[:2] if words[1:] and words[1] in GROUPED else words[:1]
    known = set(re.findall(r"[\w-]+", help_of(*command)))
    words = [next((name for name in (word, *RENAMES.get(word, ())) if name in known), word) for word in words]
    more = {"--device": ["--device", "cpu"], "--json": ["--json"] * as_json}
    return words + [part for name, parts in more.items() if name in known - {*words} for part in parts]


def carried_out(name: str, line: str) -> Run:
    """Run a line; what it returned and wrote, without the place where this happened."""
    out = Path("out", name)
    out.mkdir(parents=True)
    ended = nearfar(*command_line(line, str(out), not name.endswith("-text")))
    return placeless(ended, digests(out))


def placeless(ended: Ended, files: dict[str, Any]) -> Run:
    """The same wherever the working folder lies."""
    words = json.dumps([ended.out, ended.err, files], ensure_ascii=False).replace(str(Path.cwd()), "WORK")
    out, err, found = json.loads(words)
    return Run(ended.code, out, err, found)


def killed_and_resumed(name: str, line: str) -> dict[str, Any]:
    """Kill a run in the middle and go on with it; the files it ends with, and how they differ from the undisturbed."""
    whole, cut = (Path("killed", name, folder) for folder in ("whole", "cut"))
    for folder in (whole, cut):
        (folder / "made").mkdir(parents=True)
    nearfar(*command_line(line, str(whole)))
    arguments = [*command_line(line, str(cut)), "--resume"]
    stopped = killed(arguments, lambda: recorded(cut) >= ENOUGH)
    nearfar(*arguments)
    found = digests(cut / "made")
    return {"killed": stopped, "differences": [*differences(digests(whole / "made"), found)], "files": found}


def recorded(folder: Path) -> int:
    """How many images the records of a run count."""
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("*.manifest.jsonl"))


def conditions() -> dict[str, str]:
    """What bytes depend on besides the code."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    found |= {"instructions": torch.backends.cpu.get_cpu_capability(), "threads": str(torch.get_num_threads())}
    return found | {name: version(name) for name in LIBRARIES}


def prepare(golden: Path, detector: Path | None, recognizer: Path | None) -> None:
    """Models, inputs and a key in the working folder; inputs with one time, which records of runs hold."""
    write_models(Path("models"))
    if golden.is_dir():
        write_checkpoints(Path("models"), golden)
    write_inputs(Path("in"))
    if detector and recognizer:
        write_faces(Path("in", "faces"))
        write_portraits(Path("in", "portraits"))
        Path("faces").mkdir()
        Path("faces", "detector.onnx").write_bytes(detector.read_bytes())
        Path("faces", "recognizer.onnx").write_bytes(recognizer.read_bytes())
    write_key(Path("key"))
    for path in Path("in").rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))


def measured(golden: Path, detector: Path | None, recognizer: Path | None, only: str = "*") -> dict[str, Any]:
    """Everything, or what has such a name, in a folder that is thrown away."""
    torch.set_num_threads(1)
    os.environ.update(ONE_THREAD)
    files = [path and path.resolve() for path in (detector, recognizer)]
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        prepare(golden.resolve(), *files)
        print(f"measuring {Path(find_spec('nearfar').origin).parent}")
        lines, kills = chosen(only)
        found = {name: asdict(carried_out(name, line)) | {"line": line} for name, line in lines.items()}
        resumed = {name: killed_and_resumed(name, line) for name, line in kills.items()}
        return {"conditions": conditions(), "runs": found, "resumed": resumed}


def failures(record: dict[str, Any]) -> list[str]:
    """Runs that were not what they should be: killed too late, or with another end than the undisturbed one."""
    found = [
        f"resumed {name}: ended before it was killed" for name, run in record["resumed"].items() if not run["killed"]
    ]
    return found + [f"resumed {name}: {each}" for name, run in record["resumed"].items() for each in run["differences"]]


def part(record: dict[str, Any], of: dict[str, Any]) -> dict[str, Any]:
    """What a record has of the runs that another has."""
    kinds = {
        kind: {name: run for name, run in record[kind].items() if name in of[kind]} for kind in ("runs", "resumed")
    }
    return record | kinds


def differing(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Lines about what was written or returned, and about what was only said."""
    written, said = [], []
    for name in sorted({*before["runs"], *after["runs"]}):
        one, other = (record["runs"].get(name) for record in (before, after))
        if one is None or other is None:
            written.append(f"{name}: only {'after' if one is None else 'before'}")
            continue
        written += [f"{name}: {each}" for each in differing_run(one, other)]
        said += [f"{name}: {each}" for each in differences(parsed(one["err"]), parsed(other["err"]), "stderr")]
    for name in sorted({*before["resumed"], *after["resumed"]}):
        pair = (record["resumed"].get(name, {"files": {}})["files"] for record in (before, after))
        written += [f"resumed {name}: {each}" for each in differing_files(*pair)]
    return written, said


def differing_run(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    yield from differences(before["code"], after["code"], "exit code")
    yield from differences(parsed(before["out"]), parsed(after["out"]), "stdout")
    yield from differing_files(before["files"], after["files"])


def differing_files(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            yield f"{name}: only {'after' if name in after else 'before'}"
        else:
            yield from (f"{name}: {each}" for each in compared(before[name], after[name]))


def summary(record: dict[str, Any]) -> str:
    """One line about what was run."""
    all_runs, codes = record["runs"].values(), {}
    for run in all_runs:
        codes[run["code"]] = codes.get(run["code"], 0) + 1
    ends = ", ".join(f"{count} with {code}" for code, count in sorted(codes.items()))
    files = sum(len(run["files"]) for run in all_runs)
    return f"{len(all_runs)} runs ({ends}), {files} files, {len(record['resumed'])} killed and resumed"


app = typer.Typer(add_completion=False)
Golden = Annotated[Path, typer.Option(help="Where the golden files of the checkpoints' layouts lie.")]
Detector = Annotated[Path | None, typer.Option(help="YuNet (ONNX), to run what looks for faces, too.")]
Recognizer = Annotated[Path | None, typer.Option(help="A face recognizer (ONNX), which goes with it.")]


@app.command()
def record(file: Path, golden: Golden = GOLDEN, detector: Detector = None, recognizer: Recognizer = None) -> None:
    """Run everything and keep what came of it in FILE."""
    found = measured(golden, detector, recognizer)
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(summary(found))
    told(failures(found))


@app.command()
def compare(
    file: Path,
    after: Annotated[Path | None, typer.Option(help="A second record. [default: made now]")] = None,
    only: Annotated[str, typer.Option(help="Runs of such names, and those that they need: 'sample-*'.")] = "*",
    golden: Golden = GOLDEN,
    detector: Detector = None,
    recognizer: Recognizer = None,
) -> None:
    """Tell what differs from FILE."""
    before = json.loads(file.read_text("utf-8"))
    now = json.loads(after.read_text("utf-8")) if after else measured(golden, detector, recognizer, only)
    print(summary(now))
    for each in differences(before["conditions"], now["conditions"], "conditions"):
        print(f"not comparable: {each}")
    written, said = differing(before if only == "*" else part(before, now), now)
    for each in said:
        print(f"said       {each}")
    told([*written, *failures(now)])


def told(lines: list[str]) -> None:
    """Print what is wrong, and end with 1 if anything is."""
    for line in lines:
        print(f"different  {line}")
    print(f"{len(lines)} differences" if lines else "all equal")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    app()
