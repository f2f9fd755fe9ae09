"""Time to a meta-gradient of stated accuracy, on real Omniglot tasks: a loop over tasks against metagrad's solvers.

    python benchmarks/accurate.py --run runs/cg-gauss-newton     # weights of a run; without it, fresh ones
    python benchmarks/accurate.py --repeats 1 --tasks 4          # quick

The gradient wanted is that of the exactly solved inner problems (Newton's method until the gradient norm is 1e-9, the
exact Hessian, MINRES to 1e-10, all in float64), with softplus (β = 10) for ReLU so that there is one. A contestant is
there when its float32 gradient, all tasks together, is within 1e-2 of it. The loop is ``peers/one_by_one.py``: plain
descent and conjugate gradients, task after task, as most implementations are written. Every contestant takes part with
its quickest pair of inner steps and products that gets there; they take turns, ``--repeats`` rounds after one that does
not count. Shown are the least time and the median, least and largest ratio of the loop's time to it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from inner import Scene, add_options, scene, write
from metagrad import CG, MINRES, Implicit
from metagrad.allocator import keep_memory
from metagrad.experiment.check import query_loss
from metagrad.fewshot import meta_gradient
from metagrad.implicit import LBFGS, GradientDescent, HessianFree, Nesterov, solve_on
from peers import one_by_one
from workload import Gradient, Workload, gap, rounds, taken

ERROR = 1e-2
LOOP = "loop: descent + CG"
STEPS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
PRODUCTS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)


@dataclass(frozen=True)
class Row:
    """A contestant at the accuracy: its setting and pair, the error reached, seconds, the loop's time over its own."""

    contestant: str
    setting: str
    steps: int
    products: int
    error: float
    seconds: float
    ratio_least: float
    ratio: float
    ratio_most: float


@dataclass(frozen=True)
class Found:
    """A pair that is accurate enough."""

    setting: str
    steps: int
    products: int
    error: float
    call: Callable[[], Gradient]


def field() -> dict[str, dict[str, Any]]:
    """Return metagrad's inner solvers with the settings they enter with; descent's are the loop's too."""
    rates = (0.05, 0.07, 0.1)
    one: dict[str, Any] = {"max_steps": 1}  # set anew when it is used
    return {
        "descent + CG": {f"lr {lr}": GradientDescent(lr=lr, **one) for lr in rates},
        "Nesterov + CG": {f"lr {lr}": Nesterov(lr=lr, **one) for lr in rates},
        "L-BFGS + CG": {f"history {h}": LBFGS(history=h, **one) for h in (5, 10)},
        "Hessian-free + CG": {f"{c} CG steps": HessianFree(cg_steps=c, **one) for c in (3, 5, 10)},
    }


def ours(at: Scene, solver: Any, linear: Any) -> Gradient:
    """Take metagrad's meta-gradient."""
    method = replace(at.method, solver=solver, adjoint=Implicit(linear_solver=linear))
    own = {name: leaf.clone().requires_grad_() for name, leaf in at.theta.items()}
    meta_gradient(method, at.model, own, at.tasks)
    return taken(own)


def loop(at: Scene, lr: float, steps: int, products: int) -> Gradient:
    """Take the loop's."""
    work = Workload(inner_lr=lr, inner_steps=steps, lam=at.method.lam, cg_steps=products)
    return one_by_one.gradient(work, at.model, at.theta, at.tasks)


def wanted(at: Scene) -> Gradient:
    """Return the gradient of the exactly solved problems; ``at`` in float64."""
    inner, problem = at.inner(), at.problem()
    with torch.no_grad():
        near = GradientDescent(lr=0.1, max_steps=64, line_search=True)(problem, inner.init).value
    exact = solve_on(problem, near, tol=1e-9)
    own = {name: leaf.clone().requires_grad_() for name, leaf in at.theta.items()}
    method = replace(
        at.method, solver=lambda *_: exact, adjoint=Implicit(linear_solver=MINRES(max_steps=1000, tol=1e-10))
    )
    inner = method.inner(at.model, own, at.tasks.support)
    solution = inner.solve()
    query_loss(method, at.model, at.tasks)(solution.value, own).backward()
    assert solution.linear is not None
    print(
        f"wanted: norm {float(solution.grad_norm.max()):.1e}, residual {float(solution.linear.residual.max()):.1e}, "
        f"smallest curvature {float(solution.linear.min_curvature.min()):.2g}",
        flush=True,
    )
    return taken(own)


def accurate(at: Scene, target: Gradient, setting: str, solver: Any) -> Iterator[Found]:
    """Yield pairs that are accurate enough: the fewest inner steps there can be, then more with fewer products."""

    def made(steps: int, products: int) -> Callable[[], Gradient]:
        # A CG that goes on over negative curvature, as the loop's does.
        linear = CG(max_steps=products, on_negative="continue")
        return partial(ours, at, replace(solver, max_steps=steps), linear)

    def within(steps: int, products: int) -> bool:
        return gap(made(steps, products)(), target) <= ERROR

    # A step of Newton's is worth tens of the others'.
    offered = STEPS[:7] if isinstance(solver, HessianFree) else STEPS[4:]
    first = _first(offered, lambda steps: within(steps, PRODUCTS[-1]))
    for steps in offered[first : first + 3]:
        place = _first(PRODUCTS, partial(within, steps))
        if place < len(PRODUCTS):
            call = made(steps, PRODUCTS[place])
            found = Found(setting, steps, PRODUCTS[place], gap(call(), target), call)
            print(f"    {setting}, {steps} steps, {found.products} products: error {found.error:.4f}", flush=True)
            yield found


def _first(numbers: tuple[int, ...], reached: Callable[[int], bool]) -> int:
    """Return the place of the first number that is enough, by bisection; their count if none is."""
    low, high = 0, len(numbers)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(numbers[middle]) else (middle + 1, high)
    return low


def quickest(found: list[Found]) -> Found:
    """Return the pair whose call takes the least time."""

    def seconds(one: Found) -> float:
        began = time.perf_counter()
        one.call()
        return time.perf_counter() - began

    return min(found, key=seconds)


def entered(at: Scene, target: Gradient) -> dict[str, Found]:
    """Return every contestant with its quickest pair."""
    chosen: dict[str, Found] = {}
    for name, solvers in field().items():
        found = [one for setting, solver in solvers.items() for one in accurate(at, target, setting, solver)]
        print(f"  {name}: {len(found)} settings within {ERROR:g}", flush=True)
        if not found:
            continue
        chosen[name] = quickest(found)
        if name == "descent + CG":
            pairs = [replace(one, call=partial(loop, at, _lr(one), one.steps, one.products)) for one in found]
            best = quickest(pairs)
            chosen[LOOP] = replace(best, error=gap(best.call(), target))
    return chosen


def _lr(found: Found) -> float:
    return float(found.setting.removeprefix("lr "))


def compared(chosen: Mapping[str, Found], repeats: int) -> list[Row]:
    """Let the contestants take turns."""
    times = rounds({name: found.call for name, found in chosen.items()}, repeats)
    rows = []
    for name, found in chosen.items():
        ratios = sorted(base / own for base, own in zip(times[LOOP], times[name], strict=True))
        ratio = ratios[0], statistics.median(ratios), ratios[-1]
        rows.append(Row(name, found.setting, found.steps, found.products, found.error, min(times[name]), *ratio))
    rows.sort(key=lambda row: -row.ratio)
    for row in rows:
        work = f"{row.setting:12s} {row.steps:3d} steps, {row.products:3d} products: error {row.error:.4f}"
        spread = f"{row.ratio:5.2f} times as fast ({row.ratio_least:.2f} to {row.ratio_most:.2f})"
        print(f"{row.contestant:20s} {work}, {row.seconds:7.3f} s, {spread}")
    return rows


def main() -> None:
    """Find the pairs, time them; print a table and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--repeats", type=int, default=5, help="rounds (5)")
    parser.add_argument("--csv", type=Path, help="where rows go, with versions and machine")
    options = parser.parse_args()
    keep_memory()
    at = scene(options)
    weights = "fresh" if options.run is None else options.run.name
    protocol = {"weights": weights, "tasks": options.tasks, "filters": at.filters, "lam": options.lam}
    print(f"{torch.get_num_threads()} threads, {protocol}", flush=True)
    target = {name: leaf.float() for name, leaf in wanted(at.cast("softplus", torch.float64)).items()}
    chosen = entered(at.cast("softplus", torch.float32), target)
    if LOOP not in chosen:
        raise SystemExit(f"the loop does not come within {ERROR:g} of the gradient with these weights: take others")
    rows = compared(chosen, options.repeats)
    if options.csv:
        write(options.csv, rows, protocol)


if __name__ == "__main__":
    main()
