"""``config.json`` of a run: what was asked, with which versions, on which data."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

import metagrad
from metagrad import strict_json
from metagrad.errors import MetagradError, in_short
from metagrad.seeds import RULE
from metagrad.strict_json import is_count
from metagrad.training.config import DATASETS, TrainConfig

FORMAT = 1
LARGEST_IMAGE = 4096  # pixels a side


def read_record(folder: Path) -> tuple[dict[str, Any], TrainConfig]:
    """Return what ``config.json`` of a run directory says, and the options in it.

    Raises
    ------
    MetagradError
        if it is not a run, is damaged, or was written by an incompatible version.
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
    if type(written) is not int or written != FORMAT:
        raise MetagradError(
            f"{folder} has run format {in_short(written)}, this metagrad reads {FORMAT}: use the version that wrote it"
        )
    try:
        if "run" in record:  # metagrad 0.1 wrote neither a name nor a digest
            strict_json.require_unaltered(record)
        _require_record(record)
        # Options that are younger than the run have defaults that do what was done before there was a choice.
        config = TrainConfig(**record["config"]).resolved(record["dataset"])
        if any(getattr(config, name) != value for name, value in record["config"].items()):
            raise ValueError("an option has no value")
    except (KeyError, TypeError, ValueError, MetagradError) as error:
        raise MetagradError(f"{path} is damaged ({in_short(error)}): restore it, or begin a new run") from error
    return record, config


def _require_record(record: dict[str, Any]) -> None:
    """Refuse a config.json of other kinds of values than those that are written.

    Raises
    ------
    ValueError
        naming the first.
    """
    size, split = record.get("image_size"), record.get("split")
    right = {
        "dataset": record.get("dataset") in DATASETS,
        "data_digest": isinstance(record.get("data_digest"), str),
        "config": isinstance(record.get("config"), dict),
        "command": _are_texts(record.get("command")),
        "versions": isinstance(record.get("versions"), dict) and _are_texts(list(record["versions"].values())),
        "run": isinstance(record.get("run", ""), str),
        "streams": is_count(record.get("streams", 1), 1) and record.get("streams", 1) <= RULE,
        "launch": isinstance(record.get("launch", ""), str),
        "data_dir": record.get("data_dir") is None
        or (isinstance(record["data_dir"], str) and "\0" not in record["data_dir"]),
        "image_size": size is None or (is_count(size, 8) and size <= LARGEST_IMAGE),
        "split": split is None or (isinstance(split, dict) and all(map(_are_texts, split.values()))),
    }
    wrong = [name for name, well in right.items() if not well]
    if wrong:
        raise ValueError(f"{wrong[0]} cannot be so")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


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
