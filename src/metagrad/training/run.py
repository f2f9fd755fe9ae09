"""The run directory: what was asked, what happened, and the state to go on from.

=====================  ====================================================================
``config.json``        options, versions, commit, data digest; written once
``metrics.jsonl``      one line per logged meta-step and per validation
``last.safetensors``   weights, optimiser, random state: what ``--resume`` continues from
``best.safetensors``   the weights with the best validation accuracy
``result.json``        the figure at the end, with its interval and protocol
=====================  ====================================================================
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import metagrad
from metagrad.errors import MetagradError
from metagrad.files import is_leftover, remove_leftovers, require_readable, require_text, write_atomically
from metagrad.ranks import ALONE, Ranks
from metagrad.strict_json import is_number
from metagrad.training.config import DATASETS, TrainConfig

FORMAT = 1


FILES = (
    "best.safetensors", "last.safetensors", "config.json", "metrics.jsonl", "result.json", "calibration.json",
    "evaluations.jsonl", "checks.jsonl", ".lock",
)  # fmt: skip


@dataclass(frozen=True)
class State:
    """Everything a run needs to continue bit for bit.

    Attributes
    ----------
    tensors:
        flat names to tensors: weights, optimiser moments, generator state.
    facts:
        numbers and strings: meta-step, best validation, seconds, length of the metrics file.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Run:
    """A run directory held by this process alone, as a context manager; of several ranks, only the first writes."""

    def __init__(self, folder: Path, dataset: str, config: TrainConfig, record: dict[str, Any]) -> None:
        self.folder, self.dataset, self.config, self.record = folder, dataset, config, record
        self.writes = True
        self._lock = filelock.FileLock(folder / ".lock")

    @classmethod
    def create(
        cls,
        folder: Path,
        dataset: str,
        config: TrainConfig,
        *,
        command: list[str],
        digest: str,
        launch: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> Run:
        """Make a new run directory.

        Parameters
        ----------
        launch:
            names the ``torchrun`` launch that makes it (:meth:`made_by`).
        data:
            of the data: ``image_size``, ``data_dir`` where they lay, and the ``split`` of a set of one's own.

        Raises
        ------
        MetagradError
            if ``folder`` exists and is not empty, or cannot be made.
        """
        require_text(folder, *command)
        record = {
            "format": FORMAT,
            "dataset": dataset,
            "data_digest": digest,
            "config": dataclasses.asdict(config),
            "command": command,
            "versions": versions(),
            **(data or {}),
        }
        if launch is not None:
            record["launch"] = launch
        run = cls(folder, dataset, config, record)
        try:
            if folder.exists() and not folder.is_dir():
                raise MetagradError(f"{folder} is a file: choose another --run")
            folder.mkdir(parents=True, exist_ok=True)
            _require_unused(folder)  # before it is locked: a folder that is refused stays as it was
            with run:  # two processes may have chosen the same folder: the second must find it taken
                _require_unused(folder)
                run.write_json("config.json", record)
        except OSError as error:
            raise _storage_error(folder, error) from error
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open an existing run directory.

        Raises
        ------
        MetagradError
            if it is not a run, is damaged, or was written by an incompatible version.
        """
        try:
            record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            written = record["format"]
        except PermissionError as error:
            raise MetagradError(f"cannot read {folder} (permission denied): ask its owner for permission") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MetagradError(f"{folder} is not a metagrad run: no readable config.json in it") from error
        if written != FORMAT:
            raise MetagradError(
                f"{folder} has run format {written!r}, this metagrad reads {FORMAT}: use the version that wrote it"
            )
        try:
            dataset, _, _ = record["dataset"], record["data_digest"], record["command"]
            if dataset not in DATASETS:
                raise ValueError("the data set is unknown")
            # Options that are younger than the run have defaults that do what was done before there was a choice.
            config = TrainConfig(**record["config"]).resolved(dataset)
            if any(getattr(config, name) != value for name, value in record["config"].items()):
                raise ValueError("an option has no value")
        except (KeyError, TypeError, ValueError, MetagradError) as error:
            raise MetagradError(f"{folder}/config.json is damaged ({error}): restore it or start anew") from error
        return cls(folder, dataset, config, record)

    @staticmethod
    def made_by(launch: str | None, where: Path) -> Path | None:
        """Return the run directory, ``where`` itself or in it, that a ``torchrun`` launch made before it restarted."""
        for path in [where / "config.json", *where.glob("*/config.json")]:
            try:
                if launch is not None and json.loads(path.read_text(encoding="utf-8")).get("launch") == launch:
                    return path.parent
            except (OSError, ValueError, AttributeError):
                continue
        return None

    def __enter__(self) -> Run:
        if not self.writes:
            return self
        try:
            self._lock.acquire(timeout=0)
            remove_leftovers(self.folder)
        except filelock.Timeout as error:
            raise MetagradError(f"another process is working in {self.folder}: wait for it or stop it") from error
        except OSError as error:
            raise _storage_error(self.folder, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def metrics_path(self) -> Path:
        """Where the metrics lines are."""
        return self.folder / "metrics.jsonl"

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Append one line of JSON to a file of the run."""
        if not self.writes:
            return
        path = self.folder / name
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise _storage_error(path, error) from error

    def metrics(self) -> list[dict[str, Any]]:
        """Return the logged lines; one that a crash has cut off at the end is left out.

        Raises
        ------
        MetagradError
            for a line that is damaged.
        """
        found = []
        with self.metrics_path.open(encoding="utf-8", errors="replace") as file:
            for number, text in enumerate(file, 1):
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):
                    line = None
                if isinstance(line, dict) and "step" in line and all(is_number(value) for value in line.values()):
                    found.append(line)
                elif text.endswith("\n"):
                    raise MetagradError(f"{self.metrics_path} is damaged in line {number}: restore or remove that line")
        return found

    def save(self, name: str, state: State) -> None:
        """Write a checkpoint (``"last"`` or ``"best"``) in one step; the former one stays until it is complete."""
        if not self.writes:
            return
        logged = self.metrics_path.stat().st_size if self.metrics_path.exists() else 0
        facts = {**state.facts, "metrics_bytes": logged, "trained_as": self._trained_as()}
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.tensors.items()}
        metadata = {"format": str(FORMAT), "facts": json.dumps(facts)}

        def write(path: Path) -> None:
            try:
                save_file(tensors, path, metadata=metadata)
            except SafetensorError as error:  # it wraps the system's error, disk full among them
                raise OSError(str(error)) from error

        self._write(f"{name}.safetensors", write)

    def has(self, name: str) -> bool:
        """Whether there is a checkpoint called ``name``."""
        return (self.folder / f"{name}.safetensors").exists()

    def load(self, name: str, ranks: Ranks = ALONE) -> State:
        """Read a checkpoint; of several ranks, the first reads and tells the others.

        Raises
        ------
        MetagradError
            if there is none, it is damaged, or it belongs to another configuration.
        """
        state: State | MetagradError | None = None
        if ranks.first:
            try:
                state = self._read(name)
            except MetagradError as error:
                state = error
        found = ranks.from_first(state)
        assert isinstance(found, State)
        return found

    def _read(self, name: str) -> State:
        path = self.folder / f"{name}.safetensors"
        again = f"{self.folder} has not come to its first validation: metagrad train --resume {self.folder}"
        require_readable(path, missing=again)
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                state = State({key: file.get_tensor(key) for key in file.keys()}, facts)  # noqa: SIM118
            trained_as = facts["trained_as"]
            _ = facts["step"], facts["metrics_bytes"], state.tensors["generator"]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise MetagradError(f"{path} is damaged ({error}): start the run anew, or restore the file") from error
        if {name: value for name, value in self._trained_as().items() if name in trained_as} != trained_as:
            raise MetagradError(f"{self.folder}/config.json was changed since {path.name} was written: change it back")
        return state

    def _trained_as(self) -> dict[str, Any]:
        """Return the options that a checkpoint depends on; the number of meta-steps may be raised later."""
        loose = ("meta_steps", "val_every", "val_tasks", "test_tasks", "checkpoint_seconds", "chunk", "device")
        return {name: value for name, value in dataclasses.asdict(self.config).items() if name not in loose}

    def rewind(self, metrics_bytes: int) -> None:
        """Drop metrics lines that are later than the checkpoint; they will be computed again."""
        if self.writes and self.metrics_path.exists():
            os.truncate(self.metrics_path, min(metrics_bytes, self.metrics_path.stat().st_size))

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file of the run in one step."""
        if not self.writes:
            return
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        self._write(name, lambda path: _write_text(path, text))

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        path = self.folder / name
        write_atomically(path, write, refused=lambda error: _storage_error(path, error))


def _require_unused(folder: Path) -> None:
    """Refuse a folder in which there is anything but what a run that was killed at its very beginning leaves."""
    if any(entry.name != ".lock" and not is_leftover(entry.name) for entry in os.scandir(folder)):
        # Two runs that began at the same moment are told the same, and what is there is nobody's to delete unasked.
        advice = f"continue it with --resume {folder}, " if (folder / "config.json").exists() else ""
        raise MetagradError(f"{folder} exists already and is not empty: {advice}choose another --run, or empty it")


def versions() -> dict[str, str]:
    """Return the versions that a number may depend on, and the commit of a source checkout."""
    found = {
        "metagrad": metagrad.__version__,
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
    root = Path(metagrad.__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed copy: whatever repository surrounds it is not ours
        return "unknown"
    try:
        ask = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _storage_error(path: Path, error: OSError) -> MetagradError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)
    advice = "free some space there, then continue with metagrad train --resume"
    if not full:
        advice = "use a folder that exists on this disk and that you may write"
    return MetagradError(f"cannot write {path} ({error.strerror or error}): {advice}")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
