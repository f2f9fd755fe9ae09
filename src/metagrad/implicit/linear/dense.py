"""The dense matrix, solved exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metagrad import scalars, tree
from metagrad.implicit.curvature import Operator
from metagrad.implicit.linear.base import LinearSolution, Product, flat_product, scaled
from metagrad.tree import Params


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Build each task's A from its products with unit vectors and solve by its eigenvalues, in float64.

    For small problems and for checking the other solvers. Eigenvalues below ``4 √P · eps`` of the largest count as zero
    (eps that of b's dtype: the products have its rounding); a singular system gets the least-squares solution of least
    norm. ``steps`` is P, the products that built A; ``min_curvature`` and ``max_curvature`` are the eigenvalues
    themselves. No task is ever ``stopped``; ``x0`` is not used. Memory: about ``3 T P²`` float64
    numbers. On a GPU the host waits.

    Parameters
    ----------
    max_size:
        largest P, parameters of a task.

    Raises
    ------
    ValueError
        for ``max_size < 1``; on a call, for a larger P.
    """

    max_size: int = 4096

    def __post_init__(self) -> None:
        scalars.require_whole(self, "max_size")

    def __call__(self, operator: Operator, b: Params, *, x0: Params | None = None) -> LinearSolution:
        """Solve ``operator u = b``; see :class:`LinearSolution`."""
        product = flat_product(operator, b)
        target, unit = scaled(b)
        tasks, count = target.shape
        if count > self.max_size:
            raise ValueError(
                f"Dense would build {count} × {count} matrices, beyond max_size={self.max_size}: use CG or MINRES"
            )
        matrix = dense_matrix(product, target)
        finite = matrix.isfinite().flatten(1).all(1)
        values, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], matrix, 0.0))  # it reads one triangle
        cut = 4 * count**0.5 * torch.finfo(target.dtype).eps * values.abs().amax(1, keepdim=True)
        inverse = torch.where(values.abs() > cut, 1 / torch.where(values != 0, values, 1.0), 0.0)
        u = vectors @ (inverse[..., None] * (vectors.mT @ target.double()[..., None]))
        u = u[..., 0].to(target.dtype)
        return LinearSolution(
            tree.unravel(u * unit, b),
            torch.full((tasks,), count, dtype=torch.int64, device=target.device),
            torch.where(finite, values[:, 0], torch.nan).to(target.dtype),
            torch.where(finite, values[:, -1], torch.nan).to(target.dtype),
            torch.zeros(tasks, dtype=torch.bool, device=target.device),
        )


def dense_matrix(product: Product, like: Tensor) -> Tensor:
    """Return every task's A, ``(T, P, P)`` in float64, from its products; symmetric to rounding."""
    tasks, count = like.shape
    matrix = like.new_empty(tasks, count, count, dtype=torch.float64)
    probe = torch.zeros_like(like)
    for column in range(count):
        probe[:, column] = 1
        matrix[:, column] = product(probe)
        probe[:, column] = 0
    return matrix
