"""Commands that several tests give."""

import csv
import io

from metagrad.cli.main import main


def adapt(learned, out="my.model", known="known"):
    return main(["adapt", str(learned), known, "--out", out])


def rows_of(capsys, *words):
    capsys.readouterr()
    assert main(["predict", *words, "--format", "csv"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
