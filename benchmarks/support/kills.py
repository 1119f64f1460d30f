"""Does a run that is killed or tampered with ever lie? Every job on tiny models, disturbed at random moments.

    OMP_NUM_THREADS=1 python -m benchmarks.support.kills --kills 200 --seed 1

A run is started in a process of its own, which is forked from one that has loaded torch, and disturbed: SIGKILL,
SIGTERM, SIGINT, three SIGINTs, SIGTERM before anything is loaded, its output or its record removed, a link put in place
of something that it has written. It must end with the exit code of an undisturbed run and all that such a run writes,
or with another code and a sentence. Then it is resumed (half of them are disturbed once more, up to three times), and
the same must hold; where that is refused with a sentence, a run from the start must succeed. Files are compared byte by
byte, but for records and those in which two undisturbed runs differ (seconds, names of folders), which must be there.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import chdir, suppress
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.support.shell import ONE_THREAD, SERVER, TOO_LONG
from benchmarks.support.small_inputs import write_inputs, write_key
from benchmarks.support.small_models import MODELS

MODULES = (
    *("audit.audit", "audit.calibration", "cli.app", "domain.file", "domain.survey", "jobs.calibrate", "jobs.enhance"),
    *("jobs.reconstruct", "jobs.regions", "jobs.sample", "jobs.units", "models.loading", "reports.audit"),
    *("reports.calibration", "reports.domain", "reports.reconstruct", "reports.regions", "reports.survey"),
)
PRELOADED = ["benchmarks.support.small_models", "benchmarks.support.small_inputs", *(f"nearfar.{m}" for m in MODULES)]
TAIL, SLOW = "--model models/pixel --batch-size 4 --steps 3", "--model models/pixel --batch-size 4 --steps 12"
MANY = "--model models/pixel --batch-size 64 --steps 2"
RUNS = {
    "anonymize": f"anonymize in/flat OUT/made --key-file key --resume {SLOW}",
    "regions": f"anonymize in/boxes OUT/made --key-file key --regions boxes --keep-unmatched --resume {SLOW}",
    "augment": f"augment in/tests OUT/made --copies 3 --keep-originals --resume {TAIL}",
    "coco": f"augment in/boxes OUT/made --copies 2 --resume {SLOW}",
    "yolo": f"augment in/yolo OUT/made --copies 2 --resume {SLOW}",
    "parquet": f"augment in/sets/parquet OUT/made --copies 2 --resume {TAIL}",
    "saved": f"augment in/sets/splits OUT/made --copies 2 --resume {TAIL}",
    "shards": f"augment in/shards OUT/made --copies 2 --resume {SLOW}",
    "enhance": f"enhance in/small OUT/made --scale 2 --resume {TAIL}",
    "reconstruct": f"reconstruct in/small OUT/made --own-samples 4 --resume {SLOW}",
    "invert": f"invert in/flat OUT/made --resume {SLOW}",
    "calibrate": f"calibrate in/many OUT/c.json --target similarity=0.7 --features pixels --overwrite --resume {MANY}",
    "fit": f"domain fit in/flat OUT/a.domain --no-pilot --overwrite --report OUT/page.html {MANY}",
    "sample": "domain sample first/a.domain OUT/made --count 24 --keep-all --resume --model models/pixel",
    "survey": f"domain survey in/flat --report OUT/page.html {MANY}",
    "audit": "audit in/tests second/made --features pixels --report OUT/page.html --model models/pixel",
}
"""Name -> line, in which OUT stands for a folder of its own. Given again, a line goes on or begins anew."""
FIRST = {"first": RUNS["fit"], "second": f"anonymize in/tests OUT/made --key-file key {TAIL}"}
"""What some of them need."""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def with_a_sentence(self) -> bool:
        """Whether it says in its last line why it ended."""
        return "Traceback" not in self.err and self.err.splitlines()[-1:] != [] and self.said.startswith("nearfar: ")

    @property
    def said(self) -> str:
        return self.err.splitlines()[-1] if self.err else ""


@dataclass(frozen=True)
class Started:
    """A run in a process of its own; its output is in files beside its folder."""

    process: SERVER.Process
    out: Path

    @classmethod
    def of(cls, line: str, out: Path) -> Started:
        out.mkdir(parents=True, exist_ok=True)
        for end in (".out", ".err"):
            logs(out).with_suffix(end).unlink(missing_ok=True)
        words = [*line.replace("OUT", str(out)).split(), "--device", "cpu"]
        started = cls(SERVER.Process(target=child, args=(words, str(logs(out)))), out)
        started.process.start()
        started.wait_for_its_first_line()
        return started

    def wait_for_its_first_line(self) -> None:
        """Until then signals meet Python's own start, which turns SIGINT into exit code 1 without a word."""
        deadline = time.monotonic() + TOO_LONG
        while not logs(self.out).with_suffix(".err").exists() and time.monotonic() < deadline:
            time.sleep(0.001)

    def wait(self) -> Ended:
        self.process.join(TOO_LONG)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"{self.out}: does not end")
        texts = [logs(self.out).with_suffix(end) for end in (".out", ".err")]
        return Ended(self.process.exitcode, *(path.read_text("utf-8") if path.exists() else "" for path in texts))

    @property
    def has_told(self) -> bool:
        """Whether it has told its outcome: what happens to its files then is no concern of it."""
        said = logs(self.out).with_suffix(".out")
        return said.exists() and said.stat().st_size > 0

    def signal(self, *numbers: int) -> bool:
        running = self.process.is_alive()
        for place, number in enumerate(numbers):
            time.sleep(random.uniform(0, 0.05) if place else 0)
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)
        return running


def logs(out: Path) -> Path:
    return out.with_name(f"{out.name}-said")


def child(words: list[str], said: str) -> None:
    """The command line with its output in files; until it answers signals itself they end the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for descriptor, end in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(said + end, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["nearfar", *words]
    from nearfar.__main__ import main

    main()


def remove_output(started: Started) -> bool:
    made = started.out / "made"
    made = made if made.exists() else started.out
    there = any(made.rglob("*"))
    shutil.rmtree(made, ignore_errors=True)
    return there


def remove_record(started: Started) -> bool:
    records = [*started.out.glob("*.manifest.jsonl")]
    for path in records:
        path.unlink(missing_ok=True)
    return records != []


def put_link(started: Started) -> bool:
    """Something below OUT, or its record, lies elsewhere now, and a link in its place; OUT itself may be a link."""
    made, away = (
        sorted(p for p in started.out.rglob("*") if p.name != "made"),
        started.out.with_name(f"{started.out.name}-away{time.monotonic_ns()}"),
    )
    with suppress(OSError, IndexError):  # it may be gone by now
        path = random.choice(made)
        path.rename(away)
        path.symlink_to(away.resolve())
        return True
    return False


def signalled(*numbers: int) -> Harm:
    return lambda started: started.signal(*numbers)


Harm = Callable[[Started], bool]
"""Does it; whether there was anything to do it to."""
HARMS: dict[str, Harm] = {
    "SIGKILL": signalled(signal.SIGKILL),
    "SIGTERM": signalled(signal.SIGTERM),
    "SIGINT": signalled(signal.SIGINT),
    "SIGINT three times": signalled(*[signal.SIGINT] * 3),
    "SIGTERM before the start": signalled(signal.SIGTERM),
    "output removed": remove_output,
    "record removed": remove_record,
    "link": put_link,
}
UNSEEN = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)
"""Ends of a process that could not say anything: the signals before its first line."""


@dataclass(frozen=True)
class Whole:
    """What an undisturbed run gives: its exit code, its files (None for those that differ between two), its seconds."""

    code: int
    files: Mapping[str, bytes | None]
    seconds: float

    def problem(self, ended: Ended, out: Path) -> str:
        """What is wrong with an end that counts as one of these."""
        if ended.code != self.code:
            return "" if ended.with_a_sentence or ended.code in UNSEEN else f"code {ended.code}, said {ended.err!r}"
        found = files(out)
        if found.keys() != self.files.keys():
            return f"code {ended.code}, other files: {sorted(found.keys() ^ self.files.keys())}"
        other = [name for name, content in self.files.items() if content not in (None, found[name])]
        return f"code {ended.code}, other bytes: {other}" if other else ""


def files(out: Path) -> dict[str, bytes]:
    """All of them below a folder; a link is one, too, and equal to no file."""
    found = [path for path in out.rglob("*") if path.is_symlink() or path.is_file()]
    return {
        path.relative_to(out).as_posix(): b"a link" if path.is_symlink() else path.read_bytes()
        for path in found
    }  # fmt: skip


@cache
def undisturbed(name: str) -> Whole:
    """Of two runs."""
    line, before = RUNS[name], time.monotonic()
    ends = [Started.of(line, Path("whole", f"{name}{number}")).wait() for number in range(2)]
    one, two = (files(Path("whole", f"{name}{number}")) for number in range(2))
    assert ends[0].code == ends[1].code in (0, 3), ends
    assert one.keys() == two.keys()
    changing = {each for each in one if one[each] != two[each] or each.endswith(".manifest.jsonl")}
    both = {each: None if each in changing else content for each, content in one.items()}
    return Whole(ends[0].code, both, (time.monotonic() - before) / 2)


@dataclass(frozen=True)
class Round:
    """A job that is disturbed until it may end; counts: how often what came of what."""

    name: str
    line: str
    out: Path
    whole: Whole
    counts: Counter[str]

    def go(self, kills: int) -> list[str]:
        """What went wrong."""
        wrong = [self.disturbed() for _ in range(kills)]
        ended = Started.of(self.line, self.out).wait()
        wrong.append(self.whole.problem(ended, self.out))
        if ended.code != self.whole.code:
            self.counts["then refused, and made anew"] += 1
            shutil.rmtree(self.out)
            ended = Started.of(self.line, self.out).wait()
            wrong.append(self.whole.problem(ended, self.out) or ("refused" if ended.code != self.whole.code else ""))
        else:
            self.counts["then resumed to the same bytes"] += 1
        return [f"{self.name}, {self.out}: {each}" for each in wrong if each]

    def disturbed(self) -> str:
        """Start and disturb it once; what is wrong with its end."""
        harm = random.choice([*HARMS])
        started = Started.of(self.line, self.out)
        time.sleep(random.uniform(0, 0.02 if harm.endswith("start") else self.whole.seconds))
        acted, after = HARMS[harm](started), started.has_told
        ended = started.wait()
        kind = "went on to the end" if ended.code == self.whole.code else "killed" if ended.code < 0 else "said why"
        kind = "done after the end" if after else kind if acted else "nothing to do it to"
        self.counts[f"{harm}: {kind}"] += 1
        problem = self.whole.problem(ended, self.out)
        return "" if after or not problem else f"after {harm}: {problem}"


def prepare(first: Mapping[str, str] = FIRST) -> None:
    """Inputs, a model, and what some runs need, in the working folder."""
    SERVER.set_forkserver_preload(PRELOADED)
    write_inputs(Path("in"))
    write_key(Path("key"))
    MODELS["pixel"](Path("models", "pixel"))
    for name, line in first.items():
        assert Started.of(line, Path(name)).wait().code == 0


def disturb(kills: int, seed: int, only: str = "") -> tuple[Counter[str], list[str]]:
    """So many disturbances, one to three of a run, of all jobs in turn; counts, and what went wrong."""
    random.seed(seed)
    names = [name for name in RUNS if only in name]
    random.shuffle(names)
    counts, wrong, done = Counter[str](), list[str](), 0
    for name in cycle(names):
        whole, times = undisturbed(name), min(random.choice((1, 1, 2, 3)), kills - done)
        wrong += Round(name, RUNS[name], Path("cut", f"{name}-{seed}-{done}"), whole, counts).go(times)
        done += times
        counts[f"job {name}"] += times
        if done >= kills:
            break
    return counts, wrong


def main(
    kills: Annotated[int, typer.Option(help="How many disturbances.")] = 200,
    seed: Annotated[int, typer.Option(help="Of what is disturbed when; the machine's load decides, too.")] = 0,
    only: Annotated[str, typer.Option(help="Jobs with this in their name.")] = "",
) -> None:
    """Disturb runs of every job and tell what came of it; exit code 1 where something went wrong."""
    os.environ.update(ONE_THREAD)
    folder = Path(tempfile.mkdtemp())
    with chdir(folder):
        prepare()
        counts, wrong = disturb(kills, seed, only)
    for what, count in sorted(counts.items()):
        print(f"{count:5} {what}")
    print(*wrong, f"{len(wrong)} of {kills} went wrong", sep="\n")
    if not wrong:
        shutil.rmtree(folder)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
