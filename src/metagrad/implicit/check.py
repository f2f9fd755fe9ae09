"""Compare a meta-gradient with a high-accuracy reference and attribute the error to its causes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metagrad import torch_modes, tree
from metagrad.implicit.adjoints import Adjoint, Implicit, require_parts
from metagrad.implicit.curvature import Curvature
from metagrad.implicit.derivatives import grads, leaves_of
from metagrad.implicit.linear import MINRES, Dense, LinearSolver
from metagrad.implicit.objective import Composed, Objective
from metagrad.implicit.problem import Problem
from metagrad.implicit.solvers import HessianFree, InnerSolver, Solution
from metagrad.implicit.solving import argmin
from metagrad.implicit.structure import enter
from metagrad.tree import Params

_ROUNDS, _STEPS = 25, 4  # Newton steps of the reference's inner solve: at most rounds times steps
_IDLE = 4  # rounds in a row without a smaller gradient norm after which the search ends: it goes down in leaps
_DENSE = 512  # parameters a task up to which the reference solves with the whole matrix


@dataclass(frozen=True)
class GradientCheck:
    """A meta-gradient compared with an accurate reference. Norms are relative to the reference's norm.

    Attributes
    ----------
    cosine, error:
        cosine of the angle between the two; norm of their difference.
    arithmetic, inner, linear, curvature:
        contributions to the error: norm of the change when the same steps are taken in float64, the inner problem is
        solved, the linear system is solved, the exact Hessian replaces the approximate curvature. As vectors they add
        up to the error. The last three are ``None`` where the adjoint solves no system, and where the reference's inner
        problem is hardly better solved than the one in use: then they would say nothing, and cost two linear systems.
    used, reference:
        the two gradients, flattened over all of theta, float64.
    grad_norm, residual:
        ``(T,)``: inner gradient norm and relative residual of the gradient in use (``residual`` may be ``None``).
    reference_grad_norm, reference_residual, reference_min_curvature:
        ``(T,)``: the same for the reference, and its smallest curvature. With ReLU the gradient norm does not reach
        zero, because minimisers lie on kinks. Negative curvature means that the reference is no minimum but another
        stationary point; its gradient is then large where the curvature is near zero.
    """

    cosine: float
    error: float
    arithmetic: float
    inner: float | None
    linear: float | None
    curvature: float | None
    used: Tensor
    reference: Tensor
    grad_norm: Tensor
    residual: Tensor | None
    reference_grad_norm: Tensor
    reference_residual: Tensor
    reference_min_curvature: Tensor


@torch_modes.recording()
def check_meta_gradient(
    objective: Objective,
    start: Callable[[Any], Any],
    theta: Any,
    data: Any,
    *,
    outer: Callable[[Any, Any], Tensor],
    solver: InnerSolver,
    adjoint: Adjoint,
    batched: bool | None = None,
    tol: float = 1e-9,
    report: Callable[[str], None] = lambda text: None,
) -> GradientCheck:
    """Compare the meta-gradient of ``solver`` and ``adjoint`` with a high-accuracy reference.

    The reference is computed in float64. Newton's method continues the inner solve from the result of ``solver``, until
    the gradient norm is ``tol`` or stops falling (the smallest is used). The linear system has the exact Hessian and is
    solved by MINRES to 1e-10, or with the dense matrix up to 512 parameters a task.

    Parameters
    ----------
    objective, theta, data, solver, adjoint:
        as for :func:`~metagrad.argmin`. A few tasks are enough.
    start:
        from theta to where the solver starts, such as ``lambda theta: tree.expand(theta, T)``; it is also called
        with a theta of float64; what it then returns in fewer digits is converted.
    outer:
        ``(phi, theta) -> scalar``: the meta-loss of all tasks' solutions, phi with its task axis. In the accurate pass
        both are float64.
    batched:
        as for :func:`~metagrad.argmin`; ``False``: one problem, without a task axis in what ``start`` returns, in data,
        in the phi of ``outer``, or in the numbers that are returned.
    tol:
        largest inner gradient norm of the reference.
    report:
        called with a short description of each step of the computation.

    Returns
    -------
    GradientCheck
        both gradients, the error, and each approximation's contribution to it.

    Raises
    ------
    ValueError
        if an objective with functions of all tasks mixes them; if outer is no scalar of phi; and as
        :func:`~metagrad.argmin` does.
    """
    torch_modes.require_no_transform("check_meta_gradient")
    require_parts(objective, solver, adjoint)
    theta, data = torch_modes.ordinary((theta, data))
    with torch.no_grad():
        structure, _, theta, data = enter(start(theta), theta, data, single=batched is False)
    # From here on everything is flat and of T tasks.
    objective, solver, adjoint = structure.objective(objective), structure.solver(solver), structure.adjoint(adjoint)
    gradient = partial(
        _gradient,
        objective,
        lambda theta: structure.init(start(structure.theta_of(theta))),
        lambda phi, theta: outer(structure.value(phi), structure.theta_of(theta)),
        None if batched is None else True,
    )
    report("computing the meta-gradient as in training")
    used, solution = gradient(theta, data, solver, adjoint)
    report("computing it in float64")
    sharp_theta, sharp_data = _double(theta), _double(data)
    sharp, ended = gradient(sharp_theta, sharp_data, solver, adjoint)
    phi = tree.detach(ended.value)
    problem = Problem(objective, sharp_theta, sharp_data).detached()
    _require_separate(problem, phi)
    exact = solve_on(problem, phi, tol=tol, report=report)
    size = sum(leaf[0].numel() for leaf in phi.values())
    linear: LinearSolver = Dense() if size <= _DENSE else MINRES(max_steps=1000, tol=1e-10)

    def at(point: Params, kind: Adjoint) -> tuple[Tensor, Solution]:
        return gradient(sharp_theta, sharp_data, lambda problem, init: point, kind)

    report("reference: solving the linear system")
    reference, behind = at(exact, Implicit(linear_solver=linear))
    if behind.linear is None:
        raise ValueError("outer does not depend on phi: its gradient needs no inner solution")
    assert behind.linear.residual is not None
    assert behind.linear.min_curvature is not None
    whole = reference.norm()
    inner = system = curvature = None
    left = behind.grad_norm.max()
    usable = bool(left <= max(tol, 0.5 * float(solution.grad_norm.mean())))
    if isinstance(adjoint, Implicit) and usable:
        report("solving the linear system at the inner solver's result")
        inner, system, curvature = _shares(adjoint, lambda kind: at(phi, kind)[0], sharp, reference, linear)
    residual = None if solution.linear is None else solution.linear.residual
    return GradientCheck(
        cosine=float(used @ reference / (used.norm() * whole)),
        error=float((used - reference).norm() / whole),
        arithmetic=float((used - sharp).norm() / whole),
        inner=inner,
        linear=system,
        curvature=curvature,
        used=used,
        reference=reference,
        grad_norm=structure.numbers(solution.grad_norm),
        residual=None if residual is None else structure.numbers(residual),
        reference_grad_norm=structure.numbers(behind.grad_norm),
        reference_residual=structure.numbers(behind.linear.residual),
        reference_min_curvature=structure.numbers(behind.linear.min_curvature),
    )


def _shares(
    adjoint: Implicit, gradient: Callable[[Adjoint], Tensor], sharp: Tensor, reference: Tensor, linear: LinearSolver
) -> Iterator[float]:
    """Yield how much of the error the inner solve, the linear solve and the curvature make."""
    same = gradient(Implicit(linear_solver=linear, curvature=adjoint.curvature))
    hessian = same if adjoint.curvature == "hessian" else gradient(Implicit(linear_solver=linear))
    for part in (hessian - reference, sharp - same, same - hessian):
        yield float(part.norm() / reference.norm())


def _gradient(
    objective: Objective,
    start: Callable[[Params], Params],
    outer: Callable[[Params, Params], Tensor],
    batched: bool | None,
    theta: Params,
    data: Any,
    solver: InnerSolver,
    adjoint: Adjoint,
) -> tuple[Tensor, Solution]:
    theta = {name: leaf.detach().requires_grad_(leaf.is_floating_point()) for name, leaf in theta.items()}
    leaves = [leaf for leaf in theta.values() if leaf.requires_grad]
    digits = leaves[0].dtype if leaves else torch.float32
    init = {name: leaf.to(torch.promote_types(leaf.dtype, digits)) for name, leaf in start(theta).items()}
    solution = argmin(objective, init, theta, data, solver=solver, adjoint=adjoint, batched=batched)
    if not leaves:
        raise ValueError("theta has no floating tensor: there is no meta-gradient to check")
    loss = outer(solution.value, theta)
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"outer must return a scalar, the meta-loss of all tasks, got {got}")
    if not loss.requires_grad:
        raise ValueError("outer returns a number that depends neither on phi nor on theta")
    gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return torch.cat([part.flatten() for part in gradients]).double(), solution


def solve_on(problem: Problem, phi: Params, *, tol: float, report: Callable[[str], None] = lambda text: None) -> Params:
    """Go on from phi by Newton's method, until every gradient norm is ``tol`` or falls no more; return the least."""
    kind: Curvature = "gauss_newton" if isinstance(problem.objective, Composed) else "hessian"
    newton = HessianFree(max_steps=_STEPS, cg_steps=30, tol=tol, curvature=kind)
    best, least, idle = phi, tree.norm(problem.grad(phi)), 0
    with torch.no_grad():
        for number in range(1, _ROUNDS + 1):
            report(f"reference: inner solve, round {number} of at most {_ROUNDS}, gradient norm {least.max():.2g}")
            if (least <= tol).all() or idle == _IDLE:
                break
            phi = newton(problem, phi).value
            now = tree.norm(problem.grad(phi))
            idle = 0 if (now < 0.9 * least).any() else idle + 1
            # The value falls all the time, its gradient with ReLU does not.
            best, least = tree.where(now < least, phi, best), torch.where(now < least, now, least)
    return best


def _require_separate(problem: Problem, phi: Params) -> None:
    """Refuse an objective whose value of the first task depends on phi of others."""
    leaves = leaves_of(phi)
    with torch.enable_grad():
        gradient = grads(problem.value(leaves)[0], leaves, create_graph=False)
    if any(bool((part[1:] != 0).any()) for part in gradient.values()):
        raise ValueError("the objective mixes tasks: the value of the first depends on phi of others")


def _double(part: Any) -> Any:
    return tree.map_tensors(lambda leaf: leaf.detach().double() if leaf.is_floating_point() else leaf, part)
