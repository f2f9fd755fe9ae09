"""Gradient descent, plain, with momentum or with a line search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metagrad import scalars, tree
from metagrad.implicit.problem import Problem
from metagrad.implicit.solvers.base import Solution, Watch, descend
from metagrad.implicit.solvers.line_search import Point, backtrack
from metagrad.tree import Hyper, Params, resolve

_GROWTH = 10.0  # a step's length, over that of the step before, at most


@dataclass(frozen=True, kw_only=True)
class GradientDescent:
    """Gradient descent, ``phi ← phi − lr · dg/dphi``.

    Parameters
    ----------
    lr:
        step size, below ``2 / L`` for gradients with Lipschitz constant L. In Python also a function of theta (to a
        tensor, or one for each name of phi): a learned step size, which has a gradient where the steps are unrolled.
    max_steps:
        most steps, at least 1.
    tol:
        a task stops once its gradient norm is at most this; 0: all take ``max_steps``.
    momentum:
        heavy-ball momentum, in [0, 1) (Polyak 1964): ``m ← momentum · m + dg/dphi``, ``phi ← phi − lr · m``.
    line_search:
        begin each task's first step with the step size, later ones with 1 / (curvature along the step before), which
        the change of the gradient tells (Barzilai and Borwein 1988); halve a step until g falls enough. An unrolled
        gradient takes these lengths as constants. Does not go with momentum.

    Raises
    ------
    ValueError
        for options outside their range.
    """

    lr: Hyper
    max_steps: int
    tol: float = 0.0
    momentum: float = 0.0
    line_search: bool = False

    def __post_init__(self) -> None:
        scalars.require_positive(self, "lr", learnable=True)
        scalars.require_whole(self, "max_steps")
        scalars.require_not_negative(self, "tol")
        scalars.require_fraction(self, "momentum")
        if self.line_search and (self.momentum or callable(self.lr)):
            raise ValueError("line_search goes with neither momentum nor a learned lr")

    def __call__(self, problem: Problem, init: Params) -> Solution:
        """Take the steps."""
        if self.line_search:
            return self._searched(problem, init)
        lr = resolve(self.lr, problem.theta, init)
        phi, watch = init, Watch(self.tol, init)
        velocity: Params | None = None
        for _ in range(self.max_steps):
            gradient = problem.grad(phi)
            if watch.done(gradient):
                break
            if self.momentum:
                gradient = gradient if velocity is None else tree.add(gradient, velocity, self.momentum)
                velocity = gradient
            phi = watch.step(phi, descend(phi, gradient, lr))
        return watch.solution(phi)

    def _searched(self, problem: Problem, init: Params) -> Solution:
        phi, watch, quiet = init, Watch(self.tol, init), problem.detached()
        assert isinstance(self.lr, int | float)
        length: Tensor = torch.full_like(watch.norm, self.lr)

        def evaluate(phi: Params) -> Point:
            return Point(phi, *quiet.value_and_grad(phi))

        here = evaluate(tree.detach(init))
        for _ in range(self.max_steps):
            assert here.gradient is not None
            if watch.done(here.gradient):
                break
            down = tree.scale(here.gradient, -1.0)
            squared = tree.dot(down, down)
            first = torch.where(watch.active, length, 0.0)
            with torch.no_grad():
                new, taken = backtrack(evaluate, here, down, -squared, first)
            if problem.create_graph:
                phi = tree.add(phi, problem.grad(phi), -taken)
            watch.step(here.phi, new.phi)  # a task that stopped was given length 0
            length = torch.where(taken > 0, _next_length(taken, squared, new.gradient, down), length)
            here = new
        return watch.solution(phi if problem.create_graph else here.phi)


def _next_length(taken: Tensor, squared: Tensor, gradient: Params | None, down: Params) -> Tensor:
    """Return 1 / (curvature along the step), ``s·s / s·y`` of Barzilai and Borwein (1988), ten times the last at most.

    To try twice the last length would creep: halved again, a step stays just short of 2 / L, where the gradient is
    thrown from side to side and hardly falls. A quadratic of six weights took 383 steps in place of 6.
    """
    assert gradient is not None
    bend = squared + tree.dot(down, gradient)  # curvature along the step, times squared and taken
    return torch.where(bend > squared / _GROWTH, squared * taken / bend, _GROWTH * taken)
