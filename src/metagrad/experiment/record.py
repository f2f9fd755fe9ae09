"""``config.json`` of a run: the experiment, the versions and the data."""

from __future__ import annotations

import platform
import secrets
import subprocess
from collections.abc import Collection, Iterator, Sequence
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
from metagrad.experiment.pretrained import Pretrained, own_path, trunk_digest
from metagrad.experiment.sources import Sources, TaskSet
from metagrad.experiment.values import CLASS, from_json, paths_in
from metagrad.named_code import NotNamedError, digests, require_named
from metagrad.seeds import RULE
from metagrad.strict_json import is_count
from metagrad.version import VERSION

FORMAT = 2
LARGEST_IMAGE = 4096  # pixels a side


@dataclass(frozen=True)
class Record:
    """``config.json`` of a run, parsed.

    Attributes
    ----------
    written:
        the JSON in the file.
    experiment:
        the experiment it describes.
    data:
        ``digest`` of the data; ``inputs`` and ``outputs`` of the network; ``backbone``, the digest of a pretrained one;
        ``drawn``, that of the first tasks of a user's source; ``data_dir`` and ``split`` if there are any.
    """

    written: dict[str, Any]
    experiment: Experiment
    data: dict[str, Any]


def new_record(
    experiment: Experiment, sources: Sources, *, command: Sequence[str], launch: str | None, init: str | None
) -> dict[str, Any]:
    """Return the ``config.json`` of a new run; refuse a part that has no JSON."""
    size: dict[str, Any] = {"inputs": list(sources.inputs), "outputs": sources.outputs}
    if isinstance(experiment.network, Pretrained):
        size["backbone"] = trunk_digest(experiment.network)
    written = experiment.as_json()
    record: dict[str, Any] = {
        "format": FORMAT,
        "run": secrets.token_hex(8),  # checkpoints carry it: those of another run are refused
        "experiment": written,
        "data": {"digest": sources.digest, **size, **sources.record},
        "code": digests(own_code(written)),
        "streams": RULE,
        "command": list(command),
        "versions": versions(),
    }
    return record | {key: value for key, value in (("launch", launch), ("init", init)) if value is not None}


def read_record(folder: Path, *, code: Collection[str] = (), given: Experiment | None = None) -> Record:
    """Read ``config.json`` of a run directory.

    Parameters
    ----------
    code:
        import paths outside of metagrad that the experiment may name.
    given:
        the run's own experiment, if the caller has it: then nothing is imported.

    Raises
    ------
    MetagradError
        as :meth:`metagrad.experiment.Run.open`.
    """
    path = folder / "config.json"
    try:
        record = strict_json.read(path)
        version = record["format"]
    except PermissionError as error:
        raise MetagradError(f"cannot read {folder} (permission denied): ask its owner for permission") from error
    except (OSError, KeyError, TypeError) as error:
        raise MetagradError(f"{folder} is not a metagrad run: {_why_not(folder)}") from error
    except ValueError as error:
        raise MetagradError(
            f"{folder} is not a metagrad run, or its config.json is damaged ({in_short(error)}): restore it"
        ) from error
    if type(version) is not int or version not in (1, FORMAT):
        raise MetagradError(
            f"{folder} has run format {in_short(version)}, this metagrad reads 1 and {FORMAT}: use the version that "
            "wrote it"
        )
    try:
        if "run" in record or version > 1:  # metagrad 0.1 wrote neither a name nor a digest
            strict_json.require_unaltered(record)
        _require_record(record)
        if version == 1:
            experiment, data = format1.of_record(record)
            if given is not None:
                experiment = _same(experiment.as_json(), given, folder)
        else:
            written, data = record["experiment"], record["data"]
            experiment = _experiment(written, code) if given is None else _same(written, given, folder)
    except (NotNamedError, _AnotherError):
        raise
    except (KeyError, TypeError, ValueError, MetagradError) as error:
        raise MetagradError(f"{path} is damaged ({in_short(error)}): restore it, or begin a new run") from error
    return Record(record, experiment, data)


class _AnotherError(MetagradError):
    """A run holds another experiment than the given one."""


def _experiment(written: Any, code: Collection[str]) -> Experiment:
    """Return the experiment that was written, and import the code it names."""
    network = written.get("network") if isinstance(written, dict) else None
    if isinstance(network, dict) and "module" in network:
        raise NotNamedError(
            f"the run's network was given as a module of {network['module']}: give the experiment again "
            "(Run.open(folder, experiment=...))"
        )
    require_named(own_code(written), code)
    experiment = from_json(written, code=code)
    if not isinstance(experiment, Experiment):
        raise ValueError("it holds no experiment")
    require_named([*_called(experiment)], code)
    return experiment


def own_code(written: Any) -> Iterator[str]:
    """Yield the code outside of metagrad that an experiment's JSON names, so that one refusal names all of it."""
    for part in ("tasks", "network"):
        named = written.get(part) if isinstance(written, dict) else None
        while isinstance(named, dict) and part == "tasks" and str(named.get(CLASS)).endswith(":TaskSet"):
            named = named.get("tasks")
        if isinstance(named, str) and named.count(":") == 1:
            yield named
    yield from paths_in(written)


def _called(experiment: Experiment) -> Iterator[str]:
    """Yield the import paths that opening an experiment's tasks or network calls, metagrad's own too."""
    tasks = experiment.tasks
    while isinstance(tasks, TaskSet):
        tasks = tasks.tasks
    yield from (named for named in (tasks, experiment.network) if isinstance(named, str))
    yield from own_path(experiment.network)


def _same(written: Any, given: Experiment, folder: Path) -> Experiment:
    """Return the given experiment with the run's number of meta-steps; refuse one that the run is not of."""
    field = difference(trained_as(given.as_json()), trained_as(written))
    if field is not None:
        raise _AnotherError(f"{folder} is a run of another experiment ({field}): choose another run")
    return replace(given, budget=replace(given.budget, meta_steps=written["budget"]["meta_steps"]))


def trained_as(experiment: dict[str, Any]) -> dict[str, Any]:
    """Return the part of an experiment's JSON that a checkpoint depends on: all but its length, device and chunks."""
    budget, compute = experiment["budget"], experiment["compute"]
    return {
        **{key: value for key, value in experiment.items() if key not in ("budget", "compute")},
        "tasks_per_step": budget["tasks_per_step"],
        "precision": compute["precision"],
    }


def difference(here: Any, there: Any, place: str = "") -> str | None:
    """Name the first field in which two experiments differ; a field that ``there`` lacks is younger than the run."""
    if isinstance(here, dict) and isinstance(there, dict) and here.get(CLASS) == there.get(CLASS):
        for key in [key for key in here if key in there]:
            inner = difference(here[key], there[key], f"{place}.{key}".lstrip("."))
            if inner is not None:
                return inner
        return None
    return None if here == there else f"{place} is {_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    return in_short(value[CLASS] if isinstance(value, dict) and CLASS in value else value, 40)


def _require_record(record: dict[str, Any]) -> None:
    """Raise ``ValueError`` naming the first value in config.json that no run writes."""
    data = record if record["format"] == 1 else record.get("data")
    if not isinstance(data, dict):
        raise ValueError("invalid data")
    size, split, inputs = record.get("image_size"), data.get("split"), data.get("inputs", [])
    digest = data.get("data_digest" if record["format"] == 1 else "digest")
    valid = {
        "data digest": isinstance(digest, str),
        "drawn": isinstance(data.get("drawn", ""), str),
        "backbone": isinstance(data.get("backbone", ""), str),
        "command": _are_texts(record.get("command")),
        "versions": isinstance(record.get("versions"), dict) and _are_texts(list(record["versions"].values())),
        "run": isinstance(record.get("run", ""), str),
        "streams": is_count(record.get("streams", 1), 1) and record.get("streams", 1) <= RULE,
        "launch": isinstance(record.get("launch", ""), str),
        "code": isinstance(record.get("code", {}), dict) and _are_texts(list(record.get("code", {}).values())),
        "data_dir": data.get("data_dir") is None
        or (isinstance(data["data_dir"], str) and "\0" not in data["data_dir"]),
        "image_size": size is None or (is_count(size, 8) and size <= LARGEST_IMAGE),
        "split": split is None or (isinstance(split, dict) and all(map(_are_texts, split.values()))),
        "inputs": isinstance(inputs, list) and all(is_count(one, 0) and one <= 2**31 for one in inputs),
        "outputs": is_count(data.get("outputs", 1), 1) and data.get("outputs", 1) <= 10**9,
    }
    if record["format"] == 1:
        valid |= {"dataset": record.get("dataset") in DATASETS, "config": isinstance(record.get("config"), dict)}
    wrong = [name for name, ok in valid.items() if not ok]
    if wrong:
        raise ValueError(f"invalid {wrong[0]}")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on, and the commit of a source checkout."""
    facts = {
        "metagrad": VERSION,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "commit": _commit(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _commit() -> str:
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():  # an installed copy, perhaps inside another repository
        return "unknown"
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _why_not(folder: Path) -> str:
    if folder.is_file():
        return "it is a file, and a run is a folder that metagrad train made"
    if not folder.exists():
        return "there is no such folder"
    return "no readable config.json in it"
