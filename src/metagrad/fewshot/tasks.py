"""Few-shot tasks: a support set that each adapts on, a query set that it is scored on, and sources of tasks."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metagrad import tree


class Batch(NamedTuple):
    """Labelled examples of T tasks.

    Attributes
    ----------
    x:
        the network's inputs: a tensor ``(T, N, ...)``, or a nest of such tensors (dictionary, tuple, list), which the
        network is called with as it is.
    y:
        labels, int64 ``(T, N)``, or targets ``(T, N, ...)``.
    """

    x: Any
    y: Any

    @property
    def weight(self) -> None:
        """All examples count alike."""
        return


class WeightedBatch(NamedTuple):
    """Labelled examples that count more or less in the loss.

    Attributes
    ----------
    x, y:
        as of a :class:`Batch`.
    weight:
        ``(T, N)``: how much each example counts.
    """

    x: Any
    y: Any
    weight: Tensor


AnyBatch = Batch | WeightedBatch


@dataclass(frozen=True)
class Tasks:
    """T tasks of the same shape. Tasks of other shapes go into another ``Tasks``: see :func:`group_tasks`.

    Parameters
    ----------
    support, query:
        a :class:`Batch` or :class:`WeightedBatch` each, or ``(x, y)``, or ``{"x": ..., "y": ...}``. Arrays of NumPy
        become tensors; whole numbers of fewer bits become int64.
    classes:
        ``(T, ways)``: which class of the data each label of each task stands for, where that is known.

    Raises
    ------
    ValueError
        if axes, devices or dtypes do not fit together, or if there is no task or no example.
    TypeError
        for something else than a batch.

    Examples
    --------
    >>> import torch
    >>> from metagrad.fewshot import Tasks
    >>> x, y = torch.randn(8, 5, 3), torch.arange(5).expand(8, 5)
    >>> tasks = Tasks((x, y), (x + 0.1, y))
    >>> len(tasks), tasks.support.x.shape
    (8, torch.Size([8, 5, 3]))
    """

    support: AnyBatch
    query: AnyBatch
    classes: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("support", "query"):
            object.__setattr__(self, name, _checked_batch(name, getattr(self, name)))
        if (here := num_tasks(self.support)) != (there := num_tasks(self.query)):
            raise ValueError(f"the support sets are of {here} tasks, the query sets of {there}: they must be the same")
        _require_alike(self.support, self.query)
        if self.classes is not None and (self.classes.dim() != 2 or len(self.classes) != here):
            raise ValueError(f"classes must be (T, ways) for the {here} tasks, got {tuple(self.classes.shape)}")

    @classmethod
    def of(cls, given: Any) -> Tasks:
        """Return tasks as they are, or made from ``(support, query)`` or ``{"support": ..., "query": ...}``.

        Raises
        ------
        TypeError
            for anything else.
        """
        if isinstance(given, Tasks):
            return given
        if isinstance(given, Mapping) and set(given) <= {"support", "query", "classes"} and len(given) >= 2:
            return cls(**given)
        if isinstance(given, tuple | list) and len(given) == 2:
            return cls(*given)
        raise TypeError(
            f"tasks are metagrad.fewshot.Tasks(support, query), or a pair of both, got {type(given).__name__}"
        )

    def __iter__(self) -> Iterator[AnyBatch]:
        """Iterate over support and query, as in ``support, query = tasks``."""
        return iter((self.support, self.query))

    def __len__(self) -> int:
        return num_tasks(self.support)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return _first(self.support.x).device

    def map(self, fn: Callable[[Tensor], Tensor]) -> Tasks:
        """Return the tasks with ``fn`` applied to each tensor."""
        support, query, classes = tree.map_tensors(fn, (self.support, self.query, self.classes))
        return Tasks(support, query, classes)

    def part(self, first: int, last: int) -> Tasks:
        """Return tasks ``first`` to ``last`` (exclusive) as views."""
        return self.map(lambda leaf: leaf[first:last])

    def to(self, device: torch.device | str) -> Tasks:
        """Return the tasks on ``device``."""
        return self.map(lambda leaf: leaf.to(device))


class TaskSource(Protocol):
    """Draws tasks: ``source(num_tasks, generator=g)``. Training, evaluation and calibration use nothing else.

    :class:`EpisodeSampler` and :class:`Sinusoids` are sources; so is a function of your own. All its randomness comes
    from ``generator``: the same generator state gives the same tasks.

    Example
    -------
    >>> import torch
    >>> from metagrad.fewshot import Batch, Tasks
    >>> def lines(num_tasks, *, generator):
    ...     slope = torch.randn(num_tasks, 1, 1, generator=generator)
    ...     x = torch.randn(num_tasks, 15, 1, generator=generator)
    ...     return Tasks(Batch(x[:, :5], slope * x[:, :5]), Batch(x[:, 5:], slope * x[:, 5:]))
    >>> lines(4, generator=torch.Generator().manual_seed(0)).query.y.shape
    torch.Size([4, 10, 1])
    """

    def __call__(self, num_tasks: int, /, *, generator: torch.Generator) -> Tasks:
        """Draw ``num_tasks`` tasks: those of one call have the same shapes."""
        ...


def group_tasks(tasks: Iterable[Any]) -> list[Tasks]:
    """Group single tasks of unequal size: those of the same shape become one :class:`Tasks`.

    ``meta_gradient`` and ``evaluate`` take the list in place of ``Tasks``, and average over all tasks in it.

    Parameters
    ----------
    tasks:
        pairs ``(support, query)`` of one task each: ``(x, y)`` or :class:`Batch` **without** a task axis, so ``x`` is
        ``(N, ...)`` and ``y`` is ``(N,)``.

    Raises
    ------
    ValueError, TypeError
        as :class:`Tasks` does.

    Examples
    --------
    >>> import torch
    >>> from metagrad.fewshot import group_tasks
    >>> one = lambda n: ((torch.randn(n, 3), torch.arange(n)), (torch.randn(4, 3), torch.arange(4) % n))
    >>> [len(group) for group in group_tasks([one(5), one(2), one(5)])]
    [2, 1]
    """
    groups: dict[Any, list[Tasks]] = {}
    for support, query in tasks:
        both = (("support", support), ("query", query))
        one, other = (_map_leaves(_with_task_axis, _as_batch(name, part)) for name, part in both)
        alone = Tasks(one, other)
        leaves, spec = pytree.tree_flatten((alone.support, alone.query))
        shapes = tuple((leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        groups.setdefault((str(spec), shapes), []).append(alone)
    return [_joined(group) for group in groups.values()]


def groups_of(tasks: Any) -> list[Tasks]:
    """Return tasks as a list of :class:`Tasks`, whether one was given, or a list, or a pair of batches."""
    if isinstance(tasks, Sequence) and len(tasks) > 0 and all(isinstance(one, Tasks) for one in tasks):
        return list(tasks)
    return [Tasks.of(tasks)]


def num_tasks(batch: AnyBatch) -> int:
    """Return T."""
    return _first(batch.x).shape[0]


def num_examples(batch: AnyBatch) -> int:
    """Return N, the number of examples of each task."""
    return _first(batch.x).shape[1]


def some_tasks(batch: AnyBatch, here: slice) -> AnyBatch:
    """Return the batch of some of the tasks, as views."""
    part: AnyBatch = tree.map_tensors(operator.itemgetter(here), batch)
    return part


def _joined(group: list[Tasks]) -> Tasks:
    if len(group) == 1:
        return group[0]
    flat = [pytree.tree_flatten((one.support, one.query)) for one in group]
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    joined = [torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in columns]
    return Tasks(*pytree.tree_unflatten(joined, flat[0][1]))


def _checked_batch(name: str, given: Any) -> AnyBatch:
    """Return a batch whose parts are tensors that fit together."""
    batch = _map_leaves(_tensor, _as_batch(name, given))
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(batch.x)):
        raise TypeError(f"the {name} set's x holds no tensor: {type(batch.x).__name__}")
    sizes: dict[tuple[int, int], str] = {}
    for part, value in zip(batch._fields, batch, strict=True):
        for leaf in pytree.tree_leaves(value):
            if not isinstance(leaf, Tensor):
                continue
            if leaf.dim() < 2:
                raise ValueError(
                    f"the {name} set's {part} needs a task axis and an example axis, (T, N, ...), got "
                    f"{tuple(leaf.shape)}: for a single task, add the first by x[None]"
                )
            sizes.setdefault((leaf.shape[0], leaf.shape[1]), part)
    if len(sizes) > 1:
        (one, here), (other, there), *_ = sizes.items()
        raise ValueError(
            f"the {name} set's {here} is {one} (tasks, examples), its {there} {other}: they must be the same"
        )
    if 0 in (size := next(iter(sizes))):
        raise ValueError(f"the {name} set is empty: {size[0]} tasks of {size[1]} examples")
    return batch


def _as_batch(name: str, given: Any) -> AnyBatch:
    if isinstance(given, AnyBatch):
        return given
    if isinstance(given, Mapping) and {"x", "y"} <= set(given) <= set(WeightedBatch._fields):
        return WeightedBatch(**given) if "weight" in given else Batch(**given)
    if isinstance(given, tuple | list) and len(given) in (2, 3):
        return Batch(*given) if len(given) == 2 else WeightedBatch(*given)
    raise TypeError(
        f'the {name} set is a Batch, or (x, y), or {{"x": ..., "y": ...}}, got {type(given).__name__}'
        + (f" with {', '.join(map(repr, given))}" if isinstance(given, Mapping) else "")
    )


def _tensor(leaf: Any) -> Any:
    return torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf


def _map_leaves(fn: Callable[[Any], Any], batch: AnyBatch) -> AnyBatch:
    mapped: AnyBatch = pytree.tree_map(fn, batch)
    return mapped._replace(y=pytree.tree_map(_as_int64, mapped.y))


def _as_int64(leaf: Any) -> Any:
    """Return labels of fewer bits as int64, which torch's losses need."""
    few = (torch.uint8, torch.int8, torch.int16, torch.int32)
    return leaf.long() if isinstance(leaf, Tensor) and leaf.dtype in few else leaf


def _with_task_axis(leaf: Any) -> Any:
    leaf = _tensor(leaf)
    return leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf


def _require_alike(support: AnyBatch, query: AnyBatch) -> None:
    """Refuse tensors on several devices, and query inputs of another form than the support's."""
    devices = {str(leaf.device) for leaf in pytree.tree_leaves((support, query)) if isinstance(leaf, Tensor)}
    if len(devices) > 1:
        raise ValueError(f"the tasks' tensors are on {' and '.join(sorted(devices))}: move all to one, as .to() does")
    (here, one), (there, other) = (pytree.tree_flatten(batch.x) for batch in (support, query))
    if one != other:
        raise ValueError("the inputs of the support and of the query are nests of different form")
    for a, b in zip(here, there, strict=True):
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype != b.dtype:
            raise ValueError(f"the support's inputs are {a.dtype}, the query's {b.dtype}: they must be the same")


def _first(x: Any) -> Tensor:
    return next(leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor))
