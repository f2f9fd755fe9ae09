"""Time that each inner solver takes on real Omniglot tasks: 5-way 1-shot, all tasks at once.

    python benchmarks/solvers.py --run runs/cg-gauss-newton     # weights of a run; without it, fresh ones
    python benchmarks/solvers.py --repeats 1 --tasks 4          # quick

Two questions. ``gap``, with the network's ReLU in float32: time until half of the tasks have an objective within 1e-3
of their first gap, the solution being the lowest value that any contestant finds for a task within ``--most`` steps
(half, because minima differ: ``arrived`` is the share of tasks that come there at all); and, as ReLU has a floor below
which no solver gets the gradient, the least mean norm after those steps.
``norm``, with softplus (β = 10) for ReLU in float64: time until every task's gradient norm is 1e-6.

Every solver enters with several settings, its quickest takes part: for ``gap``, the least number of steps is looked for
by bisection on all tasks; for ``norm``, the settings are compared on the first four tasks. Then solvers take turns,
``--repeats`` rounds after one that does not count. Shown are the least time and the median, least and largest ratio of
plain descent's time to it in a round. With ``gap``, descent's path is looked at: norm, and L, the largest eigenvalue;
descent is stable below 2 / L.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inner import Scene, add_options, scene, write
from metagrad import tree
from metagrad.allocator import keep_memory
from metagrad.implicit import LBFGS, Adam, GradientDescent, HessianFree, Nesterov, Problem, Solution, TorchOptimizer
from metagrad.implicit.linear import curvature_range
from metagrad.tree import Params
from workload import rounds

GAP, NORM = 1e-3, 1e-6
PLAIN = "gradient descent"
SIFTED = 4  # tasks on which settings are compared where the target is a norm


@dataclass(frozen=True)
class Row:
    """A solver at its quickest setting: steps and seconds to the target, plain descent's time over its own, floor.

    ``floor`` is the least mean gradient norm that any of its settings comes to, ``arrived`` the largest share of tasks
    that come within the gap (``gap`` only).
    """

    question: str
    solver: str
    setting: str
    steps: int
    seconds: float
    ratio_least: float
    ratio: float
    ratio_most: float
    floor: float
    arrived: float


@dataclass(frozen=True)
class Chosen:
    """A solver's quickest setting, the steps it needs, and the call to be timed."""

    setting: str
    steps: int
    call: Callable[[], object]
    floor: float = float("nan")
    arrived: float = 1.0


Field = Mapping[str, Mapping[str, Any]]


def field() -> dict[str, dict[str, Any]]:
    """Return every solver with the settings it enters with."""
    rates = (0.07, 0.1, 0.05, 0.03, 0.14, 0.2, 0.015)
    one: dict[str, Any] = {"max_steps": 1}  # set anew for every question
    optimizers = {lr: partial(torch.optim.RMSprop, lr=lr) for lr in (0.001, 0.003, 0.01)}
    momenta = [(lr, m) for m in (0.7, 0.5, 0.3) for lr in rates[:-1]]
    return {
        PLAIN: {f"lr {lr}": GradientDescent(lr=lr, **one) for lr in rates},
        "descent with momentum": {f"lr {lr}, {m}": GradientDescent(lr=lr, momentum=m, **one) for lr, m in momenta},
        "descent with line search": {"": GradientDescent(lr=0.1, line_search=True, **one)},
        "Nesterov": {f"lr {lr}": Nesterov(lr=lr, **one) for lr in rates},
        "L-BFGS": {f"history {h}": LBFGS(history=h, **one) for h in (2, 5, 10)},
        "Adam": {f"lr {lr}": Adam(lr=lr, **one) for lr in (0.003, 0.01, 0.03)},
        "torch.optim.RMSprop": {f"lr {lr}": TorchOptimizer(factory=made, **one) for lr, made in optimizers.items()},
        "Hessian-free, Gauss-Newton": {f"{c} CG steps": HessianFree(cg_steps=c, **one) for c in (3, 5, 10)},
        "Hessian-free, Hessian": {
            f"{c} CG steps": HessianFree(cg_steps=c, curvature="hessian", **one) for c in (3, 5, 10)
        },
    }


def solve(problem: Problem, init: Params, solver: Any, most: int, tol: float = 0.0) -> Solution:
    """Solve in at most so many steps; what diverges comes back as it is."""
    with torch.no_grad():
        return replace(solver, max_steps=most, tol=tol)(problem, init)


def seconds_of(call: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def least_steps(reached: Callable[[int], bool], most: int) -> int:
    """Return the steps after which the target is reached for the first time, by bisection; it is after ``most``."""
    below, above = 0, 1
    while above < most and not reached(above):
        below, above = above, min(2 * above, most)
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if reached(middle) else (middle, above)
    return above


def to_gap(at: Scene, contestants: Field, most: int, repeats: int) -> list[Row]:
    """Time the solvers to a gap of the objective."""
    problem, init = at.problem(), at.inner().init
    ends: dict[str, dict[str, tuple[Tensor, float]]] = {}
    for name, entered in contestants.items():
        ends[name] = {setting: _end(problem, init, solver, most) for setting, solver in entered.items()}
        print(f"  {name}: looked at", flush=True)
    start = problem.value(init)
    best = torch.stack([value for of in ends.values() for value, _ in of.values()]).amin(0)
    target = best + GAP * (start - best)
    print(f"  objective: {float(start.mean()):.4f} at the start, {float(best.mean()):.4f} at best", flush=True)

    def arrived(value: Tensor) -> float:
        return float((value <= target).double().mean())

    def reached(solver: Any, steps: int) -> bool:
        return arrived(problem.value(solve(problem, init, solver, steps).value)) >= 0.5

    quickest: dict[str, Chosen] = {}
    for name, entered in contestants.items():
        shares = {setting: arrived(value) for setting, (value, _) in ends[name].items()}
        floor, share = min(norm for _, norm in ends[name].values()), max(shares.values())
        within: list[Chosen] = []
        for setting, solver in entered.items():
            if shares[setting] >= 0.5:
                steps = least_steps(partial(reached, solver), most)
                within.append(Chosen(setting, steps, partial(solve, problem, init, solver, steps), floor, share))
        if within:
            quickest[name] = min(within, key=lambda chosen: seconds_of(chosen.call))
        else:
            print(f"  {name}: after {most} steps only {share:.0%} of the tasks are there; norm {floor:.2g}", flush=True)
    return compared("gap", quickest, repeats)


def _end(problem: Problem, init: Params, solver: Any, most: int) -> tuple[Tensor, float]:
    """Return each task's objective and the mean gradient norm after ``most`` steps."""
    value, slope = problem.value_and_grad(solve(problem, init, solver, most).value)
    return value.nan_to_num(torch.inf), float(tree.norm(slope).mean().nan_to_num(torch.inf))


def to_norm(at: Scene, contestants: Field, most: int, repeats: int) -> list[Row]:
    """Time the solvers to a gradient norm."""
    few = replace(at, tasks=at.tasks.part(0, SIFTED))
    problem, init = at.problem(), at.inner().init
    quickest: dict[str, Chosen] = {}
    for name, entered in contestants.items():
        setting = _quickest_to_norm(few, entered, most)
        call = partial(solve, problem, init, entered[setting], most, NORM)
        solution = call()
        norm = tree.norm(problem.grad(solution.value))
        if (norm <= NORM).all():
            quickest[name] = Chosen(setting, int(solution.steps.max()), call)
            print(f"  {name}: there after {int(solution.steps.max())} steps ({setting})", flush=True)
        else:
            print(f"  {name}: norm {float(norm.max()):.1e} after {most} steps ({setting})", flush=True)
    return compared("norm", quickest, repeats)


def _quickest_to_norm(at: Scene, entered: Mapping[str, Any], most: int) -> str:
    """Return the setting that takes the least time; one is given twice the steps of the best before it."""
    problem, init = at.problem(), at.inner().init
    quickest, least, bound = next(iter(entered)), float("inf"), most
    for setting, solver in entered.items():
        began = time.perf_counter()
        solution = solve(problem, init, solver, bound, NORM)
        seconds = time.perf_counter() - began
        if seconds < least and (tree.norm(problem.grad(solution.value)) <= NORM).all():
            quickest, least, bound = setting, seconds, min(bound, 2 * int(solution.steps.max()))
    return quickest


def compared(question: str, quickest: Mapping[str, Chosen], repeats: int) -> list[Row]:
    """Let the solvers take turns."""
    if PLAIN not in quickest:
        raise SystemExit(f"{PLAIN} does not come to the target: raise --most or --most-norm")
    times = rounds({name: chosen.call for name, chosen in quickest.items()}, repeats)
    rows = []
    for name, chosen in quickest.items():
        ratios = sorted(base / own for base, own in zip(times[PLAIN], times[name], strict=True))
        ratio = ratios[0], statistics.median(ratios), ratios[-1]
        rows.append(
            Row(question, name, chosen.setting, chosen.steps, min(times[name]), *ratio, chosen.floor, chosen.arrived)
        )
    rows.sort(key=lambda row: -row.ratio)
    for row in rows:
        spread = f"{row.ratio:5.2f} times as fast ({row.ratio_least:.2f} to {row.ratio_most:.2f})"
        work = f"{row.solver:28s} {row.setting:14s} {row.steps:4d} steps {row.seconds:8.3f} s"
        print(f"{question:5s} {work}, {spread}, floor {row.floor:.2g}, {row.arrived:.0%}", flush=True)
    return rows


def show_path(at: Scene, lr: float) -> None:
    """Print descent's norm and the largest curvature along the way."""
    problem, init = at.problem(), at.inner().init
    for steps in (0, 1, 2, 4, 8, 16, 32, 64):
        phi = init if steps == 0 else solve(problem, init, GradientDescent(lr=lr, max_steps=1), steps).value
        norm = tree.norm(problem.grad(phi))
        _, largest = curvature_range(problem.linearise(phi, "hessian").operator, phi)
        print(
            f"lr {lr}, {steps:3d} steps: gradient norm {float(norm.mean()):8.4f} (largest {float(norm.max()):8.4f}), "
            f"L {float(largest.mean()):6.1f} (largest {float(largest.max()):6.1f}): "
            f"stable below {2 / float(largest.max()):.3f}"
        )


def main() -> None:
    """Answer both questions; print a table and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--questions", nargs="*", choices=["gap", "norm"], default=["gap", "norm"], help="(both)")
    parser.add_argument("--most", type=int, default=40, help="steps a solver has to the gap (40)")
    parser.add_argument("--most-norm", type=int, default=1000, help="steps a solver has to the norm (1000)")
    parser.add_argument("--only", nargs="+", choices=list(field()), help="contestants beside gradient descent (all)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (5)")
    parser.add_argument("--csv", type=Path, help="where rows go, with versions and machine")
    options = parser.parse_args()
    keep_memory()
    found = scene(options)
    weights = "fresh" if options.run is None else options.run.name
    protocol = {"weights": weights, "tasks": options.tasks, "filters": found.filters, "lam": options.lam}
    print(f"{torch.get_num_threads()} threads, {protocol}", flush=True)
    relu, smooth = found.cast("ReLU", torch.float32), found.cast("softplus", torch.float64)
    entered = {name: of for name, of in field().items() if options.only is None or name in (PLAIN, *options.only)}
    rows: list[Row] = []
    if "gap" in options.questions:
        for lr in (0.1, 0.03):
            show_path(relu, lr)
        rows += to_gap(relu, entered, options.most, options.repeats)
    if "norm" in options.questions:
        rows += to_norm(smooth, entered, options.most_norm, options.repeats)
    if options.csv:
        write(options.csv, rows, protocol)


if __name__ == "__main__":
    main()
