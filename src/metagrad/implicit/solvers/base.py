"""How the inner problem is solved. A solver maps ``(problem, init)`` to a :class:`Solution`.

A solver only asks the problem for values, gradients and curvature. So the same code runs detached (implicit
differentiation) and with a graph (unrolling).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metagrad import tree
from metagrad.implicit import host
from metagrad.implicit.curvature import Convexity
from metagrad.implicit.linear import LinearSolution
from metagrad.implicit.problem import Problem
from metagrad.tree import Params


@dataclass
class Solution:
    """An inner solution per task, and how well it is solved.

    Attributes
    ----------
    value:
        phi, built as the start was, each tensor with the leading task axis; differentiable as the adjoint says. With
        ``batched=False`` neither this nor what follows has a task axis.
    steps:
        ``(T,)`` int64, inner steps taken.
    grad_norm:
        ``(T,)``, norm of the inner gradient at ``value``: zero at an exact solution. Detached. A solver may leave it
        empty: the adjoint measures it, where it can with what it computes anyway.
    convexity:
        what is known of the curvature at ``value``; filled in by :class:`~metagrad.Implicit`.
    """

    value: Any
    steps: Tensor
    grad_norm: Tensor = field(default_factory=lambda: torch.empty(0))
    convexity: Convexity | None = None
    # Filled by the backward pass. A list shared with it: holding the whole Solution there would make a
    # reference cycle through the graph, and its memory would wait for the garbage collector.
    _linear: list[LinearSolution] = field(default_factory=list, repr=False)
    # From what the core has to what the caller has: nests, and no task axis where there is one problem.
    _shown: Callable[[LinearSolution], LinearSolution] | None = field(default=None, repr=False)

    @property
    def linear(self) -> LinearSolution | None:
        """The adjoint's linear solve (u, residual, steps, curvature); ``None`` before ``backward``."""
        if not self._linear:
            return None
        return self._shown(self._linear[-1]) if self._shown else self._linear[-1]

    @property
    def delta(self) -> Bound | None:
        """δ: how far ``value`` is from the exact solution, ‖phi − phi*‖; ``None`` where nothing is known.

        At most ‖dg/dphi‖ / μ, certain where the inner objective is known to be μ-strongly convex. Elsewhere μ is taken
        from the smallest curvature that the linear solve met, which lies above it.
        """
        if self.convexity is not None and self.convexity.inner:
            return Bound(self.grad_norm / self.convexity.weakest, True)
        if self.linear is None or self.linear.min_curvature is None:
            return None
        return Bound(_over(self.grad_norm, self.linear.min_curvature), False)

    @property
    def delta_prime(self) -> Bound | None:
        """δ′: how far the product ``Λ u`` is from ``Λ A⁻¹ v``.

        ``None`` before ``backward``, without a proximal term, or where the residual was not measured. At most
        ``‖r‖ · max Λ / min Λ``, r the residual with what rounding may hide of it: certain where the rest of A is
        positive semi-definite (Gauss-Newton, or a convex loss). It says nothing of the choice of A.
        """
        linear = self.linear
        if linear is None or linear.residual is None or self.convexity is None:
            return None
        assert linear.size is not None  # measured with the residual, as the others are
        assert linear.rounding is not None
        assert linear.min_curvature is not None
        left = (linear.residual + linear.rounding) * linear.size * self.convexity.strongest
        if self.convexity.system:
            return Bound(left / self.convexity.weakest, True)
        return Bound(_over(left, linear.min_curvature), False)


@dataclass(frozen=True)
class Bound:
    """How far off something may be, per task.

    Attributes
    ----------
    value:
        ``(T,)``. Infinite where curvature that is not positive was met: then there is no bound.
    certain:
        whether it is a bound; if not, the bound is at least this.
    """

    value: Tensor
    certain: bool


def _over(size: Tensor, curvature: Tensor) -> Tensor:
    return torch.where(curvature > 0, size / curvature, torch.where(size > 0, torch.inf, 0.0))


# Anything that turns a problem and a starting point into a solution: ours, or a user's own function, which may return
# phi alone.
InnerSolver = Callable[[Problem, Params], Solution | Params]


class Watch:
    """Which tasks go on: those whose inner gradient norm is above ``tol``; at 0, all of them, and nothing is masked.

    What a solver of one's own needs so that each task stops by itself, also where the steps are recorded.

    Parameters
    ----------
    tol:
        gradient norm at which a task stops.
    init:
        where the solver begins.

    Attributes
    ----------
    active:
        ``(T,)`` bool, which tasks go on.
    steps:
        ``(T,)`` int64, steps taken.
    norm:
        ``(T,)``, gradient norm at the last call of ``done``; infinite before the first, and where ``tol`` is 0.

    Examples
    --------
    >>> import torch
    >>> from metagrad.implicit import Problem, Watch
    >>> problem = Problem(lambda phi, theta, data: (phi["w"] - data).square() / 2, {}, torch.tensor([0.0, 8.0]))
    >>> phi = {"w": torch.zeros(2)}
    >>> watch = Watch(0.1, phi)
    >>> while not watch.done(gradient := problem.grad(phi)):
    ...     phi = watch.step(phi, {"w": phi["w"] - 0.5 * gradient["w"]})
    >>> watch.solution(phi).steps
    tensor([0, 7])
    """

    def __init__(self, tol: float, init: Params) -> None:
        leaf = next(iter(init.values()))
        self.tol = tol
        self.active = torch.ones(len(leaf), dtype=torch.bool, device=leaf.device)
        self.steps = torch.zeros(len(leaf), dtype=torch.int64, device=leaf.device)
        self.norm = torch.full((len(leaf),), torch.inf, dtype=leaf.dtype, device=leaf.device)

    def done(self, gradient: Params) -> bool:
        """Stop tasks whose gradient norm is small; return whether the host knows that every task has stopped."""
        if self.tol == 0:
            return False
        self.norm = torch.where(self.active, tree.norm(tree.detach(gradient)), self.norm)
        self.active = self.active & ~(self.norm <= self.tol)
        return self.none_active()

    def none_active(self) -> bool:
        """Whether the host knows that every task has stopped."""
        return host.may_read(self.active) and not bool(self.active.any())

    def step(self, old: Params, new: Params) -> Params:
        """Count a step and return where it leads; tasks that have stopped keep what they have."""
        self.steps = self.steps + self.active
        return new if self.tol == 0 else tree.where(self.active, new, old)

    def solution(self, phi: Params) -> Solution:
        """Return the solution; its gradient norm is known where every task stopped by it."""
        return Solution(phi, self.steps, self.norm if self.tol > 0 and self.none_active() else torch.empty(0))


def descend(phi: Params, direction: Params, lr: Any) -> Params:
    """Return ``phi − lr · direction``; ``lr`` a number, a tensor, or one of either for each name."""
    if isinstance(lr, float):
        return {name: leaf.add(direction[name], alpha=-lr) for name, leaf in phi.items()}
    return {name: leaf - lr[name] * direction[name] for name, leaf in phi.items()}


def require_detached(problem: Problem, solver: Any) -> None:
    """Raise ``ValueError`` where the steps would have to be recorded."""
    if problem.create_graph:
        name = type(solver).__name__
        raise ValueError(f"{name} cannot be unrolled: differentiate it with Implicit() or FirstOrder()")


def measured(problem: Problem, solution: Solution) -> Solution:
    """Fill in the gradient norm, if the solver did not: it costs one more gradient."""
    if not len(solution.grad_norm):
        phi = tree.detach(solution.value)
        solution.grad_norm = tree.norm(problem.detached().grad(phi))
    return solution


def solve_detached(problem: Problem, init: Params, solver: InnerSolver) -> Solution:
    """Solve with nothing recorded."""
    with torch.no_grad():
        return as_solution(solver(problem.detached(), tree.detach(init)), init)


def as_solution(result: Solution | Params, init: Params) -> Solution:
    """Return what a solver gave as a solution; refuse what is not phi. A user's own solver may give phi alone."""
    solution = result if isinstance(result, Solution) else Solution(result, Watch(0.0, init).steps)
    if not isinstance(solution.value, dict):
        raise TypeError(f"an inner solver returns a Solution or phi, got {type(result).__name__}")
    shapes, expected = ({name: leaf.shape for name, leaf in part.items()} for part in (solution.value, init))
    if shapes != expected:
        raise ValueError(f"the inner solver returned phi of shapes {shapes}, begun from {expected}")
    if list(shapes) != list(expected):
        solution.value = {name: solution.value[name] for name in init}
    return solution
