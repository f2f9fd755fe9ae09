"""Truncated Neumann series."""

from __future__ import annotations

from dataclasses import dataclass

from metagrad import scalars
from metagrad.implicit.curvature import Operator
from metagrad.implicit.linear.base import LinearSolution
from metagrad.implicit.linear.fixed_point import FixedPoint
from metagrad.tree import Params


@dataclass(frozen=True, kw_only=True)
class Neumann:
    """Sum the first terms of ``A⁻¹ b = lr Σ (I − lr A)ⁱ b`` (Lorraine, Vicol and Duvenaud 2020).

    The sum is what ``terms`` fixed-point steps from zero make of b, and is computed so: see :class:`FixedPoint` for
    when it converges and what is raised. From ``x0`` on it is the series of ``b − A x0``.

    Parameters
    ----------
    terms:
        number of terms; each costs one product with A.
    lr:
        scale of A in the series, below ``2 / L`` for the largest eigenvalue L.

    Raises
    ------
    ValueError
        for ``terms < 1`` or ``lr <= 0``.
    DivergedError
        on a call, if the series diverges.
    """

    terms: int
    lr: float

    def __post_init__(self) -> None:
        scalars.require_positive(self, "lr")
        scalars.require_whole(self, "terms")

    def __call__(self, operator: Operator, b: Params, *, x0: Params | None = None) -> LinearSolution:
        """Solve ``operator u = b``; see :class:`LinearSolution`."""
        return FixedPoint(lr=self.lr, max_steps=self.terms, tol=0.0)(operator, b, x0=x0)
