"""Limited-memory BFGS, all tasks at once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from metagrad import scalars, tree
from metagrad.implicit.problem import Problem
from metagrad.implicit.solvers.base import Solution, Watch, require_detached
from metagrad.implicit.solvers.line_search import Point, backtrack
from metagrad.torch_modes import full_digits
from metagrad.tree import Params


@dataclass(frozen=True, kw_only=True)
class LBFGS:
    """L-BFGS (Liu and Nocedal 1989) with a backtracking line search, every task with a history of its own.

    A pair of steps whose curvature is not positive is left out. Holds ``2 · history`` copies of phi.

    Parameters
    ----------
    max_steps:
        most steps, at least 1.
    tol:
        a task stops once its gradient norm is at most this; 0: all take ``max_steps``.
    history:
        pairs of differences kept, at least 1.

    Raises
    ------
    ValueError
        for options outside their range; when it is to be unrolled.
    """

    max_steps: int
    tol: float = 0.0
    history: int = 10

    def __post_init__(self) -> None:
        scalars.require_whole(self, "max_steps", "history")
        scalars.require_not_negative(self, "tol")

    def __call__(self, problem: Problem, init: Params) -> Solution:
        """Take the steps."""
        require_detached(problem, self)
        watch = Watch(self.tol, init)
        here = Point(init, *problem.value_and_grad(init))
        assert here.gradient is not None
        pairs: deque[_Pair] = deque(maxlen=self.history)
        for _ in range(self.max_steps):
            assert here.gradient is not None
            if watch.done(here.gradient):
                break
            g = tree.ravel(here.gradient, init)
            d = -_inverse(pairs, g)
            slope = _dot(g, d)
            lost = ~(slope < 0)
            d = torch.where(lost[:, None], -g, d)
            slope = torch.where(lost, -_dot(g, g), slope)
            # The first direction is a gradient, whose length says nothing: begin with one of length 1 at most.
            first = torch.clamp(1 / d.norm(dim=1), max=1.0) if not pairs else torch.ones_like(slope)
            new, length = backtrack(problem, here, tree.unravel(d, init), slope, torch.where(watch.active, first, 0.0))
            assert new.gradient is not None
            pairs.append(_Pair.of(length[:, None] * d, tree.ravel(new.gradient, init) - g))
            watch.step(here.phi, new.phi)  # a task that stopped was given length 0
            here = new
        return watch.solution(here.phi)


@dataclass(frozen=True)
class _Pair:
    """A step ``s`` and the change ``y`` of the gradient over it; ``rho`` is 1 / sᵀy, 0 where that is not positive."""

    s: Tensor
    y: Tensor
    rho: Tensor
    scale: Tensor  # sᵀy / yᵀy, 0 where the pair is left out

    @staticmethod
    def of(s: Tensor, y: Tensor) -> _Pair:
        sy, yy = _dot(s, y), _dot(y, y)
        good = sy > 10 * torch.finfo(s.dtype).eps * s.norm(dim=1) * y.norm(dim=1)
        return _Pair(
            s,
            y,
            torch.where(good, 1 / torch.where(good, sy, 1.0), 0.0),
            torch.where(good, sy / torch.where(good, yy, 1.0), 0.0),
        )


def _inverse(pairs: deque[_Pair], g: Tensor) -> Tensor:
    """Multiply g with the inverse Hessian that the pairs describe (two loops)."""
    q, weights = g.clone(), []
    for pair in reversed(pairs):
        weights.append(pair.rho * _dot(pair.s, q))
        q.addcmul_(weights[-1][:, None], pair.y, value=-1)
    scale = torch.ones_like(g[:, 0])
    for pair in pairs:  # the latest that counts
        scale = torch.where(pair.scale > 0, pair.scale, scale)
    q.mul_(scale[:, None])
    for pair, weight in zip(pairs, reversed(weights), strict=True):
        q.addcmul_((weight - pair.rho * _dot(pair.y, q))[:, None], pair.s)
    return q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    with full_digits(a.device.type):
        return torch.linalg.vecdot(a, b)
