"""Which classes are to train on, to validate and to test, and the data sets that come of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, TypeVar

import torch
from torch import Tensor

from metagrad import strict_json
from metagrad.data.classes import Classes, Dataset, ImageClasses
from metagrad.data.names import short
from metagrad.errors import MetagradError

_Classes = TypeVar("_Classes", bound=Classes)

SPLITS = ("train", "val", "test")


def published_split(name: str) -> dict[str, list[str]]:
    """Return one of the splits that come with metagrad."""
    found = strict_json.parse((resources.files("metagrad.data") / "splits" / f"{name}.json").read_bytes())
    return {which: found[which] for which in SPLITS}


def require_split(split: Any, available: Iterable[str], where: str) -> dict[str, list[str]]:
    """Return a split that has been looked at.

    Raises
    ------
    MetagradError
        if it is not three lists of names, a class is in two of them, or there is no such class.
    """
    if not isinstance(split, dict) or not all(
        isinstance(split.get(which), list) and all(isinstance(name, str) for name in split[which]) for which in SPLITS
    ):
        raise MetagradError(f'{where} is not a split: it needs "train", "val" and "test", each a list of class names')
    place: dict[str, str] = {}
    known = set(available)
    for which in SPLITS:
        if not split[which]:
            raise MetagradError(f"{where} has no class in {which}: give it some")
        for name in split[which]:
            if name in place:
                raise MetagradError(
                    f"{where} has the class {short(name)!r} in {place[name]} and in {which}: take one out"
                )
            if name not in known:
                raise MetagradError(f"{where} names the class {short(name)!r}, of which there are no pictures")
            place[name] = which
    return {which: list(split[which]) for which in SPLITS}


def dataset(
    name: str,
    images: Tensor,
    counts: dict[str, int],
    split: dict[str, list[str]],
    *,
    preprocessing: str,
    content: str,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """Make a data set of images that lie class after class in the order of ``counts``.

    Parameters
    ----------
    split:
        the classes of ``train``, ``val`` and ``test``.
    content:
        digest of the images.
    """
    train, val, test = (part_of(images, counts, split[which], ImageClasses) for which in SPLITS)
    made_of = json.dumps([content, preprocessing, [split[which] for which in SPLITS]])
    digest = hashlib.sha256(made_of.encode()).hexdigest()
    return Dataset(name, train, val, test, False, preprocessing, digest, notes)


def part_of(data: Tensor, counts: dict[str, int], names: Sequence[str], kind: type[_Classes]) -> _Classes:
    """Return some classes of rows that lie class after class in the order of ``counts``; they share the array."""
    each = torch.tensor(list(counts.values()), dtype=torch.int64, device="cpu")
    first = dict(zip(counts, (each.cumsum(0) - each).tolist(), strict=True))
    return kind(
        data,
        torch.tensor([counts[name] for name in names], dtype=torch.int64, device="cpu"),
        tuple(names),
        torch.tensor([first[name] for name in names], dtype=torch.int64, device="cpu"),
    )


def blocks(
    images: Tensor, split: Mapping[str, Sequence[str]], per_class: int
) -> tuple[ImageClasses, ImageClasses, ImageClasses]:
    """Cut images that follow the classes of train, val and test, ``per_class`` of each, into the three splits."""
    start = 0

    def part(names: Sequence[str]) -> ImageClasses:
        nonlocal start
        first, start = start, start + len(names) * per_class
        counts = torch.full((len(names),), per_class, dtype=torch.int64, device="cpu")
        return ImageClasses(images[first:start], counts, tuple(names))

    train, val, test = (part(split[which]) for which in SPLITS)
    return train, val, test
