"""Conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metagrad import tree
from metagrad.implicit import host
from metagrad.implicit.linear.base import LinearSolution
from metagrad.implicit.problem import Operator
from metagrad.tree import Params


@dataclass(frozen=True, kw_only=True)
class CG:
    """Conjugate gradients (Hestenes and Stiefel 1952) for symmetric A, each task stopping by itself.

    Parameters
    ----------
    max_steps:
        most products with A.
    tol:
        a task stops once ‖b − A u‖ ≤ tol · ‖b‖.
    on_negative:
        what to do at a direction d with dᵀAd ≤ 0 (to rounding), where A is not positive definite and a step would go
        uphill or nowhere.
        ``"stop"`` keeps the task's u as it is; where even the first direction is such, u is ``Λ⁻¹ b`` with the
        operator's shift Λ (the first-order answer), or 0 where the operator shows no shift.
        ``"continue"`` divides by dᵀAd regardless, as most implementations do.

    Raises
    ------
    ValueError
        for ``max_steps < 1``, ``tol < 0`` or an unknown ``on_negative``.
    """

    max_steps: int = 5
    tol: float = 1e-10
    on_negative: Literal["stop", "continue"] = "stop"

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if not self.tol >= 0:
            raise ValueError(f"tol must not be negative, got {self.tol}")
        if self.on_negative not in ("stop", "continue"):
            raise ValueError(f"on_negative is 'stop' or 'continue', got {self.on_negative!r}")

    def __call__(self, operator: Operator, b: Params, *, x0: Params | None = None) -> LinearSolution:
        """Solve ``operator u = b``; see :class:`LinearSolution`."""

        def matvec(v: Tensor) -> Tensor:
            product = operator(tree.unravel(v, b))
            return tree.ravel(product, b)

        # Scaled by a power of two, which changes no digit: float32 squares of a tiny or a huge b would under- or
        # overflow. Vectors are updated in place: each is as large as all weights of all tasks.
        r = tree.ravel(b)
        _, exponent = torch.frexp(r.abs().amax(1, keepdim=True))
        unit = torch.ldexp(torch.ones_like(r[:, :1]), exponent)
        r /= unit
        size = r.norm(dim=1)
        stop_at = (self.tol * size) ** 2
        u = torch.zeros_like(r) if x0 is None else tree.ravel(x0, b) / unit
        if x0 is not None:
            r -= matvec(u)
        d, rr = r.clone(), _dot(r, r)
        active = rr > stop_at
        steps = torch.zeros_like(rr, dtype=torch.int64)
        min_curvature = torch.full_like(rr, torch.inf)
        largest = torch.zeros_like(rr)
        rounding = r.shape[1] * torch.finfo(r.dtype).eps
        for _ in range(self.max_steps):
            if host.may_look(active) and not active.any():
                break
            Ad = matvec(d)
            dAd, dd = _dot(d, Ad), _dot(d, d)
            met = dAd / dd
            min_curvature = torch.where(active, torch.minimum(min_curvature, met), min_curvature)
            largest = torch.where(active, torch.maximum(largest, met.abs()), largest)
            # Curvature below rounding of the largest one is zero: a step along it would be noise of any length.
            usable = (met > rounding * largest) if self.on_negative == "stop" else (dAd != 0)
            active = active & usable
            # Masked, not branched: tasks that stopped take a step of length zero.
            alpha = torch.where(active, rr / torch.where(active, dAd, 1.0), 0.0)[:, None]
            u.addcmul_(alpha, d)
            r.addcmul_(alpha, Ad, value=-1)
            del Ad
            rr_next = _dot(r, r)
            steps = steps + active
            beta = torch.where(active, rr_next / torch.where(active, rr, 1.0), 0.0)[:, None]
            torch.addcmul(r, beta, d, out=d)
            rr = rr_next
            active = active & (rr > stop_at)
        stopped = steps == 0
        if (shift := operator.shift) is not None and x0 is None and (not host.may_look(stopped) or stopped.any()):
            u, rr = _first_order_where(stopped, u, rr, tree.ravel(b) / unit, lambda: tree.ravel(shift, b), matvec)
        if self.max_steps > _TRUSTED:
            r = tree.ravel(b) / unit - matvec(u)
            rr = _dot(r, r)
        return LinearSolution(
            tree.unravel(u.mul_(unit), b), rr.sqrt() / torch.where(size > 0, size, 1.0), steps, min_curvature
        )


# The residual that the recursion carries drifts from the true one with the steps; beyond so many, one more product
# measures it. Within, they agree to 1e-3 relative in float32 at condition number 1000.
_TRUSTED = 20


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b)


def _first_order_where(
    stopped: Tensor, u: Tensor, rr: Tensor, b: Tensor, shift: Callable[[], Tensor], matvec: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Answer ``Λ⁻¹ b`` for tasks that could not take one step, with the residual that this leaves."""
    stopped = stopped & (b != 0).any(1)
    if host.may_look(stopped) and not stopped.any():
        return u, rr
    diagonal = shift()
    stopped = stopped & (diagonal > 0).all(1)
    first = torch.where(stopped[:, None], b / diagonal, 0.0)
    r = b - matvec(first)
    return torch.where(stopped[:, None], first, u), torch.where(stopped, _dot(r, r), rr)
