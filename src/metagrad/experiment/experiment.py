"""An experiment as a value: what is learned from which tasks, how, and for how long. Its JSON is these classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from metagrad.errors import MetagradError
from metagrad.experiment.episodes import episodes_of
from metagrad.experiment.networks import NetworkConfig
from metagrad.experiment.values import to_json
from metagrad.fewshot.algorithms.base import Algorithm
from metagrad.named_code import name_of

Schedule = Literal["cosine", "constant"]
Precision = Literal["float32", "tf32", "bf16"]
_MOST = 10**9  # of anything that is counted
_LARGEST = 1e38  # beyond float32 there is infinity


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Update of theta: an optimiser of ``torch.optim``, and the schedule of its step size.

    Parameters
    ----------
    optimizer:
        name of a class of ``torch.optim``: ``"Adam"``, ``"AdamW"``, ``"SGD"``, ...
    lr:
        step size of the optimiser on the meta-learned weights; ``None``: the network's suggestion (of a pretrained
        one 2e-4), else 0.01.
    schedule:
        course of the step size: ``"cosine"`` falls to 2 % of it at the end, ``"constant"`` stays.
    warmup:
        meta-steps in which the step size rises linearly to its full value.
    weight_decay:
        weight decay of the optimiser; it leaves learned hyper-parameters alone.
    momentum:
        momentum of an optimiser that has one, such as SGD; ``None``: the optimiser's own.
    clip_norm:
        largest norm of a meta-gradient: a longer one is scaled down to it; ``None``: no limit.
    average:
        decay, in (0, 1), of an exponential moving average of theta, which is what is validated, tested and kept as the
        best; ``None``: no average.

    Raises
    ------
    MetagradError
        for a value outside its range, or an optimiser that there is none of.
    """

    optimizer: str = "Adam"
    lr: float | None = None
    schedule: Schedule = "cosine"
    warmup: int = 0
    weight_decay: float = 0.0
    momentum: float | None = None
    clip_norm: float | None = None
    average: float | None = None

    def __post_init__(self) -> None:
        names = {name.lower(): name for name, made in vars(torch.optim).items() if _is_optimizer(made)}
        if self.optimizer.lower() not in names:
            raise MetagradError(f"torch.optim has no {self.optimizer!r}: there are {', '.join(sorted(names.values()))}")
        object.__setattr__(self, "optimizer", names[self.optimizer.lower()])
        if self.optimizer == "LBFGS":
            raise MetagradError(
                "LBFGS evaluates the loss several times a step, but a meta-step computes it once: use Adam"
            )
        if self.lr is not None:
            _require_between("outer lr", self.lr, 0, _LARGEST)
        _require_count("warmup", self.warmup, 0)
        if not 0 <= self.weight_decay < math.inf:
            raise MetagradError(f"weight_decay must be finite and not negative, got {self.weight_decay}")
        for name, most in (("momentum", 1.0), ("clip_norm", math.inf), ("average", 1.0)):
            value = getattr(self, name)
            if value is not None and not (0 < value < most or (name == "momentum" and value == 0)):
                raise MetagradError(f"{name} must be above 0 and below {most:g}, got {value}")
        if self.schedule not in ("cosine", "constant"):
            raise MetagradError(f"schedule is one of cosine, constant, got {self.schedule!r}")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Length of the training, and the number of validation and test tasks.

    Parameters
    ----------
    meta_steps:
        meta-steps of the whole training; ``None``: the suggestion of the network (on the features of a pretrained one
        500) or of the task source, else 10,000.
    minutes:
        maximum wall-clock minutes of training, over all sessions; ``None``: no limit; for mini-imagenet,
        tiered-imagenet and folder an hour, unless ``meta_steps`` is given or the network is pretrained.
    tasks_per_step:
        tasks of a meta-step. More give a less noisy gradient and take proportionally longer; ``None``: the
        network's suggestion (on the features of a pretrained one 8), else 16.
    val_every:
        meta-steps between validations; ``None``: a tenth of ``meta_steps``.
    val_tasks:
        tasks of a validation, the same every time.
    test_tasks:
        test tasks at the end; 0 uses no test classes and reports the accuracy on three times ``val_tasks`` validation
        tasks instead.
    checkpoint_seconds:
        seconds between checkpoints: a power cut loses at most this much work.

    Raises
    ------
    MetagradError
        for a value outside its range.
    """

    meta_steps: int | None = None
    minutes: float | None = None
    tasks_per_step: int | None = None
    val_every: int | None = None
    val_tasks: int = 200
    test_tasks: int = 600
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        least = {"meta_steps": 1, "tasks_per_step": 1, "val_every": 1, "val_tasks": 2, "test_tasks": 0}
        for name, number in least.items():
            if getattr(self, name) is not None:
                _require_count(name, getattr(self, name), number)
        if self.test_tasks == 1:
            raise MetagradError("test_tasks must be 0 or at least 2, for an interval, got 1")
        _require_between("checkpoint_seconds", self.checkpoint_seconds, 0, _LARGEST)
        if self.minutes is not None:
            _require_between("minutes", self.minutes, 0, _LARGEST)


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Device and precision of the computation.

    Parameters
    ----------
    device:
        where to compute: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
    precision:
        precision of matrix products and convolutions: ``"float32"`` (24 bits), ``"tf32"`` (11 bits, needs a GPU) or
        ``"bf16"`` autocast (8 bits).
    chunk:
        tasks computed at once: more need more memory, results stay the same; ``None``: what fits the processor's cache.

    Raises
    ------
    MetagradError
        for a value outside its range.
    """

    device: str = "cpu"
    precision: Precision = "float32"
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None:
            _require_count("chunk", self.chunk, 1)
        if self.precision not in ("float32", "tf32", "bf16"):
            raise MetagradError(f"precision is one of float32, tf32, bf16, got {self.precision!r}")
        if self.precision == "tf32" and self.device == "cpu":
            raise MetagradError("precision tf32 is for GPUs: leave it out, or take a GPU as the device")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The argument of :func:`metagrad.train`: everything that determines the result.

    Parameters
    ----------
    tasks:
        where tasks come from: :class:`~metagrad.experiment.Episodes`, :class:`~metagrad.fewshot.Sinusoids`, a callable
        ``(num_tasks, *, generator) -> Tasks``, or something with such callables as ``train``, ``val`` and ``test``.
    network:
        what is meta-learned: a :class:`~metagrad.experiment.Conv4Config` or its like, a function or class that returns
        an ``nn.Module``, ``"package.module:name"`` of one, or an ``nn.Module``, which gives its weights too. ``None``:
        what suits the tasks.
    method:
        how: :class:`~metagrad.fewshot.IMAML`, ..., or an own :class:`~metagrad.fewshot.Algorithm`.
    outer, budget, compute:
        the outer optimiser; how long; where.
    seed:
        of the initial weights and of every task drawn: the same seed repeats the run.

    Raises
    ------
    MetagradError
        for a value outside its range.

    Examples
    --------
    >>> from metagrad import Experiment
    >>> from metagrad.fewshot import IMAML, Sinusoids, SquaredError
    >>> from metagrad.experiment import Budget, MLPConfig
    >>> Experiment(tasks=Sinusoids(shots=10, queries=10), network=MLPConfig(hidden=(40, 40)),
    ...            method=IMAML(lam=0.5, loss=SquaredError()), budget=Budget(meta_steps=200)).budget.val_every
    20
    """

    tasks: Any
    method: Algorithm
    network: NetworkConfig | Callable[[], nn.Module] | nn.Module | str | None = None
    outer: Outer = field(default_factory=Outer)
    budget: Budget = field(default_factory=Budget)
    compute: Compute = field(default_factory=Compute)
    seed: int = 0

    def __post_init__(self) -> None:
        _require_count("seed", self.seed, 0, 2**62 - 1)
        if not callable(getattr(self.method, "meta_loss", None)):
            raise MetagradError(f"method must be one of metagrad.fewshot's, or have its functions, got {self.method!r}")
        self._require_ways()
        if self.network is None:
            network = getattr(self.tasks, "network", None) or getattr(self.method, "network", None)
            if network is None:
                raise MetagradError("these tasks have no default network: give network=MLPConfig(), or your own")
            object.__setattr__(self, "network", network)
        self._fill_in()

    def _fill_in(self) -> None:
        """Fill in what was left open: by what suits the network, then the tasks, then most experiments."""
        budget, outer = self.budget, self.outer
        of_network, of_tasks = (getattr(part, "meta_steps", None) for part in (self.network, self.tasks))
        steps = int(of_network or of_tasks or 10_000) if budget.meta_steps is None else budget.meta_steps
        minutes = budget.minutes
        if minutes is None and budget.meta_steps is None and not of_network:
            minutes = getattr(self.tasks, "minutes", None)
        tasks = budget.tasks_per_step or getattr(self.network, "tasks_per_step", None) or 16
        every = budget.val_every or max(1, steps // 10)
        filled = replace(budget, meta_steps=steps, minutes=minutes, tasks_per_step=tasks, val_every=every)
        object.__setattr__(self, "budget", filled)
        if outer.lr is None:
            object.__setattr__(self, "outer", replace(outer, lr=getattr(self.network, "outer_lr", None) or 1e-2))

    def _require_ways(self) -> None:
        """Refuse training tasks of more or fewer classes than the head has learned rows for."""
        episodes = episodes_of(self.tasks)
        if episodes is None or getattr(self.method, "any_ways", False):
            return
        if episodes.train_ways not in (None, episodes.ways):
            name = name_of(self.method)
            raise MetagradError(
                f"train_ways must equal ways for {name}, got {episodes.train_ways} and {episodes.ways}: its head has "
                "one learned row for each output; take another start, such as start='shared', or ProtoNet or R2D2"
            )

    @property
    def meta_steps(self) -> int:
        """Meta-steps in all."""
        assert self.budget.meta_steps is not None
        return self.budget.meta_steps

    @property
    def tasks_per_step(self) -> int:
        """Tasks of a meta-step."""
        assert self.budget.tasks_per_step is not None
        return self.budget.tasks_per_step

    @property
    def val_every(self) -> int:
        """Meta-steps between validations."""
        assert self.budget.val_every is not None
        return self.budget.val_every

    def as_json(self) -> dict[str, Any]:
        """Return the experiment as plain JSON.

        Raises
        ------
        MetagradError
            for a part that has no JSON.
        """
        network: Any = self.network
        if not isinstance(network, nn.Module):
            return dict(to_json(self))
        # JSON cannot hold a module, so the caller passes it again to resume.
        name = f"{type(network).__module__}:{type(network).__qualname__}"
        return {**to_json(replace(self, network="module:given")), "network": {"module": name}}


def described(experiment: Experiment) -> dict[str, Any]:
    """Return an experiment's choices by the names of their fields, for people to read.

    If two parts have a field of the same name, the part's name comes first: ``outer lr``.
    """
    choices: dict[str, Any] = {}

    def put(value: Any, holder: str) -> None:
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            plain = value is None or isinstance(value, str | int | float | tuple)
            choices[holder] = value if plain else getattr(value, "__qualname__", type(value).__qualname__)
            return
        if holder and not isinstance(value, Outer | Budget | Compute):
            choices[holder] = name_of(value) if holder == "method" else getattr(value, "name", type(value).__name__)
        for one in dataclasses.fields(value):
            inner = getattr(value, one.name)
            name = one.name if one.name not in choices else f"{holder} {one.name}"
            put(inner, name)

    for one in dataclasses.fields(experiment):
        put(getattr(experiment, one.name), one.name)
    return choices


def _is_optimizer(made: Any) -> bool:
    return isinstance(made, type) and issubclass(made, torch.optim.Optimizer) and made is not torch.optim.Optimizer


def _require_count(name: str, value: Any, least: int, most: int = _MOST) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise MetagradError(f"{name} must be a whole number, got {value!r}")
    if not least <= value <= most:
        bound = f"at least {least}" if value < least else f"at most {most:,}"
        raise MetagradError(f"{name} must be {bound}, got {value}")


def _require_between(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
        raise MetagradError(f"{name} must be positive and finite, got {value!r}")
