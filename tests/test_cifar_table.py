"""The tables of CIFAR: queues of runs with several seeds, and paired differences."""

import csv
import dataclasses
import statistics

import pytest
from strokes import twenty

from metagrad import data
from metagrad.cli.main import main
from metagrad.cli.reproduce_cifar import _interval
from metagrad.experiment.run import Run
from metagrad.recipes.cifar_two_stages import METHODS, body, stage
from metagrad.recipes.protocols import CifarTwoStagesProtocol

WORDS = ["--datasets", "cifar-fs", "--methods", "memory-reduced", "anil", "--filters", "2", "--tasks", "1",
         "--shots", "1", "--minutes", "0.0001", "--test-tasks", "4"]  # fmt: skip


TWO_STAGES = ["--filters", "2", "--body-steps", "2", "--body-ways", "6", "--steps", "1", "--tasks", "1", "--shots", "1",
              "--val-tasks", "4", "--test-tasks", "4"]  # fmt: skip


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda name, **_: dataclasses.replace(twenty(), name=name))
    monkeypatch.setattr("metagrad.recipes.heads._VALIDATE", 10)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cifar-table"


def said(capsys, *words, code=0, command=("cifar-table", *WORDS)):
    capsys.readouterr()
    assert main(["reproduce", *command, *words]) == code
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
    table = (out / "cifar.csv").read_text()
    for other in (["--filters", "3"], ["--test-tasks", "6", "--methods", "anil", "maml"]):
        assert "holds a run of other settings" in said(capsys, "--seeds", "0", *other, code=2)
    assert (out / "cifar.csv").read_text() == table
    assert "--methods has anil twice" in said(capsys, "--methods", "anil", "anil", code=2)


def test_every_method_of_two_stages_begins_at_the_same_features(out, capsys):
    command = ("cifar-two-stages", *TWO_STAGES)
    text = said(capsys, "--seeds", "0", "--hours", "1e-9", command=command)
    assert "not measured yet: cifar-fs-memory-reduced-0, cifar-fs-maml-0" in text
    some = ["--seeds", "0", "--methods", "memory-reduced", "protonet"]
    text = said(capsys, *some, command=command)
    assert "not measured yet" not in text
    home = out.parent / "cifar-two-stages"
    runs = [Run.open(home / f"cifar-fs-{method}-0") for method in ("memory-reduced", "protonet")]
    assert all(run.record["init"].endswith("cifar-fs-body-0") for run in runs)
    one, other = (run.read_measured("result.json", None)["per_task"] for run in runs)
    gap = 100 * statistics.mean(a - b for a, b in zip(one, other, strict=True))
    assert f"{gap:+.2f} ±" in text
    before = (home / "cifar-fs-body-0" / "metrics.jsonl").read_bytes()
    again = said(capsys, *some, command=command)
    assert again.split("cifar-fs, test, %")[1] == text.split("cifar-fs, test, %")[1]
    assert (home / "cifar-fs-body-0" / "metrics.jsonl").read_bytes() == before, "what is done is not done again"
    assert "holds a run of other settings" in said(capsys, *some, "--body-lr", "0.5", code=2, command=command)


def test_two_stages_refuse_what_they_cannot_train_before_the_features_are_trained(out, capsys):
    command = ("cifar-two-stages", *TWO_STAGES)
    assert "--hours must be positive" in said(capsys, "--hours", "0", code=2, command=command)
    many = said(capsys, "--body-ways", "2000", code=2, command=command)
    assert "a task of 2000 ways is more than the" in many
    assert not (out.parent / "cifar-two-stages" / "cifar-fs-body-0").exists()


@pytest.mark.parametrize("method", METHODS)
def test_the_second_stage_has_tasks_of_the_test_size(method):
    made = stage(CifarTwoStagesProtocol(), "fc100", method, 1)
    assert (made.tasks.ways, made.tasks.shots, made.tasks.train_ways, made.seed) == (5, 5, None, 1)
    assert body(CifarTwoStagesProtocol(), "fc100", 1).tasks.train_ways == 20


def test_an_interval_is_over_tasks_and_seeds():
    assert _interval([]) == "–"
    assert _interval([[0.5, 0.7]]) == "60.00 ± 19.60"
    apart = _interval([[0.5, 0.5, 0.5], [0.7, 0.7, 0.7]])
    assert apart == "60.00 ± 127.10", "tasks agree, seeds do not: Student's t for two of them"
    three = _interval([[0.5] * 3, [0.6] * 3, [0.7] * 3])
    assert three == f"60.00 ± {430.3 * 0.1 / 3**0.5:.2f}"
    assert _interval([[0.4, 0.6]] * 2) == "50.00 ± 13.86", "seeds agree by chance: what their tasks leave open"
    assert _interval([[-0.1, 0.1]], sign="+").startswith("+0.00 ±")
