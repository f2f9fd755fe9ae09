"""The best weights of a run, adapted to tasks of your own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metagrad.experiment.setup import build, learned
from metagrad.fewshot import Algorithm, Tasks
from metagrad.implicit import Solution
from metagrad.torch_modes import unrecorded
from metagrad.tree import Params

if TYPE_CHECKING:
    from metagrad.experiment.run import Run


@dataclass(frozen=True)
class Adapted:
    """T tasks that the best weights of a run were adapted to.

    Attributes
    ----------
    solution:
        the tasks' inner solutions; ``solution.grad_norm`` says how well they are solved.
    """

    method: Algorithm
    network: nn.Module
    theta: Params
    solution: Solution

    @unrecorded()
    def predict(self, x: Any) -> Tensor:
        """Return each task's outputs ``(T, M, ...)`` for its inputs ``(T, M, ...)``."""
        return self.method.predict(self.network, self.theta, self.solution, x).detach()


@unrecorded()
def adapt(run: Run, support: Any) -> Adapted:
    """Adapt the best weights of a run; see :meth:`Run.adapt`."""
    batch = Tasks(support, support).support
    state = learned(run, "best")
    method, network = build(run.experiment, run.inputs, run.outputs, seeds=run.seeds)
    theta = {name: state.tensors[f"theta/{name}"] for name in method.init(network)}
    with torch.no_grad():
        return Adapted(method, network, theta, method.adapt(network, theta, batch))
