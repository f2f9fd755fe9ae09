"""``metrics.jsonl`` of a run: one line of JSON per logged meta-step and per validation."""

from __future__ import annotations

import contextlib
import hashlib
import math
from pathlib import Path
from typing import Any

from metagrad import strict_json
from metagrad.errors import MetagradError
from metagrad.files import truncate
from metagrad.strict_json import is_count


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the logged lines; one that a crash has cut off at the end is left out.

    Raises
    ------
    MetagradError
        for a line that is damaged.
    """
    found = []
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            try:
                line = strict_json.parse(text)
            except ValueError:
                line = None
            if isinstance(line, dict) and is_count(line.get("step")) and all(map(_is_number, line.values())):
                found.append({name: value for name, value in line.items() if math.isfinite(value)})
            elif text.endswith(b"\n"):
                raise MetagradError(f"{path} is damaged in line {number}: restore or remove that line")
    return found


def size_of(path: Path) -> int:
    """Return the size of the file in bytes, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def facts_of(path: Path, size: int | None) -> dict[str, Any]:
    """Return what a checkpoint remembers of the first ``size`` bytes of the file (``None``: of all).

    Raises
    ------
    OSError
        if the system refuses.
    """
    logged = (path.read_bytes() if path.exists() else b"")[:size]
    return {"metrics_bytes": len(logged), "metrics_digest": _sha256(logged)}


def fault(path: Path, facts: dict[str, Any]) -> str | None:
    """Say what is wrong with the file up to a checkpoint of these facts, if anything is."""
    there = path.read_bytes() if path.exists() else b""
    logged, later = there[: facts["metrics_bytes"]], there[facts["metrics_bytes"] :]
    if len(logged) < facts["metrics_bytes"]:
        return (
            f"{path} has lost its end: {len(logged)} of {facts['metrics_bytes']} bytes that there were at meta-step "
            f"{facts['step']}; the curve has a gap, the training itself has none"
        )
    # A run that was killed may have logged more since, of later meta-steps.
    if facts.get("metrics_digest") not in (None, _sha256(logged)) or _least_step(later) <= facts["step"]:
        return (
            f"{path} was altered, or is another run's: do not trust the curve up to meta-step {facts['step']}; the "
            "training itself does not depend on it"
        )
    return None


def _least_step(text: bytes) -> float:
    """Return the least meta-step among whole lines; infinity where there is none."""
    least = math.inf
    for line in text.splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            found = strict_json.parse(line)
            if isinstance(found, dict) and is_count(found.get("step")):
                least = min(least, found["step"])
    return least


def rewind(path: Path, size: int) -> None:
    """Cut the file to the whole lines among its first ``size`` bytes.

    Raises
    ------
    OSError
        if the system refuses.
    """
    if path.exists():
        truncate(path, path.read_bytes()[:size].rfind(b"\n") + 1)


def _is_number(value: Any) -> bool:
    """Whether it may stand in a line: metagrad 0.1 wrote infinite ones too."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
