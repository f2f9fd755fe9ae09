"""Accuracy on new tasks, with its interval, transductive or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metagrad import tree
from metagrad.fewshot.algorithms.base import Algorithm
from metagrad.fewshot.episodes import EpisodeSampler, Tasks
from metagrad.fewshot.meta import auto_chunks, require_same_digits
from metagrad.fewshot.norms import is_transductive
from metagrad.implicit import Solution
from metagrad.ranks import ALONE, Ranks
from metagrad.torch_modes import ordinary, unrecorded
from metagrad.tree import Params


@dataclass(frozen=True)
class Evaluation:
    """Mean accuracy over tasks.

    Attributes
    ----------
    accuracy:
        fraction of query images classified rightly, mean over tasks.
    ci95:
        half width of its 95 % confidence interval, 1.96 standard errors over tasks.
    loss:
        mean query cross-entropy, nats.
    tasks:
        number of tasks.
    transductive:
        whether a prediction saw the other query images (through batch statistics).
    """

    accuracy: float
    ci95: float
    loss: float
    tasks: int
    transductive: bool


@unrecorded()
def evaluate(
    algorithm: Algorithm,
    model: nn.Module,
    theta: Params,
    sampler: EpisodeSampler,
    *,
    tasks: int,
    generator: torch.Generator,
    transductive: bool = True,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Adapt to ``tasks`` new tasks and classify their query images.

    Parameters
    ----------
    transductive:
        classify a task's query images together (the papers' protocol), or, if false, each by itself beside the
        support images only. Makes no difference to a network without batch statistics.
    progress:
        called with (tasks done, tasks in all).
    ranks:
        the processes that share the work; each returns the whole result.
    """
    found = torch.zeros(tasks + 1, dtype=torch.float64, device=sampler.classes.images.device)  # accuracies, then loss
    batch = 32
    theta = ordinary(tree.detach(theta))
    for first in range(0, tasks, batch):
        drawn = ordinary(sampler(min(batch, tasks - first), generator=generator))
        require_same_digits(theta, drawn.support.x)
        begin, end = ranks.mine(len(drawn))
        size = auto_chunks(drawn).query
        for start in range(begin, end, size):
            part = drawn.part(start, min(start + size, end))
            solution = algorithm.adapt(model, theta, part.support)
            predict = _together if transductive or not is_transductive(model) else _one_by_one
            outputs = predict(algorithm, model, theta, solution, part)
            right = (outputs.argmax(-1) == part.query.y).double().mean(1)
            found[first + start : first + start + len(part)] = right
            losses = nn.functional.cross_entropy(outputs.flatten(0, 1), part.query.y.flatten(), reduction="sum")
            found[-1] += losses / part.query.y.shape[1]
        if progress is not None:
            progress(min(first + batch, tasks), tasks)
    per_task, total = ranks.sum(found)[:-1], found[-1]
    spread = float(per_task.std()) if tasks > 1 else math.nan
    return Evaluation(
        accuracy=float(per_task.mean()),
        ci95=1.96 * spread / math.sqrt(tasks),
        loss=float(total) / tasks,
        tasks=tasks,
        transductive=transductive and is_transductive(model),
    )


def _together(algorithm: Algorithm, model: nn.Module, theta: Params, solution: Solution, part: Tasks) -> Tensor:
    return algorithm.predict(model, theta, solution, part.query.x)


def _one_by_one(algorithm: Algorithm, model: nn.Module, theta: Params, solution: Solution, part: Tasks) -> Tensor:
    """Each query image shares a batch with the support images and with nothing else."""
    outputs = []
    for image in part.query.x.unbind(1):
        batch = torch.cat([part.support.x, image[:, None]], dim=1)
        outputs.append(algorithm.predict(model, theta, solution, batch)[:, -1])
    return torch.stack(outputs, dim=1)
