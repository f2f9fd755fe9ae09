"""Open an experiment's source of tasks: anything that returns tasks when called."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metagrad.data import Dataset, Progress
from metagrad.data.features import FeatureDataset, FeatureExtractor
from metagrad.errors import MetagradError, in_short
from metagrad.fewshot import Tasks
from metagrad.fewshot.task_set import WarmTasks
from metagrad.fewshot.tasks import groups_of
from metagrad.named_code import imported
from metagrad.seeds import Seeds

TaskSource = Callable[..., Any]


@dataclass(frozen=True)
class Sources:
    """An experiment's opened tasks: the source of each split, and facts about them.

    Attributes
    ----------
    train, val, test:
        ``(num_tasks, *, generator) -> Tasks`` on :attr:`device`.
    inputs, outputs:
        shape of an example's input (``()`` for a nest), and how many numbers a network returns for it.
    device:
        of the tasks.
    draws_on:
        device of their generators.
    digest:
        of the data; a resumed run must have the same. Empty if there are none.
    protocol:
        the part of a result's protocol that describes the data.
    record:
        the part of ``config.json`` that describes the data.
    dataset:
        the data set, if there is one.
    notes:
        warnings for people about how the data were read.
    """

    train: TaskSource
    val: TaskSource
    test: TaskSource
    inputs: tuple[int, ...]
    outputs: int
    device: torch.device
    draws_on: torch.device
    digest: str = ""
    protocol: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    dataset: Dataset | FeatureDataset | None = None
    notes: tuple[str, ...] = ()

    @property
    def pictures(self) -> Dataset | None:
        """The data set's pictures, if it has any; for features, the pictures that they were computed from."""
        return self.dataset.pictures if isinstance(self.dataset, FeatureDataset) else self.dataset

    @property
    def fixed(self) -> WarmTasks | None:
        """The finite set of training tasks, if there is one."""
        return self.train if isinstance(self.train, WarmTasks) else None


@dataclass(frozen=True, kw_only=True)
class TaskSet:
    """A finite set of tasks, drawn once and all used at every meta-step; inner solves start at their last solutions.

    The deterministic form of Yang, Ma and Yu 2025; for methods that differentiate implicitly.

    Parameters
    ----------
    tasks:
        source of the tasks; validation and test tasks come from it as usual.
    count:
        number of training tasks.

    Raises
    ------
    MetagradError
        for fewer than one.
    """

    tasks: Any
    count: int

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or not 1 <= self.count <= 10**9:
            raise MetagradError(f"a task set has at least 1 task, got {self.count!r}")

    def of(self, sources: Sources, seeds: Seeds) -> Sources:
        """Return sources whose training tasks are the set."""
        drawn = sources.train(self.count, generator=seeds.generator("task set", sources.draws_on))
        return replace(sources, train=WarmTasks(Tasks.of(drawn)))

    @property
    def meta_steps(self) -> int:
        """Default number of meta-steps."""
        return int(getattr(self.tasks, "meta_steps", 10_000))

    @property
    def minutes(self) -> float | None:
        """Default time limit of training, in minutes; ``None``: no limit."""
        minutes: float | None = getattr(self.tasks, "minutes", None)
        return minutes

    @property
    def network(self) -> Any:
        """Default network, if there is one."""
        return getattr(self.tasks, "network", None)


def open_tasks(
    tasks: Any,
    *,
    device: torch.device,
    seeds: Seeds,
    data_dir: Path | None = None,
    split: Any = None,
    strict: bool = False,
    features: FeatureExtractor | None = None,
    progress: Progress | None = None,
) -> Sources:
    """Open an experiment's tasks.

    Parameters
    ----------
    tasks:
        :class:`Episodes` or another value with ``open``; a callable ``(num_tasks, *, generator)``; something with such
        callables as ``train``, ``val`` and ``test``; or ``"package.module:name"`` of one of these, or of a function
        without arguments that returns one.
    features:
        computes the features that tasks are made of in place of pictures, where ``tasks`` can hand these out.
    seeds:
        one of their streams draws the finite set of a :class:`TaskSet`.

    Raises
    ------
    MetagradError
        for something else; as :meth:`Episodes.open` does.
    """
    if isinstance(tasks, TaskSet):
        sources = open_tasks(
            tasks.tasks,
            device=device,
            seeds=seeds,
            data_dir=data_dir,
            split=split,
            strict=strict,
            features=features,
            progress=progress,
        )
        return tasks.of(sources, seeds)
    if isinstance(tasks, str):
        tasks = named_tasks(tasks)
    elif _makes_tasks(tasks):
        tasks = _made(tasks, getattr(tasks, "__qualname__", "the task source"))
    if hasattr(tasks, "open"):
        more = {"features": features} if getattr(tasks, "gives_features", False) else {}
        opened: Sources = tasks.open(
            device=device, data_dir=data_dir, split=split, strict=strict, progress=progress, **more
        )
        return opened
    splits: list[Any] = [getattr(tasks, which, None) for which in ("train", "val", "test")]
    if not all(map(callable, splits)):
        if not callable(tasks):
            raise MetagradError(
                f"tasks must be callable as (num_tasks, generator=...), or have train, val and test that are, got "
                f"{in_short(repr(tasks), 60)}"
            )
        splits = [tasks] * 3
    train, val, test = (_moved(source, device) for source in splits)
    first = groups_of(train(4, generator=torch.Generator().manual_seed(0)))
    inputs, outputs = _form(first)
    name = getattr(tasks, "__qualname__", type(tasks).__qualname__)
    return Sources(
        train,
        val,
        test,
        inputs,
        outputs,
        device,
        torch.device("cpu"),
        protocol={"dataset": name, "preprocessing": ""},
        record={"drawn": _digest(first)},
    )


def named_tasks(path: str) -> Any:
    """Return the task source at an import path: the source itself, or what a function without arguments returns.

    Raises
    ------
    MetagradError
        if there is none.
    """
    tasks = imported(path, code=(path,))
    made = isinstance(tasks, type) and not _holds_functions(tasks)
    return _made(tasks, path) if made or _makes_tasks(tasks) else tasks


def _holds_functions(tasks: type) -> bool:
    """Whether a class is used as it is: its train is a plain function (num_tasks, *, generator), not a method."""
    train = vars(tasks).get("train")
    if not inspect.isfunction(train):
        return False
    places = [one for one in inspect.signature(train).parameters.values() if one.kind is not one.KEYWORD_ONLY]
    return len([one for one in places if one.name != "generator"]) == 1


def _makes_tasks(tasks: Any) -> bool:
    """Whether something is called without arguments to make a source, and is none itself."""
    if not callable(tasks) or hasattr(tasks, "train") or (hasattr(tasks, "open") and not isinstance(tasks, type)):
        return False
    try:
        takes = inspect.signature(tasks).parameters.values()
    except (TypeError, ValueError):
        return True
    return not any(one.name == "generator" or one.kind is one.VAR_KEYWORD for one in takes)


def _made(tasks: Any, name: str) -> Any:
    """Call what makes a source."""
    try:
        return tasks()
    except TypeError as error:
        raise MetagradError(
            f"{name} is called without arguments to make a task source, or is one that takes (num_tasks, *, "
            f"generator): {in_short(error)}"
        ) from error


def _moved(source: TaskSource, device: torch.device) -> TaskSource:
    """Return a source whose tasks are checked, and on ``device``."""

    def draw(num_tasks: int, *, generator: torch.Generator) -> Any:
        groups = [group.to(device) for group in groups_of(source(num_tasks, generator=generator))]
        return groups[0] if len(groups) == 1 else groups

    return draw


def _digest(groups: list[Tasks]) -> str:
    """Return a sha256 over tasks: a user's source has no data to compare, only the tasks that it draws."""
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves([(group.support, group.query) for group in groups]):
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(leaf.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _form(groups: list[Tasks]) -> tuple[tuple[int, ...], int]:
    """Return an input's shape and the number of outputs, from a few tasks."""
    x = groups[0].support.x
    inputs = tuple(x.shape[2:]) if isinstance(x, Tensor) else ()
    targets = [batch.y for group in groups for batch in group if isinstance(batch.y, Tensor)]
    if targets and not targets[0].is_floating_point():
        return inputs, max(2, 1 + max(int(y.max()) for y in targets))
    return inputs, int(targets[0].shape[-1]) if targets and targets[0].dim() > 2 else 1
