"""How the adjoint's linear system ``A u = b`` is solved, for T tasks at once and with per-task stopping.

Every solve returns its residual: the caller learns how good the answer is, not only the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metagrad import tree
from metagrad.implicit.curvature import Operator
from metagrad.torch_modes import full_digits
from metagrad.tree import Params

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LinearSolution:
    """Solution of ``A u = b`` per task; A includes a solver's damping, where it has one.

    Attributes
    ----------
    value:
        u, shaped as b.
    residual:
        ``(T,)``, ‖b − A u‖ / ‖b‖; where b is 0, ‖A u‖, which is 0 unless the start was not.
    steps:
        ``(T,)`` int64, steps that entered u: products with A, or as the solver says.
    min_curvature:
        ``(T,)``, an upper bound of A's smallest eigenvalue: the smallest dᵀAd / dᵀd over the directions that the
        solver tried, or as it says; infinite where none was tried.
    size:
        ``(T,)``, ‖b‖: ``residual * size`` is the norm of the residual itself.
    stopped:
        ``(T,)`` bool, whether the task ended at non-positive curvature: u is not what more steps would give.
    history:
        ``(max_steps + 1, T)``, the relative residuals before the first step and after each, as the recursion carries
        them; ``None`` unless a solver was asked for it. A task that has ended repeats its last.
    max_curvature:
        ``(T,)``, a lower bound of A's largest eigenvalue: the largest curvature met, near it after a few steps.
        Descent is stable below 2 over it. ``None`` from solvers that meet none (all but CG and MINRES).
    """

    value: Params
    residual: Tensor
    steps: Tensor
    min_curvature: Tensor
    size: Tensor
    stopped: Tensor
    history: Tensor | None = None
    max_curvature: Tensor | None = None


class LinearSolver(Protocol):
    """Anything that solves ``A u = b`` given products with A."""

    def __call__(self, operator: Operator, b: Params, *, x0: Params | None = None) -> LinearSolution:
        """Solve from ``x0`` (zero where not given); a direct solver has no use for it."""
        ...


def scaled(b: Params) -> tuple[Tensor, Tensor]:
    """Lay b out as a new ``(T, P)``, divided by a power of two of each task; return that too, ``(T, 1)``.

    It changes no digit: float32 squares of a tiny or a huge b would under- or overflow.
    """
    flat = tree.ravel(b)
    _, exponent = torch.frexp(flat.abs().amax(1, keepdim=True))
    unit = torch.ldexp(torch.ones_like(flat[:, :1]), exponent)
    return flat.div_(unit), unit


def flat_product(operator: Operator, like: Params, damping: float = 0.0) -> Product:
    """Return ``v -> (A + damping I) v`` on ``(T, P)``; what it returns may be written to."""

    def product(v: Tensor) -> Tensor:
        found = tree.ravel(operator(tree.unravel(v, like)), like)
        return found.add_(v, alpha=damping) if damping else found

    return product


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Per-task inner product of ``(T, P)``."""
    with full_digits(a.device.type):  # autocast would take the products in half the digits
        return torch.linalg.vecdot(a, b)


def rounding(dtype: torch.dtype) -> float:
    """Return what of a product ``dᵀAd``, relative to the largest one met, is rounding.

    A dot product's error does not grow with the number of unknowns: terms' errors have either sign, and torch adds in
    blocks. ``eps**0.75`` (6e-6 in float32, 2e-12 in float64) is above it at every size tried, up to 10⁷ unknowns.
    """
    return torch.finfo(dtype).eps ** 0.75


def tolerance(tol: float | None, dtype: torch.dtype) -> float:
    """Return a solver's tolerance; ``None`` is as far as the digits reach: 1e-10 in float64, 1e-6 in float32."""
    return max(1e-10, 8 * torch.finfo(dtype).eps) if tol is None else tol


def require_tolerance(tol: float | None) -> None:
    """Refuse a tolerance that is negative or no number.

    Raises
    ------
    ValueError
        naming it.
    """
    if tol is not None and not tol >= 0:
        raise ValueError(f"tol must not be negative, got {tol}")


def relative(norm: Tensor, size: Tensor) -> Tensor:
    """Return ``norm / size``, and ``norm`` where ``size`` is 0."""
    return norm / torch.where(size > 0, size, 1.0)


def rayleigh(u: Tensor, Au: Tensor) -> Tensor:
    """Return ``uᵀAu / uᵀu`` per task; infinite where u is 0."""
    uu = dot(u, u)
    return torch.where(uu > 0, dot(u, Au) / torch.where(uu > 0, uu, 1.0), torch.inf)


def require_positive(**values: float) -> None:
    """Refuse numbers that are not positive and finite.

    Raises
    ------
    ValueError
        naming the first such.
    """
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {value}")
