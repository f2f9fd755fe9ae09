"""MAML and its kin: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning", ICML 2017."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from metagrad.fewshot.algorithms import base
from metagrad.fewshot.algorithms.hyperparameters import Form, entries, hyper, require_positive
from metagrad.fewshot.algorithms.start import BeginsHead, learned_start, one_row
from metagrad.fewshot.head import Adapts, adapted
from metagrad.fewshot.losses import CROSS_ENTROPY, Loss, Metric
from metagrad.fewshot.tasks import AnyBatch, Tasks, some_tasks
from metagrad.implicit import FirstOrder, GradientDescent, Unroll
from metagrad.tree import Params


@dataclass(frozen=True, kw_only=True)
class MAML(BeginsHead):
    """A few gradient steps from theta, differentiated through all steps; memory grows with the number of steps.

    Parameters
    ----------
    inner_lr:
        step size of gradient descent on the support loss.
    inner_steps:
        number of gradient descent steps on the support loss.
    learn_lr:
        whether the step size is learned with the weights, starting at ``inner_lr``: not at all (``"fixed"``), as one
        number (``"scalar"``), one for each tensor (``"tensor"``) or one for each parameter (``"parameter"``). theta
        then holds its logarithm under names that begin with ``.log_lr``.
    truncate:
        differentiate only this many of the last steps (truncated MAML); 0 is first-order MAML. ``None``: all.
    checkpoint:
        keep every k-th iterate and recompute the steps between in the backward pass: the same gradient for one more
        forward pass. Memory is least at the square root of ``inner_steps``. ``None``: keep all.
    adapts:
        the weights that a task adapts, by a pattern of their names with ``*`` for any text (``"head.*"``). Tasks share
        the others, which are meta-learned. In Python also a module of the network.
    start, start_scale, head:
        see :class:`BeginsHead`.
    loss, metric:
        see :class:`~metagrad.fewshot.Method`.

    Raises
    ------
    MetagradError
        for a value outside its range.
    ValueError
        for ``truncate`` with ``checkpoint``, or with a learned step size.
    """

    name: ClassVar[str] = "maml"
    inner_lr: float = 0.4
    inner_steps: int = 1
    learn_lr: Form = "fixed"
    truncate: int | None = None
    checkpoint: int | None = None
    adapts: Adapts = "*"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "inner_lr", "inner_steps")
        Unroll(truncate=self.truncate, checkpoint=self.checkpoint)  # checks both
        if self.truncate is not None and self.learn_lr != "fixed":
            raise ValueError("a learned step size needs all steps: leave out truncate")

    def init(self, model: nn.Module) -> Params:
        """Return the model's weights, and the logarithm of the step size where it is learned."""
        weights = super().init(model)
        mine = {name: weights[name] for name in adapted(model, self.adapts)}
        learned = entries("lr", self.inner_lr, self.learn_lr, one_row(self, model, mine))
        return learned_start(self, model, weights) | learned

    def inner(self, model: nn.Module, theta: Params, support: AnyBatch) -> base.Inner:
        """Return every task's support loss, begun at theta, and steps that are differentiated."""
        solver = GradientDescent(lr=hyper("lr", self.inner_lr, self.learn_lr), max_steps=self.inner_steps)
        adjoint = Unroll(truncate=self.truncate, checkpoint=self.checkpoint)
        return self.begun(model, theta, support, adapted(model, self.adapts), solver, adjoint)


def MetaSGD(
    *, inner_lr: float = 0.1, inner_steps: int = 1, loss: Loss = CROSS_ENTROPY, metric: Metric | None = None
) -> MAML:
    """MAML with a learned step size for each parameter: Li, Zhou, Chen and Li, "Meta-SGD", 2017.

    Theirs may turn negative; ours is learned as its logarithm. Parameters as in :class:`MAML`.
    """
    return MAML(inner_lr=inner_lr, inner_steps=inner_steps, learn_lr="parameter", loss=loss, metric=metric)


@dataclass(frozen=True, kw_only=True)
class FOMAML(BeginsHead):
    """MAML that takes the derivative of the steps as the identity: the query gradient is the meta-gradient.

    Parameters and errors as in :class:`MAML`; a step size gets no gradient here and is not learned.
    """

    name: ClassVar[str] = "fomaml"
    inner_lr: float = 0.4
    inner_steps: int = 1
    adapts: Adapts = "*"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "inner_lr", "inner_steps")

    def init(self, model: nn.Module) -> Params:
        """Return the model's weights, and what the heads begin at."""
        return learned_start(self, model, super().init(model))

    def inner(self, model: nn.Module, theta: Params, support: AnyBatch) -> base.Inner:
        """Return every task's support loss, begun at theta."""
        solver = GradientDescent(lr=self.inner_lr, max_steps=self.inner_steps)
        return self.begun(model, theta, support, adapted(model, self.adapts), solver, FirstOrder())


@dataclass(frozen=True, kw_only=True)
class Reptile(base.AdaptsWeights):
    """Move theta towards the adapted weights: Nichol, Achiam and Schulman, "On First-Order Meta-Learning", 2018.

    The meta-gradient is ``theta − phi``, mean over tasks; query images are scored and not learned from, so
    train with as many shots as there are images for. Parameters and errors as in :class:`MAML`.
    """

    name: ClassVar[str] = "reptile"
    inner_lr: float = 0.1
    inner_steps: int = 5

    def __post_init__(self) -> None:
        require_positive(self, "inner_lr", "inner_steps")

    def inner(self, model: nn.Module, theta: Params, support: AnyBatch) -> base.Inner:
        """Return every task's support loss, begun at theta."""
        solver = GradientDescent(lr=self.inner_lr, max_steps=self.inner_steps)
        return base.support_inner(self, model, theta, support, adapted(model, "*"), solver, FirstOrder())

    def meta_loss(
        self, model: nn.Module, theta: Params, tasks: Tasks, *, query_chunk: int | None = None
    ) -> base.MetaLoss:
        """Return the query loss as the value, with ``theta − phi`` as the gradient."""
        size = query_chunk or len(tasks)
        with torch.no_grad():
            solution = self.adapt(model, theta, tasks.support)
            chunks = []
            for first in range(0, len(tasks), size):
                here = slice(first, first + size)
                phi = {name: leaf[here] for name, leaf in solution.value.items()}
                chunks.append(self.judge(model, theta, replace(solution, value=phi), some_tasks(tasks.query, here)))
            value, score = (torch.cat(column) for column in zip(*chunks, strict=True))
        squares = torch.stack([(theta[name] - leaf.mean(0)).square().sum() for name, leaf in solution.value.items()])
        loss = value.mean() + squares.sum() / 2 - squares.sum().detach() / 2
        return base.MetaLoss(loss, score, solution, base.metric_of(self))
