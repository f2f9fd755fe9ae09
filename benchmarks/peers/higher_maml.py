"""MAML with higher: its differentiable copy of the network and of SGD, one task after the other."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from metagrad.fewshot import Conv4, Tasks
from peers import own
from workload import Gradient, Workload, taken

NAME, NEEDS, FORM = "higher", "higher", "maml"


def gradient(work: Workload, model: Conv4, theta: Gradient, tasks: Tasks) -> Gradient:
    """Unroll SGD on the support loss; the query loss's gradient comes back to the network's own parameters."""
    import higher

    inner = torch.optim.SGD(own(model, theta).parameters(), lr=work.inner_lr)
    for task in range(len(tasks)):
        support, query = (type(part)(part.x[task], part.y[task]) for part in tasks)
        with higher.innerloop_ctx(model, inner, copy_initial_weights=False, track_higher_grads=True) as (net, steps):
            for _ in range(work.inner_steps):
                steps.step(F.cross_entropy(net(support.x), support.y))
            # Backward task by task, as higher's own examples do: one task's graph in memory at a time.
            (F.cross_entropy(net(query.x), query.y) / len(tasks)).backward()
    return taken(dict(model.named_parameters()))
