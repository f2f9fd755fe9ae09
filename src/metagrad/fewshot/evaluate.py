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
from metagrad.fewshot import judging, losses
from metagrad.fewshot.algorithms.base import Algorithm, judge_outputs, judged, loss_of
from metagrad.fewshot.chunks import auto_chunks
from metagrad.fewshot.meta import require_same_digits
from metagrad.fewshot.norms import is_transductive
from metagrad.fewshot.tasks import Tasks, groups_of, num_examples
from metagrad.implicit import Solution
from metagrad.torch_modes import ordinary, unrecorded
from metagrad.tree import Params


@dataclass(frozen=True)
class Evaluation(judging.Scored):
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
        whether a prediction saw the other query images (through batch statistics).
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
    """Adapt to ``tasks`` new tasks and judge their query sets.

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
        in place of the method's, for judging the query sets.
    progress:
        called with (tasks done, tasks in all).
    ranks:
        the processes that share the work; each returns the whole result.
    """
    if tasks < 1:
        raise ValueError(f"tasks must be at least 1, got {tasks}")
    theta = ordinary(tree.detach(theta))
    judge = _Judge(algorithm, model, theta, transductive and is_transductive(model), loss, metric)
    rows: list[Tensor] = []
    for first in range(0, tasks, _BATCH):
        count = min(_BATCH, tasks - first)
        groups = groups_of(source(count, generator=generator))
        if (drawn := sum(map(len, groups))) != count:
            raise ValueError(f"the source was asked for {count} tasks and drew {drawn}")
        rows += [judge(group, ranks) for group in groups]
        if progress is not None:
            progress(first + count, tasks)
    scores, lost = ranks.sum(torch.cat(rows, 1))
    return Evaluation(
        score=float(scores.mean()),
        ci95=1.96 * (float(scores.std()) if tasks > 1 else math.nan) / math.sqrt(tasks),
        loss=float(lost.mean()),
        tasks=tasks,
        transductive=judge.transductive,
        metric=judging.metric_name(judge.loss, judge.metric),
        per_task=scores,
    )


_BATCH = 32  # tasks that are drawn at a time


class _Judge:
    """Adapts to tasks and judges them; those of the other ranks are left at zero."""

    def __init__(
        self,
        algorithm: Algorithm,
        model: nn.Module,
        theta: Params,
        transductive: bool,
        loss: losses.Loss | None,
        metric: losses.Metric | None,
    ) -> None:
        self.algorithm, self.model, self.theta, self.transductive = algorithm, model, theta, transductive
        self.loss = loss_of(algorithm) if loss is None else loss
        self.metric = metric or (getattr(algorithm, "metric", None) if loss is None else None)
        self.alone = is_transductive(model) and not transductive
        self.own = loss is None and metric is None and not self.alone  # the method judges itself

    def __call__(self, given: Tasks, ranks: Ranks) -> Tensor:
        """Return metric and loss of tasks of one shape, float64 ``(2, T)``."""
        tasks = Tasks(*ordinary((given.support, given.query, given.classes)))
        require_same_digits(self.theta, tasks.support.x)
        judging.require_targets(self.loss, tasks.query, "query")
        rows = torch.zeros(2, len(tasks), dtype=torch.float64, device=tasks.device)
        begin, end = ranks.mine(len(tasks))
        size = auto_chunks(tasks).query
        for start in range(begin, end, size):
            part = tasks.part(start, min(start + size, end))
            solution = self.algorithm.adapt(self.model, self.theta, part.support)
            if self.own:
                lost, score = judged(self.algorithm, self.model, self.theta, solution, part.query)
            else:
                outputs = (self._one_by_one if self.alone else self._together)(solution, part)
                lost, score = judge_outputs(self.loss, self.metric, outputs, part.query)
            rows[:, start : start + len(part)] = torch.stack([score.double(), lost.double()])
        return rows

    def _together(self, solution: Solution, part: Tasks) -> Tensor:
        return self.algorithm.predict(self.model, self.theta, solution, part.query.x)

    def _one_by_one(self, solution: Solution, part: Tasks) -> Tensor:
        """Each query image shares a batch with the support images and with nothing else."""
        (support, spec), query = pytree.tree_flatten(part.support.x), pytree.tree_leaves(part.query.x)
        outputs = []
        for image in range(num_examples(part.query)):
            beside = [
                torch.cat([a, b[:, image : image + 1]], dim=1) if isinstance(a, Tensor) else a
                for a, b in zip(support, query, strict=True)
            ]
            batch = pytree.tree_unflatten(beside, spec)
            outputs.append(self.algorithm.predict(self.model, self.theta, solution, batch)[:, -1])
        return torch.stack(outputs, dim=1)
