"""Which inner solver copes with features that curve the inner problem: iMAML's accuracy, cost and curvature.

    python benchmarks/inner_step.py RUN --data-dir DATA --out OUT
    python benchmarks/inner_step.py RUN --data-dir DATA --out OUT --ways 20 --lam 0.5 --only "descent, 32 steps of 0.04"
    python benchmarks/inner_step.py RUN --data-dir DATA --out OUT --lam 1e-6 --only "descent, 5 steps of 0.1"  # MAML's

RUN is a ProtoNet run on Omniglot. iMAML (λ = 2 unless --lam says otherwise, one row of zeros for all classes) adapts
all weights on from its body, with nothing meta-learned after it, by each solver in turn: 15 queries a class,
transductive, validation characters, the same tasks for all. "Curvature" is the largest of the Hessian of the inner
objective at the start and where the solver ends, in 4 training tasks (30 Lanczos steps); "met" is the largest that five
CG steps meet there, as a training does. Accuracies by task are kept in OUT; what is there already is printed, not
measured again. Without --only the first eight solvers run: those of the table at 5 ways.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metagrad import data, keep_memory, tree
from metagrad.experiment.run import Run
from metagrad.fewshot import IMAML, EpisodeSampler, evaluate, meta_gradient
from metagrad.implicit import LBFGS, MINRES, GradientDescent, HessianFree, InnerSolver, Nesterov, Problem

SOLVERS: dict[str, InnerSolver] = {
    "descent, 16 steps of 0.02": GradientDescent(lr=0.02, max_steps=16),
    "descent, 16 steps of 0.05": GradientDescent(lr=0.05, max_steps=16),
    "descent, 16 steps of 0.1": GradientDescent(lr=0.1, max_steps=16),
    "line search from 0.1, 16 steps": GradientDescent(lr=0.1, max_steps=16, line_search=True),
    "line search from 0.4, 8 steps": GradientDescent(lr=0.4, max_steps=8, line_search=True),
    "Nesterov, 16 steps of 0.02": Nesterov(lr=0.02, max_steps=16),
    "L-BFGS, 8 steps": LBFGS(max_steps=8),
    "Hessian-free, 3 steps": HessianFree(max_steps=3),
    "descent, 32 steps of 0.04": GradientDescent(lr=0.04, max_steps=32),
    "L-BFGS, 12 steps": LBFGS(max_steps=12),
    "Hessian-free, 6 steps": HessianFree(max_steps=6),
    # With --lam 1e-6, what the steps of MAML, first-order MAML and Reptile come to.
    "descent, 5 steps of 0.02": GradientDescent(lr=0.02, max_steps=5),
    "descent, 5 steps of 0.05": GradientDescent(lr=0.05, max_steps=5),
    "descent, 5 steps of 0.1": GradientDescent(lr=0.1, max_steps=5),
    "descent, 5 steps of 0.2": GradientDescent(lr=0.2, max_steps=5),
    "descent, 10 steps of 0.02": GradientDescent(lr=0.02, max_steps=10),
    "descent, 10 steps of 0.1": GradientDescent(lr=0.1, max_steps=10),
}


def begun(method: IMAML, model: nn.Module, body: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return theta: the body's weights, and zeros for the row that all classes begin at."""
    theta = method.init(model)
    return {
        name: body.get(name, torch.zeros_like(leaf)).detach().clone().requires_grad_() for name, leaf in theta.items()
    }


def largest(problem: Problem, phi: dict[str, Tensor]) -> float:
    """Return the mean over tasks of the Hessian's largest eigenvalue."""
    start = {name: torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0)) for name, leaf in phi.items()}
    found = MINRES(max_steps=30, tol=0.0)(problem.curvature(phi, "hessian"), start).max_curvature
    assert found is not None
    return float(found.mean())


def row(name: str, model: nn.Module, body: dict[str, Tensor], dataset: data.Dataset, options: Any) -> dict[str, Any]:
    """Return what a solver comes to."""
    method = IMAML(lam=options.lam, solver=SOLVERS[name], start="shared")
    theta, ways = begun(method, model, body), options.ways
    val = EpisodeSampler(classes=getattr(dataset, options.split), ways=ways, shots=options.shots, queries=15)
    began = time.process_time()
    result = evaluate(method, model, theta, val, tasks=options.tasks, generator=torch.Generator().manual_seed(1))
    seconds = time.process_time() - began
    train = EpisodeSampler(classes=dataset.train, ways=ways, shots=options.shots, queries=5, rotations=True)
    some = train(4, generator=torch.Generator().manual_seed(2))
    inner = method.inner(model, theta, some.support)
    problem = Problem(inner.objective, tree.detach(inner.theta), tree.detach(inner.data))
    begin = tree.detach(inner.init)
    end = tree.detach(inner.solver(problem, begin).value)
    met = meta_gradient(method, model, theta, some).max_curvature
    assert met is not None
    return {
        "accuracy": result.per_task.numpy(),
        "grad_norm": tree.norm(problem.grad(end)).numpy(),
        "start": np.array(largest(problem, begin)),
        "end": np.array(largest(problem, end)),
        "met": np.array(float(met.mean())),
        "seconds": np.array(seconds),
    }


def said(name: str, found: dict[str, np.ndarray], first: dict[str, np.ndarray]) -> None:
    """Print a row of the table."""
    accuracy, gap = found["accuracy"], found["accuracy"] - first["accuracy"]
    half = 196 / math.sqrt(len(accuracy))
    change = "" if first is found else f"{100 * gap.mean():+.1f} ± {half * gap.std(ddof=1):.1f}"
    print(
        f"| {name} | {100 * accuracy.mean():.1f} ± {half * accuracy.std(ddof=1):.1f} | {change} "
        f"| {found['grad_norm'].mean():.2g} | {found['start']:.0f} → {found['end']:.0f} "
        f"| {found['met']:.0f} | {found['seconds']:.0f} |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="where accuracies by task are kept")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--lam", type=float, default=2.0)
    parser.add_argument("--split", choices=["val", "test"], default="val")
    parser.add_argument("--only", nargs="*", default=[*SOLVERS][:8], choices=[*SOLVERS], help="default: the first 8")
    options = parser.parse_args()
    keep_memory()
    out = options.out / options.run.name
    out.mkdir(parents=True, exist_ok=True)
    run = Run.open(options.run)
    body, dataset = run.load("best").theta, data.load("omniglot", data_dir=options.data_dir)
    model = run.experiment.network.build((1, 28, 28), options.ways, generator=torch.Generator().manual_seed(0))
    print("| solver | accuracy, % | paired | inner gradient norm | curvature | met | CPU s |\n" + "|---" * 7 + "|")
    kept: dict[str, dict[str, np.ndarray]] = {}
    for name in options.only:
        here = out / f"{name.replace(', ', '-').replace(' ', '-')}.npz"
        if not here.exists():
            np.savez_compressed(here, **row(name, model, body, dataset, options))
        kept[name] = dict(np.load(here))
        said(name, kept[name], kept[options.only[0]])


if __name__ == "__main__":
    main()
