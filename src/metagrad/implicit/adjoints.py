"""How the solution is differentiated: implicitly, or to first order; through the steps, see ``unroll``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from metagrad import torch_modes, tree
from metagrad.implicit.curvature import Curvature, Linearisation
from metagrad.implicit.linear import (
    CG,
    MINRES,
    Dense,
    FixedPoint,
    LinearSolver,
    Neumann,
    Woodbury,
    as_solution,
)
from metagrad.implicit.linear import measured as measured_linear
from metagrad.implicit.problem import Problem
from metagrad.implicit.solvers import InnerSolver, Solution
from metagrad.implicit.solvers.base import measured, solve_detached
from metagrad.tree import Params


def require_parts(objective: Any, solver: Any, adjoint: Any) -> None:
    """Raise ``TypeError`` for an objective, a solver or an adjoint that cannot be one."""
    what = {
        "objective": (objective, "a function (phi, theta, data) -> scalar"),
        "solver": (solver, "an inner solver, such as GradientDescent(lr=0.1, max_steps=16)"),
        "adjoint": (adjoint, "Implicit(), Unroll() or FirstOrder()"),
    }
    for name, (part, wanted) in what.items():
        linear = name == "adjoint" and isinstance(part, CG | MINRES | Dense | Neumann | FixedPoint | Woodbury)
        if isinstance(part, type) or not callable(part) or linear:
            got = f"the class {part.__name__}" if isinstance(part, type) else type(part).__name__
            hint = f": write Implicit(linear_solver={got}(...))" if linear else ""
            raise TypeError(f"{name} must be {wanted}, got {got}{hint}")


class Adjoint(Protocol):
    """Solves a problem and decides what the solution's gradient is."""

    def __call__(self, problem: Problem, init: Params, solver: InnerSolver) -> Solution:
        """Return a solution whose ``value`` is differentiable."""
        ...


@dataclass(frozen=True, kw_only=True)
class FirstOrder:
    """Take the solution's derivative with respect to its start as the identity (first-order MAML).

    The gradient reaches ``init`` only.
    """

    def __call__(self, problem: Problem, init: Params, solver: InnerSolver) -> Solution:
        """Solve detached, then attach to ``init``."""
        solution = measured(problem, solve_detached(problem, init, solver))
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
        matrix A of the linear system: ``"hessian"``, exact but often indefinite on networks; or ``"gauss_newton"``,
        positive semi-definite, for objectives that show their structure (:class:`~metagrad.Composed`).
    x0:
        where the linear solve starts, task-batched; ``None``: zero. Near u already, as from the step before on the same
        tasks, fewer products do.
    measure:
        whether to measure the residual of the linear solve, by one more product with A: with 5 conjugate gradient steps
        about 5 % of a meta-gradient. Without it ``solution.linear.residual`` and ``solution.delta_prime`` are ``None``.
    """

    linear_solver: LinearSolver = field(default_factory=CG)
    curvature: Curvature = "hessian"
    x0: Params | None = None
    measure: bool = True

    def __post_init__(self) -> None:
        if self.curvature not in ("hessian", "gauss_newton"):
            raise ValueError(f"curvature is 'hessian' or 'gauss_newton', got {self.curvature!r}")
        if isinstance(self.linear_solver, type) or not callable(self.linear_solver):
            raise TypeError(f"linear_solver must be one, such as CG(max_steps=5), got {self.linear_solver!r}")

    def __call__(self, problem: Problem, init: Params, solver: InnerSolver) -> Solution:
        """Solve detached, then attach the implicit derivative."""
        torch_modes.require_no_tangents("an implicit gradient", tree.partition((problem.theta, problem.data))[0])
        if self.x0 is not None and self.x0.keys() != init.keys():
            raise ValueError(
                f"x0 has {', '.join(self.x0) or 'nothing'}, phi has {', '.join(init)}: they must be the same"
            )
        solution = solve_detached(problem, init, solver)
        if not torch.is_grad_enabled() or not tree.differentiable((problem.theta, problem.data)):
            return measured(problem, solution)
        self._attach(problem, solution)
        return solution

    def _attach(self, problem: Problem, solution: Solution) -> None:
        """Make ``solution`` differentiable; fill in gradient norm and convexity. A backward adds its linear solve."""
        tensors, combine = tree.partition((problem.theta, problem.data))
        phi, linear_solves = solution.value, solution._linear  # not the solution: it would be a cycle through the graph

        def linearise(point: Params, at: list[Tensor]) -> tuple[Linearisation, list[Tensor]]:
            """Linearise at tensors that stand for ``tensors``; return them too."""
            inputs = [now.detach().requires_grad_(was.requires_grad) for now, was in zip(at, tensors, strict=True)]
            return Problem(problem.objective, *combine(inputs)).linearise(point, self.curvature), inputs

        # Now, since the inner gradient is part of it; and for one backward, which frees it.
        ready = [linearise(phi, tensors)]
        solution.grad_norm, solution.convexity = tree.norm(ready[0][0].gradient), ready[0][0].convexity
        ready[0][0].gradient.clear()  # as large as all weights, and nobody needs it again

        def pull(v: list[Tensor], phi_now: list[Tensor], tensors_now: list[Tensor]) -> list[Tensor | None]:
            """Solve and pull back, at the tensors that autograd has kept."""
            linearised, inputs = ready.pop() if ready else linearise(dict(zip(phi, phi_now, strict=True)), tensors_now)
            operator, b = linearised.operator, dict(zip(phi, v, strict=True))
            result = self.linear_solver(operator, b, x0=self.x0)
            solved = measured_linear(result, operator, b) if self.measure else as_solution(result, b)
            linear_solves.append(solved)
            gradients = iter(linearised.theta_vjp(solved.value))
            return [next(gradients) if leaf.requires_grad else None for leaf in inputs]

        value = _Attach.apply(pull, len(phi), *phi.values(), *tensors)
        solution.value = dict(zip(phi, value, strict=True))


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
        torch_modes.require_no_transform("an implicit gradient", v)
        if torch.is_grad_enabled():
            raise RuntimeError(
                "an implicit gradient can be differentiated once only: use Unroll() for second derivatives"
            )
        saved = [leaf.detach() for leaf in ctx.saved_tensors]
        return None, None, *([None] * ctx.count), *ctx.pull(list(v), saved[: ctx.count], saved[ctx.count :])
