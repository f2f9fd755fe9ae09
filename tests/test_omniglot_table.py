"""The table of Omniglot in two stages: a queue of runs that goes on where it stopped."""

import csv

import pytest
import torch
from strokes import twenty

from metagrad import data
from metagrad.cli.main import main
from metagrad.experiment.run import Run
from metagrad.recipes.omniglot import METHODS, Cell, body, row, stage
from metagrad.recipes.protocols import OmniglotProtocol

WORDS = ["--filters", "2", "--body-steps", "1", "--body-ways", "6", "--body-queries", "2", "--steps", "1",
         "--tasks", "1", "--train-ways", "6", "--val-tasks", "4", "--test-tasks", "4"]  # fmt: skip


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *args, **options: twenty())
    monkeypatch.chdir(tmp_path)
    return tmp_path / "omniglot"


def said(capsys, *words, code=0):
    capsys.readouterr()
    assert main(["reproduce", *words]) == code
    found = capsys.readouterr()
    return " ".join((found.err if code == 2 else found.out).split())


def test_one_cell_is_trained_in_two_stages_and_told_beside_the_paper(out, capsys):
    text = said(capsys, "omniglot", *WORDS)
    assert "99.16 ±" in text
    assert {folder.name for folder in out.iterdir()} == {"body-0", "imaml-5way-1shot-0", "omniglot.csv"}
    (line,) = csv.DictReader((out / "omniglot.csv").open())
    result = Run.open(out / "imaml-5way-1shot-0").read_measured("result.json", None)
    assert float(line["accuracy"]) == pytest.approx(result["value"], abs=1e-6)
    assert str(out.name) in Run.open(out / "imaml-5way-1shot-0").record["init"]
    before = (out / "body-0" / "metrics.jsonl").read_bytes()
    both = ["--cells", "imaml-5way-1shot", "maml-5way-1shot", "--hours", "1e-9"]
    again = said(capsys, "omniglot-table", *WORDS, *both, "--out", str(out))
    assert "not measured yet: maml-5way-1shot-0; run the same command again to continue" in again
    assert (out / "body-0" / "metrics.jsonl").read_bytes() == before, "what is done is not done again"
    assert "holds a run of other settings" in said(capsys, "omniglot", *WORDS, "--lr", "0.5", code=2)


def test_reptile_begins_at_a_head_of_zeros(out, capsys):
    assert "Reptile 5w 1s" in said(capsys, "omniglot", *WORDS, "--cells", "reptile-5way-1shot", "--lr", "1e-30")
    theta = Run.open(out / "reptile-5way-1shot-0").load("best").theta
    features = Run.open(out / "body-0").load("best").theta
    assert theta["head.weight"].abs().max() < 1e-20
    assert theta["head.weight"].shape[0] == 5
    name = next(name for name in features if not name.startswith("."))
    torch.testing.assert_close(theta[name], features[name])


def test_a_table_with_gaps_names_them(out, capsys):
    cells = ["--cells", "maml-5way-1shot", "fomaml-5way-1shot"]
    text = said(capsys, "omniglot-table", *WORDS, *cells, "--hours", "1e-9", "--out", str(out))
    assert "not measured yet: maml-5way-1shot-0, fomaml-5way-1shot-0; run the same command again to continue" in text


def test_a_budget_that_ends_before_the_first_logged_step_leaves_a_gap_and_goes_on(out, capsys, monkeypatch):
    asked = []
    soon = lambda hours, stop: lambda: asked.append(None) or len(asked) > 1  # noqa: E731 - true from the second look on
    monkeypatch.setattr("metagrad.cli.interrupt.until", soon)
    text = said(capsys, "omniglot", *WORDS, "--body-steps", "20", "--hours", "1")
    assert "not measured yet: imaml-5way-1shot-0" in text
    assert not (out / "body-0" / "metrics.jsonl").exists(), "it stopped before it logged anything"
    monkeypatch.undo()
    monkeypatch.setattr(data, "load", lambda *args, **options: twenty())
    monkeypatch.chdir(out.parent)
    assert "99.16 ±" in said(capsys, "omniglot", *WORDS, "--body-steps", "20")


def test_a_cell_that_was_killed_early_begins_at_the_features_all_the_same(out, capsys):
    said(capsys, "omniglot", *WORDS)
    cell = out / "imaml-5way-1shot-0"
    result = Run.open(cell).read_measured("result.json", None)
    best = Run.open(cell).load("best").theta
    for one in cell.iterdir():
        if one.name != "config.json":
            one.unlink()
    said(capsys, "omniglot", *WORDS)
    assert all(torch.equal(leaf, best[name]) for name, leaf in Run.open(cell).load("best").theta.items())
    assert Run.open(cell).read_measured("result.json", None)["per_task"] == result["per_task"]
    (cell / "config.json").unlink()
    assert "has a result, but no config.json" in said(capsys, "omniglot", *WORDS, code=2)


def test_a_damaged_result_of_the_features_is_refused(out, capsys):
    said(capsys, "omniglot", *WORDS)
    (out / "body-0" / "result.json").write_text('{"metric"')
    assert "body-0/result.json is damaged" in said(capsys, "omniglot", *WORDS, code=2)


def test_an_interrupted_queue_says_so_in_its_exit_code(out, capsys, monkeypatch):
    monkeypatch.setattr("metagrad.cli.interrupt.Interrupt.__enter__", lambda self: lambda: True)
    said(capsys, "omniglot", *WORDS, "--hours", "1", code=130)


def test_what_is_no_cell_is_refused(out, capsys):
    assert "no cell is called 'imaml-5-way'" in said(capsys, "omniglot", "--cells", "imaml-5-way", code=2)
    assert "--hours must be positive" in said(capsys, "omniglot", "--hours", "0", code=2)
    assert "--seeds has 0 twice: give it once" in said(capsys, "omniglot", "--seeds", "0", "1", "0", code=2)
    twice = ("maml-5way-1shot",) * 2
    assert "--cells has maml-5way-1shot twice" in said(capsys, "omniglot", "--cells", *twice, code=2)
    body = said(capsys, "omniglot", *WORDS, "--body-ways", "2000", code=2)
    assert "a task of 2000 ways is more than the 9 classes for training" in body
    assert "lower --body-ways" in body
    many = said(capsys, "omniglot", *WORDS, "--train-ways", "2000", code=2)
    assert "a task of 2000 ways is more than the 9 classes for training" in many
    assert not any(out.iterdir()), "told before the features are trained"


@pytest.mark.parametrize("ways", METHODS)
@pytest.mark.parametrize("method", METHODS[5])
def test_every_method_has_an_experiment(method, ways):
    made = stage(OmniglotProtocol(), Cell(method, ways, 5, 1))
    assert (made.tasks.ways, made.tasks.shots, made.seed) == (ways, 5, 1)
    assert (made.budget.val_tasks, made.budget.test_tasks) == ((300, 600) if ways == 5 else (100, 200))
    assert body(OmniglotProtocol(), 1).tasks.train_ways == 60


def test_a_row_of_runs_that_are_not_there_is_empty(tmp_path):
    found = row(Cell("imaml", 5, 1, 0), tmp_path / "body", tmp_path / "stage")
    assert (found.accuracy, found.cpu_seconds, found.reached) == (None, 0.0, (None, None, None))
