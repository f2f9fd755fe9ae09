"""Peak memory and time of one meta-gradient against inner steps (figure 2b of Rajeswaran et al. 2019), by method.

Memory is that of tensors: what operations made over one meta-gradient and still held, at its highest. It is the same
number each time, which a process's high-water mark is not. On a GPU it is ``max_memory_allocated``.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from metagrad.errors import is_out_of_memory
from metagrad.fewshot import (
    ANIL,
    IMAML,
    MAML,
    Algorithm,
    Batch,
    Conv4,
    ITDBiO,
    MemoryReduced,
    Tasks,
    meta_gradient,
)
from metagrad.implicit import GradientDescent, HessianFree
from metagrad.recipes.least_squares import line, power_law
from metagrad.recipes.protocols import MemoryProtocol


@dataclass(frozen=True)
class MemoryRow:
    """Cost of one meta-gradient."""

    network: str
    method: str
    inner_steps: int
    megabytes: float
    """Peak of tensor memory over one meta-gradient, above what was held before it, in units of 2²⁰ bytes."""
    seconds: float
    """Time of one meta-gradient, the least of three."""


@dataclass(frozen=True)
class Growth:
    """How memory grows with the steps, by least squares."""

    per_step: float
    """Megabytes of one step more."""
    exponent: float
    """Exponent of the steps."""
    ratio: float
    """Memory of the most steps over that of the fewest."""


def methods() -> Mapping[str, Callable[[int], Algorithm]]:
    """Return each method by name, as a function of the inner steps."""
    return {
        "MAML": lambda steps: MAML(inner_lr=0.01, inner_steps=steps),
        "MAML, last 5 steps": lambda steps: MAML(inner_lr=0.01, inner_steps=steps, truncate=min(5, steps)),
        "MAML, checkpoints": lambda steps: MAML(
            inner_lr=0.01, inner_steps=steps, checkpoint=max(1, round(math.sqrt(steps)))
        ),
        "iMAML, descent": lambda steps: IMAML(lam=2.0, solver=GradientDescent(lr=0.01, max_steps=steps)),
        "iMAML, Hessian-free": lambda steps: IMAML(lam=2.0, solver=HessianFree(max_steps=steps, cg_steps=5)),
        "ANIL, recomputed": lambda steps: ANIL(inner_lr=0.1, inner_steps=steps, features="recomputed"),
        "ANIL": lambda steps: ANIL(inner_lr=0.1, inner_steps=steps),
        "ITD-BiO, recomputed": lambda steps: ITDBiO(inner_lr=0.1, inner_steps=steps, features="recomputed"),
        "ITD-BiO": lambda steps: ITDBiO(inner_lr=0.1, inner_steps=steps),
        "memory-reduced": lambda steps: MemoryReduced(solver=GradientDescent(lr=0.1, max_steps=steps)),
    }


def networks(protocol: MemoryProtocol) -> dict[str, tuple[nn.Module, Tasks]]:
    """Return the two networks with a task each: 20-way 5-shot of 28×28, 5-way 5-shot of 84×84."""
    generator = torch.Generator().manual_seed(protocol.seed)

    def task(ways: int, channels: int, size: int) -> Tasks:
        def batch(each: int) -> Batch:
            x = torch.rand(1, ways * each, channels, size, size, generator=generator)
            return Batch(x.to(protocol.device), torch.arange(ways, device=protocol.device).repeat(1, each))

        return Tasks(batch(5), batch(protocol.queries))

    omniglot = Conv4(20, filters=64, generator=generator).to(protocol.device)
    photographs = Conv4(5, channels=3, image_size=84, filters=32, pooling=True, generator=generator).to(protocol.device)
    return {
        "20-way 5-shot, 28×28": (omniglot, task(20, 1, 28)),
        "5-way 5-shot, 84×84": (photographs, task(5, 3, 84)),
    }


def measure(protocol: MemoryProtocol, progress: Callable[[float, float], None]) -> list[MemoryRow]:
    """Measure every method on both networks.

    Points beyond ``protocol.most_megabytes`` or ``most_seconds`` are left out; what a point would take is told from the
    two before it.
    """
    rows: list[MemoryRow] = []
    places, makers = networks(protocol), methods()
    done, total = 0, len(places) * len(makers) * len(protocol.steps)
    for network, (model, tasks) in places.items():
        for method, make in makers.items():
            mine: list[MemoryRow] = []
            for steps in protocol.steps:
                done += 1
                if _fits(mine, steps, protocol):
                    algorithm = make(steps)
                    try:
                        megabytes = peak(algorithm, model, tasks)
                        seconds = duration(algorithm, model, tasks)
                    except (RuntimeError, MemoryError) as error:
                        if not is_out_of_memory(error):
                            raise
                        break
                    mine.append(MemoryRow(network, method, steps, megabytes, seconds))
                progress(done, total)
            rows += mine
    return rows


def _fits(rows: list[MemoryRow], steps: int, protocol: MemoryProtocol) -> bool:
    if len(rows) < 2:
        return True
    a, b = rows[-2:]
    share = (steps - b.inner_steps) / (b.inner_steps - a.inner_steps)
    return (
        b.megabytes + share * max(0.0, b.megabytes - a.megabytes) <= protocol.most_megabytes
        and b.seconds + share * max(0.0, b.seconds - a.seconds) <= protocol.most_seconds
    )


def peak(algorithm: Algorithm, model: nn.Module, tasks: Tasks) -> float:
    """Return the most tensor memory that one meta-gradient holds at a time, above what was held before, in MB (2²⁰)."""
    theta = algorithm.init(model)
    if tasks.support.x.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        meta_gradient(algorithm, model, theta, tasks)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with _Held() as held:
        meta_gradient(algorithm, model, theta, tasks)
    return held.most / 2**20


class _Held(TorchDispatchMode):
    """Adds up the storages that operations make, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._live: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        old = {id(storage) for storage in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            key = id(storage)  # the object lives as long as the memory does
            if key not in self._live and key not in old:
                self._live.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._live.discard(key)
        self.now -= size


def _storages(part: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in pytree.tree_leaves(part) if isinstance(leaf, Tensor)]


def duration(algorithm: Algorithm, model: nn.Module, tasks: Tasks) -> float:
    """Return the seconds of one meta-gradient, the least of three."""
    best = math.inf
    for _ in range(3):
        theta = algorithm.init(model)
        began = time.perf_counter()
        meta_gradient(algorithm, model, theta, tasks)
        if tasks.support.x.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
        if best > 1:
            break
    return best


def growth(rows: Sequence[MemoryRow]) -> dict[tuple[str, str], Growth]:
    """Fit each curve that has three points or more; by (network, method)."""
    fits = {}
    for curve in dict.fromkeys((row.network, row.method) for row in rows):
        mine = [row for row in rows if (row.network, row.method) == curve]
        if len(mine) < 3:
            continue
        steps, memory = [row.inner_steps for row in mine], [row.megabytes for row in mine]
        fits[curve] = Growth(line(steps, memory).value, power_law(steps, memory).value, memory[-1] / memory[0])
    return fits
