"""What every contestant computes: one meta-gradient of synthetic tasks; and how it is timed and compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metagrad import tree
from metagrad.fewshot import Batch, Conv4, Tasks

Gradient = dict[str, Tensor]


@dataclass(frozen=True)
class Workload:
    """One meta-gradient: ``tasks`` tasks of ``ways`` classes, ``shots`` and ``queries`` images a class."""

    tasks: int
    ways: int
    shots: int
    queries: int
    filters: int
    inner_steps: int
    inner_lr: float
    lam: float
    cg_steps: int

    def draw(self, tasks: int, dtype: torch.dtype) -> tuple[Conv4, Gradient, Tasks]:
        """Return the network, its weights and synthetic episodes, from one seed."""
        g = torch.Generator().manual_seed(0)
        model = Conv4(self.ways, filters=self.filters, generator=g).to(dtype)
        theta = {name: leaf.detach().clone().requires_grad_() for name, leaf in model.named_parameters()}
        prototypes = torch.rand(tasks, self.ways, 1, 28, 28, generator=g, dtype=dtype)

        def batch(per_class: int) -> Batch:
            x = prototypes.repeat_interleave(per_class, 1)
            y = torch.arange(self.ways).repeat_interleave(per_class).expand(tasks, -1)
            return Batch(x + 0.3 * torch.rand(x.shape, generator=g, dtype=dtype), y)

        return model, theta, Tasks(batch(self.shots), batch(self.queries))

    def flop(self) -> float:
        """Return the multiplications and additions of the matrix products, counting a gradient as three forwards."""
        side, forward = 28, 0.0
        for channels in (1, self.filters, self.filters, self.filters):
            side = (side + 1) // 2
            forward += 2.0 * side * side * 9 * channels * self.filters
        forward += 2.0 * self.filters * side * side * self.ways
        support, query = (forward * self.ways * images for images in (self.shots, self.queries))
        # A product with the Hessian is worth two gradients less the first forward: it differentiates one.
        return self.tasks * (support * (3 * (self.inner_steps + 1) + 6 * self.cg_steps) + 3 * query)


def taken(theta: Gradient) -> Gradient:
    """Take the gradients off theta."""
    found = {name: leaf.grad for name, leaf in theta.items() if leaf.grad is not None}
    for leaf in theta.values():
        leaf.grad = None
    return found


def matrix_rate() -> float:
    """Return this machine's floating-point operations a second in one matrix product."""
    a = torch.randn(1024, 1024)
    seconds = least(lambda: a @ a, 15)
    return 2 * 1024**3 / seconds


def least(fn: Callable[[], object], repeats: int) -> float:
    """Return the least time of ``repeats`` calls, after one that does not count."""
    fn()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        fn()
        times.append(time.perf_counter() - began)
    return min(times)


def gap(found: Gradient, expected: Gradient) -> float:
    """Return the relative distance of two gradients, over all their entries."""
    difference = tree.norm({name: (found[name] - leaf)[None] for name, leaf in expected.items()})
    return (difference / tree.norm({name: leaf[None] for name, leaf in expected.items()})).item()
