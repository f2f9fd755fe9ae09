"""The programs of the README and of the docs run as they stand."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def programs(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    return text, re.findall(r"```python\n(.*?)```", text, re.DOTALL)


README, PROGRAMS = programs("README.md")


@pytest.mark.filterwarnings("ignore:replaced 1 \\(BatchNorm2d\\)")
@pytest.mark.parametrize("program", PROGRAMS, ids=["core", "own-network"])
def test_program_runs(program, capsys):
    exec(compile(program, "README.md", "exec"), {})
    assert "nan" not in capsys.readouterr().out


def test_ci_runs_the_test_command_that_the_readme_gives():
    assert len(re.findall(r"^ *pip install .*&& pytest$", README, re.MULTILINE)) == 1
