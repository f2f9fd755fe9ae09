"""Limited-memory BFGS, all tasks at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metagrad import scalars, tree
from metagrad.implicit import host
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

        def evaluate(phi: Params) -> Point:
            """Return the point at a phi that is one tensor, ``(T, P)``."""
            value, gradient = problem.value_and_grad(tree.unravel(phi[""], init))
            return Point(phi, value, {"": tree.ravel(gradient, init)})

        watch, here = Watch(self.tol, init), evaluate({"": tree.ravel(init)})
        pairs = _Pairs(here.phi[""], self.history)
        for _ in range(self.max_steps):
            assert here.gradient is not None
            if watch.done(here.gradient):
                break
            g = here.gradient[""]
            with full_digits(g.device.type):  # autocast would take the products in half the digits
                d, derivative = _downhill(-pairs.inverse(g), g)
            # The first direction is a gradient, whose length says nothing: begin with one of length 1 at most.
            first = torch.ones_like(derivative) if pairs.count else torch.clamp(1 / d.norm(dim=1), max=1.0)
            if self.tol > 0:
                first = torch.where(watch.active, first, 0.0)
            new, length = backtrack(evaluate, here, {"": d}, derivative, first)
            assert new.gradient is not None
            with full_digits(g.device.type):
                pairs.add(length[:, None] * d, new.gradient[""] - g)
            watch.step(here.phi, new.phi)  # a task that stopped was given length 0
            here = new
        return watch.solution(tree.unravel(here.phi[""], init))


def _downhill(d: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return the direction and the derivative along it; steepest descent where a task's own does not go down."""
    derivative = torch.linalg.vecdot(g, d)
    lost = ~(derivative < 0)
    if host.may_read(lost) and not lost.any():
        return d, derivative
    return torch.where(lost[:, None], -g, d), torch.where(lost, -torch.linalg.vecdot(g, g), derivative)


class _Pairs:
    """The last steps s and changes y of the gradient over them, and the inverse Hessian that they describe.

    Each pair is divided by the root of sᵀy, so that ``sᵀy = 1``; one whose curvature is not positive is zero. The two
    loops of Liu and Nocedal are the solution of two triangular systems with the products ``sᵢᵀyⱼ`` of pairs j that are
    later than i (Byrd, Nocedal and Schnabel 1994): a few products of matrices, where the loops would call many.
    """

    def __init__(self, like: Tensor, most: int) -> None:
        self.count, self.most = 0, most
        self.scale = torch.ones_like(like[:, 0])  # sᵀy / yᵀy of the latest pair that counts
        self.s = like.new_zeros(len(like), 0, like.shape[1])
        self.y = self.s
        self.products = like.new_zeros(len(like), 0, 0)  # from the oldest to the latest; s and y go round

    def add(self, s: Tensor, y: Tensor) -> None:
        """Add a pair, in place of the oldest if there are enough."""
        sy, yy, ss = torch.linalg.vecdot(s, y), torch.linalg.vecdot(y, y), torch.linalg.vecdot(s, s)
        good = sy > 10 * torch.finfo(s.dtype).eps * (ss * yy).sqrt()
        self.scale = torch.where(good, sy / yy, self.scale)
        root = torch.where(good, sy, torch.inf).rsqrt()[:, None]
        s, y = (s * root)[:, None], (y * root)[:, None]
        if self.count < self.most:
            self.s, self.y = torch.cat([self.s, s], 1), torch.cat([self.y, y], 1)
        else:
            self.s[:, self.count % self.most], self.y[:, self.count % self.most] = s[:, 0], y[:, 0]
            self.products = self.products[:, 1:, 1:]
        self.count += 1
        column = self._in_order((self.s @ y.mT)[..., 0])[..., None]
        column[:, -1] = 1.0
        below = torch.zeros_like(column[:, :-1]).mT
        self.products = torch.cat([torch.cat([self.products, below], 1), column], 2)

    def inverse(self, g: Tensor) -> Tensor:
        """Multiply g, ``(T, P)``, with the inverse Hessian."""
        if not self.count:
            return g.clone()
        first = self._solved(self.products, self.s @ g[..., None], upper=True)
        q = torch.baddbmm(g[..., None], self.y.mT, first, alpha=-1).mul_(self.scale[:, None, None])
        second = self._solved(self.products.mT, torch.baddbmm(first, self.y, q, alpha=-1), upper=False)
        return q.baddbmm_(self.s.mT, second)[..., 0]

    def _solved(self, matrix: Tensor, b: Tensor, *, upper: bool) -> Tensor:
        wide = torch.promote_types(b.dtype, torch.float32)  # there is no such function in fewer digits
        x = torch.linalg.solve_triangular(matrix.to(wide), self._in_order(b).to(wide), upper=upper)
        return self._in_order(x.to(b.dtype), back=True)

    def _in_order(self, part: Tensor, *, back: bool = False) -> Tensor:
        """Turn what has a row for each pair as stored, so that the oldest is first; or back."""
        oldest = self.count % self.most if self.count > self.most else 0
        return part.roll(oldest if back else -oldest, 1) if oldest else part
