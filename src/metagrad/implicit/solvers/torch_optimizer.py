"""Any optimiser of ``torch.optim`` on the inner problem."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, optim

from metagrad import scalars, tree
from metagrad.implicit.problem import Problem
from metagrad.implicit.solvers.base import Solution, Watch
from metagrad.tree import Params

# Rules that treat every number by itself, so that stacking tasks changes nothing. Not so LBFGS, Adafactor or Muon,
# whose steps mix the numbers of a tensor; and a class we do not know may.
_ELEMENTWISE: set[type] = {
    optim.SGD, optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam, optim.RAdam, optim.RMSprop, optim.Adagrad,
    optim.Adadelta, optim.ASGD, optim.Rprop,
}  # fmt: skip
# Of these, what torch itself differentiates rightly with differentiable=True; the others change in place what their
# gradient needs. SGD cuts its momentum from the graph without a word (torch 2.13: the gradient is 73 % off).
_UNROLLED: set[type] = _ELEMENTWISE - {optim.Adamax, optim.Rprop}


@dataclass(frozen=True, kw_only=True)
class TorchOptimizer:
    """Minimise with an optimiser of ``torch.optim``, begun anew for every solve.

    Rules that work on every number by itself (SGD, Adam and their like) run on all tasks at once; all others, and
    classes of one's own, one task at a time. Unrolling goes with the former alone, made with ``differentiable=True``.

    Parameters
    ----------
    factory:
        from a list of tensors to an optimiser: ``lambda tensors: torch.optim.RMSprop(tensors, lr=0.01)``.
    max_steps:
        most calls of its ``step``, at least 1.
    tol:
        a task stops once its gradient norm before a step is at most this; 0: all take ``max_steps``.

    Raises
    ------
    ValueError
        for options outside their range; when an optimiser is to be unrolled that cannot be.
    """

    factory: Callable[[list[Tensor]], optim.Optimizer]
    max_steps: int
    tol: float = 0.0

    def __post_init__(self) -> None:
        scalars.require_whole(self, "max_steps")
        scalars.require_not_negative(self, "tol")

    def __call__(self, problem: Problem, init: Params) -> Solution:
        """Take the steps."""
        probe = self.factory([torch.zeros((), requires_grad=True)])
        elementwise = type(probe) in _ELEMENTWISE
        name = type(probe).__name__
        if problem.create_graph:
            if not elementwise:
                raise ValueError(f"{name} runs one task at a time and cannot be unrolled: use Implicit()")
            if type(probe) not in _UNROLLED or probe.defaults.get("momentum"):
                raise ValueError(
                    f"torch cannot unroll {name} with these options: use GradientDescent, Adam or Implicit()"
                )
            if not probe.defaults.get("differentiable"):
                raise ValueError(f"to unroll {name}, make it with differentiable=True")
        return self._together(problem, init) if elementwise else self._one_by_one(problem, init)

    def _together(self, problem: Problem, init: Params) -> Solution:
        watch = Watch(self.tol, init)
        # Changed in place by the optimiser; what the gradient is taken of must not be.
        phi = {name: leaf.clone() for name, leaf in init.items()}
        optimizer = self.factory(list(phi.values()))
        for _ in range(self.max_steps):
            before = {name: leaf.clone() for name, leaf in phi.items()}
            gradient = problem.grad(before)
            if watch.done(gradient):
                break
            with warnings.catch_warnings():  # of reading .grad of a tensor inside a graph, which is meant
                warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
                for name, leaf in phi.items():
                    leaf.grad = gradient[name]
                optimizer.step()
            after = watch.step(before, phi)
            if after is not phi:
                with torch.no_grad():
                    for name, leaf in phi.items():
                        leaf.copy_(after[name])
        return watch.solution(phi)

    def _one_by_one(self, problem: Problem, init: Params) -> Solution:
        parts = [self._one(problem, init, task) for task in range(tree.num_tasks(init))]
        value = {name: torch.stack([part.value[name][0] for part in parts]) for name in init}
        known = all(len(part.grad_norm) for part in parts)
        norm = torch.cat([part.grad_norm for part in parts]) if known else torch.empty(0)
        return Solution(value, torch.cat([part.steps for part in parts]), norm)

    def _one(self, problem: Problem, init: Params, task: int) -> Solution:
        here = slice(task, task + 1)
        alone = Problem(problem.objective, problem.theta, tree.map_tensors(lambda leaf: leaf[here], problem.data))
        watch = Watch(self.tol, {name: leaf[here] for name, leaf in init.items()})
        # Without a task axis: rules that depend on shapes get those of the network.
        phi = {name: leaf[task].clone() for name, leaf in init.items()}
        optimizer = self.factory(list(phi.values()))

        def closure() -> float:
            value, gradient = alone.value_and_grad({name: leaf[None] for name, leaf in phi.items()})
            for name, leaf in phi.items():
                leaf.grad = gradient[name][0].contiguous()  # some take views of it
            return float(value[0])

        for _ in range(self.max_steps):
            if self.tol > 0 and watch.done(alone.grad({name: leaf[None] for name, leaf in phi.items()})):
                break
            with torch.enable_grad():
                optimizer.step(closure)
            watch.steps = watch.steps + 1
        return watch.solution({name: leaf[None] for name, leaf in phi.items()})
