"""The help texts, as committed. After a change: `make golden`, then look at the difference."""

from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from nearfar.cli.app import app
from nearfar.cli.help import EXAMPLES

HELP = Path(__file__).with_name("help")
README = Path(__file__).parents[2] / "README.md"
COMMANDS = sorted(get_command(app).commands)
ALL = {
    name: command
    for outer, group in get_command(app).commands.items()
    for name, command in {
        outer: group,
        **{f"{outer} {inner}": command for inner, command in getattr(group, "commands", {}).items()},
    }.items()
}
"""Every command by what is typed for it, those within `domain` and `models` too."""


@pytest.mark.parametrize("command", ["nearfar", *ALL])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_what_it_was(command, flag, request):
    arguments = [flag] if command == "nearfar" else [*command.split(), flag]
    result = CliRunner().invoke(app, arguments, prog_name="nearfar")  # the runner's terminal is 80 columns wide
    assert result.exit_code == 0
    golden = HELP / f"{command.replace(' ', '-')}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(result.stdout, "utf-8")
    assert result.stdout == golden.read_text("utf-8")


def test_there_is_a_golden_file_for_every_command_and_no_other():
    assert sorted(path.stem for path in HELP.iterdir()) == sorted(name.replace(" ", "-") for name in ["nearfar", *ALL])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_mentions_every_command(command):
    assert f"nearfar {command}" in README.read_text("utf-8")


@pytest.mark.parametrize("command", ALL)
def test_every_option_says_what_it_does(command):
    silent = [option.name for option in ALL[command].params if not option.help]
    assert silent == []


@pytest.mark.parametrize("name", [name for name, command in ALL.items() if not hasattr(command, "commands")])
def test_every_command_has_two_examples_whose_options_exist(name):
    command, examples = ALL[name], EXAMPLES[name.split()[-1]]
    known = {"--help"}.union(*(option.opts for option in command.params))
    assert len(examples) == 2
    for example in examples:
        assert example.startswith(f"nearfar {name}")
        assert {word for word in example.split() if word.startswith("--")} <= known
