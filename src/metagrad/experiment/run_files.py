"""Reading and writing the files of a run; a reader refuses a file that was altered or is another run's."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

from metagrad import strict_json, tensorfile
from metagrad.errors import MetagradError, MetagradWarning, in_short
from metagrad.experiment import metrics_file
from metagrad.experiment.checkpoint import State, require_facts
from metagrad.experiment.record import difference
from metagrad.experiment.storage import require_own, storage_error
from metagrad.files import append_line, require_readable, sync_file, write_text

_WARNED: set[Path] = set()  # runs without checksums; a process warns of each once


def read_state(folder: Path, record: dict[str, Any], trained_as: dict[str, Any], name: str) -> State:
    """Return a checkpoint of a run, ``"last"`` or ``"best"``.

    Parameters
    ----------
    record:
        the run's ``config.json``.
    trained_as:
        the options in it that a checkpoint depends on.

    Raises
    ------
    MetagradError
        if there is none, or it is damaged, altered, or of another run or configuration.
    """
    path = folder / f"{name}.safetensors"
    missing = f"{folder} has not come to its first validation: metagrad train --resume {folder}"
    if not os.path.lexists(path) and _validated(folder):
        missing = f"{path} is gone: restore it, or move {folder} away and train again"
    require_readable(path, missing=missing)
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
    if stored.digest is None and folder not in _WARNED:
        _WARNED.add(folder)
        warnings.warn(
            f"{folder} has checkpoints without a checksum, written by an older metagrad, so it cannot be verified that "
            "they are unaltered",
            MetagradWarning,
            stacklevel=3,
        )
    return State(stored.tensors, facts, stored.digest)


def write_state(folder: Path, name: str, state: State, facts: dict[str, Any], logged: int | None) -> None:
    """Write a checkpoint with further facts in one step; ``logged`` bytes of the metrics belong to it."""
    path, metrics = folder / f"{name}.safetensors", folder / "metrics.jsonl"
    try:
        lines = metrics_file.facts_of(metrics, logged)
    except OSError as error:
        raise storage_error(metrics, error) from error
    tensorfile.write(
        path,
        state.tensors,
        {**state.facts, **lines, **facts},
        key="facts",
        refused=lambda error: storage_error(path, error),
        first=lambda: sync_file(metrics),  # a power cut must not leave the checkpoint without its lines
    )


def append(path: Path, line: dict[str, Any]) -> None:
    """Append one line of JSON, without the numbers that are not finite."""
    require_own(path)
    finite = {key: value for key, value in line.items() if not isinstance(value, float) or math.isfinite(value)}
    try:
        append_line(path, strict_json.dump(finite))
    except OSError as error:
        raise storage_error(path, error) from error


def _validated(folder: Path) -> bool:
    return any("val_loss" in line for line in metrics_file.lines_of(folder / "metrics.jsonl"))


def rewind(folder: Path, state: State | None, *, begun: bool) -> None:
    """Drop the metrics lines that are later than a checkpoint; warn if earlier ones are missing or altered.

    Parameters
    ----------
    state:
        the checkpoint; ``None``: there is none, and the run begins again.
    begun:
        whether the run has validated before.
    """
    path, fault = folder / "metrics.jsonl", None
    if state is not None:
        fault = metrics_file.fault(path, state.facts)
    elif begun or metrics_file.size_of(path):
        fault = (
            f"{folder} has no last.safetensors: it was stopped before its first checkpoint, or the file is gone; "
            "training begins again, and the seed makes it the same"
        )
    try:
        metrics_file.rewind(path, 0 if state is None else state.facts["metrics_bytes"])
    except OSError as error:
        raise storage_error(path, error) from error
    if fault is not None:
        warnings.warn(fault, MetagradWarning, stacklevel=3)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file in one step, with a digest of its content."""
    try:
        text = strict_json.dump(strict_json.signed(value), indent=2) + "\n"
    except ValueError as error:
        raise MetagradError(
            f"{path} would contain NaN or infinite numbers, so the weights are unusable: start again with a smaller "
            "--outer-lr or --inner-lr"
        ) from error
    write_text(path, text, refused=lambda error: storage_error(path, error))


def read_measured(path: Path, record: dict[str, Any], weights: str | None) -> dict[str, Any] | None:
    """Return a measurement; see :meth:`metagrad.experiment.Run.read_measured`."""
    require_own(path)
    remake = f"metagrad train --resume {path.parent} writes a new one"
    try:
        measured = strict_json.read(path)
        if not isinstance(measured, dict):
            raise ValueError("it is no JSON object")
        if "run" in record or "digest" in measured:  # metagrad 0.1 wrote neither
            strict_json.require_unaltered(measured)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise MetagradError(f"{path} is damaged ({in_short(error)}): remove it; {remake}") from error
    if measured.get("run") != record.get("run"):
        raise MetagradError(f"{path} is another run's: remove it; {remake}")
    if measured.get("weights") is not None and weights is not None and measured["weights"] != weights:
        warnings.warn(
            f"{path} was measured on earlier weights of this run and is ignored: {remake}",
            MetagradWarning,
            stacklevel=3,
        )
        return None
    return measured
