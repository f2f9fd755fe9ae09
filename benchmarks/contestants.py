"""metagrad's own meta-gradients as the benchmarks time them. Imports torch and nothing else that must be installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from metagrad import CG, GradientDescent, Implicit, argmin, tree
from metagrad.fewshot import FOMAML, IMAML, MAML, Batch, Conv4, Tasks, classification, meta_gradient
from metagrad.fewshot.algorithms.base import Algorithm, prepared
from metagrad.implicit import Solution
from workload import Gradient, Workload, taken

Contestant = Callable[[Workload, Conv4, Gradient, Tasks], Gradient]


@dataclass(frozen=True, kw_only=True)
class Continuing(IMAML):
    """iMAML with the exact Hessian and a CG that goes on over negative curvature, as the other contestants' do."""

    def adapt(self, model: nn.Module, theta: Gradient, support: Batch) -> Solution:
        """Solve as :class:`IMAML` does."""
        return argmin(
            classification(model, self.lam),
            tree.expand(theta, len(support.x)),
            theta,
            prepared(model, support),
            solver=GradientDescent(lr=self.inner_lr, max_steps=self.inner_steps),
            adjoint=Implicit(linear_solver=CG(max_steps=self.cg_steps, tol=0.0, on_negative="continue")),
        )


def exact_hessian(work: Workload, model: Conv4, theta: Gradient, tasks: Tasks) -> Gradient:
    """Take metagrad's iMAML with the settings that the other contestants have."""
    algorithm = Continuing(lam=work.lam, cg_steps=work.cg_steps, inner_lr=work.inner_lr, inner_steps=work.inner_steps)
    return _of(algorithm, model, theta, tasks)


def gauss_newton(work: Workload, model: Conv4, theta: Gradient, tasks: Tasks) -> Gradient:
    """Take metagrad's iMAML as it comes."""
    algorithm = IMAML(lam=work.lam, cg_steps=work.cg_steps, inner_lr=work.inner_lr, inner_steps=work.inner_steps)
    return _of(algorithm, model, theta, tasks)


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
