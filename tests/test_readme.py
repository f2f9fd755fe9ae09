"""The README's programs run as they stand."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.filterwarnings("ignore:replaced 1 \\(BatchNorm2d\\)")
@pytest.mark.parametrize("program", PROGRAMS, ids=["core", "own-network"])
def test_program_runs(program, capsys):
    exec(compile(program, "README.md", "exec"), {})
    assert "nan" not in capsys.readouterr().out


def test_ci_runs_the_test_command_that_the_readme_gives():
    assert len(re.findall(r"^ *pip install .*&& pytest$", README, re.MULTILINE)) == 1
