"""Words into commands: what the parser reads, refuses and explains."""

import dataclasses
import re
import subprocess
import sys
import textwrap
from typing import Literal

import pytest
from commands import flat, help_of

from metagrad import MetagradError
from metagrad.cli.arguments import Option, arg, options_of, parse
from metagrad.cli.main import COMMAND_HOMES, FIGURE_HOMES, imported
from metagrad.cli.parts import table

COMMANDS = ["--help", "train --help", "train --method maml --help", "train glyphs --network mlp --help", "data list",
            "evaluate --help", "predict --help", "reproduce --help", "reproduce convergence --help"]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS)
def test_help_is_quick_as_it_loads_no_torch(words):
    script = f"""
        import sys
        from metagrad.cli.main import main
        try:
            main({words.split()!r})
        except SystemExit:
            pass
        heavy = {{"torch", "numpy", "matplotlib", "metagrad.fewshot", "metagrad.experiment", "metagrad.data"}}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("columns", [7, 40, 80, 200])
def test_help_flows_at_the_terminals_width(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_of(capsys, "train")
    longest = max(len(line) for line in text.splitlines() if not line.lstrip().startswith(("-", "usage")))
    assert max(40, columns) * 0.8 < longest <= max(40, columns)


@dataclasses.dataclass(frozen=True)
class Command:
    """Do a thing."""

    what: str = arg(positional=True, metavar="WHAT")
    """What."""
    rest: tuple[int, ...] = arg(positional=True, metavar="N")
    """Numbers."""
    mode: Literal["a", "b"] = "a"
    """How, at 100 % or less."""
    loud: bool = False
    """Whether."""
    name: str | None = arg(None, aliases=("--called",))
    """Who."""
    more: tuple[str, ...] = arg((), repeated=True)
    """Again and again."""
    least: int = arg(3, least=2)
    """At least 2."""
    share: float = arg(0.0, least=0, most=1)
    """From 0 to 1."""


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("x", Command("x", ())),
        ("x 1 2 --mode b", Command("x", (1, 2), mode="b")),
        ("--mode b x --loud 1 2", Command("x", (1, 2), "b", True)),
        ("x --called y --more p --more=q 3 --no-loud", Command("x", (3,), name="y", more=("p", "q"))),
        ("x 1 -- 2", Command("x", (1, 2))),
        ("-", Command("-", ())),
    ],
)
def test_words_become_a_command(words, wanted):
    assert parse(Command, words.split(), "do") == wanted


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "do needs WHAT (do WHAT N...); see do --help"),
        ("x 1 b", "N must be a whole number, got 'b'; see do --help"),
        ("x --mode c", "--mode is one of a, b, got 'c'; see do --help"),
        ("x --nam y", "there is no option --nam (did you mean --name?); see do --help"),
        ("x --name", "--name expected one argument; see do --help"),
        ("x --loud=yes", "--loud ignored explicit argument 'yes'; see do --help"),
        ("x -q", "there is no option -q; see do --help"),
        ("x --least 1", "--least must be at least 2, got 1; see do --help"),
        ("x --share 1.5", "--share must be from 0 to 1, got 1.5; see do --help"),
        ("x --share nan", "--share must be from 0 to 1, got nan; see do --help"),
    ],
)
def test_words_that_are_no_command(words, says):
    with pytest.raises(MetagradError, match=f"^{re.escape(says)}$"):
        parse(Command, words.split(), "do")


def test_every_option_is_explained_in_sentences_that_a_command_line_can_follow():
    commands = [imported(home) for home in (*COMMAND_HOMES.values(), *FIGURE_HOMES.values())]
    options = [one for command in commands if dataclasses.is_dataclass(command) for one in options_of(command)]
    options += [Option(**{**one, "name": f"{path} {one['name']}"})
                for path, value in table()["values"].items() for one in value["options"]]  # fmt: skip
    assert len(options) > 100
    for option in options:
        first = re.match(r"[\w-]*", option.help)[0]
        assert option.help.endswith("."), option
        assert first not in option.choices, f"{option}: a capital would change the name of a choice"
        assert "In Python" not in option.help, option
        assert "module of the network" not in option.help, option


def test_help_begins_each_text_with_a_capital(capsys):
    assert "The weights that a task adapts" in flat(help_of(capsys, "train glyphs"))
