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

# Chosen on validation classes; RESULTS.md has the comparisons.
_METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "imaml": {"inner_lr": 0.4, "inner_steps": 5, "lam": 0.1, "cg_steps": 5, "curvature": "gauss_newton"},
    "maml": {"inner_lr": 0.4, "inner_steps": 1},
    "fomaml": {"inner_lr": 0.4, "inner_steps": 1},
}
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
    """Step size of the inner gradient descent. Default: 0.4."""
    inner_steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Inner gradient descent steps a task. Default: 5 (imaml), 1 (maml, fomaml)."""
    lam: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")] = None
    """imaml: strength of the pull of a task's weights towards the meta-learned ones. Default: 0.1."""
    cg_steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """imaml: conjugate gradient steps for the meta-gradient; fewer leave a larger residual. Default: 5."""
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
        for name in ("lam", "cg_steps", "curvature"):
            if name not in fill and getattr(self, name) is not None:
                raise MetagradError(f"--{name.replace('_', '-')} is for imaml, not {self.method}: leave it out")
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
        for name in ("inner_lr", "lam", "outer_lr", "checkpoint_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise MetagradError(f"--{name.replace('_', '-')} must be positive and finite, got {value}")
        if self.seed >= 2**62:
            raise MetagradError(f"--seed must be below 2^62, got {self.seed}")


_LEAST = {
    "ways": 2, "shots": 1, "queries": 1, "tasks": 1, "meta_steps": 1, "seed": 0, "filters": 1, "inner_steps": 1,
    "cg_steps": 1, "val_every": 1, "val_tasks": 2, "test_tasks": 0, "chunk": 1,
}  # fmt: skip
