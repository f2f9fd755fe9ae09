"""How the solution is differentiated: implicitly, through the solver's steps, or to first order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metagrad import tree
from metagrad.implicit.curvature import Convexity, Curvature, Linearisation
from metagrad.implicit.diagnose import require_finite
from metagrad.implicit.linear import CG, LinearSolution, LinearSolver
from metagrad.implicit.objective import Objective, check_objective
from metagrad.implicit.problem import Problem
from metagrad.implicit.solvers import GradientDescent, InnerSolver, Solution
from metagrad.tree import Params


class Adjoint(Protocol):
    """Solves a problem and decides what the solution's gradient is."""

    def __call__(self, problem: Problem, init: Params, solver: InnerSolver) -> Solution:
        """Return a solution whose ``value`` is differentiable."""
        ...


def argmin(
    objective: Objective, init: Params, theta: Params, data: Any, *, solver: InnerSolver, adjoint: Adjoint
) -> Solution:
    """Solve ``argmin_phi g(phi, theta; data)`` for T tasks at once, differentiably.

    Parameters
    ----------
    objective:
        ``(phi, theta, data) -> scalar``, written for one task. A :class:`~metagrad.Composed` objective shows the
        structure that Gauss-Newton needs.
    init:
        where the solver starts; every tensor has a leading task axis of length T.
    theta:
        what is shared by the tasks; no task axis.
    data:
        a nest of tensors (dictionaries, tuples, lists), each with a leading task axis of length T.
    solver:
        how the inner problem is solved, such as ``GradientDescent(lr=0.1, max_steps=16)``.
    adjoint:
        how it is differentiated: ``Implicit()``, ``Unroll()`` or ``FirstOrder()``.

    Returns
    -------
    Solution
        ``value`` is differentiable by plain autograd with respect to every floating tensor that asks for it in
        ``theta`` and ``data`` (and ``init``, where the adjoint goes through it).

    Raises
    ------
    ValueError
        if the task axes differ, the objective is not a scalar, does not depend on phi, or captured a tensor
        that would silently get no gradient.
    NotFiniteError
        if theta, init, data or the objective at init are not finite.
    DivergedError
        if the solver ended at a solution that is not finite.

    Examples
    --------
    >>> import torch
    >>> from metagrad import CG, GradientDescent, Implicit, argmin
    >>> def ridge(phi, theta, data):
    ...     x, y = data
    ...     return ((x @ phi["w"] - y) ** 2).sum() / 2 + theta["lam"] / 2 * (phi["w"] ** 2).sum()
    >>> x, y = torch.eye(2).expand(3, 2, 2), torch.ones(3, 2)
    >>> lam = torch.tensor(1.0, requires_grad=True)
    >>> solution = argmin(ridge, {"w": torch.zeros(3, 2)}, {"lam": lam}, (x, y),
    ...                   solver=GradientDescent(lr=0.5, max_steps=50), adjoint=Implicit(linear_solver=CG()))
    >>> solution.value["w"].sum().backward()
    >>> round(lam.grad.item(), 4)  # w = 1 / (1 + lam), so d(sum)/dlam = −6 / 4
    -1.5
    """
    data = () if data is None else data
    if tree.num_tasks((init, data)) == 0:
        raise ValueError("there are no tasks: the leading axis of init is empty")
    check_objective(objective, init, theta, data)
    problem = Problem(objective, theta, data)
    solution = adjoint(problem, init, solver)
    require_finite(problem, init, solver, solution)
    return solution


@dataclass(frozen=True, kw_only=True)
class Unroll:
    """Differentiate through the solver's steps (MAML). Memory grows with the number of steps that are gone through.

    The gradient reaches ``init``, ``theta`` and ``data``.

    Parameters
    ----------
    truncate:
        go through the last so many steps only (Shaban et al. 2019), through those before as if their gradients were
        constants; 0 is first-order MAML. ``None``: all steps.
    checkpoint:
        keep the iterates of every so-manieth step only and take the steps between again when they are differentiated
        (Chen et al. 2016): the root of the number of steps takes the least memory, for about one more pass over them.
        With :class:`~metagrad.GradientDescent` without momentum, line search and ``tol``, whose steps need nothing but
        phi. ``None``: keep all.

    Raises
    ------
    ValueError
        for a number below 0 (``truncate``) or 1 (``checkpoint``), both together, or a solver that they do not go with.
    """

    truncate: int | None = None
    checkpoint: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("truncate", 0), ("checkpoint", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.truncate is not None and self.checkpoint is not None:
            raise ValueError("truncate and checkpoint do not go together: what is cut needs no keeping")

    def __call__(self, problem: Problem, init: Params, solver: InnerSolver) -> Solution:
        """Solve with a graph; without one where autograd is switched off (evaluation)."""
        if not torch.is_grad_enabled():
            return _measured(problem, _solve_detached(problem, init, solver))
        # A new node even where init asks for a gradient: init may be theta or data themselves, and the inner gradient
        # must not flow into those.
        start = {
            k: leaf.view_as(leaf) if leaf.requires_grad else leaf.detach().requires_grad_() for k, leaf in init.items()
        }
        recorded = Problem(problem.objective, problem.theta, problem.data, create_graph=True)
        if self.truncate is not None:
            found = _truncated(recorded, start, solver, self.truncate)
        elif self.checkpoint is not None:
            found = _checkpointed(recorded, start, solver, self.checkpoint)
        else:
            found = _solved(solver(recorded, start), init)
        return _measured(problem, found)


@dataclass(frozen=True, kw_only=True)
class FirstOrder:
    """Take the solution's derivative with respect to its start as the identity (first-order MAML).

    The gradient reaches ``init`` only.
    """

    def __call__(self, problem: Problem, init: Params, solver: InnerSolver) -> Solution:
        """Solve detached, then attach to ``init``."""
        solution = _measured(problem, _solve_detached(problem, init, solver))
        solution.value = {k: init[k] + (leaf - init[k]).detach() for k, leaf in solution.value.items()}
        return solution


@dataclass(frozen=True, kw_only=True)
class Implicit:
    """Differentiate the solution by the implicit function theorem; the path to it is not needed.

    At a solution ``dg/dphi = 0``, so with ``A u = v`` (A the curvature, v the incoming gradient) the derivative with
    respect to theta and data is ``−(d²g / d(theta, data) dphi)ᵀ u`` (equation 6 of Rajeswaran et al. 2019 for the
    proximal term). Memory is that of one inner gradient, whatever the number of inner steps. ``init`` gets no
    gradient: a solution does not depend on where the search for it began.

    Parameters
    ----------
    linear_solver:
        how ``A u = v`` is solved.
    curvature:
        ``"hessian"``, exact but often indefinite on networks; or ``"gauss_newton"``, positive semi-definite, for
        objectives that show their structure (:class:`~metagrad.Composed`).
    """

    linear_solver: LinearSolver = field(default_factory=CG)
    curvature: Curvature = "hessian"

    def __post_init__(self) -> None:
        if self.curvature not in ("hessian", "gauss_newton"):
            raise ValueError(f"curvature is 'hessian' or 'gauss_newton', got {self.curvature!r}")

    def __call__(self, problem: Problem, init: Params, solver: InnerSolver) -> Solution:
        """Solve detached, then attach the implicit derivative."""
        solution = _solve_detached(problem, init, solver)
        if not torch.is_grad_enabled() or not tree.differentiable((problem.theta, problem.data)):
            return _measured(problem, solution)
        solution.value, slope, solution.convexity = self._attach(problem, solution.value, solution._linear)
        solution.grad_norm = tree.norm(slope)
        return solution

    def _attach(
        self, problem: Problem, phi: Params, linear: list[LinearSolution]
    ) -> tuple[Params, Params, Convexity | None]:
        """Return ``phi`` with the implicit derivative, the inner gradient there, and what is known of the curvature.

        Each backward appends its linear solve to ``linear``.
        """
        leaves, spec = pytree.tree_flatten((problem.theta, problem.data))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        def linearise(point: Params, at: list[Tensor]) -> tuple[Linearisation, list[Tensor]]:
            """Linearise at tensors that stand for ``tensors``; return them too."""
            asked = [now.detach().requires_grad_(was.requires_grad) for now, was in zip(at, tensors, strict=True)]
            rest = iter(asked)
            filled = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            theta, data = pytree.tree_unflatten(filled, spec)
            return Problem(problem.objective, theta, data).linearise(point, self.curvature), asked

        # Now, since the inner gradient is part of it; and for one backward, which frees it.
        ready = [linearise(phi, tensors)]
        slope, convexity = dict(ready[0][0].gradient), ready[0][0].convexity
        ready[0][0].gradient.clear()  # as large as all weights, and nobody asks for it again

        def pull(v: list[Tensor], phi_now: list[Tensor], tensors_now: list[Tensor]) -> list[Tensor | None]:
            """Solve and pull back, at the tensors that autograd has kept."""
            linearised, asked = ready.pop() if ready else linearise(dict(zip(phi, phi_now, strict=True)), tensors_now)
            solved = self.linear_solver(linearised.operator, dict(zip(phi, v, strict=True)))
            linear.append(solved)
            found = iter(linearised.theta_vjp(solved.value))
            return [next(found) if leaf.requires_grad else None for leaf in asked]

        value = _Attach.apply(pull, len(phi), *phi.values(), *tensors)
        return dict(zip(phi, value, strict=True)), slope, convexity


class _Attach(torch.autograd.Function):
    """Identity on phi whose backward hands the incoming gradient to ``pull``.

    Everything the backward needs goes through ``save_for_backward``, so that autograd notices a tensor that was
    changed in place meanwhile.
    """

    @staticmethod
    def forward(ctx: Any, pull: Callable[..., list[Tensor | None]], count: int, *args: Tensor) -> Any:
        ctx.pull, ctx.count = pull, count
        value = tuple(leaf.view_as(leaf) for leaf in args[:count])
        ctx.save_for_backward(*value, *args[count:])
        return value

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "an implicit gradient can be differentiated once only: use Unroll() for second derivatives"
            )
        saved = [leaf.detach() for leaf in ctx.saved_tensors]
        return None, None, *([None] * ctx.count), *ctx.pull(list(v), saved[: ctx.count], saved[ctx.count :])


@dataclass(frozen=True)
class _Cut(Problem):
    """A problem whose first gradients are constants."""

    left: list[int] = field(default_factory=list)

    def grad(self, phi: Params) -> Params:
        if self.left[0] == 0:
            return super().grad(phi)
        self.left[0] -= 1
        return self.detached().grad(tree.detach(phi))


def _truncated(problem: Problem, start: Params, solver: Any, last: int) -> Solution:
    """Solve with the last steps recorded.

    Descent adds steps up, so that a gradient that is a constant leaves ``init + (phi − init).detach()``.
    """
    steps = getattr(solver, "max_steps", None)
    if steps is None or getattr(solver, "tol", None) or callable(getattr(solver, "lr", None)):
        raise ValueError(
            "truncate needs to know how many steps there will be, of which size: a solver with max_steps, "
            f"tol=0 and a fixed lr, not {solver!r}"
        )
    cut = _Cut(problem.objective, problem.theta, problem.data, create_graph=True, left=[max(0, steps - last)])
    return _solved(solver(cut, start), start)


def _checkpointed(problem: Problem, start: Params, solver: Any, every: int) -> Solution:
    """Solve segment by segment; each is solved again when it is differentiated."""
    if not isinstance(solver, GradientDescent) or solver.momentum or solver.line_search or solver.tol:
        raise ValueError(
            "checkpoint goes with GradientDescent without momentum, line search and tol, whose steps need nothing but "
            f"phi, not {solver!r}"
        )
    leaves, spec = pytree.tree_flatten((problem.theta, problem.data))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    names, phi = list(start), list(start.values())

    def segment(steps: int) -> Callable[..., tuple[Tensor, ...]]:
        part = replace(solver, max_steps=steps)

        def run(*given: Tensor) -> tuple[Tensor, ...]:
            rest = iter(given[len(names) :])
            filled = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            theta, data = pytree.tree_unflatten(filled, spec)
            here = Problem(problem.objective, theta, data, create_graph=torch.is_grad_enabled())
            return tuple(part(here, dict(zip(names, given, strict=False))).value.values())

        return run

    for first in range(0, solver.max_steps, every):
        phi = list(_Segment.apply(segment(min(every, solver.max_steps - first)), *phi, *tensors))
    taken = torch.full((tree.num_tasks(start),), solver.max_steps, device=phi[0].device)
    return Solution(dict(zip(names, phi, strict=True)), taken)


class _Segment(torch.autograd.Function):
    """Some steps that keep where they began, and are taken again by the backward pass."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., tuple[Tensor, ...]], *given: Tensor) -> Any:
        ctx.run = run
        ctx.save_for_backward(*given)
        return run(*given)  # nothing is recorded in here

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("checkpointed steps are differentiated once only: use Unroll() for second derivatives")
        needed = ctx.needs_input_grad[1:]
        given = [leaf.detach().requires_grad_(need) for leaf, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            ended = ctx.run(*given)
        asked = [leaf for leaf, need in zip(given, needed, strict=True) if need]
        found = iter(torch.autograd.grad(ended, asked, v, allow_unused=True))
        return None, *(next(found) if need else None for need in needed)


def _measured(problem: Problem, solution: Solution) -> Solution:
    """Fill in how far from a solution the steps ended, if the solver did not say: it costs one more gradient."""
    if not len(solution.grad_norm):
        phi = tree.detach(solution.value)
        solution.grad_norm = tree.norm(problem.detached().grad(phi))
    return solution


def _solve_detached(problem: Problem, init: Params, solver: InnerSolver) -> Solution:
    with torch.no_grad():
        return _solved(solver(problem.detached(), tree.detach(init)), init)


def _solved(found: Solution | Params, init: Params) -> Solution:
    """Take what a solver returned; a user's own may return phi alone.

    Raises
    ------
    TypeError, ValueError
        if it is not phi.
    """
    tasks = tree.num_tasks(init)
    solution = found if isinstance(found, Solution) else Solution(found, torch.zeros(tasks, dtype=torch.int64))
    if not isinstance(solution.value, dict):
        raise TypeError(f"an inner solver returns a Solution or phi, got {type(found).__name__}")
    shapes, expected = ({name: leaf.shape for name, leaf in part.items()} for part in (solution.value, init))
    if shapes != expected:
        raise ValueError(f"the inner solver returned phi of shapes {shapes}, begun from {expected}")
    if list(shapes) != list(expected):
        solution.value = {name: solution.value[name] for name in init}
    return solution
