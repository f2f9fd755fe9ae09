"""Reading what a run wrote: whether it is as it was written, this run's, and of these weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from metagrad import strict_json, tensorfile
from metagrad.errors import MetagradError, MetagradWarning, in_short
from metagrad.experiment import metrics_file
from metagrad.experiment.checkpoint import State, require_facts
from metagrad.experiment.record import difference
from metagrad.experiment.storage import require_own, storage_error
from metagrad.files import require_readable

_SAID: set[Path] = set()  # runs of which it was said, once in a process, that they have no checksums


def read_state(folder: Path, record: dict[str, Any], trained_as: dict[str, Any], name: str) -> State:
    """Return a checkpoint of a run, ``"last"`` or ``"best"``.

    Parameters
    ----------
    record:
        the run's ``config.json``.
    trained_as:
        what in it a checkpoint depends on.

    Raises
    ------
    MetagradError
        if there is none, it is damaged or altered, or it belongs to another run or configuration.
    """
    path = folder / f"{name}.safetensors"
    require_readable(path, missing=f"{folder} has not come to its first validation: metagrad train --resume {folder}")
    try:
        stored = tensorfile.read(path, key="facts")
        require_facts(stored.facts)
        if name == "last" and "generator" not in stored.tensors:
            raise ValueError("the generator is missing")
    except (OSError, ValueError, MemoryError) as error:
        raise MetagradError(
            f"{path} is damaged ({in_short(error)}): start the run anew, or restore the file"
        ) from error
    facts = stored.facts
    if facts.get("run") != record.get("run"):
        raise MetagradError(f"{path} is a checkpoint of another run: restore the file of {folder}")
    if difference(trained_as, facts["trained_as"]) is not None:
        raise MetagradError(f"{folder}/config.json was changed since {path.name} was written: change it back")
    if stored.digest is None and "run" in record:
        raise MetagradError(f"{path} has no checksum, and this run writes them: restore the file of {folder}")
    if stored.digest is None and folder not in _SAID:
        _SAID.add(folder)
        warnings.warn(
            f"{folder} has checkpoints without a checksum, written by an older metagrad: whether they are as they were "
            "written cannot be told",
            MetagradWarning,
            stacklevel=3,
        )
    return State(stored.tensors, facts, stored.digest)


def rewind(folder: Path, state: State | None, *, begun: bool) -> None:
    """Drop metrics lines that are later than a checkpoint; say what is missing of the earlier ones.

    Parameters
    ----------
    state:
        the checkpoint; ``None``: there is none, and the run begins again.
    begun:
        whether the run has come to a validation before.
    """
    path, said = folder / "metrics.jsonl", None
    if state is not None:
        said = metrics_file.fault(path, state.facts)
    elif begun or metrics_file.size_of(path):
        said = (
            f"{folder} has no last.safetensors: it was stopped before its first checkpoint, or the file is gone; "
            "training begins again, and the seed makes it the same"
        )
    try:
        metrics_file.rewind(path, 0 if state is None else state.facts["metrics_bytes"])
    except OSError as error:
        raise storage_error(path, error) from error
    if said is not None:
        warnings.warn(said, MetagradWarning, stacklevel=3)


def read_measured(folder: Path, record: dict[str, Any], name: str, weights: str | None) -> dict[str, Any] | None:
    """Return what was measured on weights of this digest; ``None`` where nothing is, or it was on earlier ones.

    Raises
    ------
    MetagradError
        if the file is damaged, altered or another run's.
    """
    path = folder / name
    require_own(path)
    again = f"remove it; metagrad train --resume {folder} makes it anew"
    try:
        found = strict_json.read(path)
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        if "run" in record or "digest" in found:  # metagrad 0.1 wrote neither
            strict_json.require_unaltered(found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise MetagradError(f"{path} is damaged ({in_short(error)}): {again}") from error
    if found.get("run") != record.get("run"):
        raise MetagradError(f"{path} is another run's: {again}")
    if found.get("weights") is not None and weights is not None and found["weights"] != weights:
        warnings.warn(
            f"{path} was measured on earlier weights of this run and is left aside: metagrad train --resume {folder} "
            "makes it anew",
            MetagradWarning,
            stacklevel=3,
        )
        return None
    return found
