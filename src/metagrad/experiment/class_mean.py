"""Gain of meta-training over nearest class means of the same frozen features, on the same tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from metagrad.distributed import ALONE, Ranks
from metagrad.errors import MetagradError
from metagrad.experiment.pretrained import Pretrained
from metagrad.experiment.sources import Sources, TaskSource
from metagrad.fewshot import Evaluation, ProtoNet, evaluate
from metagrad.fewshot.evaluate import mean_and_ci95


def class_mean(
    network: Pretrained,
    sources: Sources,
    source: TaskSource,
    *,
    tasks: int,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Classify by the nearest class mean of a pretrained network's features: the baseline without meta-training.

    Features have unit length. A class is the mean of its support examples' features.

    Parameters
    ----------
    source:
        one of ``sources``; draws the tasks.
    tasks, generator, progress, ranks:
        see :func:`metagrad.fewshot.evaluate`.

    Raises
    ------
    MetagradError
        for a network without frozen features.
    """
    if not network.has_features:
        raise MetagradError("a network that trains as a whole has no frozen features: choose another body than all")
    model = network.build(sources.inputs, sources.outputs).to(sources.device)
    method = ProtoNet()
    theta = method.init(model)
    return evaluate(
        method, model, theta, source, tasks=tasks, generator=generator, progress=progress, ranks=ranks
    )  # fmt: skip


def gained(trained: Evaluation, reference: Evaluation) -> dict[str, Any]:
    """Compare two evaluations of the same tasks, task by task.

    Returns
    -------
    dict
        ``value`` and ``ci95`` of the reference; ``gain``, the mean difference, with ``gain_ci95``, 1.96 standard errors
        over tasks; ``tasks``.

    Raises
    ------
    ValueError
        for another number of tasks, or metric.

    Examples
    --------
    >>> import torch
    >>> from metagrad.fewshot import Evaluation
    >>> one, other = torch.tensor([0.8, 0.9]), torch.tensor([0.6, 0.7])
    >>> found = gained(Evaluation(0.85, 0.1, 1.0, 2, False, per_task=one),
    ...                Evaluation(0.65, 0.1, 1.0, 2, False, per_task=other))
    >>> f"{found['gain']:.2f} ± {found['gain_ci95']:.2f}"
    '0.20 ± 0.00'
    """
    if len(trained.per_task) != len(reference.per_task) or trained.metric != reference.metric:
        raise ValueError(
            f"these are not the same tasks: {len(trained.per_task)} by {trained.metric} and "
            f"{len(reference.per_task)} by {reference.metric}"
        )
    gain, gain_ci95 = mean_and_ci95(trained.per_task.double() - reference.per_task.double())
    return {
        "value": reference.score,
        "ci95": reference.ci95,
        "gain": gain,
        "gain_ci95": gain_ci95,
        "tasks": len(trained.per_task),
    }
