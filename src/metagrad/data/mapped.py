"""Images in a file that is mapped into memory: what is not looked at is not read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metagrad.data.cache import atomic_save, storage_error
from metagrad.data.classes import Dataset, ImageClasses
from metagrad.errors import MetagradError

SPLITS = ("train", "val", "test")


def write_rows(path: Path, rows: Iterable[np.ndarray], shape: tuple[int, ...]) -> int:
    """Write uint8 arrays of one ``shape`` to an ``.npy`` file as they come; return how many there were."""

    def header(count: int) -> bytes:
        text = str({"descr": "|u1", "fortran_order": False, "shape": (count, *shape)})
        return b"\x93NUMPY\x01\x00" + (246).to_bytes(2, "little") + text.ljust(245).encode() + b"\n"

    count = 0
    with path.open("wb") as file:
        file.write(header(0))
        for row in rows:
            file.write(row.tobytes())
            count += 1
        file.seek(0)
        file.write(header(count))
    return count


def open_rows(path: Path) -> Tensor | None:
    """Return the array as a uint8 tensor that lives in the file, or ``None`` if it is not there or not whole.

    The tensor may be written to; the file stays as it is.
    """
    try:
        return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno is None:
            return None
        raise storage_error(path, error) from error
    except (ValueError, EOFError, TypeError):
        return None


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Write a small JSON file of the cache."""
    text = json.dumps(facts, ensure_ascii=False, indent=1)
    atomic_save(path, lambda target: _write_text(target, text))


def read_facts(path: Path) -> dict[str, Any] | None:
    """Read it again, or return ``None`` if it is not there or not whole."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


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
    first, start = {}, 0
    for label, count in counts.items():
        first[label] = start
        start += count

    def part(names: list[str]) -> ImageClasses:
        return ImageClasses(
            images,
            torch.tensor([counts[name] for name in names], dtype=torch.int64),
            tuple(names),
            torch.tensor([first[name] for name in names], dtype=torch.int64),
        )

    train, val, test = (part(split[which]) for which in SPLITS)
    made_of = json.dumps([content, preprocessing, [split[which] for which in SPLITS]])
    digest = hashlib.sha256(made_of.encode()).hexdigest()
    return Dataset(name, train, val, test, False, preprocessing, digest, notes)


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
                raise MetagradError(f"{where} has the class {name!r} in {place[name]} and in {which}: take one out")
            if name not in known:
                raise MetagradError(f"{where} names the class {name!r}, of which there are no pictures")
            place[name] = which
    return {which: list(split[which]) for which in SPLITS}


def retried(path: Path, build: Callable[[], None]) -> Tensor:
    """Return the rows at ``path``, made by ``build`` if they are not there."""
    rows = open_rows(path)
    if rows is None:
        build()
        rows = open_rows(path)
    if rows is None:
        raise MetagradError(f"the cache file {path} cannot be read back: delete it and try again")
    return rows


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
