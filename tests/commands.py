"""Commands that several tests give."""

import csv
import io
import re

import pytest

from metagrad.cli.main import main
from metagrad.cli.train import Train


def adapt(learned, out="my.model", known="known"):
    return main(["adapt", str(learned), known, "--out", out])


def rows_of(capsys, *words):
    capsys.readouterr()
    assert main(["predict", *words, "--format", "csv"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def experiment(words):
    """Return the experiment that words of ``metagrad train`` make."""
    return Train.parsed(words.split(), "metagrad train").experiment()


def complaint(capsys, words):
    """Return the one line of error that words give."""
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1, said
    return said


def help_of(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main([*words.split(), "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def flat(text):
    return " ".join(text.split())


def flags_in(text):
    """Return the options that a help text explains."""
    heads = [line.strip().split("  ")[0] for line in text.splitlines() if re.match(r"  -", line)]
    return {word.rstrip(",") for head in heads for word in head.split() if word.startswith("--")}
