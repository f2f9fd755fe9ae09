"""Each task's loss and metric, from a loss of ours for all tasks at once, or from a user's function of one task."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metagrad import tree
from metagrad.errors import is_out_of_memory
from metagrad.fewshot.losses import ExampleLoss, Loss, Metric, mean_of_tasks
from metagrad.fewshot.tasks import AnyBatch


class HasMetric:
    """A result with a ``score``, and the ``metric`` that it is."""

    score: Any
    metric: str

    @property
    def accuracy(self) -> Any:
        """The score, where it is an accuracy.

        Raises
        ------
        AttributeError
            where the metric is another.
        """
        if self.metric != "accuracy":
            raise AttributeError(f"the metric here is {self.metric!r}, not accuracy: read .score")
        return self.score


def loss_of_tasks(loss: Loss, outputs: Tensor, batch: AnyBatch) -> Tensor:
    """Return each task's mean loss, ``(T,)``, for outputs ``(T, N, ...)``; by the batch's weights, if it has any.

    Raises
    ------
    ValueError
        if targets do not fit the outputs; if the loss returns something else than a scalar or one value an example; or
        if a batch with weights meets a loss that returns a scalar.
    """
    if isinstance(loss, ExampleLoss):
        return loss.of_tasks(outputs, batch.y, batch.weight)
    return _mean_of_own(loss, _each_task(loss, outputs, batch.y), outputs, batch.weight)


def loss_of_one(loss: Loss, outputs: Tensor, batch: AnyBatch) -> Tensor:
    """Return one task's mean loss, a scalar, for outputs ``(N, ...)``."""
    alone = tree.map_tensors(lambda leaf: leaf.unsqueeze(0), batch._replace(x=None))
    if isinstance(loss, ExampleLoss):
        return loss_of_tasks(loss, outputs.unsqueeze(0), alone).squeeze(0)
    value = _require_tensor(loss(outputs, batch.y))
    return _mean_of_own(loss, value.unsqueeze(0), outputs.unsqueeze(0), alone.weight).squeeze(0)


def score_of_tasks(loss: Loss, metric: Metric | None, outputs: Tensor, targets: Any, losses: Tensor) -> Tensor:
    """Return each task's metric, ``(T,)``: ``metric``, or the loss's own, or where it has none its value."""
    if metric is not None:
        return mean_of_each(metric, len(outputs), outputs, targets).to(losses.device)
    return loss.score(outputs, targets) if isinstance(loss, ExampleLoss) else losses.detach()


def mean_of_each(metric: Callable[..., Any], tasks: int, *arguments: Any) -> Tensor:
    """Return the mean of a user's function of one task for each task, ``(T,)``; arguments have a task axis."""
    split = zip(*(_tasks_of(argument, tasks) for argument in arguments), strict=True)
    return torch.stack([torch.as_tensor(metric(*one)).float().mean() for one in split])


def metric_name(loss: Loss, metric: Metric | None) -> str:
    """Return the metric's name."""
    if metric is not None:
        return str(getattr(metric, "__name__", type(metric).__name__))
    return loss.metric if isinstance(loss, ExampleLoss) else "loss"


def is_convex(loss: Loss) -> bool:
    """Whether the loss is known to be convex in the outputs."""
    return isinstance(loss, ExampleLoss) and loss.convex


def require_targets(loss: Loss, batch: AnyBatch, what: str) -> None:
    """Refuse wrong targets before anything is computed.

    Raises
    ------
    ValueError
        as the loss does.
    """
    if isinstance(loss, ExampleLoss):
        if not isinstance(batch.y, Tensor):
            raise ValueError(f"{type(loss).__name__} needs one tensor of targets, got {type(batch.y).__name__}")
        loss.require_targets(batch.y, what)


def _each_task(loss: Loss, outputs: Tensor, targets: Any) -> Tensor:
    """Return a user's loss of each task: at once where torch can, or else one task at a time."""
    try:
        return torch.vmap(loss)(outputs, targets)
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        split = zip(outputs, _tasks_of(targets, len(outputs)), strict=True)
        return torch.stack([_require_tensor(loss(one, y)) for one, y in split])


def _tasks_of(targets: Any, tasks: int) -> list[Any]:
    return [tree.map_tensors(operator.itemgetter(task), targets) for task in range(tasks)]


def _mean_of_own(loss: Loss, values: Tensor, outputs: Tensor, weight: Tensor | None) -> Tensor:
    """Return ``(T,)`` from the values, scalars or one an example, of a user's loss."""
    name = getattr(loss, "__name__", type(loss).__name__)
    if values.shape == outputs.shape[:2]:
        return mean_of_tasks(values, None, weight)
    if values.shape != outputs.shape[:1]:
        raise ValueError(
            f"the loss {name} must return a scalar or one value for each of a task's {outputs.shape[1]} examples, got "
            f"{tuple(values.shape[1:])}"
        )
    if weight is not None:
        raise ValueError(
            f"examples have weights, and the loss {name} returns their mean: let it return one value an example "
            "(reduction='none')"
        )
    return values


def _require_tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"the loss must return a tensor, got {type(value).__name__}")
    return value
