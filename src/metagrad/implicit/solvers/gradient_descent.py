"""Gradient descent."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metagrad import tree
from metagrad.implicit.problem import Problem
from metagrad.implicit.solvers.base import Solution
from metagrad.tree import Params


@dataclass(frozen=True, kw_only=True)
class GradientDescent:
    """Plain gradient descent, ``phi ← phi − lr · dg/dphi``, the same number of steps for every task.

    Parameters
    ----------
    lr:
        step size; below ``2 / L`` for gradients with Lipschitz constant L.
    max_steps:
        number of steps, at least 1.

    Raises
    ------
    ValueError
        for ``lr <= 0`` or ``max_steps < 1``.
    """

    lr: float
    max_steps: int

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")

    def __call__(self, problem: Problem, init: Params) -> Solution:
        """Take the steps."""
        phi = init
        for _ in range(self.max_steps):
            gradient = problem.grad(phi)
            phi = {name: leaf.sub(gradient[name], alpha=self.lr) for name, leaf in phi.items()}
        return Solution(phi, torch.full((tree.num_tasks(init),), self.max_steps))
