"""Conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metagrad import scalars, tree
from metagrad.implicit import host
from metagrad.implicit.curvature import Operator
from metagrad.implicit.linear.base import (
    LinearSolution,
    Product,
    dot,
    flat_product,
    relative,
    rounding,
    scaled,
    tolerance,
)
from metagrad.tree import Params


@dataclass(frozen=True, kw_only=True)
class CG:
    """Conjugate gradients (Hestenes and Stiefel 1952) for symmetric A, each task stopping by itself.

    Parameters
    ----------
    max_steps:
        most products with A.
    tol:
        a task stops once ‖b − A u‖ ≤ tol · ‖b‖; ``None``: 1e-10 in float64, 1e-6 in float32.
    on_negative:
        what to do at a direction d with dᵀAd ≤ 0 (to rounding), where A is not positive definite and a step would go
        uphill or nowhere.
        ``"stop"`` keeps the task's u as it is; where even the first direction is such, u is ``Λ⁻¹ b`` with the
        operator's shift Λ (the first-order answer), or 0 where the operator shows no shift.
        ``"continue"`` divides by dᵀAd regardless, as most implementations do.
    damping:
        solve ``(A + damping I) u = b`` instead; residual, curvature and first-order answer are those of this system.
    preconditioner:
        a symmetric positive definite M near A whose inverse is cheap: fewer steps where it evens out the eigenvalues.
        ``"shift"``: M = Λ + damping with the operator's diagonal shift Λ, for a ``lam`` that differs between
        parameters (entries that are not positive count as 1). Stopping and residual are those of the system without
        it. In Python also a function ``r -> M⁻¹ r`` of task-batched parameters, which leaves r as it is.
    history:
        whether the solution carries the residuals of all steps.

    Raises
    ------
    ValueError
        for ``max_steps < 1``, ``tol < 0``, ``damping < 0`` or an unknown ``on_negative`` or ``preconditioner``; on a
        call, for ``"shift"`` where the operator shows none and (unless on a GPU, where such a task stops) for a
        preconditioner that is not positive definite.
    """

    max_steps: int = 5
    tol: float | None = None
    on_negative: Literal["stop", "continue"] = "stop"
    damping: float = 0.0
    preconditioner: Callable[[Params], Params] | Literal["shift"] | None = None
    history: bool = False

    def __post_init__(self) -> None:
        scalars.require_whole(self, "max_steps")
        scalars.require_not_negative(self, "tol", optional=True)
        scalars.require_not_negative(self, "damping")
        if self.on_negative not in ("stop", "continue"):
            raise ValueError(f"on_negative is 'stop' or 'continue', got {self.on_negative!r}")
        if isinstance(self.preconditioner, str) and self.preconditioner != "shift":
            raise ValueError(f"preconditioner is 'shift', a function or None, got {self.preconditioner!r}")

    def __call__(self, operator: Operator, b: Params, *, x0: Params | None = None) -> LinearSolution:
        """Solve ``operator u = b``; see :class:`LinearSolution`."""
        product = flat_product(operator, b, self.damping)
        # Vectors are updated in place: each is as large as all weights of all tasks.
        r, unit = scaled(b)
        size = r.norm(dim=1)
        u = torch.zeros_like(r) if x0 is None else tree.ravel(x0, b) / unit
        if x0 is not None:
            r -= product(u)
        steps, curvatures, stopped, history = self._descend(product, self._inverse(operator, b), u, r, size)
        del r
        if operator.shift is not None and x0 is None:
            stuck = (steps == 0) & (size != 0)  # tasks that could not take one step: the first-order answer
            if not host.may_read(stuck) or stuck.any():
                diagonal = self._diagonal(operator.shift, b)
                stuck = stuck & (diagonal > 0).all(1)
                u = torch.where(stuck[:, None], tree.ravel(b) / unit / diagonal, u)
        return LinearSolution(
            tree.unravel(u.mul_(unit), b),
            steps,
            *curvatures,
            stopped,
            None if history is None else relative(history.sqrt(), size),
        )

    def _descend(
        self, product: Product, inverse: Product | None, u: Tensor, r: Tensor, size: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, Tensor | None]:
        """Improve u and its residual r in place.

        Return steps, smallest and largest curvature met, who stopped, history.
        """
        stop_at = (tolerance(self.tol, size.dtype) * size) ** 2
        rr = dot(r, r)
        z, rz = _preconditioned(inverse, r, rr, rr > stop_at)
        d, dMd = z.clone(), rz
        active = rr > stop_at
        steps = torch.zeros_like(rr, dtype=torch.int64)
        lowest, highest = torch.full_like(rr, torch.inf), torch.full_like(rr, -torch.inf)
        largest = torch.zeros_like(rr)
        history = [rr] if self.history else []
        for _ in range(self.max_steps):
            if host.may_read(active) and not active.any():
                break
            Ad = product(d)
            dAd, dd = dot(d, Ad), dot(d, d)
            curvature = dAd / dd
            lowest = torch.where(active, torch.minimum(lowest, curvature), lowest)
            highest = torch.where(active, torch.maximum(highest, curvature), highest)
            if inverse is not None:
                curvature = dAd / dMd  # small or not is measured in M, which evens A out
            largest = torch.where(active, torch.maximum(largest, curvature.abs()), largest)
            # Curvature below rounding of the largest one is zero: a step along it would be noise of any length.
            usable = (curvature > rounding(r.dtype) * largest) if self.on_negative == "stop" else (dAd != 0)
            active = active & usable if inverse is None else active & usable & (rz > 0)
            # Masked, not branched: tasks that stopped take a step of length zero.
            alpha = torch.where(active, rz / torch.where(active, dAd, 1.0), 0.0)[:, None]
            u.addcmul_(alpha, d)
            r.addcmul_(alpha, Ad, value=-1)
            del Ad
            rr = dot(r, r)
            z, rz_next = _preconditioned(inverse, r, rr, active & (rr > stop_at))
            beta = torch.where(active, rz_next / torch.where(active, rz, 1.0), 0.0)
            torch.addcmul(z, beta[:, None], d, out=d)
            if inverse is not None:
                dMd = rz_next + beta**2 * dMd  # Pythagoras: z and the old d are conjugate in M
            rz = rz_next
            steps = steps + active
            active = active & (rr > stop_at)
            if self.history:
                history.append(rr)
        history += history[-1:] * (self.max_steps + 1 - len(history))
        # Who neither goes on nor has arrived was stopped.
        stopped = ~active & (rr > stop_at)
        return steps, (lowest, highest), stopped, torch.stack(history) if history else None

    def _inverse(self, operator: Operator, b: Params) -> Product | None:
        """Return ``r -> M⁻¹ r`` on ``(T, P)``; ``None`` without a preconditioner."""
        how = self.preconditioner
        if how is None:
            return None
        if callable(how):
            apply = how
            return lambda r: tree.ravel(apply(tree.unravel(r, b)), b)
        if operator.shift is None:
            raise ValueError("preconditioner='shift' needs an operator with a shift: Composed with a regulariser")
        diagonal = self._diagonal(operator.shift, b)
        diagonal = torch.where(diagonal > 0, diagonal, 1.0)
        return lambda r: r / diagonal

    def _diagonal(self, shift: Params, b: Params) -> Tensor:
        """Return Λ + damping as ``(T, P)``."""
        flat = tree.ravel(shift, b)
        return flat.add_(self.damping) if self.damping else flat


def _preconditioned(inverse: Product | None, r: Tensor, rr: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``z = M⁻¹ r`` and rᵀz; without a preconditioner r and rᵀr themselves."""
    if inverse is None:
        return r, rr
    z = inverse(r)
    rz = dot(r, z)
    if host.may_read(rz) and not (rz > 0)[active].all():
        raise ValueError("the preconditioner is not positive definite: it gave rᵀM⁻¹r ≤ 0")
    return z, rz
