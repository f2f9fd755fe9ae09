"""Why an inner solution is not finite."""

from __future__ import annotations

import warnings

import torch

from metagrad import tree
from metagrad.errors import DivergedError, MetagradWarning, NotFiniteError
from metagrad.implicit import host
from metagrad.implicit.linear import curvature_range
from metagrad.implicit.problem import Problem
from metagrad.implicit.solvers import InnerSolver, Nesterov, Solution
from metagrad.implicit.validation import require_finite_parts
from metagrad.tree import Params


def warn_unsolved(problem: Problem, solution: Solution) -> None:
    """Warn where a point handed over as a solution is none; where the host may not read, trust it.

    A gradient has the unit of g over that of phi: ‖dg/dphi‖ · ‖phi‖ is compared with g (1 in place of smaller numbers).
    """
    if not host.may_read(solution.grad_norm):
        return
    phi, problem = tree.detach(solution.value), problem.detached()
    with torch.no_grad():
        scale = problem.value(phi).abs().clamp(min=1.0) / tree.norm(phi).clamp(min=1.0)
    relative = solution.grad_norm / scale
    if bool((relative > _SOLVED).any()):
        task = int(relative.nan_to_num(torch.inf).argmax())
        warnings.warn(
            f"attach: phi is not where the objective is smallest (inner gradient norm "
            f"{float(solution.grad_norm[task]):.2g} in task {task}), so its derivative is wrong: solve further, or "
            "leave out what holds phi there (a constraint, a kink)",
            MetagradWarning,
            stacklevel=3,
        )


_SOLVED = 1e-2  # relative; an inner problem solved to 1e-3 stays below


def require_finite(problem: Problem, init: Params, solver: InnerSolver, solution: Solution) -> None:
    """Refuse a solution that is not finite; where the host may not read, trust it.

    ``NotFiniteError``: theta, the start or the data are not finite, or the objective is not at the start.
    ``DivergedError``: the steps led there; with the largest stable step size, estimated at the start.
    """
    if not host.may_read(solution.grad_norm) or bool(solution.grad_norm.isfinite().all()):
        return
    problem, init = problem.detached(), tree.detach(init)
    require_finite_parts(problem.theta, init, problem.data)
    with torch.no_grad():
        finite = problem.value(init).isfinite()
    if not finite.all():
        raise NotFiniteError(f"the objective is not finite at the start, first in task {int((~finite).nonzero()[0])}")
    task = int((~solution.grad_norm.isfinite()).nonzero()[0])
    lr = getattr(solver, "lr", None)
    name = f"{type(solver).__name__}(lr={lr:g})" if isinstance(lr, int | float) else type(solver).__name__
    _, largest = curvature_range(problem.curvature(init, "hessian"), init)
    steepest = float(largest.max())  # of all tasks: they share the step size
    hint = ""
    if steepest > 0:
        what, factor = ("its steps are", 1) if isinstance(solver, Nesterov) else ("descent is", 2)
        hint = (
            f": the curvature at the start reaches {steepest:.3g}, and {what} stable for step sizes "
            f"below {factor / steepest:.2g}"
        )
    raise DivergedError(f"{name} diverged, first in task {task}{hint}")
