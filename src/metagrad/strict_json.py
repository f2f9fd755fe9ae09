"""One reader for every JSON file: what comes back is plain, finite in depth and size, and says each name once."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

_DEEPEST = 50  # nested lists and objects; what metagrad writes has five
_DIGITS = 300  # of a whole number; a float ends at 308
MOST_BYTES = 256 * 2**20


def parse(text: str | bytes) -> Any:
    """Return what a JSON text says.

    Stricter than :func:`json.loads`: no name twice in an object, no more than 50 levels, no number beyond a float, no
    half of a surrogate pair (which cannot be written again). ``NaN`` and ``Infinity`` are read; who needs a finite
    number asks :func:`is_number`.

    Raises
    ------
    ValueError
        saying what is wrong, in a short line.

    Examples
    --------
    >>> parse('{"step": 3}')
    {'step': 3}
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_each_name_once, parse_int=_whole)
    except RecursionError:
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep") from None
    _require_plain(value)
    return value


def read(path: Path) -> Any:
    """Return what a JSON file says; see :func:`parse`.

    Raises
    ------
    OSError
        if it cannot be read.
    ValueError
        if it is not JSON, or larger than 256 MB.
    """
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES // 2**20} MB")
    return parse(data)


def dump(value: Any, *, indent: int | None = None) -> str:
    """Return the JSON text of a value, one that :func:`parse` reads; ``NaN`` and infinite numbers are refused.

    Raises
    ------
    ValueError
        for a number that is not finite.
    """
    return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)


def signed(value: dict[str, Any]) -> dict[str, Any]:
    """Return an object with a ``digest`` of all else in it, for :func:`require_unaltered`."""
    rest = {name: one for name, one in value.items() if name != "digest"}
    text = json.dumps(rest, sort_keys=True, allow_nan=False)
    return {**rest, "digest": hashlib.sha256(text.encode()).hexdigest()}


def require_unaltered(value: dict[str, Any]) -> None:
    """Refuse an object whose ``digest`` is not that of all else in it.

    Raises
    ------
    ValueError
        if it is not, or there is none.
    """
    if signed(value)["digest"] != value.get("digest"):
        raise ValueError("it was altered since it was written")


def is_number(value: Any) -> bool:
    """Say whether a value from JSON is a finite number, and not one of true and false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any, least: int = 0) -> bool:
    """Say whether a value from JSON is a whole number of at least ``least``, and not one of true and false."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the name {twice[:40]!r} twice")
    return value


def _require_plain(root: Any) -> None:
    pending = [(root, 1)]
    while pending:
        value, depth = pending.pop()
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
        if isinstance(value, str):
            if not value.isascii():
                _require_text(value)
        elif isinstance(value, dict):
            pending += [(one, depth + 1) for one in (*value.keys(), *value.values())]
        elif isinstance(value, list):
            pending += [(one, depth + 1) for one in value]


def _require_text(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("it has half of a surrogate pair, which is no text") from error
