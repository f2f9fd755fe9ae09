"""``metagrad evaluate``: several runs on the same tasks, other ways and shots, tasks that share no image."""

import json
import math
from dataclasses import replace

import pytest
import torch
from strokes import dataset

from metagrad import data
from metagrad.cli.main import main
from metagrad.data import Classes
from metagrad.errors import MetagradError
from metagrad.experiment.run import Run
from metagrad.fewshot import EpisodeSampler, disjoint_tasks

WORDS = ["--ways", "3", "--queries", "2", "--tasks", "2", "--filters", "2", "--meta-steps", "4", "--val-tasks", "4",
         "--test-tasks", "4", "--no-calibrate"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Give a folder with two runs on drawings: "rows" and "shared", whose heads begin there."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda *args, **options: dataset())
        for start in ("rows", "shared"):
            assert main(["train", "omniglot", *WORDS, "--start", start, "--run", str(folder / start)]) == 0
    return folder


@pytest.fixture
def runs(folder, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *args, **options: dataset())
    return [str(folder / start) for start in ("rows", "shared")]


def said(capsys, *words, code=0):
    capsys.readouterr()
    assert main(["evaluate", *words]) == code
    out, error = capsys.readouterr()
    return " ".join((error if code else out).split())


def lines(run):
    return [json.loads(line) for line in (Run.open(run).folder / "evaluations.jsonl").read_text().splitlines()]


def test_runs_are_compared_task_by_task(runs, capsys):
    text = said(capsys, *runs, "--tasks", "10")
    one, two = (torch.tensor(lines(run)[-1]["per_task"], dtype=torch.float64) for run in runs)
    gap = two - one
    mean, half = 100 * float(gap.mean()), 196 * float(gap.std()) / math.sqrt(10)
    assert f"accuracy {mean:+.2f} ± {half:.2f} points (paired, same 10 tasks)" in text
    assert lines(runs[0])[-1]["value"] == pytest.approx(float(one.mean()), abs=1e-6)


def test_tasks_of_other_sizes(runs, capsys):
    assert "5-way 2-shot, 3 queries" in said(
        capsys, runs[1], "--ways", "5", "--shots", "2", "--queries", "3", "--tasks", "4"
    )
    assert "turned" in said(capsys, runs[0], "--turned", "--tasks", "4")
    assert "learned one row of its head for each of 3 classes" in said(capsys, runs[0], "--ways", "5", code=2)
    assert "a task of 99 ways is more than the" in said(capsys, runs[1], "--ways", "99", code=2)


def test_what_cannot_be_compared_is_refused(runs, capsys, tmp_path, monkeypatch):
    other = str(tmp_path / "other")
    assert main(["train", "omniglot", *WORDS, "--shots", "2", "--run", other]) == 0
    assert "is tested with 2 shots" in said(capsys, runs[0], other, code=2)
    assert "paired" in said(capsys, runs[0], other, "--shots", "1", "--tasks", "4")
    monkeypatch.setattr(data, "load", lambda *args, **options: replace(dataset(), digest="other"))
    elsewhere = str(tmp_path / "elsewhere")
    assert main(["train", "omniglot", *WORDS, "--run", elsewhere]) == 0
    assert "has other data than" in said(capsys, runs[0], elsewhere, code=2)


def test_tasks_that_share_no_image(runs, capsys):
    text = said(capsys, runs[0], "--disjoint")
    found = lines(runs[0])[-1]
    assert f"{len(found['per_task'])} tasks that share no image" in text
    classes = dataset().test
    most = sum(sorted(count // 3 for count in classes.counts.tolist())) // 3
    assert 2 <= len(found["per_task"]) <= most
    assert "too few images for two tasks" in said(
        capsys, runs[1], "--disjoint", "--ways", "5", "--queries", "7", code=2
    )


@pytest.mark.parametrize(("ways", "shots", "queries"), [(2, 1, 1), (3, 2, 1), (6, 1, 3)])
def test_disjoint_tasks_use_no_example_twice(ways, shots, queries):
    counts = [10, 4, 7, 12, 5, 9]
    labels = torch.repeat_interleave(torch.arange(6), torch.tensor(counts))
    classes = Classes.from_arrays(torch.arange(sum(counts), dtype=torch.float32)[:, None], labels)
    sampler = EpisodeSampler(classes=classes, ways=ways, shots=shots, queries=queries)
    tasks = disjoint_tasks(sampler, generator=torch.Generator().manual_seed(0))
    used = torch.cat([tasks.support.x, tasks.query.x], 1).flatten()
    assert len(used.unique()) == len(used)
    each = shots + queries
    expected = sum(sum(count >= used + each for count in counts) // ways for used in range(0, max(counts), each))
    assert len(tasks) == expected
    for batch in (tasks.support, tasks.query):
        assert torch.equal(labels[batch.x.long()[..., 0]], tasks.classes.gather(1, batch.y))
    with pytest.raises(ValueError, match="must be numbers"):
        disjoint_tasks(EpisodeSampler(classes=classes, ways=(2, 3), shots=1, queries=1), generator=torch.Generator())


def test_disjoint_tasks_of_turned_drawings():
    sampler = EpisodeSampler(classes=dataset().test, ways=3, shots=1, queries=1, rotations=True)
    tasks = disjoint_tasks(sampler, generator=torch.Generator().manual_seed(0))
    upright = EpisodeSampler(classes=dataset().test, ways=3, shots=1, queries=1)
    same = disjoint_tasks(upright, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tasks.classes, same.classes)
    assert not torch.equal(tasks.support.x, same.support.x)


def test_python_takes_the_same_options(runs):
    result = Run.open(runs[1]).evaluate(tasks=4, ways=4, turned=True, disjoint=True)
    assert result["protocol"]["ways"] == 4
    assert result["protocol"]["disjoint"]
    with pytest.raises(MetagradError, match="learned one row"):
        Run.open(runs[0]).evaluate(tasks=4, ways=4)


def test_own_sources_that_draw_other_tasks_are_not_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "from metagrad.fewshot import Sinusoids\ndef few(): return Sinusoids(shots=5, queries=5)\n"
    (tmp_path / "twosources.py").write_text(f"{text}def more(): return Sinusoids(shots=7, queries=5)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("few", "more"):
        words = [
            "--network",
            "mlp",
            "--method",
            "maml",
            "--loss",
            "squared-error",
            "--meta-steps",
            "2",
            "--tasks-per-step",
            "2",
        ]
        small = ["--val-tasks", "2", "--test-tasks", "2", "--run", name]
        assert main(["train", f"twosources:{name}", *words, *small]) == 0
    code = ["--code", "twosources:few", "--code", "twosources:more", "--tasks", "2"]
    assert "has other tasks than few" in said(capsys, "few", "more", *code, code=2)
    assert "paired" in said(capsys, "few", "few", *code)
