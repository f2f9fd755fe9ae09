"""Asking a solver, ours or a user's own, and looking at what comes back."""

from __future__ import annotations

import torch

from metagrad import tree
from metagrad.implicit.problem import Problem
from metagrad.implicit.solvers import InnerSolver, Solution
from metagrad.tree import Params


def measured(problem: Problem, solution: Solution) -> Solution:
    """Fill in how far from a solution the steps ended, if the solver did not say: it costs one more gradient."""
    if not len(solution.grad_norm):
        phi = tree.detach(solution.value)
        solution.grad_norm = tree.norm(problem.detached().grad(phi))
    return solution


def solve_detached(problem: Problem, init: Params, solver: InnerSolver) -> Solution:
    """Solve with nothing recorded."""
    with torch.no_grad():
        return solved(solver(problem.detached(), tree.detach(init)), init)


def solved(found: Solution | Params, init: Params) -> Solution:
    """Take what a solver returned; a user's own may return phi alone.

    Raises
    ------
    TypeError, ValueError
        if it is not phi.
    """
    tasks = tree.num_tasks(init)
    none = torch.zeros(tasks, dtype=torch.int64, device=next(iter(init.values())).device)
    solution = found if isinstance(found, Solution) else Solution(found, none)
    if not isinstance(solution.value, dict):
        raise TypeError(f"an inner solver returns a Solution or phi, got {type(found).__name__}")
    shapes, expected = ({name: leaf.shape for name, leaf in part.items()} for part in (solution.value, init))
    if shapes != expected:
        raise ValueError(f"the inner solver returned phi of shapes {shapes}, begun from {expected}")
    if list(shapes) != list(expected):
        solution.value = {name: solution.value[name] for name in init}
    return solution
