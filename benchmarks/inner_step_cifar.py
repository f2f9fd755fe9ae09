"""Which inner settings suit ProtoNet's features of photographs: what each method reaches before any meta-training.

    python benchmarks/inner_step_cifar.py RUN --data-dir DATA --out results/inner-step-cifar

RUN is a ProtoNet run on CIFAR-FS. Each method begins at its body and at a head of zeros: 5-way 5-shot, 15 queries a
class, transductive, validation classes, the same tasks for all. Differences to ProtoNet are paired by task. Accuracies
by task are kept in OUT.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from metagrad import data, keep_memory
from metagrad.experiment.run import Run
from metagrad.fewshot import ANIL, MAML, EpisodeSampler, ITDBiO, MemoryReduced, Method, ProtoNet, evaluate

TRIED: dict[str, Method] = {
    "ProtoNet": ProtoNet(scale=0.1),
    **{f"memory-reduced, l2 = {l2:g}": MemoryReduced(l2=l2, start="zero") for l2 in (0.01, 0.1, 1.0, 2.0, 4.0)},
    **{f"ANIL, 10 steps of {lr:g}": ANIL(inner_lr=lr, inner_steps=10, start="shared") for lr in (0.01, 0.03, 0.1)},
    **{f"ITD-BiO, 20 steps of {lr:g}": ITDBiO(inner_lr=lr, start="zero") for lr in (0.01, 0.03, 0.1)},
    **{f"ITD-BiO, 20 steps of {lr:g}, l2 = 0.1": ITDBiO(inner_lr=lr, start="zero", l2=0.1) for lr in (0.01, 0.03)},
    **{
        f"MAML, {steps} steps of {lr:g}": MAML(inner_lr=lr, inner_steps=steps, start="shared")
        for steps, lr in ((3, 0.01), (3, 0.03), (3, 0.1), (5, 0.03), (5, 0.04), (10, 0.01), (10, 0.02))
    },
}


def begun(method: Method, model: nn.Module, body: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return theta: the body's weights, and zeros for what the head begins at."""
    return {
        name: body.get(name, leaf if isinstance(method, ProtoNet) else torch.zeros_like(leaf)).detach().clone()
        for name, leaf in method.init(model).items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="where accuracies by task are kept")
    parser.add_argument("--tasks", type=int, default=60)
    options = parser.parse_args()
    keep_memory()
    out = options.out / options.run.name
    out.mkdir(parents=True, exist_ok=True)
    run, dataset = Run.open(options.run), data.load("cifar-fs", data_dir=options.data_dir)
    body = run.load("best").theta
    model = run.experiment.network.build((3, 32, 32), 5, generator=torch.Generator().manual_seed(0))
    val = EpisodeSampler(classes=dataset.val, ways=5, shots=5, queries=15)
    print("| method | accuracy, % | minus ProtoNet, paired | CPU s |\n" + "|---" * 4 + "|")
    first: np.ndarray | None = None
    for name, method in TRIED.items():
        here = out / f"{name.replace(', ', '-').replace(' = ', '-').replace(' ', '-')}.npz"
        if not here.exists():
            began = time.process_time()
            generator = torch.Generator().manual_seed(1)
            result = evaluate(method, model, begun(method, model, body), val, tasks=options.tasks, generator=generator)
            np.savez_compressed(here, accuracy=result.per_task.numpy(), seconds=time.process_time() - began)
        found = np.load(here)
        accuracy = found["accuracy"]
        first = accuracy if first is None else first
        gap, half = accuracy - first, 196 / math.sqrt(len(accuracy))
        print(
            f"| {name} | {100 * accuracy.mean():.1f} ± {half * accuracy.std(ddof=1):.1f} "
            f"| {100 * gap.mean():+.1f} ± {half * gap.std(ddof=1):.1f} | {float(found['seconds']):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
