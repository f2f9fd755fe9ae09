"""MAML and its first-order form: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning", ICML 2017."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from metagrad import tree
from metagrad.fewshot.algorithms import base
from metagrad.fewshot.algorithms.learned import Form, entries, hyper, weights_of
from metagrad.fewshot.episodes import Batch
from metagrad.implicit import FirstOrder, GradientDescent, Unroll
from metagrad.tree import Params


@dataclass(frozen=True, kw_only=True)
class MAML(base.AdaptsWeights):
    """A few gradient steps from theta, differentiated through; memory grows with ``inner_steps``.

    Parameters
    ----------
    inner_lr, inner_steps:
        step size and number of gradient descent steps on the support loss.
    learn_lr:
        ``"fixed"``, or a step size that is learned with the weights and begins at ``inner_lr``: one number
        (``"scalar"``), one for each tensor (``"tensor"``), one for each parameter (``"parameter"``). theta then holds
        its logarithm under names that begin with ``.log_lr``.

    Raises
    ------
    MetagradError
        for a value outside its range.
    """

    inner_lr: float = 0.4
    inner_steps: int = 1
    learn_lr: Form = "fixed"

    def __post_init__(self) -> None:
        base.require_positive(self, "inner_lr", "inner_steps")

    def init(self, model: nn.Module) -> Params:
        """Return the model's weights, and the logarithm of the step size where it is learned."""
        weights = super().init(model)
        return weights | entries("lr", self.inner_lr, self.learn_lr, weights)

    def inner(self, model: nn.Module, theta: Params, support: Batch) -> base.Inner:
        """Return every task's support loss, begun at theta, and steps that are differentiated."""
        weights = weights_of(theta)
        # The objective is the plain support loss: the weights enter as the start only, theta holds the step size.
        return base.Inner(
            base.classification(model),
            tree.expand(weights, len(support.x)),
            {name: leaf for name, leaf in theta.items() if name not in weights},
            base.prepared(model, support),
            GradientDescent(lr=hyper("lr", self.inner_lr, self.learn_lr), max_steps=self.inner_steps),
            Unroll(),
        )


@dataclass(frozen=True, kw_only=True)
class FOMAML(base.AdaptsWeights):
    """MAML that takes the derivative of the steps as the identity: the query gradient is the meta-gradient.

    Parameters and errors as in :class:`MAML`; a step size gets no gradient here and is not learned.
    """

    inner_lr: float = 0.4
    inner_steps: int = 1

    def __post_init__(self) -> None:
        base.require_positive(self, "inner_lr", "inner_steps")

    def inner(self, model: nn.Module, theta: Params, support: Batch) -> base.Inner:
        """Return every task's support loss, begun at theta."""
        return base.Inner(
            base.classification(model),
            tree.expand(theta, len(support.x)),
            {},
            base.prepared(model, support),
            GradientDescent(lr=self.inner_lr, max_steps=self.inner_steps),
            FirstOrder(),
        )
