"""How the adjoint's linear system ``A u = b`` is solved, for T tasks at once and with per-task stopping.

A solver returns u, and what it knows of A from solving. How well u solves the system is measured here, by one product
more, whichever solver it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
    """Solution of ``A u = b`` per task, what the solver knows, and its measured residual.

    Attributes
    ----------
    value:
        u, shaped as b.
    steps:
        ``(T,)`` int64, steps that entered u: products with A, or as the solver says.
    min_curvature:
        ``(T,)``, an upper bound of A's smallest eigenvalue: the smallest dᵀAd / dᵀd over the directions that the
        solver tried, and over u once it is measured; infinite where there is none.
    max_curvature:
        ``(T,)``, a lower bound of A's largest eigenvalue: the largest curvature met, near it after a few steps.
        Descent is stable below 2 over it.
    stopped:
        ``(T,)`` bool, whether the task ended at non-positive curvature: u is not what more steps would give.
    history:
        ``(max_steps + 1, T)``, the relative residuals before the first step and after each, as the recursion carries
        them; ``None`` unless the solver was made to keep them. A task that has ended repeats its last.
    residual:
        ``(T,)``, ‖b − A u‖ / ‖b‖; where b is 0, ‖A u‖, which is 0 unless the start was not. Measured, see
        :func:`measured`; a solver's own value is replaced. ``None`` where it was not measured.
    size:
        ``(T,)``, ‖b‖: ``residual * size`` is the norm of the residual itself. Measured with it.
    rounding:
        ``(T,)``, what of ``residual`` may be rounding: so much more the true one may be. Measured with it.
    """

    value: Params
    steps: Tensor | None = None
    min_curvature: Tensor | None = None
    max_curvature: Tensor | None = None
    stopped: Tensor | None = None
    history: Tensor | None = None
    residual: Tensor | None = None
    size: Tensor | None = None
    rounding: Tensor | None = None


class LinearSolver(Protocol):
    """Anything that solves ``A u = b`` given products with A."""

    def __call__(self, operator: Operator, b: Params, *, x0: Params | None = None) -> LinearSolution | Params:
        """Solve from ``x0`` (zero where not given; a direct solver has no use for it); return u, alone or with more."""
        ...


def solve(solver: LinearSolver, operator: Operator, b: Params, *, x0: Params | None = None) -> LinearSolution:
    """Solve ``A u = b`` and measure how well: see :func:`measured`."""
    return measured(solver(operator, b, x0=x0), operator, b)


def measured(result: LinearSolution | Params, operator: Operator, b: Params) -> LinearSolution:
    """Measure the residual of a solution by one product with A, and u's own curvature with it."""
    solution = as_solution(result, b)
    target, unit = scaled(b)
    u = tree.ravel(solution.value, b).div_(unit)
    Au = flat_product(operator, b)(u)
    size, uu = target.norm(dim=1), dot(u, u)
    curvature = torch.where(uu > 0, dot(u, Au) / torch.where(uu > 0, uu, 1.0), torch.inf)
    known = [part for part in (solution.min_curvature, curvature) if part is not None]
    # ‖A‖ ‖u‖, from the largest curvature that anybody met.
    largest = curvature.abs() if solution.max_curvature is None else solution.max_curvature.abs()
    scale = torch.maximum(size, largest.nan_to_num(0.0) * u.norm(dim=1))
    r = target.sub_(Au)
    return replace(
        solution,
        min_curvature=torch.stack(known).amin(0),
        residual=relative(r.norm(dim=1), size),
        size=size * unit[:, 0],
        rounding=relative(_ROUNDINGS * torch.finfo(size.dtype).eps * scale, size),
    )


_ROUNDINGS = 8  # of a product, relative to ‖A‖ ‖u‖: sums in blocks lose less


def as_solution(result: LinearSolution | Params, b: Params) -> LinearSolution:
    """Return what a linear solver gave as a solution; refuse a u that differs from b in names, shapes or types."""
    solution = result if isinstance(result, LinearSolution) else LinearSolution(result)
    if not isinstance(solution.value, dict):
        raise TypeError(f"a linear solver returns u, or a LinearSolution, got {type(result).__name__}")
    given, wanted = ({name: (leaf.shape, leaf.dtype) for name, leaf in part.items()} for part in (solution.value, b))
    if given != wanted:
        name = min(name for name in given.keys() | wanted.keys() if given.get(name) != wanted.get(name))
        raise ValueError(f"the linear solver returned u with {name!r} as {given.get(name)}, b has {wanted.get(name)}")
    return solution


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
        Av = tree.ravel(operator(tree.unravel(v, like)), like)
        return Av.add_(v, alpha=damping) if damping else Av

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


def relative(norm: Tensor, size: Tensor) -> Tensor:
    """Return ``norm / size``, and ``norm`` where ``size`` is 0."""
    return norm / torch.where(size > 0, size, 1.0)
