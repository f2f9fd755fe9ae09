"""How the inner problem is solved. A solver maps ``(problem, init)`` to a :class:`Solution`.

A solver only asks the problem for values and gradients, so the same code runs detached (implicit
differentiation) and with a graph (unrolling).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from metagrad.implicit.linear import LinearSolution
from metagrad.implicit.problem import Problem
from metagrad.tree import Params


@dataclass
class Solution:
    """An inner solution per task, and how well it is solved.

    Attributes
    ----------
    value:
        phi, each tensor with the leading task axis; differentiable as the adjoint says.
    steps:
        ``(T,)`` int64, inner steps taken.
    grad_norm:
        ``(T,)``, norm of the inner gradient at ``value``: zero at an exact solution. Detached. A solver may leave it
        empty: the adjoint measures it, where it can with what it computes anyway.
    """

    value: Params
    steps: Tensor
    grad_norm: Tensor = field(default_factory=lambda: torch.empty(0))
    # Filled by the backward pass. A list shared with it: holding the whole Solution there would make a
    # reference cycle through the graph, and its memory would wait for the garbage collector.
    _linear: list[LinearSolution] = field(default_factory=list, repr=False)

    @property
    def linear(self) -> LinearSolution | None:
        """The adjoint's linear solve (u, residual, steps, curvature); ``None`` before ``backward``."""
        return self._linear[-1] if self._linear else None


class InnerSolver(Protocol):
    """Anything that turns a problem and a starting point into a solution."""

    def __call__(self, problem: Problem, init: Params) -> Solution:
        """Minimise ``problem`` from ``init``."""
        ...
