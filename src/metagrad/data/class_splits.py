"""Splits of classes into train, val and test, and the data sets made of images and a split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from metagrad import strict_json
from metagrad.data.classes import Dataset, ImageClasses
from metagrad.data.names import short
from metagrad.errors import MetagradError

SPLITS = ("train", "val", "test")


def published_split(name: str) -> dict[str, list[str]]:
    """Return one of the splits that come with metagrad."""
    split = strict_json.parse((resources.files("metagrad.data") / "splits" / f"{name}.json").read_bytes())
    return {which: split[which] for which in SPLITS}


def require_split(split: Any, available: Iterable[str], where: str) -> dict[str, list[str]]:
    """Return a split, once it is checked; ``where`` names it in an error.

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
    """Make a data set of images that lie class after class in the order of ``counts``; all splits share ``images``.

    ``content`` is a digest of the images.
    """
    everything = ImageClasses(images, torch.tensor(list(counts.values()), device="cpu"), tuple(counts))
    train, val, test = (everything.subset(split[which]) for which in SPLITS)
    made_of = json.dumps([content, preprocessing, [split[which] for which in SPLITS]])
    digest = hashlib.sha256(made_of.encode()).hexdigest()
    return Dataset(name, train, val, test, False, preprocessing, digest, notes)


def blocks(
    images: Tensor, split: Mapping[str, Sequence[str]], per_class: int
) -> tuple[ImageClasses, ImageClasses, ImageClasses]:
    """Cut images that follow the classes of train, val and test, ``per_class`` of each, into the three splits."""
    sizes = [len(split[which]) for which in SPLITS]
    parts = images.split([size * per_class for size in sizes])
    train, val, test = (
        ImageClasses(part, torch.full((size,), per_class, device="cpu"), tuple(split[which]))
        for part, size, which in zip(parts, sizes, SPLITS, strict=True)
    )
    return train, val, test
