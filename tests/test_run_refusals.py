"""Runs and options that cannot be: each is named before anything is lost."""

import json

import pytest
from toyruns import experiment, new_run, rewritten, toy, train

from metagrad import data
from metagrad.errors import MetagradError
from metagrad.experiment.run import Run
from metagrad.experiment.setup import open_sources


def test_one_process_a_run(tmp_path):
    with new_run(tmp_path / "run"):
        other = Run.open(tmp_path / "run")
        with pytest.raises(MetagradError, match="another process is working"):
            other.__enter__()


def test_directories_that_are_not_what_they_should_be(tmp_path):
    new_run(tmp_path / "run")
    with pytest.raises(MetagradError, match=r"exists already and is not empty: choose another --run"):
        new_run(tmp_path / "run")  # without a checkpoint: it may have diverged at its first step
    (tmp_path / "run" / "last.safetensors").touch()
    with pytest.raises(MetagradError, match=r"exists already.*continue it with --resume"):
        new_run(tmp_path / "run")
    (tmp_path / "run" / "last.safetensors").unlink()
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
