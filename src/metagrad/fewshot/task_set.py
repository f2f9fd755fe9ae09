"""A finite set of tasks, all taken at every meta-step: each goes on from where it ended the last time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from metagrad import tree
from metagrad.errors import MetagradError
from metagrad.fewshot.algorithms import base
from metagrad.fewshot.chunks import Chunks, auto_chunks
from metagrad.fewshot.meta import Metrics, joined, part_of_gradient
from metagrad.fewshot.tasks import AnyBatch, Tasks
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
        begun = _Begun(algorithm, None if warm is None else warm.part(first, last))
        metrics.append(part_of_gradient(begun, model, theta, tasks.part(first, last), total, sizes.query))
        solution = begun.solutions[-1]
        assert solution.linear is not None
        ends.append(Warm(tree.detach(solution.value), solution.linear.value))
    both = [{name: torch.cat([getattr(end, which)[name] for end in ends]) for name in ends[0].phi} for which in _BOTH]
    return joined(metrics, sizes), Warm(*both)


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
        """Add the meta-gradient of all; return where they end, which :attr:`warm` is to become with the step."""
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


class _Begun:
    """A method whose tasks begin where they ended."""

    def __init__(self, algorithm: base.HasInner, warm: Warm | None) -> None:
        self.algorithm, self.warm = algorithm, warm
        self.loss, self.metric = base.loss_of(algorithm), getattr(algorithm, "metric", None)
        self.solutions: list[Solution] = []

    def init(self, model: nn.Module) -> Params:
        return self.algorithm.init(model)

    def adapt(self, model: nn.Module, theta: Params, support: AnyBatch) -> Solution:
        inner = self.algorithm.inner(model, theta, support) if hasattr(self.algorithm, "inner") else None
        if inner is None or not isinstance(inner.adjoint, Implicit):
            raise MetagradError("tasks can go on from where they ended only if the method differentiates implicitly")
        if self.warm is not None:
            # In the method's order, which decides the order of sums: a checkpoint may have another.
            phi, u = ({name: part[name] for name in inner.init} for part in (self.warm.phi, self.warm.u))
            inner = inner._replace(init=phi, adjoint=replace(inner.adjoint, x0=u))
        solution = inner.solve()
        self.solutions.append(solution)
        return solution

    def predict(self, model: nn.Module, theta: Params, solution: Solution, x: Tensor) -> Tensor:
        return self.algorithm.predict(model, theta, solution, x)

    def judge(self, model: nn.Module, theta: Params, solution: Solution, query: AnyBatch) -> base.Judged:
        return base.judged(self.algorithm, model, theta, solution, query)

    def meta_loss(
        self, model: nn.Module, theta: Params, tasks: Tasks, *, query_chunk: int | None = None
    ) -> base.MetaLoss:
        return base.query_loss(self, model, theta, tasks, query_chunk)
