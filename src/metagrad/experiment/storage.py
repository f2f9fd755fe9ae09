"""The files of a run directory, and the error if one cannot be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from metagrad.errors import MetagradError
from metagrad.files import is_leftover

FILES = (
    "best.safetensors", "last.safetensors", "config.json", "metrics.jsonl", "result.json", "calibration.json",
    "evaluations.jsonl", "checks.jsonl", ".lock",
)  # fmt: skip
# Files that grow line by line; a run would write through a link in place of one.
APPENDED = ("metrics.jsonl", "evaluations.jsonl", "checks.jsonl")


def require_own(path: Path) -> None:
    """Refuse a link in place of a file of the run, which it would write through.

    Raises
    ------
    MetagradError
        naming it.
    """
    if path.is_symlink():
        raise MetagradError(f"{path} is a link, and metagrad does not write a run's files through links: remove it")


def require_unused(folder: Path) -> None:
    """Refuse a folder that is not empty; a lock and temporary files of a run that was killed early do not count."""
    if any(entry.name != ".lock" and not is_leftover(entry.name) for entry in os.scandir(folder)):
        # The files may be anybody's: the message does not advise to remove them.
        advice = f"continue it with --resume {folder}, " if (folder / "last.safetensors").exists() else ""
        raise MetagradError(f"{folder} exists already and is not empty: {advice}choose another --run, or empty it")


def storage_error(path: Path, error: OSError) -> MetagradError:
    """Return the error for a file that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)
    advice = "free some space there, then continue with metagrad train --resume"
    if not full:
        advice = "use a folder that exists on this disk and that you may write"
    return MetagradError(f"cannot write {path} ({error.strerror or error}): {advice}")
