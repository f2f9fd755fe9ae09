"""Nesterov's accelerated gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from metagrad import scalars, tree
from metagrad.implicit.problem import Problem
from metagrad.implicit.solvers.base import Solution, Watch, descend
from metagrad.tree import Hyper, Params, resolve


@dataclass(frozen=True, kw_only=True)
class Nesterov:
    """Accelerated gradient descent (Nesterov 1983): error falls by ``1 − 1/√κ`` a step where plain descent has 1/κ.

    ``y = phi + β (phi − phi_before)``, then ``phi ← y − lr · dg/dphi(y)``.

    Parameters
    ----------
    lr:
        step size, at most ``1 / L`` (gradient descent allows ``2 / L``). In Python also a function of theta.
    max_steps:
        most steps, at least 1.
    tol:
        a task stops once its gradient norm (at y, which is then returned) is at most this; 0: all take ``max_steps``.
    convexity:
        smallest curvature μ of g, where it is known: ``β = (1 − √(lr μ)) / (1 + √(lr μ))``. ``None``: β grows as
        for merely convex g, and each task begins anew when a step goes uphill (O'Donoghue and Candès 2015), which
        finds the rate without knowing μ.

    Raises
    ------
    ValueError
        for options outside their range.
    """

    lr: Hyper
    max_steps: int
    tol: float = 0.0
    convexity: float | None = None

    def __post_init__(self) -> None:
        scalars.require_positive(self, "lr", learnable=True)
        scalars.require_whole(self, "max_steps")
        scalars.require_not_negative(self, "tol")
        if self.convexity is None:
            return
        scalars.require_positive(self, "convexity")
        if callable(self.lr):
            raise ValueError("convexity goes with a number as lr, not with a learned one")
        if self.convexity * self.lr > 1:
            raise ValueError(f"convexity must be at most 1/lr = {1 / self.lr}, got {self.convexity}")

    def __call__(self, problem: Problem, init: Params) -> Solution:
        """Take the steps."""
        lr = resolve(self.lr, problem.theta, init)
        watch = Watch(self.tol, init)
        phi, ahead = init, init
        age = torch.ones_like(watch.norm)
        for _ in range(self.max_steps):
            gradient = problem.grad(ahead)
            if watch.done(gradient):
                break
            new = watch.step(ahead, descend(ahead, gradient, lr))
            moved = tree.add(new, phi, -1.0)
            if self.convexity is not None:
                assert isinstance(lr, float)
                root = math.sqrt(lr * self.convexity)
                beta = torch.full_like(age, (1 - root) / (1 + root))
            else:
                uphill = tree.dot(tree.detach(gradient), tree.detach(moved)) > 0
                age = torch.where(uphill, 1.0, age)
                older = (1 + (1 + 4 * age**2).sqrt()) / 2
                beta = torch.where(uphill, 0.0, (age - 1) / older)
                age = older
            ahead = tree.add(new, moved, torch.where(watch.active, beta, 0.0))
            phi = new
        # A task that stopped did so by the gradient at ``ahead``.
        return watch.solution(tree.where(watch.active, phi, ahead) if self.tol > 0 else phi)
