"""A meta-gradient as a CUDA graph: recorded once, then replayed by one launch."""

from __future__ import annotations

import torch
from torch import nn

from metagrad.fewshot import Algorithm, Batch, Metrics, Tasks, meta_gradient
from workload import Gradient


class Captured:
    """``meta_gradient`` of one method, network and shape of tasks.

    Calling it copies the tasks to where the graph reads them, replays, and points ``theta[...].grad`` at the result.
    theta is read where it lies: update it in place.

    Parameters
    ----------
    tasks:
        as many and of the same shape as those it will be called with.

    Raises
    ------
    RuntimeError
        if the work cannot be captured.
    """

    def __init__(self, algorithm: Algorithm, model: nn.Module, theta: Gradient, tasks: Tasks) -> None:
        self.theta = theta
        self.tasks = Tasks(*(Batch(batch.x.clone(), batch.y.clone()) for batch in tasks))

        def work() -> Metrics:
            for leaf in theta.values():
                leaf.grad = None
            return meta_gradient(algorithm, model, theta, self.tasks, chunk=len(tasks))

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # what libraries set up at their first call must not be in the graph
                work()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.metrics = work()
        self.gradient = {name: leaf.grad for name, leaf in theta.items()}

    def __call__(self, tasks: Tasks) -> Metrics:
        """Replay; what is returned is overwritten by the next call."""
        for held, given in zip(self.tasks, tasks, strict=True):
            held.x.copy_(given.x)
            held.y.copy_(given.y)
        self.graph.replay()
        for name, leaf in self.theta.items():
            leaf.grad = self.gradient[name]
        return self.metrics
