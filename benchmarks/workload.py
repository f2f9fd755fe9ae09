"""What every contestant computes: one meta-gradient of synthetic tasks; and how it is timed and compared."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from metagrad import CG, GradientDescent, Implicit, tree
from metagrad.fewshot import IMAML, Batch, Conv4, Tasks

Gradient = dict[str, Tensor]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Workload:
    """One meta-gradient: ``tasks`` tasks of ``ways`` classes, ``shots`` and ``queries`` images a class.

    Images are ``image_size`` pixels square. The defaults are the workload that all published numbers are of.
    """

    tasks: int = 32
    ways: int = 5
    shots: int = 1
    queries: int = 15
    filters: int = 64
    image_size: int = 28
    inner_steps: int = 16
    inner_lr: float = 0.1
    lam: float = 2.0
    cg_steps: int = 5

    def imaml(self, adjoint: Implicit | None = None) -> IMAML:
        """Return metagrad's iMAML of this size, with ``cg_steps`` on the Gauss-Newton matrix unless told otherwise."""
        return IMAML(
            lam=self.lam,
            solver=GradientDescent(lr=self.inner_lr, max_steps=self.inner_steps),
            adjoint=adjoint or Implicit(linear_solver=CG(max_steps=self.cg_steps), curvature="gauss_newton"),
        )

    def draw(self, tasks: int, dtype: torch.dtype) -> tuple[Conv4, Gradient, Tasks]:
        """Return the network, its weights and synthetic episodes, from one seed."""
        g = torch.Generator().manual_seed(0)
        model = Conv4(self.ways, filters=self.filters, image_size=self.image_size, generator=g).to(dtype)
        theta = {name: leaf.detach().clone().requires_grad_() for name, leaf in model.named_parameters()}
        prototypes = torch.rand(tasks, self.ways, 1, self.image_size, self.image_size, generator=g, dtype=dtype)

        def batch(per_class: int) -> Batch:
            x = prototypes.repeat_interleave(per_class, 1)
            y = torch.arange(self.ways).repeat_interleave(per_class).expand(tasks, -1)
            return Batch(x + 0.3 * torch.rand(x.shape, generator=g, dtype=dtype), y)

        return model, theta, Tasks(batch(self.shots), batch(self.queries))

    def flop(self) -> float:
        """Return the multiplications and additions of the matrix products, counting a gradient as three forwards."""
        side, forward = self.image_size, 0.0
        for channels in (1, self.filters, self.filters, self.filters):
            side = (side + 1) // 2
            forward += 2.0 * side * side * 9 * channels * self.filters
        forward += 2.0 * self.filters * side * side * self.ways
        support, query = (forward * self.ways * images for images in (self.shots, self.queries))
        # A product with the Hessian is worth two gradients less the first forward: it differentiates one.
        return self.tasks * (support * (3 * (self.inner_steps + 1) + 6 * self.cg_steps) + 3 * query)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Offer every field of the workload as an option."""
    for field in fields(Workload):
        assert isinstance(field.default, int | float)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)


def chosen(options: argparse.Namespace) -> Workload:
    """Return the workload that the options describe."""
    return Workload(**{field.name: getattr(options, field.name) for field in fields(Workload)})


def taken(theta: Gradient) -> Gradient:
    """Take the gradients off theta."""
    found = {name: leaf.grad for name, leaf in theta.items() if leaf.grad is not None}
    for leaf in theta.values():
        leaf.grad = None
    return found


def machine() -> dict[str, str]:
    """Return what a time depends on: processor, caches, cores and threads. Empty where the system does not say."""
    cpu, caches = Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu/cpu0/cache")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    facts = {key.strip(): value for key, _, value in (line.partition(": ") for line in lines)}
    size = {}
    for index in caches.glob("index*"):
        if (index / "type").read_text().strip() != "Instruction":
            size[f"l{(index / 'level').read_text().strip()}"] = (index / "size").read_text().strip()
    kinds = ("avx2", "avx512f", "amx_tile")
    flags = [flag for flag in kinds if flag in facts.get("flags", "").split()]
    name = f"{facts.get('model name', platform.processor())}, family {facts.get('cpu family')} {facts.get('model')}"
    return {
        "processor": " ".join([name, *flags[-1:]]),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "l2": size.get("l2", ""),
        "l3": size.get("l3", ""),
        "threads": str(torch.get_num_threads()),
    }


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


def rounds(calls: Mapping[Key, Callable[[], object]], repeats: int) -> dict[Key, list[float]]:
    """Time every call once a round, after a first round that does not count."""
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    for counts in [False, *[True] * repeats]:
        for key, call in calls.items():
            began = time.perf_counter()
            call()
            if counts:
                seconds[key].append(time.perf_counter() - began)
    return seconds


def gap(found: Gradient, expected: Gradient) -> float:
    """Return the relative distance of two gradients, over all their entries."""
    difference = tree.norm({name: (found[name] - leaf)[None] for name, leaf in expected.items()})
    return (difference / tree.norm({name: leaf[None] for name, leaf in expected.items()})).item()
