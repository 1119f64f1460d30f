"""A few of the disturbances of `benchmarks.support.kills`: a run that ends as if nothing had happened is whole."""

import signal

import pytest
from typer.testing import CliRunner

from benchmarks.support import kills


@pytest.mark.process
@pytest.mark.slow
def test_disturbed_runs_end_whole_or_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kills.prepare({})
    at_once = kills.Started.of("--help", tmp_path / "at once")
    assert at_once.signal(*[signal.SIGINT] * 3)
    assert at_once.wait().code in (130, -signal.SIGINT)  # as a command line does, and not as Python's start
    counts, wrong = kills.disturb(6, seed=0, only="shards")
    assert wrong == []
    assert sum(count for what, count in counts.items() if not what.startswith(("job", "then"))) == 6
    assert sum(count for what, count in counts.items() if what.startswith("then")) >= 2


@pytest.mark.parametrize("harm", ["other bytes", "a file less", "a link", "no sentence", "a traceback"])
def test_a_run_that_lies_is_found_out(tmp_path, harm):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_bytes(b"a")
    whole = kills.Whole(0, {"a": b"a"}, 1.0)
    assert whole.problem(kills.Ended(0, "done", ""), out) == ""
    assert whole.problem(kills.Ended(1, "", "x 1\nnearfar: the disk is full\n"), out) == ""
    if harm == "other bytes":
        (out / "a").write_bytes(b"b")
    elif "trace" not in harm and "sentence" not in harm:
        (out / "a").unlink()
        if harm == "a link":
            (out / "b").write_bytes(b"a")
            (out / "a").symlink_to("b")
    said = {"no sentence": "x\n", "a traceback": "Traceback (most recent call last):\nnearfar: x\n"}.get(harm)
    ended = kills.Ended(1, "", said) if said else kills.Ended(0, "done", "")
    assert whole.problem(ended, out) != ""


def test_its_jobs_are_those_of_the_package():
    from nearfar.cli.app import app

    known = CliRunner().invoke(app, ["--help"]).output
    commands = {line.split()[0] for line in kills.RUNS.values()}
    assert all(command in known for command in commands)
    assert commands == {"anonymize", "augment", "enhance", "reconstruct", "invert", "calibrate", "domain", "audit"}
