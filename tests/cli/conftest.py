"""The command line without a process of its own, for everything that needs no signals."""

import pytest
from typer.testing import CliRunner

from nearfar.cli.app import app


@pytest.fixture
def nearfar():
    """Run `nearfar` with these arguments; the result has `exit_code`, `stdout` and `stderr`."""

    def call(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)

    return call


@pytest.fixture
def anonymize(nearfar, model_folder):
    """Run `nearfar anonymize` with the tiny model in two steps, which is enough where pixels do not matter.

    On the CPU wherever the tests run: a GPU has another default batch size.
    """

    def call(source, out, *options):
        return nearfar("anonymize", source, out, "--model", model_folder, "--device", "cpu", "--steps", 2, *options)

    return call
