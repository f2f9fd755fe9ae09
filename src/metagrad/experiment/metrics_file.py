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
    """Return the logged lines without one that a crash cut off at the end; refuse a damaged line.

    A run that was stopped before its first line has no such file, and no lines.
    """
    if not path.exists():
        return []
    lines = []
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            try:
                line = strict_json.parse(text)
            except ValueError:
                line = None
            if isinstance(line, dict) and is_count(line.get("step")) and all(map(_is_number, line.values())):
                lines.append({name: value for name, value in line.items() if math.isfinite(value)})
            elif text.endswith(b"\n"):
                raise MetagradError(f"{path} is damaged in line {number}: restore or remove that line")
    return lines


def size_of(path: Path) -> int:
    """Return the size of the file in bytes, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def facts_of(path: Path, size: int | None) -> dict[str, Any]:
    """Return the facts that a checkpoint keeps of the first ``size`` bytes of the file (``None``: of all)."""
    logged = (path.read_bytes() if path.exists() else b"")[:size]
    return {"metrics_bytes": len(logged), "metrics_digest": hashlib.sha256(logged).hexdigest()}


def fault(path: Path, facts: dict[str, Any]) -> str | None:
    """Return what is wrong with the file up to a checkpoint of these facts, if anything."""
    content = path.read_bytes() if path.exists() else b""
    logged, later = content[: facts["metrics_bytes"]], content[facts["metrics_bytes"] :]
    if len(logged) < facts["metrics_bytes"]:
        return (
            f"{path} has lost its end: {len(logged)} of {facts['metrics_bytes']} bytes that there were at meta-step "
            f"{facts['step']}; the curve has a gap, the training itself has none"
        )
    # A run that was killed may have logged more since, of later meta-steps.
    altered = facts.get("metrics_digest") not in (None, hashlib.sha256(logged).hexdigest())
    if altered or _least_step(later) <= facts["step"]:
        return (
            f"{path} was altered, or is another run's: do not trust the curve up to meta-step {facts['step']}; the "
            "training itself does not depend on it"
        )
    return None


def _least_step(text: bytes) -> float:
    """Return the smallest meta-step among whole lines; infinity if there are none."""
    least = math.inf
    for raw in text.splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            line = strict_json.parse(raw)
            if isinstance(line, dict) and is_count(line.get("step")):
                least = min(least, line["step"])
    return least


def rewind(path: Path, size: int) -> None:
    """Cut the file to the whole lines among its first ``size`` bytes."""
    if path.exists():
        truncate(path, path.read_bytes()[:size].rfind(b"\n") + 1)


def _is_number(value: Any) -> bool:
    """Whether a value from a line is a number; metagrad 0.1 wrote infinite ones too."""
    return isinstance(value, int | float) and not isinstance(value, bool)
