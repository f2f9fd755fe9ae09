"""Trainings that begin at one another, each a run in a folder, which goes on where it stopped."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
        if it does, or a result that nothing says the settings of.
    """
    if not (folder / "config.json").exists() and (folder / "result.json").exists():
        raise MetagradError(f"{folder} has a result, but no config.json: restore that file, or remove the folder")
    if (folder / "config.json").exists() and Run.open(folder).experiment != experiment:
        raise MetagradError(f"{folder} holds a run of other settings: choose another --out, or remove it")


def require_possible(
    folder: Path, experiment: Experiment, dataset: Dataset, options: Mapping[str, str] | None = None
) -> None:
    """Refuse what could not be trained there, before hours of work.

    Parameters
    ----------
    options:
        what the queue calls options of ``train``, for its messages: ``{"--outer-lr": "--lr"}``.

    Raises
    ------
    MetagradError
        if ``folder`` holds a run of other settings, or a task has more ways than there are classes.
    """
    require_same(folder, experiment)
    assert isinstance(experiment.tasks, Episodes)
    with _naming(options or {}):
        experiment.tasks.of(dataset)


@contextmanager
def _naming(options: Mapping[str, str]) -> Iterator[None]:
    """Name the options of the queue in an error, not those of ``train``."""
    try:
        yield
    except MetagradError as error:
        text = str(error)
        for one, own in options.items():
            text = text.replace(one, own)
        raise MetagradError(text) from error


def train_unless_done(
    folder: Path,
    experiment: Experiment,
    *,
    init: Path | None = None,
    options: Mapping[str, str] | None = None,
    data_dir: Path | None,
    report: Callable[[str, Event], None],
    stop: Callable[[], bool],
) -> None:
    """Train and test an experiment in ``folder``, or go on there, unless it is done or ``stop`` is true.

    Parameters
    ----------
    init:
        what it begins at: see :func:`metagrad.train`.
    options:
        as for :func:`require_possible`.
    report:
        called with the folder's name and each event of the training.

    Raises
    ------
    MetagradError
        as :func:`metagrad.train`, and for a damaged result.
    """
    if (folder / "result.json").exists():
        Run.open(folder).read_measured("result.json", None)
        return
    if stop():
        return
    told = functools.partial(report, folder.name)
    with _naming(options or {}):
        train(experiment, folder, resume=True, init=init, data_dir=data_dir, report=told, stop=stop)
