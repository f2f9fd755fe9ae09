"""Meta-gradients of MAML, first-order MAML and ANIL beside those that higher computes: same weights, same episodes.

    pip install -c constraints.txt -e '.[bench]' && python benchmarks/agree.py

float64; shown is the norm of the difference over that of the whole gradient. Ends with 1 if one is above 1e-8.
"""

from __future__ import annotations

import sys

import torch
from torch.nn import functional as F

from metagrad.fewshot import ANIL, FOMAML, MAML, Algorithm, Conv4, Tasks, meta_gradient
from workload import Gradient, Workload

WORK = Workload(tasks=4, shots=2, queries=3, filters=16, inner_steps=3)
ENOUGH = 1e-8


def by_higher(model: Conv4, tasks: Tasks, *, first_order: bool, head: bool) -> Gradient:
    """Unroll SGD task after task, on the head or on everything."""
    import higher

    model.zero_grad()
    inner = torch.optim.SGD((model.head if head else model).parameters(), lr=WORK.inner_lr)
    for task in range(len(tasks)):
        support, query = (type(part)(part.x[task], part.y[task]) for part in tasks)
        with higher.innerloop_ctx(model, inner, copy_initial_weights=False, track_higher_grads=not first_order) as (
            net,
            steps,
        ):
            for _ in range(WORK.inner_steps):
                steps.step(F.cross_entropy(net(support.x), support.y))
            loss = F.cross_entropy(net(query.x), query.y) / len(tasks)
            if first_order:  # higher keeps no link to the initial weights then: their gradient is that of the last
                found = torch.autograd.grad(loss, list(net.parameters()))
                for leaf, part in zip(model.parameters(), found, strict=True):
                    leaf.grad = part if leaf.grad is None else leaf.grad + part
            else:
                loss.backward()
    return {name: leaf.grad for name, leaf in model.named_parameters() if leaf.grad is not None}


def main() -> int:
    """Compare all three; return the exit code."""
    model, _, tasks = WORK.draw(WORK.tasks, torch.float64)
    lr, steps = WORK.inner_lr, WORK.inner_steps
    contestants: dict[str, tuple[Algorithm, bool, bool]] = {
        "MAML": (MAML(inner_lr=lr, inner_steps=steps), False, False),
        "first-order MAML": (FOMAML(inner_lr=lr, inner_steps=steps), True, False),
        "ANIL, features cached": (ANIL(inner_lr=lr, inner_steps=steps), False, True),
        "ANIL, recomputed": (ANIL(inner_lr=lr, inner_steps=steps, features="recomputed"), False, True),
    }
    worst = 0.0
    for name, (algorithm, first_order, head) in contestants.items():
        expected = by_higher(model, tasks, first_order=first_order, head=head)
        theta = algorithm.init(model)
        meta_gradient(algorithm, model, theta, tasks)
        size = torch.stack([part.norm() for part in expected.values()]).norm()
        off = torch.stack([(leaf.grad - expected[key]).norm() for key, leaf in theta.items() if leaf.grad is not None])
        worst = max(worst, float(off.norm() / size))
        print(f"{name:24} {float(off.norm() / size):.1e}")
    return int(worst > ENOUGH)


if __name__ == "__main__":
    sys.exit(main())
