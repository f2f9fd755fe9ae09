"""Fixed-point (Richardson) iteration, which also sums the Neumann series."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metagrad import scalars, tree
from metagrad.implicit import host
from metagrad.implicit.curvature import Operator
from metagrad.implicit.linear.base import LinearSolution, flat_product, relative, scaled, tolerance
from metagrad.implicit.linear.spectrum import diverged
from metagrad.tree import Params


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """Repeat ``u ← u + lr (b − A u)``, each task stopping by itself: gradient descent on ½ uᵀAu − bᵀu.

    Converges for positive definite A and ``lr < 2 / L``, L the largest eigenvalue; each step leaves ``1 − lr λ`` of the
    residual along an eigenvector of λ. No task is ever ``stopped``.

    Parameters
    ----------
    lr:
        step size, below ``2 / L`` for the largest eigenvalue L of A.
    max_steps:
        most steps; each is one product with A.
    tol:
        a task stops once ‖b − A u‖ ≤ tol · ‖b‖; ``None``: 1e-10 in float64, 1e-6 in float32.

    Raises
    ------
    ValueError
        for ``lr <= 0``, ``max_steps < 1`` or ``tol < 0``.
    DivergedError
        on a call, if a task ends with a larger residual than it began with, or none that is finite: its message gives
        the largest stable ``lr``. On a GPU, where the host does not read, only the residual shows it.
    """

    lr: float
    max_steps: int
    tol: float | None = None

    def __post_init__(self) -> None:
        scalars.require_positive(self, "lr")
        scalars.require_whole(self, "max_steps")
        scalars.require_not_negative(self, "tol", optional=True)

    def __call__(self, operator: Operator, b: Params, *, x0: Params | None = None) -> LinearSolution:
        """Solve ``operator u = b``; see :class:`LinearSolution`."""
        product = flat_product(operator, b)
        target, unit = scaled(b)
        size = target.norm(dim=1)
        u = torch.zeros_like(target) if x0 is None else tree.ravel(x0, b) / unit
        r = target if x0 is None else target - product(u)
        start = norm = r.norm(dim=1)
        tol = tolerance(self.tol, size.dtype)
        active = norm > tol * size
        steps = torch.zeros_like(size, dtype=torch.int64)
        for _ in range(self.max_steps):
            if host.may_read(active) and not active.any():
                break
            u.addcmul_(active[:, None].to(u.dtype), r, value=self.lr)
            r = product(u).neg_().add_(target)
            norm = r.norm(dim=1)
            steps = steps + active
            active = active & (norm > tol * size)
        if host.may_read(norm):
            _require_shrunk(operator, b, self.lr, start, norm, size)
        return LinearSolution(tree.unravel(u * unit, b), steps, stopped=torch.zeros_like(active))


def _require_shrunk(operator: Operator, b: Params, lr: float, start: Tensor, norm: Tensor, size: Tensor) -> None:
    """Raise if a residual is larger than it was, beyond rounding; it then grows with every step to come."""
    slack = torch.finfo(norm.dtype).eps ** 0.5
    if (start.isfinite() & ~(norm <= start + slack * torch.maximum(start, size))).any():
        raise diverged(operator, b, lr, relative(norm, start))


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
