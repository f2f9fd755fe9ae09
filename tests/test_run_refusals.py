"""Runs and options that cannot be: each is named before anything is lost."""

import json

import pytest
from toyruns import config, experiment, new_run, rewritten, toy, train

from metagrad import data
from metagrad.errors import MetagradError
from metagrad.experiment.config import TrainConfig
from metagrad.experiment.run import Run
from metagrad.experiment.setup import open_sources


def test_one_process_a_run(tmp_path):
    with new_run(tmp_path / "run"):
        other = Run.open(tmp_path / "run")
        with pytest.raises(MetagradError, match="another process is working"):
            other.__enter__()


def test_directories_that_are_not_what_they_should_be(tmp_path):
    new_run(tmp_path / "run")
    with pytest.raises(MetagradError, match=r"exists already.*--resume"):
        new_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    new_run(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    with pytest.raises(MetagradError, match="not a metagrad run"):
        Run.open(tmp_path / "other")
    with pytest.raises(MetagradError, match=r"not come to its first validation.*--resume"):
        Run.open(tmp_path / "run").load("best")
    (tmp_path / "file").write_text("")
    with pytest.raises(MetagradError, match="is a file"):
        new_run(tmp_path / "file")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(MetagradError, match=r"run format 99.*use the version"):
        Run.open(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(MetagradError, match="not a metagrad run"):
        Run.open(tmp_path / "run")


def test_a_damaged_checkpoint_is_named(tmp_path):
    with new_run(tmp_path / "run") as run:
        train(run, toy(), stop=lambda: True)
    path = tmp_path / "run" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(MetagradError, match=r"last\.safetensors is damaged"):
        Run.open(tmp_path / "run").load("last")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lam": 0.0}, "--lam must be positive"),
        ({"lam": float("nan")}, "--lam must be positive"),
        ({"inner_steps": 0}, "--inner-steps must be at least 1"),
        ({"meta_steps": 0}, "--meta-steps must be at least 1"),
        ({"method": "maml", "cg_steps": 3}, "--cg-steps is for imaml, memory-reduced, not maml"),
        ({"inner_steps": 1.5}, "--inner-steps must be a whole number"),
        ({"inner_lr": "a"}, "--inner-lr must be a number"),
        ({"learn_lam": "foo"}, "--learn-lam is one of fixed, scalar, tensor, parameter, got 'foo'"),
        ({"method": "itd-bio", "l2": -1.0}, "--l2 must not be negative"),
        ({"outer_lr": float("inf")}, "--outer-lr must be positive"),
    ],
)
def test_impossible_values_are_refused(options, says):
    with pytest.raises(MetagradError, match=says):
        config(**options)


def test_a_changed_configuration_does_not_continue_another_run(tmp_path):
    with new_run(tmp_path / "run") as run:
        train(run, toy(), stop=lambda: run.metrics_path.exists())
    path = tmp_path / "run" / "config.json"
    whole = path.read_text()
    path.write_text(whole.replace('"filters": 2', '"filters": 3'))
    with pytest.raises(MetagradError, match="altered since it was written"):
        Run.open(tmp_path / "run")
    path.write_text(whole)
    rewritten(path, lambda record: record["experiment"]["network"].update(filters=3))
    with Run.open(tmp_path / "run") as run, pytest.raises(MetagradError, match="was changed since"):
        train(run, toy(), resume=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "maml", "inner_solver": "adam"}, "--inner-solver is for imaml, memory-reduced, not maml"),
        ({"method": "protonet", "inner_lr": 0.1}, "--inner-lr is for imaml, maml, .* not protonet"),
        ({"method": "maml", "truncate": 1, "keep_every": 2}, "--truncate and --keep-every do not go together"),
        ({"method": "maml", "truncate": 1, "learn_inner_lr": "scalar"}, "leave out --truncate"),
        ({"linear_solver": "none", "learn_lam": "scalar"}, "--learn-lam has no effect with --linear-solver none"),
        ({"linear_solver": "woodbury", "cg_steps": 7}, "--cg-steps has no effect with --linear-solver woodbury"),
        ({"image_size": 84}, "--image-size is for data sets of pictures, not glyphs"),
        ({"task_set": 10}, "--task-set is for memory-reduced, not imaml"),
        ({"method": "memory-reduced", "task_set": 9, "linear_solver": "none"}, "leave out --linear-solver none"),
        ({"learn_inner_lr": "scalar"}, "--learn-inner-lr is for maml, not imaml"),
        ({"inner_solver": "lbfgs", "inner_lr": 0.1}, "--inner-lr is not for --inner-solver lbfgs"),
        ({"linear_solver": "woodbury", "ways": 20, "shots": 10}, "= 4000 here, beyond 1024: use cg"),
        ({"test_tasks": 1}, "--test-tasks must be 0 or at least 2"),
        ({"inner_tol": -1.0}, "--inner-tol must not be negative"),
        ({"linear_solver": "woodbury", "curvature": "hessian"}, "woodbury needs --curvature gauss_newton"),
    ],
)
def test_options_that_do_not_go_together_are_named(options, said):
    with pytest.raises(MetagradError, match=said):
        TrainConfig(**options).resolved("glyphs")


def test_data_are_looked_for_where_they_lay(tmp_path, monkeypatch):
    """Unless it is said anew, or they are there no more."""
    asked = []
    monkeypatch.setattr(data, "load", lambda name, *, data_dir, **options: asked.append(data_dir) or toy())
    monkeypatch.delenv("METAGRAD_DATA", raising=False)
    there = tmp_path / "data"
    there.mkdir()
    run = Run.create(tmp_path / "run", experiment(), experiment().tasks.of(toy(), data_dir=there))
    open_sources(run)
    open_sources(run, data_dir=tmp_path)
    monkeypatch.setenv("METAGRAD_DATA", "elsewhere")
    open_sources(run)
    monkeypatch.delenv("METAGRAD_DATA")
    there.rmdir()
    open_sources(run)
    assert asked == [there, tmp_path, None, None]
