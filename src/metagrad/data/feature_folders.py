"""All stores of features: which there are, what they take, and which is removed when they take too much."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from metagrad.data.cache import Damaged, cache_root, locked, read_facts
from metagrad.data.feature_records import FILES
from metagrad.errors import MetagradError, MetagradWarning
from metagrad.files import is_leftover

MOST_BYTES = 4 * 2**30  # that all stores together take
FACTS = "store.json"

_STORE = re.compile("v[0-9]+-[0-9a-f]{32}")


@dataclass(frozen=True)
class Stored:
    """One store of features.

    Attributes
    ----------
    folder:
        where it is.
    name, digest:
        of the network; empty where they cannot be read.
    shape:
        of one picture's features.
    size:
        bytes on disk.
    used:
        when it was last opened, in seconds since 1970.
    """

    folder: Path
    name: str
    digest: str
    shape: tuple[int, ...]
    size: int
    used: float


def stores(directory: Path | None = None) -> list[Stored]:
    """Return all stores in a folder, that which was used last first.

    Parameters
    ----------
    directory:
        as of :meth:`metagrad.data.feature_store.FeatureStore.open`.
    """
    directory = cache_root() / "features" if directory is None else directory
    try:
        folders = [Path(entry.path) for entry in os.scandir(directory)
                   if _STORE.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]  # fmt: skip
    except OSError:
        return []
    return sorted(map(_stored, folders), key=lambda one: (-one.used, one.folder.name))


def _stored(folder: Path) -> Stored:
    size, used = 0, 0.0
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            status = entry.stat(follow_symlinks=False)
            size, used = size + status.st_size, max(used, status.st_mtime)
    try:
        facts = read_facts(folder / FACTS) or {}
    except (Damaged, MetagradError):
        facts = {}
    return Stored(folder, str(facts.get("name", "")), str(facts.get("digest", "")),
                  tuple(facts.get("shape", ())), size, used)  # fmt: skip


def clean(directory: Path | None = None) -> int:
    """Remove all stores of features; return the bytes that are free now.

    A process that uses one goes on, and loses nothing but what it would have left to others.
    """
    return sum(one.size for one in stores(directory) if remove(one.folder))


def remove(folder: Path) -> bool:
    """Remove a store, and nothing else that may lie there; say whether it could be done."""
    try:
        with locked(folder, "cached features"):
            for entry in list(os.scandir(folder)):
                if entry.name in (*FILES, FACTS) or is_leftover(entry.name):
                    os.unlink(entry.path)
            with contextlib.suppress(OSError):  # something else lies there
                folder.rmdir()
    except (OSError, MetagradError):
        return False
    return True


def make_room(folder: Path, need: int, most: int) -> bool:
    """Remove other stores, the one that nobody used for longest first, until ``need`` bytes more are within ``most``.

    Returns
    -------
    bool
        whether they are.
    """
    there = stores(folder.parent)
    over = sum(one.size for one in there) + need - most
    for one in reversed(there):
        if over <= 0:
            break
        if one.folder != folder and remove(one.folder):
            over -= one.size
            warnings.warn(
                f"removed the cached features of {one.name or 'a network'} ({said_size(one.size)}), the least "
                f"recently used, to keep the cache below {said_size(most)}",
                MetagradWarning,
                stacklevel=5,
            )
    return over <= 0


def said_size(size: int) -> str:
    """Say a number of bytes."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
