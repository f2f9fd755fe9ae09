"""A finite set of tasks, all taken at every meta-step: each begins where it ended the last time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from metagrad import tree
from metagrad.errors import MetagradError
from metagrad.fewshot import task_losses
from metagrad.fewshot.algorithms import base
from metagrad.fewshot.chunks import Chunks, auto_chunks
from metagrad.fewshot.meta import Metrics, add_chunk_gradient, join_metrics
from metagrad.fewshot.tasks import Tasks
from metagrad.implicit import Implicit, Solution
from metagrad.tree import Params


@dataclass(frozen=True)
class Warm:
    """Where every task ended: its inner solution ``phi``, and ``u`` of its linear system; tensors ``(T, ...)``."""

    phi: Params
    u: Params

    def part(self, first: int, last: int) -> Warm:
        """Return tasks ``first`` to ``last`` (exclusive)."""
        return Warm(*({name: leaf[first:last] for name, leaf in part.items()} for part in (self.phi, self.u)))


def warm_meta_gradient(
    algorithm: base.HasInner,
    model: nn.Module,
    theta: Params,
    tasks: Tasks,
    warm: Warm | None,
    *,
    chunk: int | None = None,
) -> tuple[Metrics, Warm]:
    """Add the gradient of the mean meta-loss over ``tasks``, begun at ``warm``, and return where the tasks end.

    With the same tasks every time, theta moves less and less, and so do the solutions: a few steps a time suffice for
    both solves to become exact, and with them the meta-gradient (the deterministic form of Yang, Ma and Yu 2025).

    Parameters
    ----------
    algorithm:
        one that differentiates implicitly, such as :class:`~metagrad.fewshot.MemoryReduced`.
    warm:
        what the last call returned for the same tasks; ``None`` at first.
    chunk:
        tasks at once; ``None``: chosen for the cache.

    Raises
    ------
    MetagradError
        for a method that does not differentiate implicitly.
    """
    total = len(tasks)
    sizes = auto_chunks(tasks) if chunk is None else Chunks(chunk, chunk)
    metrics: list[Metrics] = []
    ends: list[Warm] = []
    for first in range(0, total, sizes.tasks):
        last = min(first + sizes.tasks, total)
        solutions: list[Solution] = []
        meta_loss = partial(_warm_meta_loss, algorithm, None if warm is None else warm.part(first, last), solutions)
        metrics.append(add_chunk_gradient(meta_loss, model, theta, tasks.part(first, last), total, sizes.query))
        linear = solutions[0].linear
        assert linear is not None
        ends.append(Warm(tree.detach(solutions[0].value), linear.value))
    both = [{name: torch.cat([getattr(end, which)[name] for end in ends]) for name in ends[0].phi} for which in _BOTH]
    return join_metrics(metrics, sizes), Warm(*both)


def _warm_meta_loss(
    algorithm: base.HasInner,
    warm: Warm | None,
    solutions: list[Solution],
    model: nn.Module,
    theta: Params,
    tasks: Tasks,
    *,
    query_chunk: int | None = None,
) -> base.MetaLoss:
    """Return the meta-loss of tasks that begin where they ended the last time, and append their solution."""
    inner = algorithm.inner(model, theta, tasks.support) if hasattr(algorithm, "inner") else None
    if inner is None or not isinstance(inner.adjoint, Implicit):
        raise MetagradError("tasks can go on from where they ended only if the method differentiates implicitly")
    for what, batch in (("support", tasks.support), ("query", tasks.query)):
        task_losses.require_targets(base.loss_of(algorithm), batch, what)
    if warm is not None:
        # In the method's order, which decides the order of sums: a checkpoint may have another.
        inner = inner._replace(adjoint=replace(inner.adjoint, x0={name: warm.u[name] for name in inner.init}))
    solution = inner.solve(None if warm is None else warm.phi)
    solutions.append(solution)
    return base.query_loss_at(algorithm, model, theta, solution, tasks.query, query_chunk)


_BOTH = ("phi", "u")


class WarmTasks:
    """A finite set of tasks as a source: always the same ones, with where each ended.

    Parameters
    ----------
    tasks:
        the set.
    """

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks
        self.warm: Warm | None = None

    def __call__(self, num_tasks: int, *, generator: torch.Generator) -> Tasks:
        """Return the first of them; nothing is drawn."""
        return self.tasks.part(0, min(num_tasks, len(self.tasks)))

    def gradient(
        self, method: base.Algorithm, model: nn.Module, theta: Params, *, chunk: int | None = None
    ) -> tuple[Metrics, Warm]:
        """Add the meta-gradient of all; return where they end: the caller stores it in :attr:`warm` with the step."""
        return warm_meta_gradient(cast(base.HasInner, method), model, theta, self.tasks, self.warm, chunk=chunk)

    def state(self) -> dict[str, Tensor]:
        """Return where the tasks ended, as named tensors."""
        if self.warm is None:
            return {}
        return {f"{part}/{name}": leaf for part in _BOTH for name, leaf in getattr(self.warm, part).items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        device = self.tasks.device
        parts: dict[str, Params] = {"phi": {}, "u": {}}
        for name, leaf in tensors.items():
            part, _, key = name.partition("/")
            parts[part][key] = leaf.to(device)
        self.warm = Warm(parts["phi"], parts["u"]) if parts["phi"] else None
