"""Any folder, or zip, of pictures in class folders."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from metagrad.data import mapped, pictures
from metagrad.data.archive import open_members
from metagrad.data.classes import Dataset
from metagrad.data.sources import Progress
from metagrad.errors import MetagradError

_SYNONYMS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SHARES = (0.64, 0.16)  # of the classes, for training and validation, where there is no split


def load(
    source: Path,
    *,
    size: int,
    split: dict[str, Any] | None = None,
    seed: int = 0,
    strict: bool = False,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Load pictures and split their classes.

    Parameters
    ----------
    source:
        a folder or a zip file. Either it has the folders ``train``, ``val`` and ``test``, and class folders in them; or
        class folders and a ``split.json`` that names the classes of each; or class folders alone, which are then
        parted by ``seed``: 64 % of the classes to train on, 16 % to validate, 20 % to test.
    size, strict, cache_dir:
        see :func:`metagrad.data.pictures.load`.
    split:
        which classes are for what, in place of what ``source`` says.

    Raises
    ------
    MetagradError
        as :func:`metagrad.data.pictures.load` does; for a class in two splits; for fewer than six classes to part.
    """
    if not source.exists():
        raise MetagradError(f"{source} does not exist: pass the folder or zip of pictures with --data-dir")
    found = pictures.load(source, size=size, strict=strict, cache_dir=cache_dir, progress=progress)
    counts, by_folder = _by_folder(found.counts)
    where = "the split"
    if split is None:
        split, where = by_folder, str(source)
    if split is None:
        split, where = _written(source)
    if split is None:
        split = _parted(list(counts), seed, source)
    chosen = mapped.require_split(split, counts, where)
    return mapped.dataset(
        source.stem or source.absolute().stem,
        found.images,
        counts,
        chosen,
        preprocessing=f"upright, RGB, middle square, bicubic to {size}x{size}, scaled to [0, 1], no augmentation",
        content=found.digest,
        notes=found.notes(),
    )


def _by_folder(counts: dict[str, int]) -> tuple[dict[str, int], dict[str, list[str]] | None]:
    """Return the classes without the name of their split, and the split, where the top folders are one."""
    tops = {label.split("/")[0] for label in counts}
    if not all(top.lower() in _SYNONYMS for top in tops) or not all("/" in label for label in counts):
        return counts, None
    split: dict[str, list[str]] = {which: [] for which in mapped.SPLITS}
    renamed: dict[str, int] = {}
    for label, count in counts.items():
        top, _, name = label.partition("/")
        which = _SYNONYMS[top.lower()]
        if name in renamed:
            other = next(place for place in mapped.SPLITS if name in split[place])
            raise MetagradError(f"the class {name!r} is in {other} and in {which}: take one out, classes must differ")
        split[which].append(name)
        renamed[name] = count
    return renamed, split


def _written(source: Path) -> tuple[dict[str, Any] | None, str]:
    """Return what ``split.json`` says, if there is one beside the class folders."""
    with open_members(source, keep=lambda name: name.rpartition("/")[2] == "split.json") as members:
        if not members.names:
            return None, ""
        name = min(members.names, key=len)
        try:
            return json.loads(members.read(name)), f"{source}: {name}"
        except ValueError as error:
            raise MetagradError(f"{source}: {name} is not JSON ({error})") from error


def _parted(names: list[str], seed: int, source: Path) -> dict[str, list[str]]:
    if len(names) < 6:
        raise MetagradError(
            f"{source} has {len(names)} classes: to part them into training, validation and test classes takes six or "
            "more, two of each"
        )
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)
    train, val = (max(2, round(share * len(names))) for share in _SHARES)
    train = min(train, len(names) - 4)
    return {
        "train": sorted(shuffled[:train]),
        "val": sorted(shuffled[train : train + val]),
        "test": sorted(shuffled[train + val :]),
    }
