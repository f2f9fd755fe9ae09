"""iMAML: Rajeswaran, Finn, Kakade and Levine, "Meta-Learning with Implicit Gradients", NeurIPS 2019."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from metagrad import tree
from metagrad.fewshot.algorithms import base
from metagrad.fewshot.episodes import Batch
from metagrad.implicit import CG, Curvature, GradientDescent, Implicit, Solution, argmin
from metagrad.tree import Params


@dataclass(frozen=True, kw_only=True)
class IMAML(base.AdaptsWeights):
    """Adapt all weights near theta; take the meta-gradient from the solution alone.

    Inner problem of a task (equation 3 of the paper): ``L(phi; S) + (lam / 2) ‖phi − theta‖²``. Meta-gradient:
    solve ``(H + lam I) u = ∇L(phi; Q)``, then ``dF/dtheta = lam u``.

    Parameters
    ----------
    lam:
        strength of the pull towards theta; larger adapts less.
    inner_lr, inner_steps:
        step size and number of gradient descent steps on the inner problem.
    cg_steps:
        conjugate gradient steps for the meta-gradient.
    curvature:
        ``"gauss_newton"`` (default) or ``"hessian"``, which is indefinite on ReLU networks at usual ``lam``.

    Raises
    ------
    MetagradError
        for a value outside its range.
    """

    lam: float = 2.0
    inner_lr: float = 0.1
    inner_steps: int = 16
    cg_steps: int = 5
    curvature: Curvature = "gauss_newton"

    def __post_init__(self) -> None:
        base.require_positive(self, "lam", "inner_lr", "inner_steps", "cg_steps")

    def adapt(self, model: nn.Module, theta: Params, support: Batch) -> Solution:
        """Solve every task's proximal problem by gradient descent from theta."""
        return argmin(
            base.classification(model, self.lam),
            tree.expand(theta, len(support.x)),
            theta,
            base.prepared(model, support),
            solver=GradientDescent(lr=self.inner_lr, max_steps=self.inner_steps),
            adjoint=Implicit(linear_solver=CG(max_steps=self.cg_steps), curvature=self.curvature),
        )
