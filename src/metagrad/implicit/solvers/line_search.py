"""The step length that lowers the objective enough, for each task by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metagrad import tree
from metagrad.implicit import host
from metagrad.tree import Params

_SUFFICIENT = 1e-4  # share of the first-order decrease (Armijo 1966)


class Point(NamedTuple):
    """phi, g there ``(T,)`` and, for solvers whose steps begin with it, dg/dphi."""

    phi: Params
    value: Tensor
    gradient: Params | None = None


def backtrack(
    evaluate: Callable[[Params], Point],
    start: Point,
    direction: Params,
    derivative: Tensor,
    first: Tensor,
    *,
    tries: int = 20,
) -> tuple[Point, Tensor]:
    """Halve each task's step until ``g(phi + a d) ≤ g(phi) + 1e-4 · a · derivative``.

    Parameters
    ----------
    evaluate:
        returns the point at a phi, detached; with a gradient where ``start`` has one. Then the last evaluation and the
        next gradient are one pass, and near a minimum, where the decrease drowns in the rounding of g, the gradient
        says whether a step went too far.
    start:
        where the tasks stand.
    derivative:
        ``(T,)``, the directional derivative of g along ``direction``, negative.
    first:
        ``(T,)``, the first length tried; 0 leaves a task where it is.

    Returns
    -------
    tuple
        the new point, and the lengths ``(T,)``: 0 where ``tries`` halvings found none.
    """
    readable = host.may_read(first)
    slack = 4 * torch.finfo(start.value.dtype).eps * start.value.abs()
    length, accepted, best = first, first == 0, start
    for number in range(tries):
        if readable and number and accepted.all():
            break
        now = evaluate(tree.add(start.phi, direction, length))
        level = now.value <= start.value + slack
        if now.gradient:  # on a parabola the same as enough decrease (Hager and Zhang 2005), and free of rounding
            level &= tree.dot(now.gradient, direction) <= (2 * _SUFFICIENT - 1) * derivative
        level |= now.value <= start.value + _SUFFICIENT * length * derivative - slack
        if readable and not number and level.all() and bool((first != 0).all()):
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
