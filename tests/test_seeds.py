"""One seed, several things to draw: none knows of another, and a run from before goes on as it began."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toyruns import measured, new_run, rewritten, tensors, toy, train

from metagrad import MetagradError
from metagrad.experiment.run import Run
from metagrad.fewshot import EpisodeSampler
from metagrad.seeds import Seeds

STREAMS = ("weights", "tasks", "validation", "test", "task set", "moved")
OLD = Path(__file__).parent / "runs" / "0.1"


@given(st.integers(0, 2**62 - 3))
def test_streams_of_a_seed_and_of_its_neighbours_are_uncorrelated(seed):
    drawn = {
        (near, name): torch.randn(4000, generator=Seeds(near).generator(name))
        for near in (seed, seed + 1, seed + 2)
        for name in STREAMS
    }
    together = torch.corrcoef(torch.stack(list(drawn.values()))) - torch.eye(len(drawn))
    assert together.abs().max() < 0.12  # of 153 pairs; a seed that two share gives 1


def test_a_stream_is_the_child_that_numpy_would_spawn_and_stays_so():
    for child, name in zip(np.random.SeedSequence(7).spawn(len(STREAMS)), STREAMS, strict=True):
        assert Seeds(7).of(name) == int(child.generate_state(1, np.uint64)[0]) >> 1
    assert Seeds(0).of("weights") == 4334430513956379144
    assert len({Seeds(0).of("moved", step) for step in range(100)} | {Seeds(0).of("moved")}) == 101


def test_the_first_rule_is_the_seed_and_its_neighbours():
    old = Seeds(5, rule=1)
    assert [old.of(name) for name in STREAMS] == [5, 5, 6, 7, 5, 5 + 2**32]
    assert old.of("moved", 3) == 5 + 2**32 + 3


def seeds_used(monkeypatch, folder, resume):
    """Return the seeds of all generators that a run makes, weights aside."""
    used = []
    whole = EpisodeSampler.__call__

    def watched(self, num_tasks, *, generator):
        used.append(generator.initial_seed())
        return whole(self, num_tasks, generator=generator)

    monkeypatch.setattr(EpisodeSampler, "__call__", watched)
    with Run.open(folder) as run:
        train(run, toy(), resume=resume)
    return set(used)


@pytest.mark.filterwarnings("ignore:.*without a checksum")
def test_a_run_from_before_goes_on_as_it_began(tmp_path, monkeypatch):
    folder = Path(shutil.copytree(OLD, tmp_path / "old"))
    assert Run.open(folder).seeds == Seeds(0, rule=1)
    assert {1, 2} <= seeds_used(monkeypatch, folder, resume=True)
    assert json.loads((folder / "result.json").read_text())["protocol"]["task_seed"] == 2


def test_a_new_run_draws_from_streams_of_its_own_and_says_so(tmp_path, monkeypatch):
    with new_run(tmp_path / "run", seed=3, meta_steps=2) as run:
        assert run.record["streams"] == 2
    streams = {name: Seeds(3).of(name) for name in STREAMS}
    assert seeds_used(monkeypatch, tmp_path / "run", False) == {
        streams[name] for name in ("tasks", "validation", "test")
    }
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["protocol"]["task_seed"] == 3
    again = measured(Run.open(tmp_path / "run"), toy(), tasks=result["protocol"]["tasks"], seed=3)
    assert again["value"] == result["value"]


def test_the_rule_decides_the_weights_and_another_one_is_refused(tmp_path):
    for name, rule in (("new", 2), ("old", None)):
        with new_run(tmp_path / name, meta_steps=1):
            pass
        rewritten(
            tmp_path / name / "config.json",
            lambda record, rule=rule: record.update(streams=rule) if rule else record.pop("streams"),
        )
        with Run.open(tmp_path / name) as run:
            train(run, toy())
    new, old = (tensors(tmp_path / name, "best") for name in ("new", "old"))
    assert all(not torch.equal(new[name], old[name]) for name in new if new[name].dim() > 1)
    for rule in (0, 3, "2", True):
        rewritten(tmp_path / "new" / "config.json", lambda record, rule=rule: record.update(streams=rule))
        with pytest.raises(MetagradError, match="invalid streams"):
            Run.open(tmp_path / "new")
