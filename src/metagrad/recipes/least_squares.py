"""Slopes of lines and exponents of power laws, by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fit:
    """A slope, or an exponent, with its standard error."""

    value: float
    error: float


def line(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Fit ``y = a + value · x``.

    Raises
    ------
    ValueError
        for fewer than three points, which leave nothing for the error.
    """
    if len(x) < 3:
        raise ValueError(f"a slope with its error needs at least three points, got {len(x)}")
    (value, _), covariance = np.polyfit(x, y, 1, cov=True)
    return Fit(float(value), float(covariance[0, 0]) ** 0.5)


def power_law(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Fit ``log y = a + value · log x``; raise as :func:`line` does.

    Examples
    --------
    >>> round(power_law([1, 2, 4], [3, 12, 48]).value, 6)
    2.0
    """
    return line(np.log(x).tolist(), np.log(y).tolist())
