"""Where one meta-gradient's time goes: phase by phase, then operation by operation.

    python benchmarks/phases.py                                    # the workload of workload.py, exact Hessian
    python benchmarks/phases.py --curvature gauss_newton --filters 32 --tasks 16 --queries 5 --ops 20

Phases are timed by wrapping the few functions that a meta-gradient goes through. Operations are counted under a
dispatch mode, which does not disturb the allocator as a profiler's own records do; its times hold some overhead of
Python, so compare them with each other.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from metagrad.allocator import keep_memory
from metagrad.fewshot import batched_forward, meta_gradient
from metagrad.implicit import CG, GradientDescent, Implicit, Problem
from workload import add_options, chosen

# Phase, owner and name of the function that is the phase. One inside another counts for itself only.
PHASES: tuple[tuple[str, Any, str], ...] = (
    ("look at the images", batched_forward, "prepare"),
    ("inner steps", GradientDescent, "__call__"),
    ("linearise", Problem, "linearise"),
    ("query", batched_forward, "outputs"),
    ("linear solve", CG, "__call__"),
)


@contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Wrap the phases while the ``with`` lasts; add each one's own seconds to ``spent``."""
    inside: list[float] = []

    def wrap(phase: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(fn)
        def timer(*args: Any, **kwargs: Any) -> Any:
            if inside and phase == "query":  # the network within another phase is part of that phase
                return fn(*args, **kwargs)
            inside.append(0.0)
            began = time.perf_counter()
            try:
                return fn(*args, **kwargs)
            finally:
                whole = time.perf_counter() - began
                spent[phase] += whole - inside.pop()
                if inside:
                    inside[-1] += whole

        return timer

    originals = [(owner, name, getattr(owner, name)) for _, owner, name in PHASES]
    for (phase, owner, name), (_, _, fn) in zip(PHASES, originals, strict=True):
        setattr(owner, name, wrap(phase, fn))
    try:
        yield
    finally:
        for owner, name, fn in originals:
            setattr(owner, name, fn)


class Operations(TorchDispatchMode):
    """Count every operation and its time, by name and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[tuple[str, str], int] = defaultdict(int)
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Time one operation."""
        shapes = [list(leaf.shape) for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
        key = (str(func).removesuffix(".default"), " ".join(map(str, shapes)))
        began = time.perf_counter()
        found = func(*args, **(kwargs or {}))
        self.seconds[key] += time.perf_counter() - began
        self.count[key] += 1
        return found


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--curvature", choices=["hessian", "gauss_newton"], default="hessian")
    parser.add_argument("--repeats", type=int, default=3, help="meta-gradients to average over (3)")
    parser.add_argument("--ops", type=int, default=15, help="operations to list (15)")
    options = parser.parse_args()
    work, repeats = chosen(options), options.repeats
    keep_memory()
    model, _, tasks = work.draw(work.tasks, torch.float32)
    algorithm = work.imaml(Implicit(linear_solver=CG(max_steps=work.cg_steps), curvature=options.curvature))
    theta = algorithm.init(model)
    meta_gradient(algorithm, model, theta, tasks)

    spent: dict[str, float] = defaultdict(float)
    began = time.perf_counter()
    with timed(spent):
        for _ in range(repeats):
            meta_gradient(algorithm, model, theta, tasks)
    whole = time.perf_counter() - began
    print(f"{torch.get_num_threads()} threads, {options.curvature}, {work}")
    spent["query gradient and the rest"] = whole - sum(spent.values())
    for phase, seconds in spent.items():
        print(f"{phase:28s} {seconds / repeats * 1e3:9.1f} ms  {seconds / whole:6.1%}")
    print(f"{'one meta-gradient':28s} {whole / repeats * 1e3:9.1f} ms")

    with Operations() as operations:
        meta_gradient(algorithm, model, theta, tasks)
    total = sum(operations.seconds.values())
    print(f"\n{sum(operations.count.values())} operations, {total * 1e3:.0f} ms in them; the largest:")
    for key, seconds in sorted(operations.seconds.items(), key=lambda item: -item[1])[: options.ops]:
        print(f"{seconds * 1e3:9.1f} ms {operations.count[key]:5d} × {key[0]:28s} {key[1][:90]}")


if __name__ == "__main__":
    main()
