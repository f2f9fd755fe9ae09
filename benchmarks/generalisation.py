"""What takes generalisation away from a body that has it: 5-way iMAML after many-way ProtoNet, one thing changed.

    python benchmarks/generalisation.py RUN --data-dir DATA --out results/generalisation --only base shared-row

RUN is a ProtoNet run on Omniglot (60-way, conv4). Each variant begins at its body, with a head at zero, and is
meta-trained for a few steps. Before, on the way and after, the same 300 validation tasks (5-way 1-shot, 15 queries a
class, transductive) are solved by the variant's own method, and by ProtoNet on the variant's features. Differences to
the accuracy before are paired by task. A variant's lines are kept in OUT as JSON, with the accuracies by task.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metagrad import data, keep_memory
from metagrad.experiment import Conv4Config
from metagrad.experiment.run import Run
from metagrad.fewshot import (
    FOMAML,
    IMAML,
    MAML,
    CrossEntropy,
    EpisodeSampler,
    MemoryReduced,
    Method,
    ProtoNet,
    evaluate,
    meta_gradient,
)
from metagrad.implicit import CG, GradientDescent, Implicit
from metagrad.seeds import Seeds

BASE = IMAML(lam=2.0, solver=GradientDescent(lr=0.1, max_steps=16))
_LAST_NORM = ("body.10.weight", "body.10.bias")
LONG = Implicit(linear_solver=CG(max_steps=30), curvature="gauss_newton")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a body is trained on: the method, its tasks, the outer step."""

    method: Method = BASE
    ways: int = 5
    shots: int = 1
    queries: int = 5
    tasks: int = 16
    lr: float = 3e-4
    optimizer: str = "Adam"
    noise: bool = False  # each gradient with a sign drawn anew: steps as long, in no direction
    frozen: Callable[[str], bool] = lambda name: False
    unscaled: bool = False  # features as ProtoNet without a scale has them: shorter by the root of the learned one


VARIANTS = {
    "base": Variant(),
    "unscaled": Variant(unscaled=True),
    "unscaled-60-way": Variant(unscaled=True, method=replace(BASE, start="shared"), ways=60, tasks=2, queries=4),
    "unscaled-first-order": Variant(unscaled=True, method=FOMAML(inner_lr=0.1, inner_steps=16)),
    "unscaled-noise": Variant(unscaled=True, noise=True),
    "shared-row": Variant(method=replace(BASE, start="shared")),
    "prototypes": Variant(method=replace(BASE, start="prototypes")),
    "head-adapts": Variant(method=replace(BASE, adapts="head.*")),
    "head-stays": Variant(frozen=lambda name: name.startswith("head.")),
    "long-cg": Variant(method=replace(BASE, adjoint=LONG)),
    "first-order": Variant(method=FOMAML(inner_lr=0.1, inner_steps=16)),
    "maml": Variant(method=MAML(inner_lr=0.1, inner_steps=16)),
    "noise": Variant(noise=True),
    "lr-1e-4": Variant(lr=1e-4),
    "sgd": Variant(optimizer="SGD", lr=0.03),
    "64-tasks": Variant(tasks=64),
    "20-way": Variant(method=replace(BASE, start="shared"), ways=20, tasks=4),
    "60-way": Variant(method=replace(BASE, start="shared"), ways=60, tasks=2, queries=4),
    "5-shot": Variant(shots=5),
    "smoothed": Variant(method=replace(BASE, loss=CrossEntropy(label_smoothing=0.1))),
    "protonet-5-way": Variant(method=ProtoNet(scale=1.0)),
    "memory-reduced": Variant(method=MemoryReduced(start="zero")),
    "memory-reduced-60-way": Variant(method=MemoryReduced(start="zero"), ways=60, tasks=2, queries=4),
}


def begun(variant: Variant, body: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return theta: the body's weights, and a head at zero."""
    theta = variant.method.init(model)
    for name, leaf in theta.items():
        value = body.get(name, torch.zeros_like(leaf) if name.startswith(("head.", ".start/")) else leaf)
        theta[name] = value.detach().clone().requires_grad_()
    if variant.unscaled:
        with torch.no_grad():
            for name in _LAST_NORM:
                theta[name] *= (body[".log_scale"] / 2).exp()
    return theta


def looked(variant: Variant, model: nn.Module, theta: dict[str, Tensor], val: EpisodeSampler) -> dict[str, Any]:
    """Return the accuracy of the variant's own method and of ProtoNet on its features."""
    found = {}
    for name, method in (("own", variant.method), ("protonet", ProtoNet())):
        weights = {key: leaf for key, leaf in theta.items() if name == "own" or key in method.init(model)}
        result = evaluate(method, model, weights, val, tasks=300, generator=torch.Generator().manual_seed(1))
        found[name] = [round(one, 4) for one in result.per_task.tolist()]
    return found


def trained(variant: Variant, body: dict[str, Tensor], dataset: data.Dataset, steps: int, seed: int) -> list[Any]:
    """Train on; return what was seen at each look."""
    model = Conv4Config(filters=64).build((1, 28, 28), 5, generator=Seeds(seed).generator("weights"))
    theta = begun(variant, body, model)
    source = EpisodeSampler(
        classes=dataset.train, ways=variant.ways, shots=variant.shots, queries=variant.queries, rotations=True
    )
    val = EpisodeSampler(classes=dataset.val, ways=5, shots=1, queries=15)
    optimizer = getattr(torch.optim, variant.optimizer)([*theta.values()], lr=variant.lr)
    draw, sign = Seeds(seed).generator("tasks"), torch.Generator().manual_seed(seed)
    lines: list[Any] = [{"step": 0, **looked(variant, model, theta, val)}]
    began, scores = time.monotonic(), []
    for step in range(1, steps + 1):
        metrics = meta_gradient(variant.method, model, theta, source(variant.tasks, generator=draw))
        scores.append(float(metrics.score.mean()))
        for name, leaf in theta.items():
            if variant.frozen(name):
                leaf.grad = None
            elif variant.noise and leaf.grad is not None:
                leaf.grad *= 2.0 * float(torch.rand((), generator=sign) < 0.5) - 1.0
        optimizer.step()
        optimizer.zero_grad()
        if step in (steps // 4, steps // 2, steps):
            seconds = time.monotonic() - began
            train = sum(scores[-20:]) / len(scores[-20:])
            lines.append({"step": step, "seconds": seconds, "train": train, **looked(variant, model, theta, val)})
    return lines


def said(name: str, lines: list[Any]) -> None:
    """Print a variant's rows of the table."""
    for line in lines:
        cells = []
        for what in ("own", "protonet"):
            now, before = torch.tensor(line[what]), torch.tensor(lines[0][what])
            gap = now - before
            change = f" ({100 * gap.mean():+.1f} ± {196 * gap.std() / math.sqrt(len(gap)):.1f})" if line["step"] else ""
            cells.append(f"{100 * now.mean():.1f}{change}")
        train = f"{100 * line['train']:.1f}" if "train" in line else ""
        print(f"| {name} | {line['step']} | {' | '.join(cells)} | {train} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[*VARIANTS], choices=[*VARIANTS])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keep_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    body = Run.open(options.run).load("best").theta
    dataset = data.load("omniglot", data_dir=options.data_dir)
    print("| variant | step | own method, % | ProtoNet on its features, % | training tasks, % |\n|---|---|---|---|---|")
    for name in options.only:
        kept = options.out / f"{name}-{options.seed}.json"
        if not kept.exists():
            lines = trained(VARIANTS[name], body, dataset, options.steps, options.seed)
            kept.write_text(json.dumps(lines))
        said(name, json.loads(kept.read_text()))


if __name__ == "__main__":
    main()
