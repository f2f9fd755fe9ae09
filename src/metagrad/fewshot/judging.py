"""Each task's loss and metric, whether the loss is one of ours, for all tasks at once, or a function of one task."""

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


class Scored:
    """What has a ``score`` and says which ``metric`` it is."""

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
    return _own(loss, _each_task(loss, outputs, batch.y), outputs, batch.weight)


def loss_of_one(loss: Loss, outputs: Tensor, batch: AnyBatch) -> Tensor:
    """Return one task's mean loss, a scalar, for outputs ``(N, ...)``."""
    alone = tree.map_tensors(lambda leaf: leaf.unsqueeze(0), batch._replace(x=None))
    if isinstance(loss, ExampleLoss):
        return loss_of_tasks(loss, outputs.unsqueeze(0), alone).squeeze(0)
    found = loss(outputs, batch.y)
    _require_tensor(found)
    return _own(loss, found.unsqueeze(0), outputs.unsqueeze(0), alone.weight).squeeze(0)


def score_of_tasks(loss: Loss, metric: Metric | None, outputs: Tensor, targets: Any, losses: Tensor) -> Tensor:
    """Return each task's metric, ``(T,)``: an own one, the loss's, or where it has none its value."""
    if metric is not None:
        alone = zip(outputs, _tasks_of(targets, len(outputs)), strict=True)
        return torch.stack([torch.as_tensor(metric(one, y), device=losses.device).float().mean() for one, y in alone])
    return loss.score(outputs, targets) if isinstance(loss, ExampleLoss) else losses.detach()


def of_each_task(metric: Callable[..., Any], phi: Any, theta: Any, batch: Any) -> Tensor:
    """Return an own function of one task's phi, of theta and its batch, for each task: ``(T,)``."""
    tasks = tree.num_tasks(phi)
    return torch.stack(
        [
            torch.as_tensor(metric(one, theta, part)).float().mean()
            for one, part in zip(_tasks_of(phi, tasks), _tasks_of(batch, tasks), strict=True)
        ]
    )


def metric_name(loss: Loss, metric: Metric | None) -> str:
    """Return what the metric is called."""
    if metric is not None:
        return str(getattr(metric, "__name__", type(metric).__name__))
    return loss.metric if isinstance(loss, ExampleLoss) else "loss"


def is_convex(loss: Loss) -> bool:
    """Whether the loss is known to be convex in the outputs."""
    return isinstance(loss, ExampleLoss) and loss.convex


def require_targets(loss: Loss, batch: AnyBatch, what: str) -> None:
    """Look at targets before anything is computed.

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
    """Return an own loss of each task: at once where torch can, or else one task at a time."""
    try:
        return torch.vmap(loss)(outputs, targets)
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        found = [loss(one, y) for one, y in zip(outputs, _tasks_of(targets, len(outputs)), strict=True)]
        for value in found:
            _require_tensor(value)
        return torch.stack(found)


def _tasks_of(targets: Any, tasks: int) -> list[Any]:
    return [tree.map_tensors(operator.itemgetter(task), targets) for task in range(tasks)]


def _own(loss: Loss, found: Tensor, outputs: Tensor, weight: Tensor | None) -> Tensor:
    """Return ``(T,)`` from what an own loss gave each task."""
    name = getattr(loss, "__name__", type(loss).__name__)
    if found.shape == outputs.shape[:2]:
        return mean_of_tasks(found, None, weight)
    if found.shape != outputs.shape[:1]:
        raise ValueError(
            f"the loss {name} must return a scalar or one value for each of a task's {outputs.shape[1]} examples, got "
            f"{tuple(found.shape[1:])}"
        )
    if weight is not None:
        raise ValueError(
            f"examples have weights, and the loss {name} returns their mean: let it return one value an example "
            "(reduction='none')"
        )
    return found


def _require_tensor(found: Any) -> None:
    if not isinstance(found, Tensor):
        raise ValueError(f"the loss must return a tensor, got {type(found).__name__}")
