"""The campaign, short here and long behind the slow marker; and that it sees what it looks for."""

import importlib
from pathlib import Path

import forked
import pytest

pytest.importorskip("resource", reason="the campaign forks, limits memory and sends signals")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def root(monkeypatch):
    """Go where the campaign is run, as tests.campaign."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def campaign(root, tmp_path):
    def run(which, *words, seconds=280):
        code, said = forked.program(f"tests.campaign.{which}", words, tmp_path / "said").ended(seconds)
        assert code == 0, said
        return said

    return run


@pytest.fixture
def trial(root):
    return importlib.import_module("tests.campaign.trial")


@pytest.mark.parametrize(("code", "complaint", "case"), [
    (2, "metagrad: my.model was altered: make it again\n", "refused"),
    (0, "", "same"),
    (0, "metagrad: the cache is made anew\n", "same"),
    (2, "", "untidy"),
    (2, f"metagrad: {'x' * 3000}\n", "untidy"),
    (0, "UserWarning: read-only array\n", "untidy"),
    (1, 'Traceback (most recent call last):\n  File "/a/metagrad/b.py", line 3, in c\nKeyError: 1\n', "traceback"),
    (-11, "", "crash"),
    (None, "", "hang"),
])  # fmt: skip
def test_an_outcome_is_judged(trial, code, complaint, case):
    assert trial.judge(trial.Outcome(code, "", complaint))[0] == case


def test_touched_files_and_other_results_are_seen(trial, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "cache").mkdir()
    before = trial.state(tmp_path)
    for name in ("run/evaluations.jsonl", "run/else.json", "cache/rows.npy", "cache/.metagrad-1.tmp", "beside"):
        (tmp_path / name).write_text("x")
    assert trial.touched("evaluate", before, trial.state(tmp_path)) == [
        "beside",
        "cache/.metagrad-1.tmp",
        "run/else.json",
    ]
    assert trial.difference(["said", {"loss": [1.0, 2.0]}], ["said", {"loss": [1.0, 2.5]}]) == "loss float"


def test_mutated_files_are_refused_or_change_nothing(campaign):
    assert "| all | 8 |" in campaign("mutate", "--count", "8")


def test_killed_runs_come_to_the_same_bits(campaign):
    assert " 0 of them not as they should be" in campaign("kill", "--kills", "2", "--forked")


def test_an_empty_cache_is_shared_by_who_comes_first(campaign):
    assert "0 rounds failed" in campaign("race", "--rounds", "1")


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_twenty_thousand_mutations(campaign):
    assert "| all | 20000 |" in campaign("mutate", "--count", "20000", "--processes", "2", seconds=4 * 3600)


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
def test_two_hundred_kills(campaign):
    said = campaign("kill", "--kills", "200", "--processes", "2", seconds=2 * 3600)
    assert " 0 of them not as they should be" in said


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_races_for_an_empty_cache(campaign):
    assert "0 rounds failed" in campaign("race", "--rounds", "30", "--drawn", seconds=3600)
