"""Differentiating through a solver's steps: all of them, the last ones, or all with few kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from metagrad import scalars, tree
from metagrad.implicit.problem import Problem
from metagrad.implicit.solvers import GradientDescent, InnerSolver, Solution
from metagrad.implicit.solvers.base import as_solution, measured, solve_detached
from metagrad.tree import Params


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
        keep one iterate out of so many and take the steps between again when they are differentiated (Chen et al.
        2016): the root of the number of steps takes the least memory, for about one more pass over them.
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
        scalars.require_whole(self, "truncate", least=0, optional=True)
        scalars.require_whole(self, "checkpoint", optional=True)
        if self.truncate is not None and self.checkpoint is not None:
            raise ValueError("truncate and checkpoint do not go together: what is cut needs no keeping")

    def __call__(self, problem: Problem, init: Params, solver: InnerSolver) -> Solution:
        """Solve with a graph; without one where autograd is switched off (evaluation)."""
        if not torch.is_grad_enabled():
            return measured(problem, solve_detached(problem, init, solver))
        # A new node even where init asks for a gradient: init may be theta or data themselves, and the inner gradient
        # must not flow into those.
        start = {
            k: leaf.view_as(leaf) if leaf.requires_grad else leaf.detach().requires_grad_() for k, leaf in init.items()
        }
        recorded = Problem(problem.objective, problem.theta, problem.data, create_graph=True)
        if self.truncate is not None:
            solution = _truncated(recorded, start, solver, self.truncate)
        elif self.checkpoint is not None:
            solution = _checkpointed(recorded, start, solver, self.checkpoint)
        else:
            solution = as_solution(solver(recorded, start), init)
        return measured(problem, solution)


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
    return as_solution(solver(cut, start), start)


def _checkpointed(problem: Problem, start: Params, solver: Any, every: int) -> Solution:
    """Solve segment by segment; each is solved again when it is differentiated."""
    if not isinstance(solver, GradientDescent) or solver.momentum or solver.line_search or solver.tol:
        raise ValueError(
            "checkpoint goes with GradientDescent without momentum, line search and tol, whose steps need nothing but "
            f"phi, not {solver!r}"
        )
    tensors, combine = tree.partition((problem.theta, problem.data))
    names, phi = list(start), list(start.values())

    def segment(steps: int) -> Callable[..., tuple[Tensor, ...]]:
        part = replace(solver, max_steps=steps)

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            here = Problem(problem.objective, *combine(inputs[len(names) :]), create_graph=torch.is_grad_enabled())
            return tuple(part(here, dict(zip(names, inputs, strict=False))).value.values())

        return run

    for first in range(0, solver.max_steps, every):
        phi = list(_Segment.apply(segment(min(every, solver.max_steps - first)), *phi, *tensors))
    taken = torch.full((tree.num_tasks(start),), solver.max_steps, device=phi[0].device)
    return Solution(dict(zip(names, phi, strict=True)), taken)


class _Segment(torch.autograd.Function):
    """Some steps that keep where they began, and are taken again by the backward pass."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Any:
        ctx.run = run
        ctx.save_for_backward(*inputs)
        return run(*inputs)  # nothing is recorded in here

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("checkpointed steps are differentiated once only: use Unroll() for second derivatives")
        needed = ctx.needs_input_grad[1:]
        inputs = [leaf.detach().requires_grad_(need) for leaf, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            outputs = ctx.run(*inputs)
        wanted = [leaf for leaf in inputs if leaf.requires_grad]
        gradients = iter(torch.autograd.grad(outputs, wanted, v, allow_unused=True))
        return None, *(next(gradients) if need else None for need in needed)
