"""Adam on the inner problem."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metagrad import scalars
from metagrad.implicit.problem import Problem
from metagrad.implicit.solvers.base import Solution, Watch, descend
from metagrad.tree import Hyper, Params, resolve


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma and Ba 2015), every task with moments of its own.

    Parameters
    ----------
    lr:
        step size: about how far each parameter moves a step. In Python also a function of theta.
    max_steps:
        most steps, at least 1.
    tol:
        a task stops once its gradient norm is at most this; 0: all take ``max_steps``. With a constant step
        size Adam circles the solution at a distance of about one step.
    betas:
        decay of the first and the second moment, in [0, 1).
    eps:
        added to the root of the second moment.

    Raises
    ------
    ValueError
        for options outside their range.
    """

    lr: Hyper
    max_steps: int
    tol: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        scalars.require_positive(self, "lr", learnable=True)
        scalars.require_positive(self, "eps")
        scalars.require_whole(self, "max_steps")
        scalars.require_not_negative(self, "tol")
        scalars.require_fraction(self, "betas")

    def __call__(self, problem: Problem, init: Params) -> Solution:
        """Take the steps."""
        lr = resolve(self.lr, problem.theta, init)
        phi, watch = init, Watch(self.tol, init)
        first: Params = {name: torch.zeros_like(leaf) for name, leaf in init.items()}
        second: Params = {name: torch.zeros_like(leaf) for name, leaf in init.items()}
        a, b = self.betas
        for step in range(1, self.max_steps + 1):
            gradient = problem.grad(phi)
            if watch.done(gradient):
                break
            first = {name: torch.lerp(gradient[name], m, a) for name, m in first.items()}
            second = {name: torch.lerp(gradient[name].square(), m, b) for name, m in second.items()}
            direction = {
                name: (m / (1 - a**step)) / (_root(second[name] / (1 - b**step)) + self.eps)
                for name, m in first.items()
            }
            phi = watch.step(phi, descend(phi, direction, lr))
        return watch.solution(phi)


def _root(x: Tensor) -> Tensor:
    """Square root whose derivative at 0, where a parameter has no influence, is 0 and not infinite."""
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0)
