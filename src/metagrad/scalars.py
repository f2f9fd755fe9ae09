"""Hyper-parameters that are numbers: Python's own or NumPy's, never a bool. What is stored is Python's own."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from metagrad.errors import MetagradError


def number(value: Any) -> float | int | None:
    """Return a number as Python's own; ``None`` for what is none (a bool, a text, a tensor)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return int(value) if isinstance(value, Integral) else float(value)


def require_whole(owner: Any, *names: str, least: int = 1, optional: bool = False) -> None:
    """Refuse fields that are no whole numbers of at least ``least`` (or ``None``, where ``optional``).

    Raises
    ------
    ValueError
        naming the field.
    """
    for name in names:
        value = getattr(owner, name)
        if optional and value is None:
            continue
        found = number(value)
        if not isinstance(found, int) or found < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        _keep(owner, name, found)


def require_positive(owner: Any, *names: str, learnable: bool = False) -> None:
    """Refuse fields that are no positive, finite numbers (or functions of theta, where ``learnable``).

    Raises
    ------
    ValueError
        naming the field.
    """
    for name in names:
        value = getattr(owner, name)
        if learnable and callable(value):
            continue
        found = number(value)
        if found is None or not 0 < found < math.inf:
            either = " or a function of theta" if learnable else ""
            raise ValueError(f"{name} must be a positive, finite number{either}, got {value!r}")
        _keep(owner, name, found)


def require_not_negative(owner: Any, *names: str, optional: bool = False) -> None:
    """Refuse fields that are no numbers of at least 0 (or ``None``, where ``optional``).

    Raises
    ------
    ValueError
        naming the field.
    """
    for name in names:
        value = getattr(owner, name)
        if optional and value is None:
            continue
        found = number(value)
        if found is None or not found >= 0:
            raise ValueError(f"{name} must not be negative, got {value!r}")
        _keep(owner, name, found)


def require_fraction(owner: Any, *names: str) -> None:
    """Refuse fields that are no numbers in [0, 1), nor tuples of such.

    Raises
    ------
    ValueError
        naming the field.
    """
    for name in names:
        value = getattr(owner, name)
        several = isinstance(value, tuple | list)
        found = [number(part) for part in (value if several else (value,))]
        if not all(part is not None and 0 <= part < 1 for part in found):
            raise ValueError(f"{name} must be in [0, 1), got {value!r}")
        _keep(owner, name, tuple(found) if several else found[0])


def _keep(owner: Any, name: str, value: Any) -> None:
    """Store a field of a frozen dataclass; only while it is made."""
    object.__setattr__(owner, name, value)


def whole(name: str, value: Any, least: int, error: type[Exception] = MetagradError) -> int:
    """Return ``value`` as an int of at least ``least``.

    Raises
    ------
    MetagradError
        (or ``error``) if it is none.
    """
    found = number(value)
    if not isinstance(found, int):
        raise error(f"{name} must be a whole number, got {value!r}")
    if found < least:
        raise error(f"{name} must be at least {least}, got {found}")
    return found
