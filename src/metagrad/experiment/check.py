"""The error of a run's meta-gradient, on a few tasks, at its last weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metagrad import tree
from metagrad.errors import MetagradError
from metagrad.experiment.precision import precision_context
from metagrad.experiment.record import versions
from metagrad.experiment.setup import build_for, learned
from metagrad.experiment.sources import Sources
from metagrad.fewshot import Algorithm, Reptile, Tasks
from metagrad.fewshot.algorithms.base import HasInner, added, judge_query
from metagrad.fewshot.algorithms.heads import AdaptsHead
from metagrad.fewshot.algorithms.start import centre_of, with_raw_data
from metagrad.fewshot.tasks import AnyBatch
from metagrad.implicit import (
    GradientDescent,
    Implicit,
    Nesterov,
    Problem,
    Solution,
    Unroll,
    check_meta_gradient,
)
from metagrad.implicit.linear import largest_curvature
from metagrad.tree import Params

if TYPE_CHECKING:
    from metagrad.experiment.run import Run


def check_run(
    run: Run,
    sources: Sources,
    *,
    tasks: int = 4,
    seed: int = 0,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Compare the meta-gradient of ``tasks`` training tasks at the run's last weights with an accurate one.

    A run without a last checkpoint is checked at its best weights.

    For an implicit method the reference is the gradient of the exactly solved problem
    (:func:`metagrad.check_meta_gradient`), and the result attributes the error to its causes. For MAML and similar
    methods it is the gradient of the same steps, unrolled in float64.

    Raises
    ------
    MetagradError
        if the run has no checkpoint yet, there is no such device, or the method has no inner problem.
    """
    # Weights that are handed on have no checkpoint beside them.
    which = "best" if run.has("best") and not run.has("last") else "last"
    state = learned(run, which, inputs=sources.inputs, outputs=sources.outputs)
    method: Any
    method, model = build_for(run, sources)
    theta = {name: state.tensors[f"theta/{name}"].to(sources.device) for name in method.init(model)}
    drawn = Tasks.of(sources.train(tasks, generator=torch.Generator(sources.draws_on).manual_seed(seed)))
    facts = {
        "step": state.facts["step" if which == "last" else "best_step"],
        "tasks": tasks,
        "seed": seed,
        "method": run.method_name,
    }
    if isinstance(method, AdaptsHead):  # the same gradient, and features that follow theta
        method = replace(method, features="recomputed")
    if not hasattr(method, "inner") or isinstance(method, Reptile):
        raise MetagradError(
            f"{run.method_name} does not differentiate the solution of an inner problem: there is nothing to check"
        )
    implicit = isinstance(method.inner(model, theta, drawn.support).adjoint, Implicit)
    precision = run.experiment.compute.precision
    with precision_context(precision, sources.device):  # leaves float64 alone
        comparison = (_implicit if implicit else _unrolled)(method, model, theta, drawn, report)
    return {**facts, **comparison, "precision": precision, "versions": versions()}


_EXACT = 1e-6  # largest inner gradient norm of an exact solution


def query_loss(method: Algorithm, model: nn.Module, tasks: Tasks) -> Callable[[Params, Params], Tensor]:
    """Return ``(phi, theta) -> scalar``: the mean query loss of the tasks at their adapted weights."""

    def outer(phi: Params, theta: Params) -> Tensor:
        like = next(iter(phi.values()))
        steps = torch.zeros(len(like), dtype=torch.int64)
        query = _to_digits(tasks.query, like.dtype)
        return judge_query(method, model, theta, Solution(phi, steps), query).losses.mean()

    return outer


def _to_digits(batch: AnyBatch, dtype: torch.dtype) -> AnyBatch:
    """Return a batch whose floating tensors, inputs and targets alike, have this dtype: a user's loss may need it."""
    cast: AnyBatch = tree.map_tensors(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, batch)
    return cast


def _implicit(
    method: HasInner, model: nn.Module, theta: Params, tasks: Tasks, report: Callable[[str], None]
) -> dict[str, Any]:
    inner, loss = method.inner(model, theta, tasks.support), query_loss(method, model, tasks)
    raw = with_raw_data(method, model, inner, tasks.support)

    def outer(phi: Params, theta: Params) -> Tensor:
        if inner.centre is None:
            return loss(phi, theta)
        support = _to_digits(tasks.support, next(iter(phi.values())).dtype)
        return loss(added(phi, centre_of(method, model, theta, support)), theta)

    comparison = check_meta_gradient(
        raw.objective,
        lambda now: method.inner(model, now, _to_digits(tasks.support, next(iter(now.values())).dtype)).init,
        theta,
        raw.data,
        outer=outer,
        solver=inner.solver,
        adjoint=inner.adjoint,
        report=report,
    )
    reference_norm = float(comparison.reference_grad_norm.max())
    numbers: dict[str, Any] = {
        "against": f"the {'exact solution' if reference_norm <= _EXACT else 'best solution found'}, float64",
        "cosine": comparison.cosine,
        "error": comparison.error,
        "length": float(comparison.used.norm() / comparison.reference.norm()),
        "arithmetic": comparison.arithmetic,
        "inner": comparison.inner,
        "linear": comparison.linear,
        "curvature": comparison.curvature,
        "grad_norm": float(comparison.grad_norm.mean()),
        "residual": None if comparison.residual is None else float(comparison.residual.mean()),
        "reference_grad_norm": reference_norm,
        "reference_residual": float(comparison.reference_residual.max()),
        "reference_min_curvature": float(comparison.reference_min_curvature.min()),
        "matrix": inner.adjoint.curvature if isinstance(inner.adjoint, Implicit) else None,
    }
    line_search = isinstance(inner.solver, GradientDescent) and inner.solver.line_search
    if isinstance(inner.solver, GradientDescent | Nesterov) and not callable(inner.solver.lr) and not line_search:
        problem = Problem(inner.objective, inner.theta, inner.data).detached()
        with torch.no_grad():
            phi = inner.solver(problem, inner.init).value
        largest = float(largest_curvature(problem.curvature(phi, "hessian"), phi).max())
        factor = 2 if isinstance(inner.solver, GradientDescent) else 1
        numbers |= {"inner_lr": inner.solver.lr, "stable_inner_lr": factor / largest if largest > 0 else None}
    return numbers


def _unrolled(
    method: HasInner, model: nn.Module, theta: Params, tasks: Tasks, report: Callable[[str], None]
) -> dict[str, Any]:
    outer = query_loss(method, model, tasks)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        report(f"computing the meta-gradient in {str(dtype).removeprefix('torch.')}")
        leaves = {name: leaf.detach().to(dtype).requires_grad_() for name, leaf in theta.items()}
        inner = method.inner(model, leaves, _to_digits(tasks.support, dtype))
        adjoint = inner.adjoint if dtype == torch.float32 else Unroll()
        solution = inner._replace(adjoint=adjoint).solve()
        parts = torch.autograd.grad(outer(solution.value, leaves), list(leaves.values()), materialize_grads=True)
        gradients.append(torch.cat([part.flatten() for part in parts]).double())
    used, reference = gradients
    return {
        "against": "the same steps unrolled, float64",
        "cosine": float(used @ reference / (used.norm() * reference.norm())),
        "error": float((used - reference).norm() / reference.norm()),
        "length": float(used.norm() / reference.norm()),
    }
