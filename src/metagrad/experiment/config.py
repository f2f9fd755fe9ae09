"""The flat options of metagrad 0.1, as its runs and model files have them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from metagrad.errors import MetagradError, in_short
from metagrad.experiment.values import has_type, type_in_words

Method = Literal[
    "imaml", "maml", "fomaml", "reptile", "meta-sgd", "anil", "boil", "itd-bio", "memory-reduced", "protonet", "r2d2"
]
Form = Literal["fixed", "scalar", "tensor", "parameter"]

# The defaults of options that were left out. A run that is older than an option has None.
_METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "imaml": {
        "inner_solver": "gd", "inner_lr": 0.4, "inner_steps": 5, "inner_tol": 0.0, "lam": 0.1, "learn_lam": "fixed",
        "linear_solver": "cg", "cg_steps": 5, "curvature": "gauss_newton", "adapts": "*",
    },
    "maml": {
        "inner_lr": 0.4, "inner_steps": 1, "learn_inner_lr": "fixed", "truncate": None, "keep_every": None,
        "adapts": "*",
    },
    "fomaml": {"inner_lr": 0.4, "inner_steps": 1, "adapts": "*"},
    "reptile": {"inner_lr": 0.1, "inner_steps": 5},
    "meta-sgd": {"inner_lr": 0.1, "inner_steps": 1},
    "anil": {"inner_lr": 0.1, "inner_steps": 5, "features": "cached"},
    "boil": {"inner_lr": 0.4, "inner_steps": 1},
    "itd-bio": {"inner_lr": 0.1, "inner_steps": 20, "l2": 1e-2, "features": "cached"},
    "memory-reduced": {
        "inner_solver": "hessian-free", "inner_lr": 0.1, "inner_steps": 3, "inner_tol": 0.0, "l2": 1e-2,
        "features": "cached",
        "linear_solver": "cg", "cg_steps": 20, "curvature": "gauss_newton", "task_set": None,
    },
    "protonet": {},
    "r2d2": {"l2": 50.0},
}  # fmt: skip
_DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    "glyphs": {"meta_steps": 500},
    "omniglot": {"meta_steps": 10000},
    "cifar-fs": {"meta_steps": 10000},
    "fc100": {"meta_steps": 10000},
    "mini-imagenet": {"meta_steps": 10000, "image_size": 84, "network": "conv4-pool"},
    "tiered-imagenet": {"meta_steps": 10000, "image_size": 84, "network": "conv4-pool"},
    "folder": {"meta_steps": 10000, "image_size": 84, "network": "conv4-pool"},
}


_STEP_SIZES = {"nesterov": 0.1, "adam": 0.01}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The options in ``config.json`` of format 1; :func:`metagrad.experiment.format1.experiment_of` converts them."""

    method: Method = "imaml"
    ways: int = 5
    shots: int = 1
    queries: int = 5
    tasks: int = 16
    task_set: int | None = None
    meta_steps: int | None = None
    seed: int = 0
    network: Literal["conv4", "conv4-pool", "resnet12", "mlp"] | None = None
    norm: Literal["batch", "group", "layer"] = "batch"
    filters: int = 32
    image_size: int | None = None
    inner_lr: float | None = None
    learn_inner_lr: Form | None = None
    inner_solver: Literal["gd", "nesterov", "adam", "lbfgs", "hessian-free"] | None = None
    inner_tol: float | None = None
    inner_steps: int | None = None
    truncate: int | None = None
    keep_every: int | None = None
    adapts: str | None = None
    features: Literal["cached", "recomputed"] | None = None
    l2: float | None = None
    lam: float | None = None
    learn_lam: Form | None = None
    linear_solver: Literal["cg", "minres", "neumann", "woodbury", "none"] | None = None
    cg_steps: int | None = None
    curvature: Literal["gauss_newton", "hessian"] | None = None
    outer_lr: float = 1e-2
    schedule: Literal["cosine", "constant"] = "cosine"
    val_every: int | None = None
    val_tasks: int = 200
    test_tasks: int = 600
    checkpoint_seconds: float = 30.0
    chunk: int | None = None
    device: str = "cpu"
    precision: Literal["float32", "tf32", "bf16"] = "float32"

    def resolved(self, dataset: str) -> TrainConfig:
        """Check the types, and fill in the defaults that the method and the data set had.

        Raises
        ------
        MetagradError
            for a value of another type; the classes of the experiment check ranges.
        """
        self.typed()
        fill = {**_DATASET_DEFAULTS[dataset], **_METHOD_DEFAULTS[self.method]}
        if self.method == "memory-reduced" and self.inner_solver not in (None, "hessian-free"):
            fill["inner_steps"] = 20
        solver = self.inner_solver or fill.get("inner_solver")
        if solver in ("lbfgs", "hessian-free") and self.linear_solver != "neumann":
            del fill["inner_lr"]
        elif solver in _STEP_SIZES:
            fill["inner_lr"] = _STEP_SIZES[solver]
        chosen = {name: value for name, value in fill.items() if getattr(self, name) is None}
        if self.val_every is None:
            chosen["val_every"] = max(1, (self.meta_steps or fill["meta_steps"]) // 10)
        return dataclasses.replace(self, **chosen)

    def typed(self) -> TrainConfig:
        """Return this configuration; raise ``MetagradError`` naming the first value of another type than its option."""
        for name, hint in get_type_hints(TrainConfig).items():
            value = getattr(self, name)
            if not has_type(value, hint):
                option = f"--{name.replace('_', '-')}"
                raise MetagradError(f"{option} must be {type_in_words(hint)}, got {in_short(repr(value), 40)}")
        return self
