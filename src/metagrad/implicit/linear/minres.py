"""MINRES."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metagrad import scalars, tree
from metagrad.implicit import host
from metagrad.implicit.curvature import Operator
from metagrad.implicit.linear.base import LinearSolution, Product, dot, flat_product, scaled, tolerance
from metagrad.implicit.linear.spectrum import Lanczos
from metagrad.tree import Params


@dataclass(frozen=True, kw_only=True)
class MINRES:
    """Minimal residuals (Paige and Saunders 1975) for symmetric A, definite or not, each task stopping by itself.

    Its residual never grows, whatever the signs of the eigenvalues. Where A is singular and b has no solution, a task
    ends at the least-squares solution of least norm (nearest to ``x0``). Rounding costs more than in conjugate
    gradients: trust it up to condition numbers of 1/√eps (7e7 in float64, 3e3 in float32). Where a task ends
    at a least-squares solution (and on a GPU), two more products take out of it what A does not see.

    ``min_curvature`` is the smallest Ritz value (eigenvalue of the Lanczos matrix). No task is ever ``stopped``.

    Parameters
    ----------
    max_steps:
        most products with A.
    tol:
        a task stops once ‖b − A u‖ ≤ tol · ‖b‖; ``None``: 1e-10 in float64, 1e-6 in float32.
    damping:
        solve ``(A + damping I) u = b`` instead; residual and curvature are those of this system.

    Raises
    ------
    ValueError
        for ``max_steps < 1``, ``tol < 0`` or ``damping < 0``.
    """

    max_steps: int = 5
    tol: float | None = None
    damping: float = 0.0

    def __post_init__(self) -> None:
        scalars.require_whole(self, "max_steps")
        scalars.require_not_negative(self, "tol", optional=True)
        scalars.require_not_negative(self, "damping")

    def __call__(self, operator: Operator, b: Params, *, x0: Params | None = None) -> LinearSolution:
        """Solve ``operator u = b``; see :class:`LinearSolution`."""
        product = flat_product(operator, b, self.damping)
        r, unit = scaled(b)
        size = r.norm(dim=1)
        start = None if x0 is None else tree.ravel(x0, b) / unit
        if start is not None:
            r -= product(start)
        lanczos = Lanczos(product, r)
        u, steps, at_best = self._descend(lanczos, size)
        min_curvature, max_curvature = lanczos.ritz()
        del r, lanczos
        if start is not None:
            u += start
        if not host.may_read(at_best) or at_best.any():
            _shorten_where(at_best, u, start, (tree.ravel(b) / unit).sub_(product(u)), product)
        return LinearSolution(
            tree.unravel(u.mul_(unit), b), steps, min_curvature, max_curvature, torch.zeros_like(at_best)
        )

    def _descend(self, lanczos: Lanczos, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return u, steps, and which tasks ended with a residual that A maps to zero."""
        phi_bar, stop_at = lanczos.beta, tolerance(self.tol, size.dtype) * size  # phi_bar: the residual's norm
        active = phi_bar > stop_at
        steps = torch.zeros_like(size, dtype=torch.int64)
        at_best = torch.zeros_like(active)
        u, w, w_before = (torch.zeros_like(lanczos.v) for _ in range(3))
        # The last plane rotation, and T's entries that it has turned already (names as in Paige and Saunders).
        cs, sn, delta_bar, epsilon = -torch.ones_like(size), *(torch.zeros_like(size) for _ in range(3))
        largest = torch.zeros_like(size)
        for _ in range(self.max_steps):
            if host.may_read(active) and not active.any():
                break
            alpha, reached = lanczos.step(active)
            beta = lanczos.beta
            largest = torch.where(active, torch.maximum(largest, reached), largest)
            epsilon_before, delta = epsilon, cs * delta_bar + sn * alpha
            gamma_bar, epsilon, delta_bar = sn * delta_bar - cs * alpha, sn * beta, -cs * beta
            # ‖A r‖ / ‖r‖ of the u at hand. Zero to rounding: r is what no u can remove, and a step would be noise.
            dead_end = active & (torch.hypot(gamma_bar, delta_bar) <= largest * torch.finfo(size.dtype).eps ** 0.5)
            at_best, active = at_best | dead_end, active & ~dead_end
            gamma = torch.hypot(gamma_bar, beta)
            over = torch.where(active, 1 / torch.where(active, gamma, 1.0), 0.0)
            cs, sn = gamma_bar * over, beta * over
            w_before.mul_(-epsilon_before[:, None]).addcmul_(delta[:, None], w, value=-1).add_(lanczos.before)
            w, w_before = w_before.mul_(over[:, None]), w
            u.addcmul_((cs * phi_bar)[:, None], w)
            phi_bar = sn * phi_bar
            steps = steps + active
            active = active & (phi_bar > stop_at)
        return u, steps, at_best


def _shorten_where(at_best: Tensor, u: Tensor, start: Tensor | None, r: Tensor, product: Product) -> None:
    """Take out of u, in place, what the steps from ``start`` added and A maps to zero.

    All of it lies along the residual r (Liu, Milzarek and Roosta 2023, "Obtaining pseudo-inverse solutions with
    MINRES"). Where rounding would make the residual grow, u stays.
    """
    norm = r.norm(dim=1)
    along = dot(r, u) if start is None else dot(r, u) - dot(r, start)
    share = torch.where(at_best, along / torch.where(norm > 0, norm, 1.0) ** 2, 0.0)
    after = product(r).mul_(share[:, None]).add_(r).norm(dim=1)
    better = at_best & (after <= norm * (1 + torch.finfo(r.dtype).eps ** 0.5))
    u.addcmul_(torch.where(better, share, 0.0)[:, None], r, value=-1)
