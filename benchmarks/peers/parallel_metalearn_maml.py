"""MAML with parallel-metalearn: its ``MAML.step``, vmapped over tasks.

The step ends in the outer optimiser's; SGD of rate 0 leaves theta where it is and the meta-gradient in ``.grad``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metagrad.fewshot import Conv4, Tasks
from peers import own
from workload import Gradient, Workload, taken

NAME, NEEDS, FORM = "parallel-metalearn", "metalearn", "maml"


class Keywords(nn.Module):
    """A module that may be called with the keywords (``training``, ``num_step``) that the library passes to all."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, **_: object) -> Tensor:
        """Call the module without them."""
        return self.inner(x)


def gradient(work: Workload, model: Conv4, theta: Gradient, tasks: Tasks) -> Gradient:
    """Run one training step on all tasks at once: the library's default; chunks of 8 took the same CPU time."""
    from metalearn.algorithms import MAML
    from metalearn.inner_optimizers import InnerSGD
    from metalearn.loss import CategoricalAccuracy, CrossEntropy
    from metalearn.model_wrappers import MAML_Model

    own(model, theta)
    wrapped = MAML_Model(backbone=Keywords(model.body), head=Keywords(model.head))
    inner = InnerSGD(wrapped.get_fast_weights(), inner_lr=work.inner_lr, learn_lr=False)
    for rate in inner.parameters():  # made in float32 whatever the network's type: 0.1 would be off by 1e-9
        rate.data = torch.full_like(rate, work.inner_lr, dtype=tasks.support.x.dtype)
    step = MAML(
        model=wrapped,
        optimizer=torch.optim.SGD(wrapped.parameters(), lr=0.0),
        inner_optimizer=inner,
        support_loss_fn=CrossEntropy(CategoricalAccuracy()),  # its default, the class itself, cannot be called
        inner_steps=work.inner_steps,
        device=tasks.support.x.device,
    ).step
    support, query = tasks
    step(iter([(support.x, {"labels": support.y}, query.x, {"labels": query.y})]), training=True)
    return taken(dict(model.named_parameters()))
