"""The table of CIFAR: a queue of runs with several seeds, and paired differences."""

import csv
import dataclasses
import statistics

import pytest
from strokes import twenty

from metagrad import data
from metagrad.cli.main import main
from metagrad.cli.reproduce_cifar import _interval
from metagrad.experiment.run import Run

WORDS = ["--datasets", "cifar-fs", "--methods", "memory-reduced", "anil", "--filters", "2", "--tasks", "1",
         "--shots", "1", "--minutes", "0.0001", "--test-tasks", "4"]  # fmt: skip


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda name, **_: dataclasses.replace(twenty(), name=name))
    monkeypatch.setattr("metagrad.recipes.heads._VALIDATE", 10)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cifar-table"


def said(capsys, *words, code=0):
    capsys.readouterr()
    assert main(["reproduce", "cifar-table", *WORDS, *words]) == code
    found = capsys.readouterr()
    return " ".join((found.err if code == 2 else found.out).split())


def test_methods_are_compared_with_the_first_and_gaps_are_named(out, capsys):
    text = said(capsys, "--seeds", "0", "1", "--hours", "1e-9")
    assert "not measured yet: cifar-fs-memory-reduced-0, cifar-fs-anil-0, cifar-fs-memory-reduced-1" in text
    text = said(capsys, "--seeds", "0")
    assert "not measured yet" not in text
    one, other = (
        Run.open(out / f"cifar-fs-{method}-0").read_measured("result.json", None)["per_task"]
        for method in ("memory-reduced", "anil")
    )
    gap = 100 * statistics.mean(a - b for a, b in zip(one, other, strict=True))
    assert f"{gap:+.2f} ±" in text
    rows = list(csv.DictReader((out / "cifar.csv").open()))
    assert [row["method"] for row in rows] == ["memory-reduced", "anil"]
    assert float(rows[0]["accuracy"]) == pytest.approx(statistics.mean(one), abs=1e-5)
    assert "--minutes must be positive" in said(capsys, "--minutes", "0", code=2)


def test_an_interval_is_over_tasks_and_seeds():
    assert _interval([]) == "–"
    assert _interval([[0.5, 0.7]]) == "60.00 ± 19.60"
    apart = _interval([[0.5, 0.5, 0.5], [0.7, 0.7, 0.7]])
    assert apart == "60.00 ± 19.60", "tasks agree, seeds do not"
    assert _interval([[-0.1, 0.1]], sign="+").startswith("+0.00 ±")
