"""The two ways in: ``argmin`` solves, ``attach`` takes a solution found elsewhere; both are differentiable."""

from __future__ import annotations

from typing import Any

from metagrad import torch_modes, tree
from metagrad.implicit.adjoints import Adjoint, Implicit, require_parts
from metagrad.implicit.objective import Objective
from metagrad.implicit.problem import Problem
from metagrad.implicit.solvers import InnerSolver, Solution
from metagrad.implicit.structure import Structure, as_dicts, at, enter
from metagrad.implicit.validation import require_finite, validate_objective, warn_unsolved


def argmin(
    objective: Objective,
    init: Any,
    theta: Any,
    data: Any,
    *,
    solver: InnerSolver,
    adjoint: Adjoint,
    batched: bool | None = None,
) -> Solution:
    """Solve ``argmin_phi g(phi, theta; data)`` for T tasks at once, differentiably.

    Parameters
    ----------
    objective:
        ``(phi, theta, data) -> scalar``, written for one task. A :class:`~metagrad.Composed` objective shows the
        structure that Gauss-Newton needs.
    init:
        where the solver starts: a tensor, or a nest of tensors (dictionaries, tuples, lists), each with a leading task
        axis of length T. Floating, of one dtype, on one device.
    theta:
        what is shared by the tasks, in a nest of any kind; no task axis.
    data:
        a nest of tensors, each with a leading task axis of length T. ``None``, numbers and texts in it reach the
        objective as they are.
        An autocast that is active reaches the objective alone; what solvers add up keeps its digits.
    solver:
        how the inner problem is solved, such as ``GradientDescent(lr=0.1, max_steps=16)``.
    adjoint:
        how it is differentiated: ``Implicit()``, ``Unroll()`` or ``FirstOrder()``.
    batched:
        ``False``: one problem, without a task axis in phi, data, or anything of the solution. ``True``: T tasks.
        ``None``: T tasks too, but refused where phi could be read either way and it matters: without tensors in data
        nothing else says what the tasks are, and ``{"w": zeros(3)}`` would be three problems of one number each.

    Returns
    -------
    Solution
        ``value`` is built as ``init`` is (a mapping of another kind comes back as a dictionary), and differentiable by
        plain autograd with respect to every floating tensor that asks for it in ``theta`` and ``data`` (and ``init``,
        where the adjoint goes through it).

    Notes
    -----
    An objective, a regulariser, and hyper-parameters that are functions of theta see phi and theta as they were given.
    A solver, a linear solver and a preconditioner see dictionaries of tensors with a task axis, whose names are joined
    by dots (``"encoder.w"``; ``""`` for a tensor that stands alone); by these names ``Proximal`` pairs phi and theta.

    Raises
    ------
    ValueError
        if the task axes differ, the objective is not a scalar, does not depend on phi (for ``Implicit``: on each
        tensor of it), or captured a tensor that would silently get no gradient; if phi is empty, not floating, or of
        several dtypes or devices; inside a transform of ``torch.func``, which plain autograd takes the place of.
    TypeError
        for something in phi, theta or data that is neither a tensor nor plain.
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

    One problem, whose phi is a tensor:

    >>> target = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> solution = argmin(lambda w, target, data: (w - target).square().sum(), torch.zeros(2), target, None,
    ...                   solver=GradientDescent(lr=0.25, max_steps=40), adjoint=Implicit(), batched=False)
    >>> solution.value.detach()
    tensor([1., 2.])
    """
    structure, _, solution = _solve(objective, init, theta, data, solver, adjoint, batched)
    return structure.solution(solution)


def _solve(
    objective: Objective, init: Any, theta: Any, data: Any, solver: InnerSolver, adjoint: Adjoint, batched: bool | None
) -> tuple[Structure, Problem, Solution]:
    """Return the structure of what was handed over; problem and solution as the core has them."""
    torch_modes.require_no_transform("argmin")
    require_parts(objective, solver, adjoint)
    structure, phi, theta, data = enter(*torch_modes.ordinary((init, theta, data)), single=batched is False)
    problem = Problem(structure.objective(objective), theta, data)
    unused = validate_objective(problem.objective, phi, theta, data, guessed=batched is None)
    if unused and isinstance(adjoint, Implicit):
        raise ValueError(
            f"the objective makes no use of phi{at(unused[0])}, so no value of it is the solution: leave it out of "
            "phi, or pull it to somewhere (Proximal)"
        )
    solver = structure.solver(solver)
    solution = structure.adjoint(adjoint)(problem, phi, solver)
    require_finite(problem, phi, solver, solution)
    return structure, problem, solution


def attach(
    phi: Any, objective: Objective, theta: Any, data: Any, *, adjoint: Implicit, batched: bool | None = None
) -> Solution:
    """Make an inner solution that was found elsewhere differentiable: by a loop of one's own, or another library.

    Parameters
    ----------
    phi:
        where ``g`` is (close to) smallest; a tensor or a nest of tensors, each with a leading task axis of length T. No
        gradient flows into it: a solution does not depend on how it was found.
    objective, theta, data:
        what phi solves, as for :func:`argmin`. It must be the whole of it: phi found on minibatches solves the
        objective on all of the data only as far as ``grad_norm`` says.
    adjoint:
        :class:`Implicit`; the other adjoints need the steps.
    batched:
        as for :func:`argmin`; ``False``: one problem, without a task axis.

    Returns
    -------
    Solution
        as of :func:`argmin`: ``value`` is phi, differentiable in ``theta`` and ``data``; ``steps`` is zero.

    Raises
    ------
    TypeError
        for another adjoint.
    ValueError, NotFiniteError
        as :func:`argmin` does.

    Warns
    -----
    MetagradWarning
        where phi is no solution: the inner gradient there is not small, as on a constraint, at a kink or where a solver
        failed. The derivative is then wrong.

    Examples
    --------
    >>> import torch
    >>> from metagrad import Implicit, attach
    >>> def ridge(phi, theta, data):
    ...     return ((phi["w"] - data) ** 2).sum() / 2 + theta["lam"] / 2 * (phi["w"] ** 2).sum()
    >>> y, lam = torch.ones(3, 2), torch.tensor(1.0, requires_grad=True)
    >>> found = attach({"w": y / 2}, ridge, {"lam": lam}, y, adjoint=Implicit())
    >>> found.value["w"].sum().backward()
    >>> round(lam.grad.item(), 4)  # w = y / (1 + lam)
    -1.5
    """
    if not isinstance(adjoint, Implicit):
        raise TypeError(f"attach goes with Implicit(), which needs the solution alone, not with {adjoint!r}")
    phi = tree.detach(as_dicts(phi))
    structure, problem, solution = _solve(objective, phi, theta, data, lambda problem, init: init, adjoint, batched)
    warn_unsolved(problem, solution)
    return structure.solution(solution)
