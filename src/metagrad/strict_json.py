"""One reader for every JSON file, with limits on depth and size; it refuses a name that stands twice in an object."""

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
    """Return the value of a JSON text.

    Stricter than :func:`json.loads`: no name twice in an object, no more than 50 levels, no whole number beyond a
    float's range, no half of a surrogate pair (which cannot be written again). It reads ``NaN`` and ``Infinity``;
    :func:`is_number` refuses them.

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
    """Return the value in a JSON file; see :func:`parse`.

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
    """Return the JSON text of a value, as :func:`parse` reads it; refuse ``NaN`` and infinite numbers.

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
    """Whether a value from JSON is a finite number, not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any, least: int = 0) -> bool:
    """Whether a value from JSON is a whole number of at least ``least``, not a bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the name {twice[:40]!r} twice")
    return unique


def _require_plain(root: Any) -> None:
    pending = [(root, 1)]
    while pending:
        value, depth = pending.pop()
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ValueError("it has half of a surrogate pair, which is no text") from error
        elif isinstance(value, dict):
            pending += [(one, depth + 1) for one in (*value.keys(), *value.values())]
        elif isinstance(value, list):
            pending += [(one, depth + 1) for one in value]
