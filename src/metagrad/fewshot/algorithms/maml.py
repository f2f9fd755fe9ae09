"""MAML and its first-order form: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning", ICML 2017."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from metagrad import tree
from metagrad.fewshot.algorithms import base
from metagrad.fewshot.episodes import Batch
from metagrad.implicit import Adjoint, FirstOrder, GradientDescent, Solution, Unroll, argmin
from metagrad.tree import Params


@dataclass(frozen=True, kw_only=True)
class MAML(base.AdaptsWeights):
    """A few gradient steps from theta, differentiated through; memory grows with ``inner_steps``.

    Parameters
    ----------
    inner_lr, inner_steps:
        step size and number of gradient descent steps on the support loss.

    Raises
    ------
    MetagradError
        for a value outside its range.
    """

    inner_lr: float = 0.4
    inner_steps: int = 1

    def __post_init__(self) -> None:
        base.require_positive(self, "inner_lr", "inner_steps")

    def adapt(self, model: nn.Module, theta: Params, support: Batch) -> Solution:
        """Take the gradient steps on every task's support loss."""
        return _descend(model, theta, support, GradientDescent(lr=self.inner_lr, max_steps=self.inner_steps), Unroll())


@dataclass(frozen=True, kw_only=True)
class FOMAML(base.AdaptsWeights):
    """MAML that takes the derivative of the steps as the identity: the query gradient is the meta-gradient.

    Parameters and errors as in :class:`MAML`.
    """

    inner_lr: float = 0.4
    inner_steps: int = 1

    def __post_init__(self) -> None:
        base.require_positive(self, "inner_lr", "inner_steps")

    def adapt(self, model: nn.Module, theta: Params, support: Batch) -> Solution:
        """Take the gradient steps on every task's support loss."""
        solver = GradientDescent(lr=self.inner_lr, max_steps=self.inner_steps)
        return _descend(model, theta, support, solver, FirstOrder())


def _descend(model: nn.Module, theta: Params, support: Batch, solver: GradientDescent, adjoint: Adjoint) -> Solution:
    start = tree.expand(theta, len(support.x))
    # The objective is the plain support loss: theta enters as the start only.
    data = base.prepared(model, support)
    return argmin(base.classification(model), start, {}, data, solver=solver, adjoint=adjoint)
