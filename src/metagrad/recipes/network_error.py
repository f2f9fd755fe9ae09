"""Error of the meta-gradient against inner steps, on a trained network: no closed form, and not convex.

The accurate gradient is that of the solution to which Newton's method leads from the last of the inner steps, with the
exact Hessian and the system solved, in float64. With ReLU there is no smooth minimum to be had; so the same weights are
looked at with a smooth activation close to it as well.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metagrad import tree
from metagrad.errors import MetagradError
from metagrad.experiment.check import query_loss
from metagrad.experiment.run import Run
from metagrad.experiment.setup import build_for
from metagrad.experiment.sources import Sources
from metagrad.fewshot import IMAML, Tasks, admit
from metagrad.implicit import (
    CG,
    MINRES,
    Adjoint,
    FirstOrder,
    GradientDescent,
    Implicit,
    Problem,
    Solution,
    argmin,
    solve_on,
)
from metagrad.recipes.protocols import NetworkProtocol
from metagrad.tree import Params

# Softplus(beta=10) is ReLU to 0.07 at the kink and to 1e-5 a unit away from it.
ACTIVATIONS = {"ReLU": None, "softplus": nn.Softplus(beta=10)}
ADJOINTS: dict[str, Adjoint] = {
    "Gauss-Newton, 5 CG steps": Implicit(linear_solver=CG(max_steps=5), curvature="gauss_newton"),
    "exact Hessian, 5 CG steps": Implicit(linear_solver=CG(max_steps=5)),
    "exact Hessian, solved": Implicit(linear_solver=MINRES(max_steps=400, tol=1e-8)),
    "first order": FirstOrder(),
}


@dataclass(frozen=True, kw_only=True)
class NetworkRow:
    """One point of the curve of an activation, a strength and a method; g* is the accurate gradient."""

    activation: str
    lam: float
    method: str
    inner_steps: int
    """Gradient steps with a line search from theta."""
    grad_norm: float
    """Inner gradient norm reached, mean over tasks."""
    residual: float
    """Relative residual of the linear solve, mean over tasks; nan without one."""
    error: float
    """‖g − g*‖ / ‖g*‖."""
    cosine: float
    """Cosine of g and g*."""
    length: float
    """‖g‖ / ‖g*‖."""
    reference_grad_norm: float
    """Inner gradient norm behind g*, the largest over tasks."""
    reference_min_curvature: float
    """Smallest curvature met behind g*, the smallest over tasks."""


def measure(
    run: Run, sources: Sources, protocol: NetworkProtocol, report: Callable[[float, float], None] | None = None
) -> list[NetworkRow]:
    """Measure all curves at the run's best weights; ``report`` is called with the work done and in all.

    Raises
    ------
    MetagradError
        if the run's method is not iMAML, or it has no best weights yet.
    """
    method, model = build_for(run, sources)
    if not isinstance(method, IMAML):
        raise MetagradError(f"{run.folder} is a run of {run.method_name}: this figure is of iMAML's")
    state = run.load("best")
    theta = {name: state.tensors[f"theta/{name}"].double() for name in method.init(model)}
    theta = {name: leaf for name, leaf in theta.items() if not name.startswith(".")}
    generator = torch.Generator().manual_seed(protocol.seed)
    tasks = sources.train(protocol.tasks, generator=generator)
    panels = [(name, lam) for lam in protocol.lams for name in ACTIVATIONS]
    rows: list[NetworkRow] = []
    for number, (name, lam) in enumerate(panels):
        if report is not None:
            report(number, len(panels))
        network = with_activation(model, ACTIVATIONS[name], tasks.support.x[0], torch.float64)
        rows += _panel(network, theta, tasks, name, lam, protocol.steps)
    if report is not None:
        report(len(panels), len(panels))
    return rows


def with_activation(model: nn.Module, activation: nn.Module | None, x: Tensor, dtype: torch.dtype) -> nn.Module:
    """Return a copy of the network in ``dtype``, with another activation in place of ReLU; ``x`` is some input."""
    found = copy.deepcopy(model).to(dtype)
    if activation is None:
        return found
    for name, part in list(found.named_modules()):
        if isinstance(part, nn.ReLU):
            home, _, last = name.rpartition(".")
            setattr(found.get_submodule(home), last, activation)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its norms are ours already
        return admit(found, x.to(dtype))


def _panel(
    model: nn.Module, theta: Params, tasks: Tasks, activation: str, lam: float, steps: tuple[int, ...]
) -> Iterator[NetworkRow]:
    method = IMAML(lam=lam)
    support = tasks.support._replace(x=tasks.support.x.double())
    inner = method.inner(model, theta, support)
    problem = Problem(inner.objective, theta, support).detached()
    outer = query_loss(method, model, tasks)

    def gradient(point: Params, adjoint: Adjoint) -> tuple[Tensor, Solution]:
        asked = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
        start = method.inner(model, asked, support).init
        solution = argmin(inner.objective, start, asked, support, solver=lambda *_: point, adjoint=adjoint)
        found = torch.autograd.grad(outer(solution.value, asked), list(asked.values()))
        return torch.cat([part.flatten() for part in found]), solution

    with torch.no_grad():
        points = {
            count: tree.detach(GradientDescent(lr=0.1, max_steps=count, line_search=True)(problem, inner.init).value)
            for count in steps
        }
        exact = solve_on(problem, points[max(steps)], tol=1e-7)
    reference, behind = gradient(exact, ADJOINTS["exact Hessian, solved"])
    assert behind.linear is not None
    curvature = behind.linear.min_curvature
    assert curvature is not None
    for count, point in points.items():
        for name, adjoint in ADJOINTS.items():
            found, solution = gradient(point, adjoint)
            yield NetworkRow(
                activation=activation,
                lam=lam,
                method=name,
                inner_steps=count,
                grad_norm=float(solution.grad_norm.mean()),
                residual=_mean(None if solution.linear is None else solution.linear.residual),
                error=float((found - reference).norm() / reference.norm()),
                cosine=float(found @ reference / (found.norm() * reference.norm())),
                length=float(found.norm() / reference.norm()),
                reference_grad_norm=float(behind.grad_norm.max()),
                reference_min_curvature=float(curvature.min()),
            )


def _mean(values: Tensor | None) -> float:
    return float("nan") if values is None else float(values.mean())
