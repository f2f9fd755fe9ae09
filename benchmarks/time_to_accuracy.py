"""Processor seconds until validation reaches 90 and 95 %: Omniglot, 5-way 1-shot, from nothing.

    pip install -c constraints.txt -e '.[bench]' easyfsl==1.5.0       # those that are not installed are left out
    OMP_NUM_THREADS=1 python benchmarks/time_to_accuracy.py DATA --minutes 30

All contestants train the same network (Conv4, stride 2, 64 filters) with Adam on the same training characters, turned
by quarter turns. metagrad measures all of them, on the same 200 validation tasks (15 queries a class, batch statistics
of all query images), about every ten seconds of training; measuring is not counted. Both packages of a method have the
same step sizes, which fall by a cosine over --minutes. Accuracies against time
are kept in OUT.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from metagrad import data
from metagrad.fewshot import IMAML, MAML, Conv4, EpisodeSampler, Method, ProtoNet, Tasks, evaluate, meta_gradient
from metagrad.seeds import Seeds

LEVELS = (0.90, 0.95)
Step = Callable[[Conv4, dict[str, Tensor], Tasks], None]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Whose gradient trains the network, on which tasks, and the method that measures it."""

    method: Method
    step: Step | None = None  # adds the gradient to the network's ``.grad``; ``None``: metagrad's
    ways: int = 5
    queries: int = 5
    tasks: int = 16
    lr: float = 1e-2
    needs: str = "torch"


def easyfsl_protonet(model: Conv4, theta: dict[str, Tensor], tasks: Tasks) -> None:
    """Run easyfsl's ProtoNet on one task after the other."""
    from easyfsl.methods import PrototypicalNetworks

    learner = PrototypicalNetworks(model.body)
    for one in range(len(tasks.support.y)):
        learner.process_support_set(tasks.support.x[one], tasks.support.y[one])
        loss = functional.cross_entropy(learner(tasks.query.x[one]), tasks.query.y[one])
        (loss / len(tasks.support.y)).backward()


def parallel_metalearn_maml(model: Conv4, theta: dict[str, Tensor], tasks: Tasks) -> None:
    """Run parallel-metalearn's MAML on all tasks at once."""
    from peers import parallel_metalearn_maml as peer
    from workload import Workload

    work = Workload(inner_lr=MAML_LR, inner_steps=MAML_STEPS)
    for name, gradient in peer.gradient(work, model, dict(model.named_parameters()), tasks).items():
        dict(model.named_parameters())[name].grad = gradient


MAML_LR, MAML_STEPS = 0.4, 5
MAML_METHOD = MAML(inner_lr=MAML_LR, inner_steps=MAML_STEPS)
CONTESTANTS = {
    "metagrad ProtoNet, 60-way tasks": Contestant(method=ProtoNet(scale=0.1), ways=60, queries=4, tasks=1, lr=5e-3),
    "metagrad ProtoNet, 5-way tasks": Contestant(method=ProtoNet(), tasks=4, lr=1e-3),
    "metagrad iMAML": Contestant(method=IMAML()),
    "metagrad MAML": Contestant(method=MAML_METHOD),
    "easyfsl ProtoNet, 60-way tasks": Contestant(
        method=ProtoNet(), step=easyfsl_protonet, ways=60, queries=4, tasks=1, lr=5e-3, needs="easyfsl"
    ),
    "easyfsl ProtoNet, 5-way tasks": Contestant(
        method=ProtoNet(), step=easyfsl_protonet, tasks=4, lr=1e-3, needs="easyfsl"
    ),
    "parallel-metalearn MAML": Contestant(method=MAML_METHOD, step=parallel_metalearn_maml, needs="metalearn"),
}


def trained(one: Contestant, dataset: data.Dataset, minutes: float, seed: int) -> list[tuple[float, float]]:
    """Train until validation is at 95 % or time is over; return (processor seconds, accuracy)."""
    seeds = Seeds(seed)
    model = Conv4(5, filters=64, generator=seeds.generator("weights"))
    theta = one.method.init(model) if one.step is None else dict(model.named_parameters())
    source = EpisodeSampler(classes=dataset.train, ways=one.ways, shots=1, queries=one.queries, rotations=True)
    val = EpisodeSampler(classes=dataset.val, ways=5, shots=1, queries=15)
    optimizer, draw = torch.optim.Adam([*theta.values()], lr=one.lr), seeds.generator("tasks")
    seen: list[tuple[float, float]] = []
    spent, next_look = 0.0, 10.0
    while spent < 60 * minutes:
        for group in optimizer.param_groups:
            group["lr"] = one.lr * (0.51 + 0.49 * math.cos(math.pi * spent / (60 * minutes)))
        began = time.process_time()
        tasks = source(one.tasks, generator=draw)
        if one.step is None:
            meta_gradient(one.method, model, theta, tasks)
        else:
            one.step(model, theta, tasks)
        optimizer.step()
        optimizer.zero_grad()
        spent += time.process_time() - began
        if spent >= next_look:
            weights = {name: theta[name].detach() for name in one.method.init(model)}
            score = evaluate(
                one.method, model, weights, val, tasks=200, generator=torch.Generator().manual_seed(1)
            ).score
            seen.append((round(spent, 1), round(float(score), 4)))
            next_look = spent + max(10.0, 0.1 * spent)
            if score >= LEVELS[-1]:
                break
    return seen


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0, help="processor minutes a contestant may take")
    parser.add_argument("--only", nargs="*", default=[*CONTESTANTS], choices=[*CONTESTANTS])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    dataset = data.load("omniglot", data_dir=options.data)
    print("| | seconds to 90 % | to 95 % | best seen |\n|---|---|---|---|")
    for name in options.only:
        one, here = CONTESTANTS[name], options.out / f"{name.replace(', ', '-').replace(' ', '-')}-{options.seed}.json"
        if not here.exists():
            if importlib.util.find_spec(one.needs) is None:
                continue
            here.write_text(json.dumps(trained(one, dataset, options.minutes, options.seed)))
        seen = json.loads(here.read_text())
        reached = [next((f"{at:.0f}" for at, score in seen if score >= level), "–") for level in LEVELS]
        print(f"| {name} | {' | '.join(reached)} | {100 * max(score for _, score in seen):.1f} % |", flush=True)


if __name__ == "__main__":
    main()
