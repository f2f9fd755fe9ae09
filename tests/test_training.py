"""The run directory and the loop: resumed bit for bit, never half written, and clear about what is wrong."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from typing import get_args

import pytest
import torch
from test_checkpoint import OLD
from toyruns import experiment, measured, new_run, own, rewritten, tensors, toy, train

from metagrad import GradientDescent
from metagrad.errors import MetagradError, MetagradWarning
from metagrad.experiment import loop
from metagrad.experiment.api import read_weights
from metagrad.experiment.config import Method, TrainConfig
from metagrad.experiment.format1 import method_of
from metagrad.experiment.run import Run
from metagrad.fewshot import (
    ANIL,
    BOIL,
    FOMAML,
    IMAML,
    MAML,
    R2D2,
    ITDBiO,
    MemoryReduced,
    MetaSGD,
    ProtoNet,
    Reptile,
)


@pytest.mark.parametrize("method", get_args(Method))
def test_a_run_leaves_everything_it_should(tmp_path, method):
    with new_run(tmp_path / "run", method=method, **own(method)) as run:
        outcome = train(run, toy())
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {name: value for name, value in result.items() if name not in ("run", "digest")} == outcome.result
    assert result["metric"] == "test_accuracy"
    assert 1 / 3 < result["value"] <= 1
    assert result["ci95"] > 0
    protocol = result["protocol"]
    assert (protocol["ways"], protocol["shots"], protocol["queries"], protocol["tasks"]) == (3, 1, 2, 8)
    assert protocol["transductive"] is True
    assert {"torch", "metagrad", "commit"} <= set(result["versions"])
    lines = run.metrics()
    assert [line["step"] for line in lines if "loss" in line] == [10, 20]
    assert [line["step"] for line in lines if "val_accuracy" in line] == [10, 20]
    assert result["val_score"] == max(line["val_accuracy"] for line in lines if "val_accuracy" in line)
    assert ("residual" in lines[0]) == (method in ("imaml", "memory-reduced", "r2d2"))


def test_the_library_has_the_command_s_defaults():
    made = {"imaml": IMAML(), "maml": MAML(), "fomaml": FOMAML(), "reptile": Reptile(), "meta-sgd": MetaSGD(),
            "anil": ANIL(), "boil": BOIL(), "itd-bio": ITDBiO(), "memory-reduced": MemoryReduced(),
            "protonet": ProtoNet(), "r2d2": R2D2()}  # fmt: skip
    assert made.keys() == set(get_args(Method))
    for name, method in made.items():
        assert method_of(TrainConfig(method=name).resolved("glyphs")) == method


@pytest.mark.parametrize("options", [{}, {"method": "memory-reduced", "task_set": 5, "chunk": 2}])
def test_stopped_and_resumed_is_bit_for_bit_the_same(tmp_path, options):
    with new_run(tmp_path / "whole", **options) as run:
        train(run, toy())
    asked = iter(range(1, 100))
    with new_run(tmp_path / "parts", **options) as run:
        assert train(run, toy(), stop=lambda: next(asked) == 17).result is None
        run.append("metrics.jsonl", {"step": 20, "loss": 0.0})  # as if killed after logging, before saving
    with Run.open(tmp_path / "parts") as run:
        train(run, toy(), resume=True)
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    for name in ("best", "last"):
        assert all(
            torch.equal(a, tensors(tmp_path / "parts", name)[n]) for n, a in tensors(tmp_path / "whole", name).items()
        )

    def without_time(folder):
        """Return pairs, because the order of a line's keys says which one is the metric."""
        return [[pair for pair in line.items() if "seconds" not in pair[0]] for line in Run.open(folder).metrics()]

    assert without_time(tmp_path / "whole") == without_time(tmp_path / "parts")


_KILLED = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from toyruns import new_run, toy, train
with new_run(Path({folder!r}), meta_steps=100000, val_every=10) as run:
    train(run, toy())
"""


def test_kill_9_loses_nothing_but_the_last_seconds(tmp_path):
    folder = tmp_path / "killed"
    script = _KILLED.format(tests=os.path.dirname(__file__), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 120
    while not (folder / "best.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = Run.open(folder).load("last").facts["step"]
    assert reached >= 9  # one step before the first validation
    goal = reached + 10 - reached % 10

    def finish(folder, resume):
        run = Run.open(folder)
        asked = iter(range(10**9))
        with run:
            start = reached if resume else 0
            train(run, toy(), resume=resume, stop=lambda: start + next(asked) >= goal)
        return run.load("last")

    torch.set_num_threads(1)
    resumed = finish(folder, True)
    with new_run(tmp_path / "whole", meta_steps=100000, val_every=10):
        pass
    whole = finish(tmp_path / "whole", False)
    assert resumed.facts["step"] == whole.facts["step"] == goal
    assert all(torch.equal(whole.tensors[name], resumed.tensors[name]) for name in whole.tensors)


def test_a_loss_that_is_not_finite_stops_names_the_step_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    with (
        new_run(tmp_path / "run", inner_lr=1e30, method="fomaml") as run,
        pytest.raises(MetagradError, match=r"meta-step 1: .*diverged.*below 0\.\d+.*--inner-lr"),
    ):
        train(run, toy())
    with new_run(tmp_path / "later", method="fomaml") as run:
        train(run, toy(), stop=lambda: True)
        before = tensors(run.folder)
        monkeypatch.setattr(loop, "lr_at", lambda *_: 1e30)
        with pytest.raises(MetagradError, match=r"(diverged|not finite|query loss).*keeps its last good"):
            train(run, toy(), resume=True)
        assert all(torch.equal(leaf, tensors(run.folder)[name]) for name, leaf in before.items())


def test_a_full_disk_keeps_the_former_checkpoint(tmp_path, monkeypatch):
    with new_run(tmp_path / "run") as run:
        train(run, toy(), stop=lambda: True)
        before = (run.folder / "last.safetensors").read_bytes()

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(MetagradError, match=r"No space left.*free some space.*--resume"):
            train(run, toy(), resume=True)
        assert (run.folder / "last.safetensors").read_bytes() == before
        assert not [p for p in run.folder.iterdir() if p.name.startswith(".metagrad")], "no temporary file stays"


def test_evaluation_both_ways(tmp_path):
    with new_run(tmp_path / "run") as run:
        train(run, toy())
    together = measured(run, toy(), tasks=20)
    apart = measured(run, toy(), tasks=20, transductive=False)
    assert together["protocol"]["transductive"] is True
    assert apart["protocol"]["transductive"] is False
    assert together["value"] != apart["value"]
    assert measured(run, toy(), tasks=20) == together, "the same seed, the same tasks"


def test_killed_before_the_first_checkpoint_begins_again(tmp_path):
    with new_run(tmp_path / "whole") as run:
        train(run, toy())
    with new_run(tmp_path / "dead") as run:
        run.append("metrics.jsonl", {"step": 10, "loss": 0.0})
    (tmp_path / "dead" / ".metagrad-0123456789abcdef.tmp").write_text("half")
    (tmp_path / "dead" / ".last-123.safetensors").write_text("somebody's")
    with Run.open(tmp_path / "dead") as run:
        train(run, toy(), resume=True)
    whole, again = tensors(tmp_path / "whole"), tensors(tmp_path / "dead")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not list((tmp_path / "dead").glob(".metagrad-*"))
    assert (tmp_path / "dead" / ".last-123.safetensors").exists()


def test_stopped_in_the_final_test_loses_no_training(tmp_path):
    with new_run(tmp_path / "run", test_tasks=100) as run:
        tested = []
        outcome = train(
            run, toy(), report=lambda event: tested.append("tested" in event.line), stop=lambda: any(tested)
        )
        assert outcome.result is None
        assert run.load("last").facts["step"] == 20
        assert train(run, toy(), resume=True).result is not None


def test_a_run_whose_gradient_is_noise_says_so_once(tmp_path, monkeypatch):
    real = loop._numbers
    monkeypatch.setattr(loop, "_numbers", lambda metrics: {**real(metrics), "residual": 3.0})
    with new_run(tmp_path / "run", meta_steps=30) as run, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(run, toy())
    said = [str(one.message) for one in caught if issubclass(one.category, MetagradWarning)]
    assert len(said) == 1
    assert "mostly noise" in said[0]


def test_inner_steps_that_are_too_long_are_named_once(tmp_path):
    with new_run(tmp_path / "run", meta_steps=30, inner_lr=50.0) as run, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(run, toy())
    said = [str(one.message) for one in caught if issubclass(one.category, MetagradWarning)]
    assert sum("inner steps oscillate, because their size 50" in one for one in said) == 1
    assert run.metrics()[0]["max_curvature"] > 2 / 50


def test_a_run_whose_features_died_says_so_once(tmp_path, monkeypatch):
    found = iter([0.9, 1 / 3, 1 / 3])
    real = loop._validate

    def validate(*args, tasks=None):
        """Of fewer tasks, for the estimate of the time, there is nothing to say."""
        evaluation = real(*args, tasks=tasks)
        return evaluation if tasks else dataclasses.replace(evaluation, score=next(found), ci95=0.01)

    monkeypatch.setattr(loop, "_validate", validate)
    with new_run(tmp_path / "run", meta_steps=30) as run, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(run, toy())
    said = [str(one.message) for one in caught if issubclass(one.category, MetagradWarning)]
    assert len(said) == 1
    assert "validation accuracy is at chance, 33.3 %" in said[0]
    assert "after 90.0 % at meta-step 10, whose weights are kept" in said[0]


def test_checkpoints_can_be_read_by_those_who_may_read_the_run(tmp_path):
    with new_run(tmp_path / "run") as run:
        train(run, toy(), stop=lambda: True)
    modes = [(tmp_path / "run" / name).stat().st_mode & 0o777 for name in ("last.safetensors", "config.json")]
    assert modes[0] == modes[1]


def test_a_run_goes_on_where_random_numbers_are_others(tmp_path):
    """As when it began on a GPU, whose generator has another state."""
    with new_run(tmp_path / "run") as run:
        train(run, toy(), stop=lambda: True)
        state = run.load("last")
        state.tensors["generator"] = torch.zeros(16, dtype=torch.uint8)
        run.save("last", state)
        assert train(run, toy(), resume=True).result is not None


@pytest.mark.parametrize(
    "options",
    [
        {"method": "anil", "features": "recomputed"},
        {"method": "maml", "keep_every": 2},
        {"method": "maml", "truncate": 1},
        {"method": "imaml", "adapts": "head.*"},
        {"method": "memory-reduced", "inner_solver": "hessian-free", "l2": 0.1},
        {"network": "mlp", "method": "anil"},
        {"norm": "group"},
        {"norm": "layer", "method": "boil"},
        {"inner_solver": "hessian-free"},
        {"inner_solver": "lbfgs"},
        {"inner_solver": "adam"},
        {"inner_solver": "nesterov", "inner_tol": 0.1},
        {"linear_solver": "minres", "curvature": "hessian"},
        {"linear_solver": "neumann"},
        {"linear_solver": "woodbury"},
        {"linear_solver": "none"},
        {"learn_lam": "parameter"},
        {"method": "maml", "learn_inner_lr": "tensor"},
    ],
)
def test_every_way_to_solve_trains_resumes_and_logs_what_it_learned(tmp_path, options):
    with new_run(tmp_path / "run", meta_steps=10, **options) as run:
        asked = iter([False] * 4 + [True])
        assert train(run, toy(), stop=lambda: next(asked)).result is None
    with Run.open(tmp_path / "run") as run:  # as another process would
        outcome = train(run, toy(), resume=True)
    assert outcome.result is not None
    written = [json.loads(text) for text in (run.folder / "metrics.jsonl").read_text().splitlines()]
    (line,) = (entry for entry in written if "loss" in entry)
    learned = {"learn_lam": "lam_max", "learn_inner_lr": "lr_max"}
    for option, name in learned.items():
        assert (name in line) == (option in options)
    implicit = options.get("method", "imaml") in ("imaml", "memory-reduced") and options.get("linear_solver") != "none"
    assert ("delta_prime" in line) == (implicit and options.get("curvature") != "hessian")


def test_a_run_of_before_an_option_existed_takes_its_default(tmp_path):
    folder = shutil.copytree(OLD, tmp_path / "old")
    rewritten(folder / "config.json", lambda record: [record["config"].pop(name) for name in
                                                      ("inner_solver", "learn_lam")])  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Run.open(folder) as run:
            assert isinstance(run.experiment.method.solver, GradientDescent)
            assert run.experiment.method.learn_lam == "fixed"
            assert train(run, toy(), resume=True).result is not None


def test_a_network_of_one_output_is_not_taken_for_dead():
    from metagrad.distributed import ALONE
    from metagrad.experiment.diagnostics import warn_dead
    from metagrad.fewshot import Evaluation

    progress = {"step": 5, "best_score": None, "best_step": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_dead(1, progress, Evaluation(0.9, 0.05, 0.3, 10, False), ALONE)
    with pytest.warns(UserWarning, match="at chance"):
        warn_dead(1, progress, Evaluation(0.5, 0.05, 3.0, 10, False), ALONE)


def test_the_validation_of_the_first_weights_is_no_part_of_the_estimated_time(tmp_path, monkeypatch):
    with new_run(tmp_path / "first", meta_steps=10) as run:
        train(run, toy())
    real, lines = loop._validate, []

    def validate(*args, tasks=None):
        """Take long where all tasks are judged."""
        time.sleep(0 if tasks else 3.0)
        return real(*args, tasks=tasks)

    monkeypatch.setattr(loop, "_validate", validate)
    begin, asked = read_weights(tmp_path / "first"), experiment(meta_steps=40, val_every=40)
    with Run.create(tmp_path / "run", asked, asked.tasks.of(toy()), command=["test"], init=begin.where) as run:
        train(run, toy(), init=begin, report=lambda event: lines.append(event.line))
    (said,) = [line["seconds_left"] for line in lines if "seconds_left" in line]
    assert said < 60, "40 meta-steps of 3 seconds each would be 120"
