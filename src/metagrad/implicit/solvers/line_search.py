"""The step length that lowers the objective enough, for each task by itself."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from metagrad import tree
from metagrad.implicit import host
from metagrad.tree import Params

_SUFFICIENT = 1e-4  # of the decrease that the slope promises (Armijo 1966)


class Measures(Protocol):
    """What a line search asks of a problem."""

    def value(self, phi: Params) -> Tensor:
        """Return g, ``(T,)``."""
        ...

    def value_and_grad(self, phi: Params) -> tuple[Tensor, Params]:
        """Return g and dg/dphi."""
        ...


class Point(NamedTuple):
    """Where the tasks stand: phi, g there ``(T,)`` and, where the next step begins with it, dg/dphi."""

    phi: Params
    value: Tensor
    gradient: Params | None = None


def backtrack(
    problem: Measures, start: Point, direction: Params, slope: Tensor, first: Tensor, *, tries: int = 20
) -> tuple[Point, Tensor]:
    """Halve each task's step until ``g(phi + a d) ≤ g(phi) + 1e-4 · a · slope``.

    Parameters
    ----------
    problem:
        detached.
    start:
        a point with a gradient gives one with a gradient: the last look at g and the next gradient are one pass. It
        also tells near a minimum, where the decrease drowns in the rounding of g, whether a step went too far.
    slope:
        ``(T,)``, derivative of g along ``direction``, negative.
    first:
        ``(T,)``, the first length tried; 0 leaves a task where it is.

    Returns
    -------
    tuple
        the new point, and the lengths ``(T,)``: 0 where ``tries`` halvings found none.
    """
    looks = host.may_read(first)
    slack = 4 * torch.finfo(start.value.dtype).eps * start.value.abs()
    length, accepted, best = first, first == 0, start
    for number in range(tries):
        if looks and number and accepted.all():
            break
        trial = tree.add(start.phi, direction, length)
        now = Point(trial, *problem.value_and_grad(trial)) if start.gradient else Point(trial, problem.value(trial))
        level = now.value <= start.value + slack
        if now.gradient:  # on a parabola the same as enough decrease (Hager and Zhang 2005), and free of rounding
            level &= tree.dot(now.gradient, direction) <= (2 * _SUFFICIENT - 1) * slope
        level |= now.value <= start.value + _SUFFICIENT * length * slope - slack
        if looks and not number and level.all() and bool((first != 0).all()):
            return now, length
        here = ~accepted & level
        best = _where(here, now, best)
        accepted = accepted | here
        length = torch.where(accepted, length, length / 2)
    return best, torch.where(accepted, length, 0.0)


def _where(mask: Tensor, new: Point, old: Point) -> Point:
    if host.may_read(mask) and mask.all():
        return new
    gradient = tree.where(mask, new.gradient, old.gradient) if new.gradient and old.gradient else None
    return Point(tree.where(mask, new.phi, old.phi), torch.where(mask, new.value, old.value), gradient)
