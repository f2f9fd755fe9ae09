"""metagrad's own meta-gradients as the benchmarks time them. Imports torch and nothing else that must be installed."""

from __future__ import annotations

from collections.abc import Callable

from metagrad import CG, Implicit
from metagrad.fewshot import FOMAML, MAML, Conv4, Tasks, meta_gradient
from metagrad.fewshot.algorithms.base import Algorithm
from workload import Gradient, Workload, taken

Contestant = Callable[[Workload, Conv4, Gradient, Tasks], Gradient]


def exact_hessian(work: Workload, model: Conv4, theta: Gradient, tasks: Tasks) -> Gradient:
    """Take metagrad's iMAML with the settings that the other contestants have."""
    # A CG that goes on over negative curvature, as the other contestants' do.
    solver = CG(max_steps=work.cg_steps, tol=0.0, on_negative="continue")
    return _of(work.imaml(Implicit(linear_solver=solver)), model, theta, tasks)


def gauss_newton(work: Workload, model: Conv4, theta: Gradient, tasks: Tasks) -> Gradient:
    """Take metagrad's iMAML as it comes."""
    return _of(work.imaml(), model, theta, tasks)


def maml(work: Workload, model: Conv4, theta: Gradient, tasks: Tasks) -> Gradient:
    """Take metagrad's MAML, unrolled."""
    return _of(MAML(inner_lr=work.inner_lr, inner_steps=work.inner_steps), model, theta, tasks)


def first_order(work: Workload, model: Conv4, theta: Gradient, tasks: Tasks) -> Gradient:
    """Take metagrad's first-order MAML."""
    return _of(FOMAML(inner_lr=work.inner_lr, inner_steps=work.inner_steps), model, theta, tasks)


def _of(algorithm: Algorithm, model: Conv4, theta: Gradient, tasks: Tasks) -> Gradient:
    own = algorithm.init(model)  # theta's values, laid out as the method wants them
    meta_gradient(algorithm, model, own, tasks)
    return taken(own)
