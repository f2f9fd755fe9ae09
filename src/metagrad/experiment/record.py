"""``config.json`` of a run: what was asked, with which versions, on which data."""

from __future__ import annotations

import platform
import secrets
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metagrad import strict_json
from metagrad.data import DATASETS
from metagrad.errors import MetagradError, in_short
from metagrad.experiment import format1
from metagrad.experiment.experiment import Experiment
from metagrad.experiment.sources import Sources
from metagrad.experiment.values import CLASS, from_json
from metagrad.named_code import NotNamedError
from metagrad.seeds import RULE
from metagrad.strict_json import is_count
from metagrad.version import VERSION

FORMAT = 2
LARGEST_IMAGE = 4096  # pixels a side


@dataclass(frozen=True)
class Record:
    """``config.json`` of a run, understood.

    Attributes
    ----------
    written:
        what the file says.
    experiment:
        what is trained.
    data:
        of the data: its ``digest``; ``inputs`` and ``outputs`` of the network; ``data_dir`` and ``split`` where there
        are such.
    """

    written: dict[str, Any]
    experiment: Experiment
    data: dict[str, Any]


def new_record(
    experiment: Experiment, sources: Sources, *, command: Sequence[str], launch: str | None, init: str | None
) -> dict[str, Any]:
    """Return what a new run writes into ``config.json``; a part that cannot be written down is refused."""
    size = {"inputs": list(sources.inputs), "outputs": sources.outputs}
    record: dict[str, Any] = {
        "format": FORMAT,
        "run": secrets.token_hex(8),  # checkpoints carry it: those of another run are refused
        "experiment": experiment.as_json(),
        "data": {"digest": sources.digest, **size, **sources.record},
        "streams": RULE,
        "command": list(command),
        "versions": versions(),
    }
    return record | {key: value for key, value in (("launch", launch), ("init", init)) if value is not None}


def read_record(folder: Path, *, code: Collection[str] = (), given: Experiment | None = None) -> Record:
    """Return what ``config.json`` of a run directory says.

    Parameters
    ----------
    code:
        import paths outside of metagrad that the experiment may name.
    given:
        the experiment itself, where who opens the run has it: what it names is not imported.

    Raises
    ------
    MetagradError
        if it is not a run, is damaged, was written by an incompatible version, names code that is not allowed, or is of
        another experiment than the one given.
    """
    path = folder / "config.json"
    try:
        record = strict_json.read(path)
        written = record["format"]
    except PermissionError as error:
        raise MetagradError(f"cannot read {folder} (permission denied): ask its owner for permission") from error
    except (OSError, KeyError, TypeError) as error:
        raise MetagradError(f"{folder} is not a metagrad run: no readable config.json in it") from error
    except ValueError as error:
        raise MetagradError(
            f"{folder} is not a metagrad run, or its config.json is damaged ({in_short(error)}): restore it"
        ) from error
    if type(written) is not int or written not in (1, FORMAT):
        raise MetagradError(
            f"{folder} has run format {in_short(written)}, this metagrad reads 1 and {FORMAT}: use the version that "
            "wrote it"
        )
    try:
        if "run" in record or written > 1:  # metagrad 0.1 wrote neither a name nor a digest
            strict_json.require_unaltered(record)
        _require_record(record)
        if written == 1:
            experiment, data = format1.of_record(record)
            if given is not None:
                experiment = _same(experiment.as_json(), given, folder)
        else:
            asked, data = record["experiment"], record["data"]
            experiment = _experiment(asked, code) if given is None else _same(asked, given, folder)
    except (NotNamedError, _AnotherError):
        raise
    except (KeyError, TypeError, ValueError, MetagradError) as error:
        raise MetagradError(f"{path} is damaged ({in_short(error)}): restore it, or begin a new run") from error
    return Record(record, experiment, data)


class _AnotherError(MetagradError):
    """A run is of another experiment than the one that was given."""


def _experiment(written: Any, code: Collection[str]) -> Experiment:
    """Return the experiment that was written, whose code is imported from where it names."""
    network = written.get("network") if isinstance(written, dict) else None
    if isinstance(network, dict) and "module" in network:
        raise NotNamedError(
            f"the run's network was given as a module of {network['module']}: give the experiment again "
            "(Run.open(folder, experiment=...))"
        )
    found = from_json(written, code=code)
    if not isinstance(found, Experiment):
        raise ValueError("it holds no experiment")
    for named in (found.network, found.tasks):
        if isinstance(named, str) and named not in code:
            raise NotNamedError(
                f"the run names {named}, code outside of metagrad, which opening it does not run: name it again if you "
                f"trust it (code=[{named!r}], or --code {named})"
            )
    return found


def _same(written: Any, given: Experiment, folder: Path) -> Experiment:
    """Return the experiment that was given, for as many meta-steps as were written; nothing is imported.

    Raises
    ------
    MetagradError
        if what was written is another: names the first field.
    """
    here = trained_as(given.as_json())
    there = trained_as(written)
    if (off := difference(here, there)) is not None:
        raise _AnotherError(f"{folder} is a run of another experiment ({off}): choose another run")
    return replace(given, budget=replace(given.budget, meta_steps=written["budget"]["meta_steps"]))


def trained_as(experiment: dict[str, Any]) -> dict[str, Any]:
    """Return an experiment's JSON without what a checkpoint does not depend on: how long, where, in what chunks."""
    budget, compute = experiment["budget"], experiment["compute"]
    return {
        **{key: value for key, value in experiment.items() if key not in ("budget", "compute")},
        "tasks_per_step": budget["tasks_per_step"],
        "precision": compute["precision"],
    }


def difference(here: Any, there: Any, place: str = "") -> str | None:
    """Name the first field in which two experiments differ; one that was not there when it was written counts not."""
    if isinstance(here, dict) and isinstance(there, dict) and here.get(CLASS) == there.get(CLASS):
        for key in [key for key in here if key in there]:
            found = difference(here[key], there[key], f"{place}.{key}".lstrip("."))
            if found is not None:
                return found
        return None
    return None if here == there else f"{place} is {_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    return in_short(value[CLASS] if isinstance(value, dict) and CLASS in value else value, 40)


def _require_record(record: dict[str, Any]) -> None:
    """Refuse a config.json of other kinds of values than those that are written.

    Raises
    ------
    ValueError
        naming the first.
    """
    data = record if record["format"] == 1 else record.get("data")
    if not isinstance(data, dict):
        raise ValueError("data cannot be so")
    size, split, inputs = record.get("image_size"), data.get("split"), data.get("inputs", [])
    digest = data.get("data_digest" if record["format"] == 1 else "digest")
    right = {
        "data digest": isinstance(digest, str),
        "command": _are_texts(record.get("command")),
        "versions": isinstance(record.get("versions"), dict) and _are_texts(list(record["versions"].values())),
        "run": isinstance(record.get("run", ""), str),
        "streams": is_count(record.get("streams", 1), 1) and record.get("streams", 1) <= RULE,
        "launch": isinstance(record.get("launch", ""), str),
        "data_dir": data.get("data_dir") is None
        or (isinstance(data["data_dir"], str) and "\0" not in data["data_dir"]),
        "image_size": size is None or (is_count(size, 8) and size <= LARGEST_IMAGE),
        "split": split is None or (isinstance(split, dict) and all(map(_are_texts, split.values()))),
        "inputs": isinstance(inputs, list) and all(is_count(one, 0) and one <= 2**31 for one in inputs),
        "outputs": is_count(data.get("outputs", 1), 1) and data.get("outputs", 1) <= 10**9,
    }
    if record["format"] == 1:
        right |= {"dataset": record.get("dataset") in DATASETS, "config": isinstance(record.get("config"), dict)}
    wrong = [name for name, well in right.items() if not well]
    if wrong:
        raise ValueError(f"{wrong[0]} cannot be so")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def versions() -> dict[str, str]:
    """Return the versions that a number may depend on, and the commit of a source checkout."""
    found = {
        "metagrad": VERSION,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "commit": _commit(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _commit() -> str:
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():  # an installed copy: whatever repository surrounds it is not ours
        return "unknown"
    try:
        ask = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
