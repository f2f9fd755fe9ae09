"""What defines a training run. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tyro.conf import arg

from metagrad.errors import MetagradError, in_short

DATASETS = ("glyphs", "omniglot", "cifar-fs", "fc100", "mini-imagenet", "tiered-imagenet", "folder")
Method = Literal[
    "imaml", "maml", "fomaml", "reptile", "meta-sgd", "anil", "boil", "itd-bio", "memory-reduced", "protonet", "r2d2"
]
Network = Literal["conv4", "conv4-pool", "resnet12", "mlp"]
Norm = Literal["batch", "group", "layer"]
Features = Literal["cached", "recomputed"]
InnerSolverName = Literal["gd", "nesterov", "adam", "lbfgs", "hessian-free"]
LinearSolverName = Literal["cg", "minres", "neumann", "woodbury", "none"]
Form = Literal["fixed", "scalar", "tensor", "parameter"]
Curvature = Literal["gauss_newton", "hessian"]
Schedule = Literal["cosine", "constant"]
Precision = Literal["float32", "tf32", "bf16"]

# Chosen on validation classes; RESULTS.md has the comparisons.
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
# Options of some methods only. A run made before an option was there has None, which means the default.
_OWN = (
    "inner_solver", "inner_lr", "inner_steps", "inner_tol", "lam", "learn_lam", "linear_solver", "cg_steps",
    "curvature", "learn_inner_lr", "truncate", "keep_every", "adapts", "features", "l2", "task_set",
)  # fmt: skip
_DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    "glyphs": {"meta_steps": 500},
    "omniglot": {"meta_steps": 10000},
    "cifar-fs": {"meta_steps": 10000},
    "fc100": {"meta_steps": 10000},
    "mini-imagenet": {"meta_steps": 10000, "image_size": 84, "network": "conv4-pool"},
    "tiered-imagenet": {"meta_steps": 10000, "image_size": 84, "network": "conv4-pool"},
    "folder": {"meta_steps": 10000, "image_size": 84, "network": "conv4-pool"},
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained and how long; an option left out takes the default of the method or the data set."""

    method: Method = "imaml"
    """What adapts and how the meta-gradient is taken. All weights: imaml (implicit), maml (through the inner steps),
    fomaml (first order), reptile (towards the adapted weights), meta-sgd (maml with learned step sizes). The head:
    memory-reduced (implicit), itd-bio and anil (through the steps). All but the head: boil. No inner steps: protonet
    (class means), r2d2 (ridge regression)."""
    ways: int = 5
    """Classes a task; chance is 1/ways."""
    shots: int = 1
    """Support images a class: what a task adapts on."""
    queries: int = 5
    """Query images a class: what a task is judged on. Fewer make a step cheaper and noisier."""
    tasks: int = 16
    """Tasks a meta-step; more make its gradient less noisy and its time proportionally longer."""
    task_set: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """memory-reduced: draw so many tasks once, take all of them at every meta-step in place of new ones, and let each
    go on from where it ended (the deterministic form). Default: new tasks every meta-step."""
    meta_steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Meta-steps in all. Default: 500 (glyphs), else 10000."""
    seed: int = 0
    """Seed of the initial weights and of every task drawn; the same seed repeats the run."""
    network: Annotated[Network | None, arg(metavar="{conv4,conv4-pool,resnet12,mlp}", help_behavior_hint="")] = None
    """conv4: four convolutions of stride 2; conv4-pool: of stride 1, with pooling (slower, more accurate on
    photographs); resnet12: twelve, with shortcuts; mlp: two hidden layers. Default: conv4-pool for mini-imagenet,
    tiered-imagenet and folder, else conv4."""
    norm: Norm = "batch"
    """Normalisation of conv4 and conv4-pool: over the batch of a task (a prediction then depends on the other images),
    over groups of 8 channels of an image, or over the whole image (layer)."""
    filters: int = 32
    """Width of the network, in channels; time grows with its square."""
    image_size: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """mini-imagenet, tiered-imagenet, folder: side of the pictures in pixels; time grows with its square.
    Default: 84."""
    inner_lr: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")] = None
    """Step size of the inner solver; lbfgs and hessian-free have none. Default: 0.4 (imaml, maml, fomaml, boil), else
    0.1; with nesterov 0.1, with adam 0.01."""
    learn_inner_lr: Annotated[Form | None, arg(metavar="{fixed,scalar,tensor,parameter}", help_behavior_hint="")] = None
    """maml: learn the inner step size with the weights: one for all, one a tensor, one a parameter. Default: fixed."""
    inner_solver: Annotated[
        InnerSolverName | None, arg(metavar="{gd,nesterov,adam,lbfgs,hessian-free}", help_behavior_hint="")
    ] = None
    """imaml, memory-reduced: how a task is solved: gradient descent, its accelerated form, Adam, quasi-Newton, or
    Newton by conjugate gradients (5 products a step). Default: gd; hessian-free (memory-reduced)."""
    inner_tol: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")] = None
    """imaml, memory-reduced: a task stops once its inner gradient norm is at most this. Default: 0, all inner steps."""
    inner_steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Inner steps a task, at most. Default: 1 (maml, fomaml, meta-sgd, boil), 5 (imaml, anil, reptile), 20 (itd-bio),
    3 (memory-reduced; 20 with another inner solver)."""
    truncate: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """maml: differentiate the last so many inner steps only; 0 is fomaml. Default: all."""
    keep_every: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """maml: keep one inner step out of so many and take the others again: the same gradient, less memory, more time.
    Default: keep all."""
    adapts: Annotated[str | None, arg(metavar="PATTERN", help_behavior_hint="")] = None
    """imaml, maml, fomaml: names of the weights that a task adapts, such as head.*; tasks share the others.
    Default: *."""
    features: Annotated[Features | None, arg(metavar="{cached,recomputed}", help_behavior_hint="")] = None
    """anil, itd-bio, memory-reduced: whether the network's body sees an image once or at every inner step: the same
    gradient, many times the time and memory. Default: cached."""
    l2: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")] = None
    """itd-bio, memory-reduced: pull of the head towards zero (0: none, as published; then the linear system has no
    solution). r2d2: what the learned ridge begins at. Default: 0.01; 50 (r2d2)."""
    lam: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")] = None
    """imaml: strength of the pull of a task's weights towards the meta-learned ones. Default: 0.1."""
    learn_lam: Annotated[Form | None, arg(metavar="{fixed,scalar,tensor,parameter}", help_behavior_hint="")] = None
    """imaml: learn lam with the weights, begun at --lam: one for all, one a tensor, one a parameter. Default: fixed."""
    linear_solver: Annotated[
        LinearSolverName | None, arg(metavar="{cg,minres,neumann,woodbury,none}", help_behavior_hint="")
    ] = None
    """imaml, memory-reduced: how the linear system of the meta-gradient is solved: conjugate gradients, MINRES (bears
    an indefinite matrix), a truncated Neumann series (of step a quarter of --inner-lr), Woodbury (the Gauss-Newton
    system solved exactly in the space of the outputs), or not at all (first order). Default: cg."""
    cg_steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """imaml, memory-reduced: steps of cg or minres, or terms of neumann; fewer leave a larger residual. woodbury and
    none have no use for it. Default: 5 (imaml), 20 (memory-reduced)."""
    curvature: Annotated[
        Curvature | None,
        arg(metavar="{gauss_newton,hessian}", help_behavior_hint=""),
    ] = None
    """imaml, memory-reduced: matrix of the linear system; the exact hessian is often indefinite (take minres with it).
    woodbury needs gauss_newton. Default: gauss_newton."""
    outer_lr: float = 1e-2
    """Step size of Adam on the meta-learned weights."""
    schedule: Schedule = "cosine"
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
    precision: Precision = "float32"
    """Digits of the factors in the network's products: float32 has 24 bits; tf32 has 11 and needs a GPU; bf16 has 8.
    Fewer are faster on processors made for them. metagrad check says what they do to the meta-gradient."""

    def resolved(self, dataset: str) -> TrainConfig:
        """Fill in the defaults of the method and the data set, and check every value.

        Raises
        ------
        MetagradError
            for an option that the method or another option has no use for, or a value outside its range.
        """
        self.typed()
        fill = {**_DATASET_DEFAULTS[dataset], **_METHOD_DEFAULTS[self.method]}
        for name in _OWN:
            if name not in fill and getattr(self, name) is not None:
                owners = ", ".join(method for method, has in _METHOD_DEFAULTS.items() if name in has)
                raise MetagradError(f"--{name.replace('_', '-')} is for {owners}, not {self.method}: leave it out")
        if "image_size" not in fill and self.image_size is not None:
            raise MetagradError(f"--image-size is for data sets of pictures, not {dataset}: leave it out")
        if self.method == "memory-reduced" and self.inner_solver not in (None, "hessian-free"):
            fill["inner_steps"] = 20
        solver = self.inner_solver or fill.get("inner_solver")
        if solver in ("lbfgs", "hessian-free") and self.linear_solver != "neumann":
            del fill["inner_lr"]
            if self.inner_lr is not None:
                other = "leave it out" if self.inner_solver else "leave it out, or add --inner-solver gd"
                raise MetagradError(f"--inner-lr is not for --inner-solver {solver}: {other}")
        elif self.inner_solver in _STEP_SIZES and "inner_lr" in fill:
            fill["inner_lr"] = _STEP_SIZES[self.inner_solver]
        for name in _UNUSED.get(self.linear_solver or "", ()):
            if getattr(self, name) not in (None, _METHOD_DEFAULTS[self.method].get(name)):
                option = f"--{name.replace('_', '-')}"
                raise MetagradError(f"{option} has no effect with --linear-solver {self.linear_solver}: leave it out")
        chosen = {name: value for name, value in fill.items() if getattr(self, name) is None}
        filled = dataclasses.replace(self, **chosen)
        if filled.val_every is None and filled.meta_steps is not None:
            filled = dataclasses.replace(filled, val_every=max(1, filled.meta_steps // 10))
        filled._check()
        return filled

    def stable_at(self, curvature: float) -> float | None:
        """Return the inner step size below which steps are stable at a largest curvature, where that is known."""
        factor = {"gd": 2.0, "nesterov": 1.0}.get(self.inner_solver or "gd")
        return factor / curvature if factor is not None and curvature > 0 else None

    def typed(self) -> TrainConfig:
        """Return this configuration if every value is of its option's type, and one of its choices.

        Raises
        ------
        MetagradError
            naming the first that is not: a configuration may come from a file.
        """
        for name, hint in get_type_hints(TrainConfig).items():
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            kinds = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)
            for kind in kinds:
                if get_origin(kind) is Literal and value is not None:
                    known = get_args(kind)
                    if not isinstance(value, str) or value not in known:
                        raise MetagradError(f"{option} is one of {', '.join(known)}, got {in_short(repr(value), 40)}")
            if not any(_is_of(value, kind) for kind in kinds):
                wanted = next(words for kind, words in _TYPES.items() if kind in kinds)
                raise MetagradError(f"{option} must be {wanted}, got {in_short(repr(value), 40)}")
        return self

    def _check(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise MetagradError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
            if value is not None and value > _MOST and name != "seed":
                raise MetagradError(f"--{name.replace('_', '-')} must be at most {_MOST:,}, got {value}")
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
        if self.precision == "tf32" and self.device == "cpu":
            raise MetagradError("--precision tf32 is for GPUs: leave it out, or add --device cuda")
        if self.test_tasks == 1:
            raise MetagradError("--test-tasks must be 0 or at least 2, for an interval, got 1")
        if self.l2 is not None and not 0 <= self.l2 < math.inf:
            raise MetagradError(f"--l2 must not be negative, got {self.l2}")
        if self.task_set is not None and self.linear_solver == "none":
            raise MetagradError("--task-set needs a linear system to go on with: leave out --linear-solver none")
        if self.truncate is not None and self.keep_every is not None:
            raise MetagradError("--truncate and --keep-every do not go together: what is cut needs no keeping")
        if self.truncate is not None and self.learn_inner_lr not in (None, "fixed"):
            raise MetagradError("--learn-inner-lr needs all inner steps: leave out --truncate")
        for name in ("inner_lr", "lam", "outer_lr", "checkpoint_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < _LARGEST:
                raise MetagradError(f"--{name.replace('_', '-')} must be positive and finite, got {value}")
        if self.seed >= 2**62:
            raise MetagradError(f"--seed must be below 2^62, got {self.seed}")


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a type: true and false are no numbers, whole numbers are numbers too."""
    if get_origin(kind) is Literal:
        return value in get_args(kind) if isinstance(value, str) else False
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


_TYPES = {int: "a whole number", float: "a number", str: "a text"}
# Options that change nothing with a linear solver: a first-order gradient knows of no curvature.
_UNUSED = {"none": ("cg_steps", "curvature", "learn_lam"), "woodbury": ("cg_steps",)}
_WOODBURY = 1024  # its default max_size
_MOST = 10**9  # of anything that is counted
_LARGEST = 1e38  # beyond float32 there is infinity
_STEP_SIZES = {"nesterov": 0.1, "adam": 0.01}
_LEAST = {
    "ways": 2, "shots": 1, "queries": 1, "tasks": 1, "meta_steps": 1, "seed": 0, "filters": 1, "inner_steps": 1,
    "cg_steps": 1, "val_every": 1, "val_tasks": 2, "test_tasks": 0, "chunk": 1, "truncate": 0, "keep_every": 1,
    "image_size": 8, "task_set": 1,
}  # fmt: skip
