"""Standard streams that are closed, full or narrow; lines that are said."""

import os
import subprocess
import sys

import pytest

from metagrad.classifier.support import listed
from metagrad.cli import main as command
from metagrad.cli.text import say

FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
HELP = ["", "train", "evaluate", "check", "adapt", "predict", "export", "report", "data", "reproduce"]


def shell(line, **environment):
    """Run a line of shell in which $M is the command."""
    done = subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "M": f"{sys.executable} -m metagrad", **environment},
    )
    return done.returncode, done.stdout, done.stderr


@FULL
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--version", "--help", "data list", "train --help"])
def test_a_full_output_is_one_line(words, unbuffered):
    code, _, said = shell(f"$M {words} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert code == 2
    assert said.startswith("metagrad: cannot write")
    assert "No space left" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("words", ["--version", "--help", "data list", "train --help"])
def test_a_closed_output_is_one_line_and_a_reader_that_leaves_none(words):
    code, _, said = shell(f"$M {words} >&-")
    assert (code, len(said.splitlines())) == (2, 1)
    assert "standard output is closed" in said
    assert shell(f"$M {words} | head -1; exit ${{PIPESTATUS[0]}}")[::2] == (0, "")


def test_complaints_do_not_land_in_a_file_that_is_opened_later(tmp_path):
    """Without standard error the next file would be number 2, and C code's complaints go there."""
    script = tmp_path / "opens.py"
    script.write_text(
        "import os, sys\n"
        "from metagrad.cli.streams import open_missing\n"
        "open_missing()\n"
        f"file = open({str(tmp_path / 'table.csv')!r}, 'w')\n"
        "assert file.fileno() > 2\n"
        "os.write(2, b'a complaint of C code')\n"
    )
    for closed in ("2>&-", ">&-", "<&-", "<&- >&- 2>&-"):
        assert shell(f"{sys.executable} {script} {closed}")[0] == 0
        assert not (tmp_path / "table.csv").read_text()
    assert shell("$M evaluate nowhere 2>&-") == (2, "", "")
    if os.path.exists("/dev/full"):
        assert shell("$M evaluate nowhere 2>/dev/full") == (2, "", "")


@pytest.mark.parametrize("words", HELP)
@pytest.mark.parametrize("columns", ["1", "7", "10"])
def test_help_ends_on_a_terminal_of_a_few_columns(words, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as stop:
        command.main([*words.split(), "--help"])
    assert stop.value.code == 0
    assert "usage: metagrad" in capsys.readouterr().out
    assert os.environ["COLUMNS"] == columns


def test_what_is_said_is_one_line_of_bounded_length(capsys, monkeypatch):
    say("a\nb\x1b[2J" + "x" * 10**5 + "the end")
    said = capsys.readouterr().err
    assert said.startswith("metagrad: a b\N{REPLACEMENT CHARACTER}")
    assert said.endswith("the end\n")
    assert len(said) < 2100
    monkeypatch.setattr(sys, "stderr", None)
    say("nobody hears it")
    assert capsys.readouterr() == ("", "")


def raised(error):
    def fail(words):
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RecursionError("maximum recursion depth exceeded"),
        OSError(36, "File name too long", "d/" * 5000),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
        FileNotFoundError(2, "No such file or directory", "a\nb"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_world_does_is_one_line(error, monkeypatch, capsys):
    monkeypatch.setattr(command, "_command", raised(error))
    assert command.main(["evaluate"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert len(said) < 2100


def test_a_programming_error_is_not_hidden(monkeypatch):
    for error in (RuntimeError("size mismatch"), ZeroDivisionError()):
        monkeypatch.setattr(command, "_command", raised(error))
        with pytest.raises(type(error)):
            command.main(["evaluate"])


def test_pictures_in_folders_nested_a_thousand_deep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):  # step by step: the whole path is longer than the system takes
        os.mkdir("d")
        os.chdir("d")
    open("x.png", "w").close()
    os.chdir(tmp_path)
    monkeypatch.setattr(command, "_command", lambda words: len(list(listed(["d"], ()))))
    try:
        assert command.main(["predict"]) == 1  # picture
    finally:
        subprocess.run(["rm", "-rf", "d"], check=True)
    assert capsys.readouterr().err == ""
