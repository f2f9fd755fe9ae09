"""Gauss-Newton systems solved exactly in the space of the outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metagrad import scalars, tree
from metagrad.implicit import host
from metagrad.implicit.curvature import GaussNewton, Operator
from metagrad.implicit.linear.base import LinearSolution, scaled
from metagrad.implicit.linear.dense import dense_matrix
from metagrad.tree import Params


@dataclass(frozen=True, kw_only=True)
class Woodbury:
    """Solve ``(JᵀBJ + Λ) u = b`` exactly by the Woodbury identity: a task's n = examples × outputs are few.

    With ``B = S Sᵀ`` (B is singular for a softmax: S has a column for each positive eigenvalue, r of them),
    ``u = Λ⁻¹ b − Λ⁻¹ Jᵀ S (I + Sᵀ K S)⁻¹ Sᵀ J Λ⁻¹ b``, where ``K = J Λ⁻¹ Jᵀ``. The small systems are solved in float64;
    J is never held: each column of ``K S`` is one product with Jᵀ and one with J, as much as one product with A. What
    rounding leaves of the residual grows with ``L / λ``, largest eigenvalue of A to smallest entry of Λ.

    Cost: r + 1 such products and 3 ``T n²`` float64 numbers; vectors of the size of all weights as few as in conjugate
    gradients. ``steps`` is r + 1. No task is ever ``stopped``; ``x0`` is not used. On a GPU the host waits.

    Parameters
    ----------
    max_size:
        largest n.

    Raises
    ------
    ValueError
        for ``max_size < 1``; on a call, for an operator that is not Gauss-Newton or shows no positive Λ, for a larger
        n, and for a B that is not positive semi-definite.
    """

    max_size: int = 1024

    def __post_init__(self) -> None:
        scalars.require_whole(self, "max_size")

    def __call__(self, operator: Operator, b: Params, *, x0: Params | None = None) -> LinearSolution:
        """Solve ``operator u = b``; see :class:`LinearSolution`."""
        parts, diagonal = self._require_structure(operator, b)
        target, unit = scaled(b)

        def jvp(v: Tensor) -> Tensor:
            return parts.jvp(tree.unravel(v, b)).reshape(len(v), -1).double()

        def vjp(w: Tensor) -> Tensor:
            return tree.ravel(parts.vjp(w.to(target.dtype).reshape(parts.shape)), b)

        root = _root_of_output_hessian(parts, target)
        small = torch.eye(root.shape[2], dtype=root.dtype, device=root.device).repeat(len(root), 1, 1)
        for column in range(root.shape[2]):
            across = jvp(vjp(root[:, :, column]).div_(diagonal))
            small[:, :, column] += (across[:, None] @ root)[:, 0]
        factor, _ = torch.linalg.cholesky_ex((small + small.mT) / 2)
        first = target / diagonal
        inner = torch.cholesky_solve(root.mT @ jvp(first)[..., None], factor)
        u = first.sub_(vjp((root @ inner)[..., 0]).div_(diagonal))
        return LinearSolution(
            tree.unravel(u * unit, b),
            torch.full((len(u),), root.shape[2] + 1, dtype=torch.int64, device=u.device),
            stopped=torch.zeros(len(u), dtype=torch.bool, device=u.device),
        )

    def _require_structure(self, operator: Operator, b: Params) -> tuple[GaussNewton, Tensor]:
        """Return the operator's parts and Λ as ``(T, P)``."""
        parts, shift = operator.parts, operator.shift
        if parts is None:
            raise ValueError("Woodbury needs a Gauss-Newton matrix: curvature='gauss_newton' and a Composed objective")
        diagonal = None if shift is None else tree.ravel(shift, b)
        if diagonal is None or (host.may_read(diagonal) and not (diagonal > 0).all()):
            raise ValueError("Woodbury needs a regulariser that curves upwards in every parameter: use CG")
        count = math.prod(parts.shape[1:])
        if count > self.max_size:
            raise ValueError(f"examples × outputs = {count} is beyond Woodbury's max_size={self.max_size}: use CG")
        return parts, diagonal


def _root_of_output_hessian(parts: GaussNewton, like: Tensor) -> Tensor:
    """Return S with ``S Sᵀ = B``, ``(T, n, r)`` in float64: r is the largest rank among the tasks (on a GPU, n)."""
    tasks, count = len(like), math.prod(parts.shape[1:])
    hessian = dense_matrix(
        lambda w: parts.output_hessian(w.view(parts.shape)).reshape(tasks, count), like.new_empty(tasks, count)
    )
    finite = hessian.isfinite().flatten(1).all(1)[:, None]
    values, vectors = torch.linalg.eigh(torch.where(finite[..., None], (hessian + hessian.mT) / 2, 0.0))
    eps, largest = torch.finfo(like.dtype).eps, values.abs().amax(1, keepdim=True)
    # eps: what rounding leaves of a softmax that is sure of itself, as in Gauss-Newton's own check.
    if host.may_read(values) and (values < -(eps**0.5) * largest - eps).any():
        raise ValueError("the loss is not convex in the outputs: use curvature='hessian'")
    values = torch.where(values > 8 * eps * largest, values, 0.0)  # less than that is B's own rounding
    values = torch.where(finite, values, torch.nan)
    rank = int((values != 0).sum(1).max()) if host.may_read(values) else count
    return vectors[:, :, count - rank :] * values[:, None, count - rank :].sqrt()
