"""How the adjoint's linear system ``A u = b`` is solved, for T tasks at once and with per-task stopping.

Every solve returns its residual: the caller learns how good the answer is, not only the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from metagrad.implicit.problem import Operator
from metagrad.tree import Params


@dataclass(frozen=True)
class LinearSolution:
    """Solution of ``A u = b`` per task.

    Attributes
    ----------
    value:
        u, shaped as b.
    residual:
        ``(T,)``, ‖b − A u‖ / ‖b‖ (0 where b is 0).
    steps:
        ``(T,)`` int64, products with A that entered u.
    min_curvature:
        ``(T,)``, smallest dᵀAd / dᵀd over the directions tried: an upper bound of A's smallest eigenvalue;
        infinite where none was tried.
    """

    value: Params
    residual: Tensor
    steps: Tensor
    min_curvature: Tensor


class LinearSolver(Protocol):
    """Anything that solves ``A u = b`` given products with A."""

    def __call__(self, operator: Operator, b: Params, *, x0: Params | None = None) -> LinearSolution:
        """Solve from ``x0`` (zero where not given)."""
        ...
