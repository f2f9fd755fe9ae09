"""Rows and labels as people have them: arrays, tensors, nests of them, torch data sets."""

from __future__ import annotations

import operator
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import IterableDataset

Progress = Callable[[int, int, str], None]

_TELL_EVERY = 0.5  # seconds


def described(data: Any) -> str:
    """Return type and shape of a tensor, or the type of what is none."""
    return f"{data.dtype} {tuple(data.shape)}" if isinstance(data, Tensor) else f"a {type(data).__name__}"


def length(data: Any) -> int:
    """Return N, the number of rows of every tensor in ``data``.

    Raises
    ------
    ValueError
        if there is no tensor, something else than a tensor, or the numbers of rows differ.
    """
    leaves = pytree.tree_leaves(data)
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or not leaf.dim():
            raise ValueError(f"data must be a tensor (N, ...) or a nest of tensors, got {described(leaf)} in it")
    sizes = {len(leaf) for leaf in leaves}
    if len(sizes) != 1:
        raise ValueError(f"every tensor of data needs the same number of rows, got {sorted(sizes) or 'no tensor'}")
    return sizes.pop()


def device(data: Any) -> torch.device:
    """Return the device of the first tensor."""
    found: torch.device = pytree.tree_leaves(data)[0].device
    return found


def tensors(x: Any) -> Any:
    """Return arrays as tensors, without a copy where possible; a nest of arrays as a nest of tensors.

    Raises
    ------
    ValueError
        for what is no array of numbers.
    """
    if isinstance(x, list):
        raise ValueError("x is a list: stack its rows into one array (numpy.stack, torch.stack)")
    return pytree.tree_map(_tensor, x)


def _tensor(leaf: Any) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf.detach()
    array = np.asarray(leaf)
    if array.dtype.kind not in "biufc" or not array.ndim:
        raise ValueError(
            f"x must be an array or tensor of numbers, (N, ...), or a nest of them; it holds {array.dtype} "
            f"{array.shape}: encode it as numbers first"
        )
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arrays that are read-only, such as a mapped file: nobody writes here
        return torch.from_numpy(array)


def numbered(y: Any) -> tuple[Tensor, list[int] | list[str]]:
    """Return the class number of each label, ``(N,)`` int64, and the labels in ascending order.

    Raises
    ------
    ValueError
        if they are not all whole numbers or all strings, one for each row.
    """
    array = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)
    if array.ndim != 1:
        way = "y.argmax(1)" if array.ndim == 2 and array.shape[1] > 1 else "y.reshape(-1)"
        raise ValueError(f"y must be one label for each row, (N,), got {array.shape}: pass {way}")
    if array.dtype.kind == "O" or isinstance(y, list | tuple):  # numpy makes text of numbers beside text
        text = all(isinstance(label, str) for label in y)
        if not text and any(label is None or isinstance(label, str) for label in y):
            raise ValueError(
                "labels must be all whole numbers or all strings: convert them, leave out rows without one"
            )
        if array.dtype.kind == "O":
            array = np.asarray(list(y), str if text else None)
    if array.dtype.kind not in "biuU":
        raise ValueError(f"labels must be whole numbers or strings, got {array.dtype}: convert them (y.astype(int))")
    labels, number = np.unique(array, return_inverse=True)
    return torch.from_numpy(number.astype(np.int64)), labels.tolist()


def named(labels: list[int] | list[str], names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the name of each label: the label itself, or that of ``names`` in its place.

    Raises
    ------
    ValueError
        if a label has no place there.
    """
    if names is None:
        return tuple(str(label) for label in labels)
    found = []
    for label in labels:
        if isinstance(label, str) or not 0 <= label < len(names):
            raise ValueError(f"names has no entry {label!r}: it must have one for each label from 0, or leave it out")
        found.append(str(names[label]))
    return tuple(found)


def names_of(dataset: Any, y: Sequence[Any]) -> Sequence[str] | None:
    """Return the names of classes that a torchvision data set keeps, if they fit the labels."""
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    return names if all(isinstance(label, int) and 0 <= label < len(names) for label in y) else None


def read(dataset: Any, progress: Progress | None = None) -> tuple[Any, list[Any]]:
    """Read every row of a torch data set: the ``x`` as a nest of tensors ``(N, ...)``, and the labels.

    Raises
    ------
    ValueError
        as :meth:`metagrad.data.Classes.from_dataset` does.
    """
    total = _length_of(dataset)
    targets = getattr(dataset, "targets", None)
    labels: list[Any] = []
    kept: list[Tensor] = []
    spec, told = None, time.monotonic()
    for number, row in enumerate(_rows(dataset, total)):
        x, label = _parts(row, number, targets)
        labels.append(label)
        leaves, now = pytree.tree_flatten(x)
        leaves = [_leaf(leaf, number) for leaf in leaves]
        if spec is None:
            spec, kept = now, [leaf.new_empty((total, *leaf.shape)) for leaf in leaves]
        if now != spec:
            raise ValueError(f"row {number} is another nest than row 0: every row needs the same parts")
        for leaf, place in zip(leaves, kept, strict=True):
            if leaf.shape != place.shape[1:] or leaf.dtype != place.dtype:
                raise ValueError(
                    f"row {number} is {described(leaf)}, row 0 {described(place[0])}: give all rows one shape and "
                    "type (resize, crop or pad them in the data set's transform)"
                )
            place[number] = leaf
        if progress is not None and time.monotonic() - told > _TELL_EVERY:
            progress(number + 1, total, "reading the data set")
            told = time.monotonic()
    if progress is not None:
        progress(len(labels), total, "reading the data set")
    if len(labels) != total:
        raise ValueError(f"the data set gave {len(labels)} rows, its length is {total}: mend its __len__")
    assert spec is not None
    return pytree.tree_unflatten(kept, spec), labels


def _length_of(dataset: Any) -> int:
    try:
        total = len(dataset)
    except TypeError as error:
        raise ValueError(
            f"{type(dataset).__name__} has no length: collect its rows into arrays and use Classes.from_arrays(x, y)"
        ) from error
    if not hasattr(dataset, "__getitem__"):
        raise ValueError(
            f"{type(dataset).__name__} gives no rows by their number: pass a Dataset (of a DataLoader, its .dataset)"
        )
    if not total:
        raise ValueError("the data set is empty: it has no rows")
    return total


def _rows(dataset: Any, total: int) -> Iterator[Any]:
    if isinstance(dataset, IterableDataset):
        for number, row in enumerate(dataset):
            if number == total:
                raise ValueError(f"the data set gives more rows than its length, {total}: mend its __len__")
            yield row
        return
    for number in range(total):
        yield dataset[number]


def _parts(row: Any, number: int, targets: Any) -> tuple[Any, Any]:
    """Return a row's ``x`` and its label, a plain number or text."""
    if isinstance(row, tuple | list) and len(row) == 2:
        label = _label(row[1])
        if label is not None:
            return row[0], label
    label = None if targets is None else _label(targets[number])
    if label is None:
        raise ValueError(
            f"row {number} must be (x, label) with a whole number or a string as label, got {_kind(row)}: wrap the "
            "data set in one that returns such pairs"
        )
    return row, label


def _label(value: Any) -> int | str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, float) or (isinstance(value, Tensor) and (value.dim() or value.is_floating_point())):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _kind(row: Any) -> str:
    inside = f" of ({', '.join(type(part).__name__ for part in row)})" if isinstance(row, tuple | list) else ""
    return f"a {type(row).__name__}{inside}"


def _leaf(leaf: Any, number: int) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf.detach()
    if isinstance(leaf, np.ndarray | np.generic | int | float) and np.asarray(leaf).dtype.kind in "biufc":
        return torch.as_tensor(leaf, device="cpu")
    raise ValueError(
        f"row {number} holds a {type(leaf).__name__}, not a tensor: make tensors in the data set's transform, such as "
        "torchvision.transforms.PILToTensor()"
    )
