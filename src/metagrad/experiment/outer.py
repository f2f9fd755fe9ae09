"""The state of the outer loop between two meta-steps: theta, optimiser, generator; and its update."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metagrad.experiment.checkpoint import State, require_generator, require_like, require_theta
from metagrad.experiment.experiment import Experiment, Outer
from metagrad.fewshot.task_set import WarmTasks
from metagrad.tree import Params


def make_optimizer(outer: Outer, theta: Params) -> torch.optim.Optimizer:
    """Return the optimiser of theta; learned hyper-parameters (names that begin with .log_) do not decay."""
    optimizer_class = getattr(torch.optim, outer.optimizer)
    known = inspect.signature(optimizer_class).parameters
    options: dict[str, Any] = {"lr": outer.lr}
    if outer.momentum is not None:
        options["momentum"] = outer.momentum
    weights = [leaf for name, leaf in theta.items() if not name.startswith(".log_")]
    others = [leaf for name, leaf in theta.items() if name.startswith(".log_")]
    groups: list[dict[str, Any]] = [{"params": weights}]
    if "weight_decay" in known:
        options["weight_decay"] = outer.weight_decay
        groups += [{"params": others, "weight_decay": 0.0}] if others else []
    else:
        groups[0]["params"] += others
    optimizer: torch.optim.Optimizer = optimizer_class([group for group in groups if group["params"]], **options)
    return optimizer


def lr_at(experiment: Experiment, step: int, seconds: float) -> float:
    """Return the outer step size of a meta-step; with a budget in minutes, the nearer end sets the schedule."""
    outer, steps = experiment.outer, experiment.meta_steps
    lr = outer.lr
    assert lr is not None  # an experiment fills it in
    if outer.schedule == "cosine":
        done = (step - 1) / steps
        if experiment.budget.minutes is not None:
            done = min(1.0, max(done, seconds / (60 * experiment.budget.minutes)))
        lr *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
    return lr * min(1.0, step / outer.warmup) if outer.warmup else lr


class OuterState:
    """The state that changes from meta-step to meta-step, and its part in a checkpoint.

    Parameters
    ----------
    experiment:
        its ``outer`` describes the optimiser.
    theta:
        leaf tensors that require a gradient; changed in place.
    generator:
        of the training tasks.
    fixed:
        the finite set of tasks, if there is one.
    """

    def __init__(
        self, experiment: Experiment, theta: Params, generator: torch.Generator, fixed: WarmTasks | None
    ) -> None:
        self.experiment, self.theta, self.generator, self.fixed = experiment, theta, generator, fixed
        self.optimizer = make_optimizer(experiment.outer, theta)
        decay = experiment.outer.average
        self.average = None if decay is None else {name: leaf.detach().clone() for name, leaf in theta.items()}
        # The steps since the last logged line are part of the state: a resumed run logs the same averages.
        self.progress: dict[str, Any] = {
            "step": 0, "best_score": None, "best_step": 0, "seconds": 0.0, "cpu_seconds": 0.0, "window": [],
        }  # fmt: skip

    def begin_average(self) -> None:
        """Set the moving average to theta."""
        if self.average is not None:
            for name, leaf in self.theta.items():
                self.average[name].copy_(leaf.detach())

    @property
    def step(self) -> int:
        """Meta-steps done."""
        return int(self.progress["step"])

    @property
    def judged(self) -> Params:
        """The weights that are validated and kept: theta, or its moving average."""
        return self.theta if self.average is None else self.average

    def update(self, lr: float) -> None:
        """Take one step of the optimiser, and clear the gradients."""
        outer = self.experiment.outer
        if outer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(self.theta.values()), outer.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None and outer.average is not None:
            # A smaller decay early on: the average would else keep the random initial weights for long.
            decay = min(outer.average, (1 + self.step) / (10 + self.step))
            for name, leaf in self.theta.items():
                self.average[name].lerp_(leaf.detach(), 1 - decay)

    def now(self, draws: Tensor) -> State:
        """Return the state, with ``draws`` as the state of the generator."""
        tensors = {f"theta/{name}": leaf for name, leaf in self.theta.items()}
        for name, leaf in self.theta.items():
            moments = self.optimizer.state.get(leaf, {})
            tensors |= {
                f"{self._prefix}/{name}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
                for key, value in moments.items()
                if isinstance(value, Tensor | int | float)
            }
        if self.average is not None:
            tensors |= {f"average/{name}": leaf for name, leaf in self.average.items()}
        if self.fixed is not None:
            tensors |= {f"warm/{name}": leaf for name, leaf in self.fixed.state().items()}
        return State(tensors | {"generator": draws}, self.progress)

    @property
    def _prefix(self) -> str:
        return "adam" if self.experiment.outer.optimizer == "Adam" else "optimizer"

    def best(self) -> State:
        """Return the weights that were validated."""
        return State({f"theta/{name}": leaf for name, leaf in self.judged.items()}, self.progress)

    def restore(self, state: State, moved: torch.Generator) -> None:
        """Continue from a state; ``moved`` is the generator if the checkpoint is from another kind of device."""
        with torch.no_grad():
            for name, leaf in self.theta.items():
                leaf.copy_(state.tensors[f"theta/{name}"])
                if self.average is not None:
                    self.average[name].copy_(state.tensors[f"average/{name}"])
        for name, leaf in self.theta.items():
            prefix = f"{self._prefix}/{name}/"
            moments = {key.removeprefix(prefix): part for key, part in state.tensors.items() if key.startswith(prefix)}
            if moments:
                self.optimizer.state[leaf] = {
                    # Step counts stay on the CPU, as the optimiser has them; the rest is on the device of the weights.
                    key: part.clone() if part.dim() == 0 else part.to(leaf.device).clone()
                    for key, part in moments.items()
                }
        if self.fixed is not None:
            warm = {key.removeprefix("warm/"): part for key, part in state.tensors.items() if key.startswith("warm/")}
            self.fixed.restore(warm)
        if state.tensors["generator"].shape == self.generator.get_state().shape:
            self.generator.set_state(state.tensors["generator"])
        else:  # a run that moved between CPU and GPU continues with other tasks
            self.generator.set_state(moved.get_state())
        self.progress = state.facts


def require_state(
    experiment: Experiment, tensors: Mapping[str, Tensor], theta: Params, parameters: Mapping[str, Tensor], step: int
) -> None:
    """Raise ``ValueError`` for tensors that no run of this experiment has after ``step`` meta-steps.

    Parameters
    ----------
    theta:
        of the network and the method; only names, shapes and types matter.
    parameters:
        of the network, by name.
    """
    require_theta(tensors, theta)
    _require_moments(experiment.outer, tensors, theta, step)
    averaged = {name.removeprefix("average/"): leaf for name, leaf in tensors.items() if name.startswith("average/")}
    wanted = theta if experiment.outer.average is not None else {}
    if averaged.keys() != wanted.keys():
        raise ValueError(f"average/{min(averaged.keys() ^ wanted.keys())} is missing, or one too many")
    for name, leaf in averaged.items():
        require_like(f"average/{name}", leaf, theta[name])
    _require_warm(tensors, parameters, getattr(experiment.tasks, "count", None))
    require_generator(tensors["generator"])


def _require_moments(outer: Outer, tensors: Mapping[str, Tensor], theta: Params, step: int) -> None:
    """Refuse moments that the optimiser does not have after a step on weights of these shapes."""
    prefix = "adam" if outer.optimizer == "Adam" else "optimizer"
    given = {name: leaf for name, leaf in tensors.items() if name.startswith(f"{prefix}/")}
    if step == 0 and not given:  # stopped before the first update
        return
    try:
        shapes, optimizer = _stepped(outer, theta, "meta")
    except RuntimeError:  # an optimiser that reads values
        shapes, optimizer = _stepped(outer, theta, "cpu")
    wanted = {
        f"{prefix}/{name}/{key}": value
        for name, leaf in shapes.items()
        for key, value in optimizer.state.get(leaf, {}).items()
        if isinstance(value, Tensor | int | float)
    }
    if given.keys() != wanted.keys():
        name = min(given.keys() ^ wanted.keys())
        raise ValueError(f"{name} is {'one too many' if name in given else 'missing'}")
    for name, like in wanted.items():
        # A step count has the default dtype in some versions of torch, float32 in others.
        is_count = not isinstance(like, Tensor) or like.dim() == 0
        require_like(name, given[name], torch.empty((), dtype=given[name].dtype) if is_count else torch.as_tensor(like))
        if name.endswith("/exp_avg_sq") and bool((given[name] < 0).any()):
            raise ValueError(f"{name} is a mean of squares and negative")


def _stepped(outer: Outer, theta: Params, device: str) -> tuple[Params, torch.optim.Optimizer]:
    """Return an optimiser after one step on weights of these shapes."""
    shapes = {name: torch.zeros_like(leaf, device=device).requires_grad_() for name, leaf in theta.items()}
    for leaf in shapes.values():
        leaf.grad = torch.zeros_like(leaf)
    optimizer = make_optimizer(outer, shapes)
    optimizer.step()
    return shapes, optimizer


def _require_warm(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], tasks: int | None) -> None:
    """Refuse last solutions that are not those of a set of ``tasks`` (``None``: there is no set).

    Where phi is weights of the network, their shapes are known; in a bilevel problem, phi and ``u`` have the same.
    """
    solutions = {name.removeprefix("warm/"): leaf for name, leaf in tensors.items() if name.startswith("warm/")}
    for name, leaf in solutions.items():
        part, _, key = name.partition("/")
        other = solutions.get(f"{'u' if part == 'phi' else 'phi'}/{key}")
        if tasks is None or part not in ("phi", "u") or other is None:
            raise ValueError(f"warm/{name} is one too many")
        like = parameters.get(key, other[0] if other.dim() and len(other) else other)
        require_like(f"warm/{name}", leaf, torch.empty(tasks, *like.shape, dtype=like.dtype, device="meta"))
