"""How large the house is, and how far one walks in it: lines, parameters, imports between wings, trips through rooms.

    OMP_NUM_THREADS=1 python -m benchmarks.support.house [--json] [--no-trips]

* lines: of every .py file of the package, blank ones, comments and docstrings too, as `wc -l` counts them.
* parameters: functions and methods with eight or more that have a name, `self` among them; not `*args`, `**options`.
* imports: of a module in another wing that the table of wings does not allow, anywhere in a module, for type checkers
  too. Modules that lie in no wing are counted beside it, and so are `__init__`s that hold more than a docstring.
* trips: a command is run on a few small pictures under a profiler, which notes every function of the package when it is
  first called, in whichever thread. Functions: how many these are; no lambdas, comprehensions or bodies of classes, and
  nothing of the modules by which every command enters. Rooms: in how many modules they lie. Changes: how often the next
  of them lies in another module than the last. Readers and writers work beside the network, so that the order, and with
  it the changes, may differ by two or three from run to run.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Annotated, Any

import torch
import typer

import nearfar
from benchmarks.support.shell import ONE_THREAD
from benchmarks.support.shell import nearfar as run
from benchmarks.support.small_inputs import write_groups
from benchmarks.support.small_models import pixel

PACKAGE = Path(nearfar.__file__).parent
MANY = 8
EVERYWHERE = ("errors", "tensors", "structured")
"""Modules that every wing may import."""
WINGS = {
    "diffusion": "",
    "latents": "",
    "io": "",
    "models": "diffusion io",
    "metrics": "diffusion latents models io",
    "sampling": "diffusion models io metrics",
    "domain": "diffusion latents models io metrics sampling",
    "evolution": "diffusion models io metrics sampling",
    "data": "diffusion models io metrics sampling",
    "audit": "diffusion models io metrics data sampling",
    "jobs": "diffusion models io metrics sampling domain evolution data audit",
    "reports": "diffusion latents models io metrics sampling domain evolution audit jobs",
    "web": "diffusion models io metrics sampling domain evolution audit jobs reports",
    "cli": "diffusion models io metrics sampling domain evolution data audit jobs reports web",
}
"""Which other wings each of them may import."""
DOORS = ("__main__", "cli", "cli.app")
"""Modules by which every command enters, in the flat package and in the one of wings."""

TRIPS = {
    "anonymize": "anonymize in made --steps 2",
    "domain sample": "domain sample a.domain sampled --count 6",
    "audit": "audit in made",
    "augment": "augment in augmented --steps 2",
}
FIT = "domain fit in a.domain --steps 2"
GOALS = {"lines": 15_500, "parameters": 6, "imports": 0}
ROOM_GOALS = {"anonymize": (24, 60), "domain sample": (32, 85), "audit": (36, 80), "augment": (28, 75)}
"""Rooms and changes, at most."""


@dataclass(frozen=True)
class Trip:
    """A command's way through the package. way: the functions, `module function`, as they are first called."""

    functions: int
    rooms: int
    changes: int
    way: list[str]


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module(path: Path) -> str:
    """`models.loading` for `nearfar/models/loading.py`, `models` for `nearfar/models/__init__.py`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def lines() -> int:
    return sum(path.read_bytes().count(b"\n") for path in files())


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return sum(len(part) for part in (function.args.posonlyargs, function.args.args, function.args.kwonlyargs))


def with_many_parameters() -> list[str]:
    """`module function count`, the most first."""
    counted = [(parameters(each), f"{module(path)} {each.name}") for path in files() for each in functions(path)]
    return [f"{name} {count}" for count, name in sorted(counted, reverse=True) if count >= MANY]


def imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, in whichever form; what is no module is `__init__`'s."""
    known = {module(each) for each in files()}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        for name in (name for name in names if f"{name}.".startswith("nearfar.")):
            whole = name.removeprefix("nearfar").lstrip(".")
            yield next((each for each in (whole, whole.rpartition(".")[0]) if each in known), "__init__")


def wing(name: str) -> str:
    """Nothing for what lies in none."""
    first = name.partition(".")[0]
    return first if first in WINGS and (PACKAGE / first).is_dir() else ""


def violations() -> list[str]:
    """`module -> module`, against the table."""
    found = set()
    for path in files():
        own = wing(module(path))
        for name in imports(path) if own else ():
            allowed = wing(name) in (own, *WINGS[own].split()) if wing(name) else name in EVERYWHERE
            if not allowed:
                found.add(f"{module(path)} -> {name}")
    return sorted(found)


def outside() -> list[str]:
    """Modules in no wing, but for those that belong there."""
    return [
        name for name in map(module, files()) if not wing(name) and name not in ("__init__", "__main__", *EVERYWHERE)
    ]


def full_doors() -> list[str]:
    """Wings whose `__init__` is missing, or holds more than a docstring."""
    paths = {name: PACKAGE / name / "__init__.py" for name in WINGS}
    return [name for name, path in paths.items() if not path.is_file() or len(body(path)) != 1]


def body(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text("utf-8")).body


def is_counted(code: CodeType) -> bool:
    """Whether a function has a name, is the package's, and lies behind the door."""
    named = bool(code.co_flags & inspect.CO_OPTIMIZED) and not code.co_name.startswith("<")
    return named and Path(code.co_filename).is_relative_to(PACKAGE) and module(Path(code.co_filename)) not in DOORS


def walked(arguments: Sequence[str]) -> list[CodeType]:
    """The functions that a command calls, as they are first called."""
    met: dict[CodeType, None] = {}

    def see(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            met.setdefault(frame.f_code)

    threading.setprofile(see)
    sys.setprofile(see)
    try:
        ended = run(*arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    if ended.code:
        raise RuntimeError(f"{arguments[0]} ended with {ended.code}: {ended.err}")
    return [code for code in met if is_counted(code)]


def trip(arguments: Sequence[str]) -> Trip:
    codes = walked(arguments)
    rooms = [module(Path(code.co_filename)) for code in codes]
    changes = sum(one != other for one, other in pairwise(rooms))
    way = [f"{room} {code.co_qualname}" for room, code in zip(rooms, codes, strict=True)]
    return Trip(len(codes), len(set(rooms)), changes, way)


def trips() -> dict[str, Trip]:
    """Each of the commands on six pictures of two classes and a tiny model, in a folder that is thrown away."""
    torch.set_num_threads(1)
    os.environ.update(ONE_THREAD)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        torch.manual_seed(0)
        pixel(Path("model"))
        write_groups(Path("in"), ["cat", "dog"], 3)
        tail = ["--model", "model", "--device", "cpu"]
        run(*FIT.split(), *tail)  # loads the shell, which is no part of a trip
        return {name: trip([*line.split(), *tail]) for name, line in TRIPS.items()}


def counted(with_trips: bool) -> dict[str, Any]:
    """All of it, with names."""
    return {
        "lines": lines(),
        "modules": len(files()),
        "parameters": with_many_parameters(),
        "imports": violations(),
        "outside": outside(),
        "full doors": full_doors(),
        "trips": {name: asdict(each) for name, each in trips().items()} if with_trips else {},
    }


def table(found: dict[str, Any]) -> Iterator[str]:
    """The same for people, beside what is wanted."""
    yield f"{'':16}{'':>10}{'wanted':>24}"
    yield f"{'lines':16}{found['lines']:>10}{GOALS['lines']:>24}   in {found['modules']} files"
    for name, what in {"parameters": f"functions with {MANY} or more", "imports": "against the table"}.items():
        yield f"{name:16}{len(found[name]):>10}{GOALS[name]:>24}   {what}"
    yield f"{'outside':16}{len(found['outside']):>10}{0:>24}   modules in no wing"
    yield f"{'full doors':16}{len(found['full doors']):>10}{0:>24}   wings without an __init__ that is one docstring"
    for name, each in found["trips"].items():
        numbers = "/".join(str(each[part]) for part in ("functions", "rooms", "changes"))
        yield f"{name:16}{numbers:>10}{'-/{}/{}'.format(*ROOM_GOALS[name]):>24}   functions/rooms/changes"


def main(
    as_json: Annotated[bool, typer.Option("--json", help="All of it, with names and ways, as JSON.")] = False,
    with_trips: Annotated[bool, typer.Option("--trips/--no-trips", help="Whether commands are run.")] = True,
) -> None:
    """Count."""
    found = counted(with_trips)
    print(json.dumps(found, indent=1) if as_json else "\n".join(table(found)))


if __name__ == "__main__":
    typer.run(main)
