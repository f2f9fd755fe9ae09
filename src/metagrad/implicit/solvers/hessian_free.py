"""Newton's method without the matrix: conjugate gradients for the direction, then a line search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metagrad import scalars, tree
from metagrad.implicit.curvature import Curvature, Operator
from metagrad.implicit.linear import CG
from metagrad.implicit.problem import Problem
from metagrad.implicit.solvers.base import Solution, Watch, require_detached
from metagrad.implicit.solvers.line_search import Point, backtrack
from metagrad.tree import Params


@dataclass(frozen=True, kw_only=True)
class HessianFree:
    """Newton-CG (Martens 2010; section 4 of Rajeswaran et al. 2019): few steps, each worth many of descent.

    A step solves ``(A + μI) d = −dg/dphi`` by conjugate gradients, A the curvature with everything the regulariser adds
    to it, and walks along d as far as a backtracking line search allows, at most 1. μ is the Levenberg-Marquardt
    damping of each task: a step that keeps less than a quarter of what the quadratic model promised raises it fourfold
    (from zero to the smallest curvature met), one that keeps more than three quarters lowers it fourfold.

    Parameters
    ----------
    max_steps:
        most Newton steps, at least 1.
    tol:
        a task stops once its gradient norm is at most this; 0: all take ``max_steps``.
    cg_steps:
        most conjugate gradient steps for a direction; the paper takes 5.
    curvature:
        matrix of a Newton step: ``"gauss_newton"``, for objectives that show their structure, or ``"hessian"``, along
        whose negative directions no step is taken.
    damping:
        Levenberg-Marquardt damping μ at the first step.

    Raises
    ------
    ValueError
        for options outside their range; when it is to be unrolled.
    """

    max_steps: int
    tol: float = 0.0
    cg_steps: int = 5
    curvature: Curvature = "gauss_newton"
    damping: float = 0.0

    def __post_init__(self) -> None:
        scalars.require_whole(self, "max_steps", "cg_steps")
        scalars.require_not_negative(self, "tol", "damping")

    def __call__(self, problem: Problem, init: Params) -> Solution:
        """Take the steps."""
        require_detached(problem, self)
        solver = CG(max_steps=self.cg_steps)
        watch = Watch(self.tol, init)
        damping = torch.full_like(watch.norm, self.damping)

        def evaluate(phi: Params) -> Point:
            return Point(phi, problem.value(phi))

        here = evaluate(init)
        hidden, raised, norm_before = torch.zeros_like(watch.active), damping, watch.norm
        for _ in range(self.max_steps):
            linearised = problem.linearise(here.phi, self.curvature)
            down = tree.scale(linearised.gradient, -1.0)
            if watch.done(linearised.gradient):
                break
            # Where the last decrease could not be seen, the gradient says whether the step was a good one.
            norm = tree.norm(down)
            damping = torch.where(hidden & (norm > norm_before), raised, damping)
            norm_before = norm
            solved = solver(_damped(linearised.operator, damping), down)
            assert solved.steps is not None  # conjugate gradients know both
            assert solved.min_curvature is not None
            direction, derivative = solved.value, -tree.dot(down, solved.value)
            # Not downhill where the first direction of all had no positive curvature and nothing to fall back on.
            lost = ~(derivative < 0)
            direction = tree.where(lost, down, direction)
            derivative = torch.where(lost, -tree.dot(down, down), derivative)
            del linearised
            # Newton's step is seldom too long, and a GPU tries every length, since the host does not read.
            new, length = backtrack(evaluate, here, direction, derivative, watch.active.to(derivative.dtype), tries=8)
            # From zero, conjugate gradients leave dᵀ(A + μ)d = −derivative, however many steps they took.
            curvature = -derivative - damping * tree.dot(direction, direction)
            promised = -length * derivative - length**2 / 2 * curvature
            moved = length > 0  # where the line search found no length, the model is of no use: more damping
            hidden = moved & (promised <= 64 * torch.finfo(promised.dtype).eps * here.value.abs())
            kept = torch.where(hidden, 0.5, (here.value - new.value) / torch.where(moved, promised, 1.0))
            kept = torch.where(moved & (solved.steps > 0), kept, 0.0)
            scale = torch.where(solved.min_curvature.isfinite(), solved.min_curvature.abs(), 0.0)
            raised = torch.maximum(4 * damping, scale)
            damping = torch.where(kept > 0.75, damping / 4, torch.where(kept > 0.25, damping, raised))
            watch.step(here.phi, new.phi)  # a task that stopped was given length 0
            here = new
        return watch.solution(here.phi)


def _damped(operator: Operator, damping: Tensor) -> Operator:
    shift = operator.shift
    return Operator(
        lambda v: tree.add(operator(v), v, damping),
        None if shift is None else {name: leaf + tree.per_task(damping, leaf) for name, leaf in shift.items()},
    )
