"""What is printed is safe for every console, signals end with one line, and what is no path here is refused at once."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from nearfar.cli import console
from nearfar.cli.console import LONGEST, say, tell, visible
from nearfar.errors import RunError, UsageError
from processes import Cold, Warm, wait_until


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("caf\u00e9 \u4e2d", "caf\u00e9 \u4e2d"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("gnp.\u202exe", r"gnp.\u202exe"),
        ("\u2066a\u200f", r"\u2066a\u200f"),
        ("bell\x07\x9b\x7f", r"bell\x07\x9b\x7f"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_steers_a_terminal_is_escaped(text, shown, capsys):
    assert visible(text) == shown
    say("failed", text)
    tell({}, [("out", text)], as_json=False)
    said = capsys.readouterr()
    assert said.err == f"failed    {shown}\n"
    assert said.out == f"out       {shown}\n"
    tell({"name": text}, [], as_json=True)
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"name": text}
    assert printed.strip().isprintable()


def test_a_long_line_is_cut_at_the_stated_length():
    assert visible("x" * LONGEST) == "x" * LONGEST
    assert visible("x" * (LONGEST + 7)) == "x" * LONGEST + " ... (7 more characters)"


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("gs://bucket", "needs the library gcsfs: pip install 'nearfar[gs]'"),
        ("https://host/a.zip", "has a scheme that is not known: give a path, or one of s3://, gs://"),
        ("hdfs:/x", "has a scheme that is not known"),
    ],
)
@pytest.mark.parametrize("command", ["anonymize", "augment", "enhance", "invert"])
def test_an_address_is_one_sentence_and_never_a_folder(nearfar, tmp_path, monkeypatch, address, sentence, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for places in ((address, "out"), ("in", address)):
        ended = nearfar(command, *places)
        assert ended.exit_code == 2
        assert ended.stderr.count("\n") == 1
        assert sentence in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    "arguments",
    [("anonymize", "gone", "out"), ("reconstruct", "gone", "out"), ("calibrate", "gone", "--target", "rank1=0.1"),
     ("audit", "gone", "out"), ("domain", "fit", "gone", "file"), ("augment", "gone", "out")],
)  # fmt: skip
def test_a_missing_input_is_said_before_anything_is_loaded(nearfar, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nearfar.cli.options.ModelChoice.load", lambda _: pytest.fail("a model is loaded"))
    ended = nearfar(*arguments)
    assert (ended.exit_code, ended.stderr) == (
        2,
        "nearfar: gone must be a folder of images, or one image, got nothing there\n",
    )


@pytest.mark.process
def test_a_missing_input_loads_no_torch_and_a_narrow_console_gets_escapes(tmp_path):
    code = "import sys, atexit, nearfar.__main__ as m; atexit.register(lambda: print('torch' in sys.modules)); m.main()"
    command = [sys.executable, "-c", code, "anonymize", str(tmp_path / "\u4e2d\u202e"), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp1252"}, check=False)
    assert (ended.returncode, ended.stdout.split()) == (2, [b"False"])
    assert rb"\u4e2d\u202e must be a folder" in ended.stderr
    assert ended.stderr.count(b"\n") == 1


@pytest.fixture
def endless(tmp_path, model_folder, write_pictures):
    write_pictures(tmp_path / "in", 16)
    options = ["--model", str(model_folder), "--device", "cpu", "--steps", "900", "--batch-size", "8"]
    return ["anonymize", str(tmp_path / "in"), str(tmp_path / "out"), *options]


@pytest.mark.process
@pytest.mark.parametrize("gap", [0, 0.05])
@pytest.mark.parametrize("numbers", [[signal.SIGINT] * 3, [signal.SIGTERM, signal.SIGINT, signal.SIGTERM]])
def test_three_signals_end_with_one_line(tmp_path, endless, numbers, gap):
    process = Warm(endless, tmp_path / "logs")
    assert wait_until((tmp_path / "out.manifest.jsonl").exists, process)
    for number in numbers:
        process.signal(number)
        time.sleep(gap)
    ended = process.wait()
    assert ended.code == 130
    assert [line for line in ended.err.splitlines() if line.startswith("nearfar:")] == ended.err.splitlines()[-1:]
    assert "Traceback" not in ended.err
    assert ended.out == ""


@pytest.mark.parametrize("error", [UsageError, RunError, OSError])
def test_a_signal_while_an_error_is_told_ends_with_one_line(monkeypatch, error):
    """Not as an exception that nothing catches any more: the command line would end with 1 and no sentence."""

    class Interrupted(error):
        def __str__(self):
            os.kill(os.getpid(), signal.SIGINT)
            return "never told"

    def ended(*_):
        raise SystemExit(console.INTERRUPTED)

    @console.reported_errors()
    def command():
        console.raise_on_signals()
        raise Interrupted

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(console, "end_at_once", ended)
    try:
        with pytest.raises(SystemExit) as end:
            command()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert end.value.code == 130


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_libraries_are_imported_is_one_line(tmp_path, endless, number):
    process = Cold(endless, tmp_path / "logs")
    time.sleep(0.7)
    process.signal(number)
    ended = process.wait()
    assert (ended.code, ended.err, ended.out) == (130, "nearfar: interrupted\n", "")


@pytest.mark.process
def test_nothing_slow_is_imported_before_signals_are_heard():
    """What Python itself imports when it starts is the interpreter's business, what follows is ours."""
    script = "import sys; before = set(sys.modules); import nearfar.__main__; print(*set(sys.modules) - before)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    imported = set(ended.stdout.split())
    assert {"signal", "nearfar.__main__"} <= imported
    assert not imported & {
        "typing",
        "re",
        "random",
        "pathlib",
        "importlib.metadata",
        "email",
        "typer",
        "torch",
        "numpy",
    }
