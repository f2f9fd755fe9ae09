"""Trainings that begin at one another, each a run in a folder, which goes on where it stopped."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from metagrad.data import Dataset
from metagrad.errors import MetagradError
from metagrad.experiment import Episodes, Experiment
from metagrad.experiment.api import train
from metagrad.experiment.loop import Event
from metagrad.experiment.run import Run


def require_same(folder: Path, experiment: Experiment) -> None:
    """Refuse a folder that holds a run of other settings.

    Raises
    ------
    MetagradError
        if it does.
    """
    if (folder / "config.json").exists() and Run.open(folder).experiment != experiment:
        raise MetagradError(f"{folder} holds a run of other settings: choose another --out, or remove it")


def require_possible(folder: Path, experiment: Experiment, dataset: Dataset) -> None:
    """Refuse what could not be trained there, before hours of work.

    Raises
    ------
    MetagradError
        if ``folder`` holds a run of other settings, or a task has more ways than there are classes.
    """
    require_same(folder, experiment)
    assert isinstance(experiment.tasks, Episodes)
    experiment.tasks.of(dataset)


def train_unless_done(
    folder: Path,
    experiment: Experiment,
    *,
    init: Path | None = None,
    data_dir: Path | None,
    report: Callable[[str, Event], None],
    stop: Callable[[], bool],
) -> None:
    """Train and test an experiment in ``folder``, or go on there, unless it is done or ``stop`` is true.

    Parameters
    ----------
    init:
        what it begins at: see :func:`metagrad.train`.
    report:
        called with the folder's name and each event of the training.
    """
    if stop() or (folder / "result.json").exists():
        return
    told = functools.partial(report, folder.name)
    train(experiment, folder, resume=True, init=init, data_dir=data_dir, report=told, stop=stop)
