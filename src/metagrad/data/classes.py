"""Examples grouped by class: what a data set hands over and an episode sampler draws from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from metagrad import tree
from metagrad.data import rows


@dataclass(frozen=True, repr=False)
class Classes:
    """Labelled examples, sorted by class: images, features, token ids, or a nest of these.

    :meth:`from_arrays` and :meth:`from_dataset` make them. Several splits may share one array: see :meth:`subset`.

    Attributes
    ----------
    data:
        a tensor ``(N, ...)``, or a nest (dictionaries, tuples) of such tensors; the rows of a class lie next to each
        other.
    counts:
        int64, ``(classes,)``; rows per class, in the order of ``names``. They sum to ``N``.
    names:
        one name per class, unique.
    first:
        int64, ``(classes,)``; the row at which each class begins. Default: one class after the other from row 0, and
        nothing else in ``data``.

    Raises
    ------
    ValueError
        if shapes, types or counts do not fit together.

    Example
    -------
    >>> import torch
    >>> classes = Classes.from_arrays(torch.randn(6, 4), ["b", "a", "b", "a", "b", "a"])
    >>> classes.names, classes.counts.tolist()
    (('a', 'b'), [3, 3])
    """

    data: Any
    counts: Tensor
    names: tuple[str, ...]
    first: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64, device="cpu"))

    def __repr__(self) -> str:
        """Name the sizes: the numbers would fill pages."""
        return f"{type(self).__name__}({len(self.names)} classes, {int(self.counts.sum())} examples)"

    def __post_init__(self) -> None:
        total = rows.length(self.data)
        if self.counts.dim() != 1 or self.counts.dtype != torch.int64:
            raise ValueError(f"counts must be int64 (classes,), got {self.counts.dtype} {tuple(self.counts.shape)}")
        if len(self.names) != len(self.counts) or len(set(self.names)) != len(self.names):
            raise ValueError("names must be unique, one per class")
        if not len(self.first) and len(self.counts):
            if int(self.counts.sum()) != total:
                raise ValueError(f"counts sum to {int(self.counts.sum())}, but data has {total} rows")
            object.__setattr__(self, "first", self.counts.cumsum(0) - self.counts)
        elif len(self.counts) and int((self.first + self.counts).max()) > total:
            raise ValueError(f"classes end at row {int((self.first + self.counts).max())} of {total}")

    @classmethod
    def from_arrays(cls, x: Any, y: Any, names: Sequence[str] | None = None) -> Self:
        """Group rows by their labels; the rows of a class keep their order.

        Parameters
        ----------
        x:
            ``(N, ...)``: a numpy array or a tensor, or a nest (dictionaries, tuples) of them. Types are kept;
            an :class:`~metagrad.fewshot.EpisodeSampler` makes float32 in [0, 1] of uint8 images ``(N, C, H, W)``.
            Rows that are sorted by class already are not copied.
        y:
            ``(N,)``: whole numbers or strings.
        names:
            the class with label ``k`` is called ``names[k]``. Default: the label itself.

        Raises
        ------
        ValueError
            if the rows and labels do not fit together, or the labels are no classes.
        """
        data = rows.tensors(x)
        total = rows.length(data)
        number, labels = rows.numbered(y)
        if len(number) != total:
            raise ValueError(f"x has {total} rows and y {len(number)} labels: give one label for each row")
        counts = torch.bincount(number, minlength=len(labels))
        if bool((number[1:] < number[:-1]).any()):
            order = number.argsort(stable=True)
            data = tree.map_tensors(lambda leaf: leaf[order.to(leaf.device)], data)
        return cls(data, counts.to(rows.device(data)), rows.named(labels, names))

    @classmethod
    def from_dataset(
        cls, dataset: Any, *, names: Sequence[str] | None = None, progress: rows.Progress | None = None
    ) -> Self:
        """Read a ``torch.utils.data.Dataset`` once, into memory, and group its rows by their labels.

        Parameters
        ----------
        dataset:
            gives rows ``(x, label)``, every ``x`` of one shape; or rows ``x``, with the labels in ``dataset.targets``.
        names:
            as in :meth:`from_arrays`. Default: ``dataset.classes``, where torchvision's data sets keep them.
        progress:
            called with (rows read, rows in all, what is done), about twice a second.

        Raises
        ------
        ValueError
            for a data set without a length, rows that are no pairs, or rows of different shapes or types.
        """
        x, y = rows.read(dataset, progress)
        if names is None and getattr(dataset, "target_transform", None) is None:
            names = rows.names_of(dataset, y)
        return cls.from_arrays(x, y, names)

    @property
    def device(self) -> torch.device:
        """The device that holds the examples."""
        return rows.device(self.data)

    def subset(self, names: Sequence[str]) -> Self:
        """Return the classes called so, in this order; they share the array.

        Raises
        ------
        ValueError
            if there is no class of that name.
        """
        place = {name: number for number, name in enumerate(self.names)}
        unknown = [name for name in names if name not in place]
        if unknown:
            raise ValueError(f"no class is called {unknown[0]!r}: take some of .names")
        chosen = torch.tensor([place[name] for name in names], dtype=torch.int64, device=self.counts.device)
        return type(self)(self.data, self.counts[chosen], tuple(names), self.first[chosen])

    def with_at_least(self, count: int) -> Self:
        """Return the classes that have at least ``count`` rows."""
        enough = (self.counts >= count).tolist()
        return (
            self if all(enough) else self.subset([name for name, kept in zip(self.names, enough, strict=True) if kept])
        )

    def to(self, device: torch.device | str) -> Self:
        """Move the classes to ``device``; copies only their own rows if the device changes."""
        if torch.empty(0, device=device).device == self.device:
            return self
        places = zip(self.first.tolist(), self.counts.tolist(), strict=True)
        own = torch.cat([torch.arange(first, first + count, device="cpu") for first, count in places])
        moved = tree.map_tensors(lambda leaf: leaf[own.to(leaf.device)].to(device), self.data)
        return type(self)(moved, self.counts.to(device), self.names)


@dataclass(frozen=True, repr=False)
class ImageClasses(Classes):
    """Classes of images, uint8 ``(N, C, H, W)``: what a :class:`Dataset` consists of.

    Raises
    ------
    ValueError
        for other data; else as :class:`Classes`.
    """

    def __post_init__(self) -> None:
        if not isinstance(self.data, Tensor) or self.data.dtype != torch.uint8 or self.data.dim() != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), got {rows.described(self.data)}")
        super().__post_init__()

    @property
    def images(self) -> Tensor:
        """The images, uint8 ``(N, C, H, W)``."""
        images: Tensor = self.data
        return images


@dataclass(frozen=True)
class Dataset:
    """A data set split into disjoint classes for meta-training, meta-validation and meta-testing.

    Attributes
    ----------
    name:
        what the command line calls it.
    train, val, test:
        the three splits; no class is in two of them.
    rotations:
        whether a class turned by 90, 180 or 270 degrees counts as a new class in meta-training.
    preprocessing:
        one line saying how a picture became these pixels; recorded with every result.
    digest:
        sha256 (hex) of what the splits were made from; a resumed run must see the same.
    notes:
        notes about how it was read: files that were left out.
    """

    name: str
    train: ImageClasses
    val: ImageClasses
    test: ImageClasses
    rotations: bool
    preprocessing: str
    digest: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in (self.train, self.val, self.test):
            if not isinstance(part, ImageClasses):
                raise ValueError(
                    f"the splits must be ImageClasses, got {type(part).__name__}: make them by ImageClasses.from_arrays"
                )
        splits = (set(self.train.names), set(self.val.names), set(self.test.names))
        if len(set.union(*splits)) != sum(map(len, splits)):
            raise ValueError(f"the splits of {self.name} share classes")
