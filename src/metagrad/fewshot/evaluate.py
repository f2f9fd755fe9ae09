"""Accuracy on new tasks, with its interval, transductive or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metagrad import tree
from metagrad.distributed import ALONE, Ranks
from metagrad.fewshot import losses, task_losses
from metagrad.fewshot.algorithms.base import Algorithm, judge_outputs, judge_query, loss_of
from metagrad.fewshot.chunks import auto_chunks
from metagrad.fewshot.meta import checked_groups
from metagrad.fewshot.norms import is_transductive
from metagrad.fewshot.tasks import Tasks, num_examples
from metagrad.implicit import Solution
from metagrad.torch_modes import ordinary, unrecorded
from metagrad.tree import Params


@dataclass(frozen=True)
class Evaluation(task_losses.HasMetric):
    """Mean metric over tasks.

    Attributes
    ----------
    score:
        mean over tasks of the metric of the query set; for classification :attr:`accuracy`, a fraction.
    ci95:
        half width of its 95 % confidence interval, 1.96 standard errors over tasks.
    loss:
        mean query loss; nats, for cross-entropy.
    tasks:
        number of tasks.
    transductive:
        whether a prediction used the other query images (through batch statistics).
    metric:
        what ``score`` is.
    per_task:
        ``(tasks,)``, float64: the metric of each task.
    """

    score: float
    ci95: float
    loss: float
    tasks: int
    transductive: bool
    metric: str = "accuracy"
    per_task: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)


@unrecorded()
def evaluate(
    algorithm: Algorithm,
    model: nn.Module,
    theta: Params,
    source: Callable[..., Any],
    *,
    tasks: int,
    generator: torch.Generator,
    transductive: bool = True,
    loss: losses.Loss | None = None,
    metric: losses.Metric | None = None,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Adapt to ``tasks`` new tasks and score their query sets.

    Parameters
    ----------
    source:
        draws tasks: ``source(num_tasks, generator=generator)`` returns :class:`~metagrad.fewshot.Tasks`, or a list of
        them for tasks of unequal size.
    tasks:
        how many.
    transductive:
        classify a task's query images together (the papers' protocol), or, if false, each by itself beside the
        support images only. Makes no difference to a network without batch statistics.
    loss, metric:
        in place of the method's, for the query sets.
    progress:
        called with (tasks done, tasks in all).
    ranks:
        the processes that share the work; each returns the whole result.
    """
    if tasks < 1:
        raise ValueError(f"tasks must be at least 1, got {tasks}")
    if not callable(source):
        raise ValueError(f"source must draw tasks, as source(num_tasks, generator=...), got {type(source).__name__}")
    theta = ordinary(tree.detach(theta))
    one_by_one = is_transductive(model) and not transductive
    by_method = loss is None and metric is None and not one_by_one
    if loss is None:
        loss, metric = loss_of(algorithm), metric or getattr(algorithm, "metric", None)
    scorer = _Scorer(algorithm, model, theta, loss, metric, by_method, one_by_one)
    rows: list[Tensor] = []
    for first in range(0, tasks, _BATCH):
        count = min(_BATCH, tasks - first)
        groups = checked_groups(theta, source(count, generator=generator))
        if (drawn := sum(map(len, groups))) != count:
            raise ValueError(f"the task source must return {count} tasks, got {drawn}")
        rows += [scorer(group, ranks) for group in groups]
        if progress is not None:
            progress(first + count, tasks)
    scores, task_loss = ranks.sum(torch.cat(rows, 1))
    score, ci95 = mean_and_ci95(scores)
    return Evaluation(
        score=score,
        ci95=ci95,
        loss=float(task_loss.mean()),
        tasks=tasks,
        transductive=transductive and is_transductive(model),
        metric=task_losses.metric_name(loss, metric),
        per_task=scores,
    )


def mean_and_ci95(values: Tensor) -> tuple[float, float]:
    """Return the mean of values and the half width of its 95 % interval, 1.96 standard errors (NaN for one value).

    The values are scores of tasks, or their differences where two methods saw the same tasks.

    Examples
    --------
    >>> import torch
    >>> one, other = torch.tensor([0.8, 0.9, 1.0]), torch.tensor([0.7, 0.6, 0.8])  # two methods on the same tasks
    >>> mean, ci95 = mean_and_ci95(one - other)
    >>> f"{mean:.2f} ± {ci95:.2f}"
    '0.20 ± 0.11'
    """
    spread = float(values.std()) if len(values) > 1 else math.nan
    return float(values.mean()), 1.96 * spread / math.sqrt(len(values))


_BATCH = 32  # tasks that are drawn at a time


@dataclass(frozen=True)
class _Scorer:
    """Adapts to tasks and scores their query sets, by the method itself or by ``loss`` and ``metric``."""

    algorithm: Algorithm
    model: nn.Module
    theta: Params
    loss: losses.Loss
    metric: losses.Metric | None
    by_method: bool
    one_by_one: bool

    def __call__(self, tasks: Tasks, ranks: Ranks) -> Tensor:
        """Return metric and loss of tasks of one shape, float64 ``(2, T)``; zero for tasks of the other ranks."""
        task_losses.require_targets(self.loss, tasks.query, "query")
        rows = torch.zeros(2, len(tasks), dtype=torch.float64, device=tasks.device)
        begin, end = ranks.mine(len(tasks))
        size = auto_chunks(tasks).query
        for start in range(begin, end, size):
            part = tasks.part(start, min(start + size, end))
            solution = self.algorithm.adapt(self.model, self.theta, part.support)
            if self.by_method:
                result = judge_query(self.algorithm, self.model, self.theta, solution, part.query)
            else:
                result = judge_outputs(self.loss, self.metric, self._outputs(solution, part), part.query)
            rows[:, start : start + len(part)] = torch.stack([result.score.double(), result.losses.double()])
        return rows

    def _outputs(self, solution: Solution, part: Tasks) -> Tensor:
        if not self.one_by_one:
            return self.algorithm.predict(self.model, self.theta, solution, part.query.x)
        return self._outputs_one_by_one(solution, part)

    def _outputs_one_by_one(self, solution: Solution, part: Tasks) -> Tensor:
        """Predict each query image in a separate batch with the support images."""
        (support, spec), query = pytree.tree_flatten(part.support.x), pytree.tree_leaves(part.query.x)
        outputs = []
        for image in range(num_examples(part.query)):
            leaves = [
                torch.cat([a, b[:, image : image + 1]], dim=1) if isinstance(a, Tensor) else a
                for a, b in zip(support, query, strict=True)
            ]
            batch = pytree.tree_unflatten(leaves, spec)
            outputs.append(self.algorithm.predict(self.model, self.theta, solution, batch)[:, -1])
        return torch.stack(outputs, dim=1)
