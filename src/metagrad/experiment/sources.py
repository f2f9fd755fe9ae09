"""Where an experiment's tasks come from: a data set's episodes, or anything that can be called for tasks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from metagrad import data
from metagrad.data import Dataset, ImageClasses, Progress
from metagrad.errors import MetagradError, in_short
from metagrad.experiment.networks import Conv4Config
from metagrad.experiment.values import imported
from metagrad.fewshot import EpisodeSampler, Tasks
from metagrad.fewshot.task_set import WarmTasks
from metagrad.fewshot.tasks import groups_of
from metagrad.seeds import Seeds

TaskSource = Callable[..., Any]


@dataclass(frozen=True)
class Sources:
    """An experiment's tasks, opened: what each split draws, and what is known of them.

    Attributes
    ----------
    train, val, test:
        ``(num_tasks, *, generator) -> Tasks`` on :attr:`device`.
    inputs, outputs:
        shape of an example's input (``()`` for a nest), and how many numbers a network returns for it.
    device:
        where tasks are.
    draws_on:
        where their generators are.
    digest:
        of the data; a resumed run must see the same. Empty where there are none.
    protocol:
        what a result says of how tasks were drawn.
    record:
        what ``config.json`` keeps of the data.
    dataset:
        the data set, where there is one.
    notes:
        what a person should know of how it was read.
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
    dataset: Dataset | None = None
    notes: tuple[str, ...] = ()

    @property
    def fixed(self) -> WarmTasks | None:
        """The finite set of training tasks, where there is one."""
        return self.train if isinstance(self.train, WarmTasks) else None


class OpensTasks(Protocol):
    """A value that opens its own sources."""

    def open(
        self, *, device: torch.device, data_dir: Path | None, split: Any, strict: bool, progress: Progress | None
    ) -> Sources:
        """Load the data and return the sources."""
        ...


@dataclass(frozen=True)
class Episodes:
    """Tasks of ``ways`` classes of a data set, with ``shots`` support and ``queries`` query images of each.

    Parameters
    ----------
    dataset:
        ``"glyphs"``, ``"omniglot"``, ``"cifar-fs"``, ``"fc100"``, ``"mini-imagenet"``, ``"tiered-imagenet"``, or
        ``"folder"``: pictures of your own.
    ways:
        classes a task; chance is 1 / ways.
    shots:
        support images a class: what a task adapts on.
    queries:
        query images a class: what a task is judged on. Fewer make a step cheaper and noisier.
    image_size:
        mini-imagenet, tiered-imagenet, folder: side of the pictures in pixels; time grows with its square. ``None``:
        84.

    Raises
    ------
    MetagradError
        for a data set that there is none of, or a value outside its range.
    """

    dataset: str
    ways: int = field(default=5, kw_only=True)
    shots: int = field(default=1, kw_only=True)
    queries: int = field(default=5, kw_only=True)
    image_size: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.dataset not in data.DATASETS:
            raise MetagradError(f"no data set is called {self.dataset!r}: there are {', '.join(data.DATASETS)}")
        for name, least in (("ways", 2), ("shots", 1), ("queries", 1), ("image_size", 8)):
            value = getattr(self, name)
            if name == "image_size" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise MetagradError(f"{name} must be a whole number, got {value!r}")
            if not least <= value <= 10**9:
                raise MetagradError(
                    f"{name} must be {f'at least {least}' if value < least else 'smaller'}, got {value}"
                )
        pictures = data.DATASETS[self.dataset].pictures
        if self.image_size is not None and not pictures:
            raise MetagradError(f"image_size is for data sets of pictures, not {self.dataset}: leave it out")
        if self.image_size is None and pictures:
            object.__setattr__(self, "image_size", 84)

    @property
    def meta_steps(self) -> int:
        """How many meta-steps suit the data set."""
        return data.DATASETS[self.dataset].meta_steps

    @property
    def network(self) -> Conv4Config:
        """The network that suits the data set."""
        return Conv4Config(pooling=data.DATASETS[self.dataset].pictures)

    def open(
        self,
        *,
        device: torch.device,
        data_dir: Path | None = None,
        split: Any = None,
        strict: bool = False,
        progress: Progress | None = None,
    ) -> Sources:
        """Load the data set and return samplers of its three splits.

        Raises
        ------
        MetagradError
            for data that are not there or damaged, or a split with too few classes.
        """
        found = data.load(
            self.dataset,
            data_dir=data_dir,
            image_size=self.image_size,
            split=split,
            strict=strict,
            progress=progress,
        )
        return self.of(found, device=device, data_dir=data_dir, strict=strict)

    def of(
        self,
        dataset: Dataset,
        *,
        device: torch.device | str = "cpu",
        data_dir: Path | None = None,
        strict: bool = False,
    ) -> Sources:
        """Return samplers of a data set that is loaded."""
        few = self._too_few(dataset)
        if few and strict:
            raise MetagradError(few)
        device = torch.device(device)
        self.sampler(dataset, "test")  # refuses before anything is trained
        channels, *_, size = dataset.train.images.shape[1:]
        record: dict[str, Any] = {}
        if self.dataset == "folder":
            record = {
                "data_dir": str(data_dir.absolute()) if data_dir else None,
                "split": {which: list(getattr(dataset, which).names) for which in ("train", "val", "test")},
            }
        elif self.dataset != "glyphs" and (where := data.data_directory(data_dir)) is not None:
            record["data_dir"] = str(where.absolute())
        return Sources(
            train=self.sampler(dataset, "train", device=device, rotations=dataset.rotations),
            val=self.sampler(dataset, "val", device=device),
            test=self.sampler(dataset, "test", device=device),
            inputs=(channels, size, size),
            outputs=self.ways,
            device=device,
            draws_on=device,
            digest=dataset.digest,
            protocol={"dataset": dataset.name, "preprocessing": dataset.preprocessing},
            record=record,
            dataset=dataset,
            notes=(*dataset.notes, *([few] if few else [])),
        )

    def sampler(
        self,
        dataset: Dataset,
        which: str,
        *,
        device: torch.device | str = "cpu",
        queries: int | None = None,
        rotations: bool = False,
    ) -> EpisodeSampler:
        """Return the sampler of a split, of the classes that have enough images.

        Raises
        ------
        MetagradError
            if these are too few; names the split.
        """
        classes: ImageClasses = getattr(dataset, which).to(device)
        asked = queries or self.queries
        enough = classes.with_at_least(self.shots + asked)
        if len(enough.names) < self.ways:
            missing = len(classes.names) - len(enough.names)
            short = f", {missing} more with fewer than {self.shots} + {asked} images" if missing else ""
            raise MetagradError(
                f"a task of {self.ways} ways is more than the {len(enough.names)} classes for {_FOR[which]}{short}: "
                f"lower --ways{', --shots or --queries' if missing else ''}"
            )
        return EpisodeSampler(classes=enough, ways=self.ways, shots=self.shots, queries=asked, rotations=rotations)

    def _too_few(self, dataset: Dataset) -> str | None:
        """Say which classes are left out for having too few images, if any are."""
        small = [
            name
            for classes in (dataset.train, dataset.val, dataset.test)
            for name, count in zip(classes.names, classes.counts.tolist(), strict=True)
            if count < self.shots + self.queries
        ]
        if not small:
            return None
        return (
            f"left out {len(small)} class{'es' * (len(small) > 1)} with fewer than {self.shots} + {self.queries} "
            f"images ({small[0]}): add images, or lower --shots or --queries"
        )


_FOR = {"train": "training", "val": "validation", "test": "the test"}


@dataclass(frozen=True, kw_only=True)
class TaskSet:
    """A finite set of tasks: drawn once, all of them taken at every meta-step, each going on from where it ended.

    The deterministic form of Yang, Ma and Yu 2025; for methods that differentiate implicitly.

    Parameters
    ----------
    tasks:
        where they are drawn from; validation and test draw from there as ever.
    count:
        how many.

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
        """Return sources whose training tasks are the set, drawn from one of the streams."""
        drawn = sources.train(self.count, generator=seeds.generator("task set", sources.draws_on))
        return replace(sources, train=WarmTasks(Tasks.of(drawn)))

    @property
    def meta_steps(self) -> int:
        """What suits the tasks."""
        return int(getattr(self.tasks, "meta_steps", 10_000))

    @property
    def network(self) -> Any:
        """What suits the tasks."""
        return getattr(self.tasks, "network", None)


def episodes_of(tasks: Any) -> Episodes | None:
    """Return how tasks are drawn from a data set, if they are."""
    if isinstance(tasks, TaskSet):
        return episodes_of(tasks.tasks)
    return tasks if isinstance(tasks, Episodes) else None


def open_tasks(
    tasks: Any,
    *,
    device: torch.device,
    seeds: Seeds,
    data_dir: Path | None = None,
    split: Any = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Sources:
    """Return what an experiment draws from.

    Parameters
    ----------
    tasks:
        :class:`Episodes` or another value with ``open``; a callable ``(num_tasks, *, generator)``; something with such
        callables as ``train``, ``val`` and ``test``; or ``"package.module:name"`` of one of these, or of a function
        without arguments that returns one.
    seeds:
        one of whose streams draws the finite set of a :class:`TaskSet`.

    Raises
    ------
    MetagradError
        for something else; as :meth:`Episodes.open` does.
    """
    if isinstance(tasks, TaskSet):
        found = open_tasks(
            tasks.tasks, device=device, seeds=seeds, data_dir=data_dir, split=split, strict=strict,
            progress=progress,
        )  # fmt: skip
        return tasks.of(found, seeds)
    if isinstance(tasks, str):
        tasks = named_tasks(tasks)
    if hasattr(tasks, "open"):
        opened: Sources = tasks.open(device=device, data_dir=data_dir, split=split, strict=strict, progress=progress)
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
    inputs, outputs = _form(train)
    name = getattr(tasks, "__qualname__", type(tasks).__qualname__)
    return Sources(
        train, val, test, inputs, outputs, device, torch.device("cpu"), protocol={"dataset": name, "preprocessing": ""}
    )


def named_tasks(path: str) -> Any:
    """Return the task source at an import path: the source itself, or what a function without arguments returns.

    Raises
    ------
    MetagradError
        if there is none.
    """
    found = imported(path, code=(path,))
    try:
        takes = inspect.signature(found).parameters if callable(found) else {}
    except (TypeError, ValueError):
        takes = {}
    if isinstance(found, type) or (callable(found) and "generator" not in takes and not hasattr(found, "train")):
        try:
            found = found()
        except TypeError as error:
            raise MetagradError(
                f"{path} is called without arguments to make a task source, or is one that takes (num_tasks, *, "
                f"generator): {in_short(error)}"
            ) from error
    return found


def _moved(source: TaskSource, device: torch.device) -> TaskSource:
    """Return a source whose tasks are checked, and on ``device``."""

    def draw(num_tasks: int, *, generator: torch.Generator) -> Any:
        groups = [group.to(device) for group in groups_of(source(num_tasks, generator=generator))]
        return groups[0] if len(groups) == 1 else groups

    return draw


def _form(source: TaskSource) -> tuple[tuple[int, ...], int]:
    """Return an input's shape and the number of outputs, as some tasks show them."""
    groups = groups_of(source(4, generator=torch.Generator().manual_seed(0)))
    x = groups[0].support.x
    inputs = tuple(x.shape[2:]) if isinstance(x, Tensor) else ()
    targets = [batch.y for group in groups for batch in group if isinstance(batch.y, Tensor)]
    if targets and not targets[0].is_floating_point():
        return inputs, max(2, 1 + max(int(y.max()) for y in targets))
    return inputs, int(targets[0].shape[-1]) if targets and targets[0].dim() > 2 else 1
