"""What defines a training run. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import arg

from metagrad.errors import MetagradError

DATASETS = ("glyphs", "omniglot")
Method = Literal["imaml", "maml", "fomaml"]
InnerSolverName = Literal["gd", "nesterov", "adam", "lbfgs", "hessian-free"]
LinearSolverName = Literal["cg", "minres", "neumann", "woodbury", "none"]
Form = Literal["fixed", "scalar", "tensor", "parameter"]

# Chosen on validation classes; RESULTS.md has the comparisons.
_METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "imaml": {
        "inner_solver": "gd", "inner_lr": 0.4, "inner_steps": 5, "inner_tol": 0.0, "lam": 0.1, "learn_lam": "fixed",
        "linear_solver": "cg", "cg_steps": 5, "curvature": "gauss_newton",
    },
    "maml": {"inner_lr": 0.4, "inner_steps": 1, "learn_inner_lr": "fixed"},
    "fomaml": {"inner_lr": 0.4, "inner_steps": 1},
}  # fmt: skip
# Options of some methods only. A run made before an option was there has None, which means the default.
_OWN = ("inner_solver", "inner_tol", "lam", "learn_lam", "linear_solver", "cg_steps", "curvature", "learn_inner_lr")
_DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    "glyphs": {"meta_steps": 500},
    "omniglot": {"meta_steps": 10000},
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained and how long; an option left out takes the default of the method or the data set."""

    method: Method = "imaml"
    """How the meta-gradient is taken: imaml (implicit), maml (through the inner steps), fomaml (first order)."""
    ways: int = 5
    """Classes a task; chance is 1/ways."""
    shots: int = 1
    """Support images a class: what a task adapts on."""
    queries: int = 5
    """Query images a class: what a task is judged on. Fewer make a step cheaper and noisier."""
    tasks: int = 16
    """Tasks a meta-step; more make its gradient less noisy and its time proportionally longer."""
    meta_steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Meta-steps in all. Default: 500 (glyphs), 10000 (omniglot)."""
    seed: int = 0
    """Seed of the initial weights and of every task drawn; the same seed repeats the run."""
    filters: int = 32
    """Width of the four-block convolutional network, in channels; time grows with its square."""
    inner_lr: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")] = None
    """Step size of the inner solver; lbfgs and hessian-free have none. Default: 0.4; 0.1 (nesterov), 0.01 (adam)."""
    learn_inner_lr: Annotated[Form | None, arg(metavar="{fixed,scalar,tensor,parameter}", help_behavior_hint="")] = None
    """maml: learn the inner step size with the weights: one for all, one a tensor, one a parameter. Default: fixed."""
    inner_solver: Annotated[
        InnerSolverName | None, arg(metavar="{gd,nesterov,adam,lbfgs,hessian-free}", help_behavior_hint="")
    ] = None
    """imaml: how a task is solved: gradient descent, its accelerated form, Adam, quasi-Newton, or Newton by conjugate
    gradients (5 products a step). Default: gd."""
    inner_tol: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")] = None
    """imaml: a task stops once its inner gradient norm is at most this. Default: 0, all inner steps."""
    inner_steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Inner steps a task, at most. Default: 5 (imaml), 1 (maml, fomaml)."""
    lam: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")] = None
    """imaml: strength of the pull of a task's weights towards the meta-learned ones. Default: 0.1."""
    learn_lam: Annotated[Form | None, arg(metavar="{fixed,scalar,tensor,parameter}", help_behavior_hint="")] = None
    """imaml: learn lam with the weights, begun at --lam: one for all, one a tensor, one a parameter. Default: fixed."""
    linear_solver: Annotated[
        LinearSolverName | None, arg(metavar="{cg,minres,neumann,woodbury,none}", help_behavior_hint="")
    ] = None
    """imaml: how the linear system of the meta-gradient is solved: conjugate gradients, MINRES (bears an indefinite
    matrix), a truncated Neumann series (of step a quarter of --inner-lr), exactly in the space of the outputs, or not
    at all (first order). Default: cg."""
    cg_steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """imaml: steps of cg or minres, or terms of the Neumann series; fewer leave a larger residual. Default: 5."""
    curvature: Annotated[
        Literal["gauss_newton", "hessian"] | None,
        arg(metavar="{gauss_newton,hessian}", help_behavior_hint=""),
    ] = None
    """imaml: matrix of the linear system; the exact hessian is often indefinite. Default: gauss_newton."""
    outer_lr: float = 1e-2
    """Step size of Adam on the meta-learned weights."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Course of the outer step size: cosine falls to 2 % of it over the meta-steps."""
    val_every: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Meta-steps between validations; the best validated weights are what is tested. Default: a tenth of all."""
    val_tasks: int = 200
    """Tasks a validation, the same every time."""
    test_tasks: int = 600
    """Test tasks at the end; 0 leaves the test classes untouched and reports validation."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints: at most this much work is lost to a power cut."""
    chunk: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Tasks computed at once: memory follows it, results do not. Default: chosen for the cache."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, ..."""

    def resolved(self, dataset: str) -> TrainConfig:
        """Fill in the defaults of the method and the data set, and check every value.

        Raises
        ------
        MetagradError
            for an option that the method does not have or a value outside its range.
        """
        fill = {**_DATASET_DEFAULTS[dataset], **_METHOD_DEFAULTS[self.method]}
        for name in _OWN:
            if name not in fill and getattr(self, name) is not None:
                owner = next(method for method, has in _METHOD_DEFAULTS.items() if name in has)
                raise MetagradError(f"--{name.replace('_', '-')} is for {owner}, not {self.method}: leave it out")
        if self.inner_solver in ("lbfgs", "hessian-free") and self.linear_solver != "neumann":
            del fill["inner_lr"]
            if self.inner_lr is not None:
                raise MetagradError(f"--inner-lr is not for --inner-solver {self.inner_solver}: leave it out")
        elif self.inner_solver in _STEP_SIZES:
            fill["inner_lr"] = _STEP_SIZES[self.inner_solver]
        chosen = {name: value for name, value in fill.items() if getattr(self, name) is None}
        filled = dataclasses.replace(self, **chosen)
        if filled.val_every is None and filled.meta_steps is not None:
            filled = dataclasses.replace(filled, val_every=max(1, filled.meta_steps // 10))
        filled._check()
        return filled

    def _check(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):
                raise MetagradError(f"--{name.replace('_', '-')} must be a whole number, got {value!r}")
            if value is not None and value < least:
                raise MetagradError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
        if self.inner_tol is not None and not 0 <= self.inner_tol < math.inf:
            raise MetagradError(f"--inner-tol must not be negative, got {self.inner_tol}")
        if self.linear_solver == "woodbury" and self.curvature == "hessian":
            raise MetagradError("--linear-solver woodbury needs --curvature gauss_newton")
        scores = self.ways**2 * self.shots
        if self.linear_solver == "woodbury" and scores > _WOODBURY:
            raise MetagradError(
                f"--linear-solver woodbury solves systems of ways × shots × ways = {scores} here, beyond {_WOODBURY}: "
                "use cg"
            )
        if self.test_tasks == 1:
            raise MetagradError("--test-tasks must be 0 or at least 2, for an interval, got 1")
        for name in ("inner_lr", "lam", "outer_lr", "checkpoint_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise MetagradError(f"--{name.replace('_', '-')} must be positive and finite, got {value}")
        if self.seed >= 2**62:
            raise MetagradError(f"--seed must be below 2^62, got {self.seed}")


_WOODBURY = 1024  # its default max_size
_STEP_SIZES = {"nesterov": 0.1, "adam": 0.01}
_LEAST = {
    "ways": 2, "shots": 1, "queries": 1, "tasks": 1, "meta_steps": 1, "seed": 0, "filters": 1, "inner_steps": 1,
    "cg_steps": 1, "val_every": 1, "val_tasks": 2, "test_tasks": 0, "chunk": 1,
}  # fmt: skip
