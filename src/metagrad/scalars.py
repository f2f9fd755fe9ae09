"""Hyper-parameters that are numbers: Python's own or NumPy's, never a bool. What is stored is Python's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from metagrad.errors import MetagradError


def number(value: Any) -> float | int | None:
    """Return a number as Python's own; ``None`` for what is none (a bool, a text, a tensor)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return int(value) if isinstance(value, Integral) else float(value)


def require_whole(owner: Any, *names: str, least: int = 1, optional: bool = False) -> None:
    """Raise ``ValueError`` for a field that is no whole number of at least ``least`` (or ``None``: ``optional``)."""
    _require(
        owner,
        names,
        lambda value: isinstance(value, int) and value >= least,
        f"be a whole number of at least {least}",
        optional=optional,
    )


def require_positive(owner: Any, *names: str, learnable: bool = False) -> None:
    """Raise ``ValueError`` for a field that is no positive, finite number (or function of theta: ``learnable``)."""
    or_function = " or a function of theta" if learnable else ""
    wanted = f"be a positive, finite number{or_function}"
    _require(owner, names, lambda value: 0 < value < math.inf, wanted, learnable=learnable)


def require_not_negative(owner: Any, *names: str, optional: bool = False) -> None:
    """Raise ``ValueError`` for a field that is no number of at least 0 (or ``None``: ``optional``)."""
    _require(owner, names, lambda value: value >= 0, "not be negative", optional=optional)


def require_fraction(owner: Any, *names: str) -> None:
    """Raise ``ValueError`` for a field that is neither a number in [0, 1) nor a tuple of such."""
    for name in names:
        value = getattr(owner, name)
        several = isinstance(value, tuple | list)
        numbers = [number(part) for part in (value if several else (value,))]
        if not all(part is not None and 0 <= part < 1 for part in numbers):
            raise ValueError(f"{name} must be in [0, 1), got {value!r}")
        object.__setattr__(owner, name, tuple(numbers) if several else numbers[0])


def _require(
    owner: Any,
    names: tuple[str, ...],
    valid: Callable[[Any], bool],
    wanted: str,
    *,
    optional: bool = False,
    learnable: bool = False,
) -> None:
    """Store fields of a frozen dataclass as Python's own numbers; refuse those that are not ``valid``."""
    for name in names:
        value = getattr(owner, name)
        if (optional and value is None) or (learnable and callable(value)):
            continue
        converted = number(value)
        if converted is None or not valid(converted):
            raise ValueError(f"{name} must {wanted}, got {value!r}")
        object.__setattr__(owner, name, converted)


def whole(name: str, value: Any, least: int, error: type[Exception] = MetagradError) -> int:
    """Return ``value`` as an int of at least ``least``; raise ``error`` if it is none."""
    converted = number(value)
    if not isinstance(converted, int):
        raise error(f"{name} must be a whole number, got {value!r}")
    if converted < least:
        raise error(f"{name} must be at least {least}, got {converted}")
    return converted
