"""Where made and fetched data is kept, and how a file gets there whole or not at all."""

from __future__ import annotations

import errno
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import platformdirs

from metagrad.errors import MetagradError
from metagrad.files import write_atomically

# What numpy raises on a file that is cut short, has a wrong checksum or holds pickled objects.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, NotImplementedError)


def cache_root() -> Path:
    """Return the folder below which data sets are cached: METAGRAD_CACHE, else the system's cache folder."""
    chosen = os.environ.get("METAGRAD_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("metagrad"))


def storage_error(path: Path, error: OSError) -> MetagradError:
    """Turn an ``OSError`` about a file of the cache into one line that says what to do.

    Parameters
    ----------
    path
        the file that could not be read or written.
    error
        what the system said.
    """
    reason = error.strerror or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "free some space there, or set METAGRAD_CACHE to a folder on another disk"
    else:
        advice = "set METAGRAD_CACHE to a folder that you may read and write"
    return MetagradError(f"cannot use the cache file {path} ({reason}): {advice}")


def atomic_save(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file of the cache so that ``path`` is only ever absent, as it was before, or complete.

    Parameters
    ----------
    path
        the file to make or replace; missing folders are made.
    write
        writes the content to the path it is given.

    Raises
    ------
    MetagradError
        if the system refuses, for want of space or permission for example.
    """
    write_atomically(path, write, refused=lambda error: storage_error(path, error))


def cached_arrays(
    key: str,
    build: Callable[[], dict[str, np.ndarray]],
    *,
    fields: Sequence[str],
    cache_dir: Path | None = None,
) -> dict[str, np.ndarray]:
    """Return the arrays stored under ``key``, building and storing them if they are missing or damaged.

    Nothing is unpickled, and each array carries a checksum. Two processes may build at once: the last one to
    finish wins, and both return whole arrays.

    Parameters
    ----------
    key
        names the file, ``cache_dir/key.npz``; it must change whenever ``build`` would return something else.
    build
        makes the arrays, by name.
    fields
        the names that ``build`` gives; a file that has others is made anew.
    cache_dir
        the folder; ``None`` means :func:`cache_root`.

    Raises
    ------
    MetagradError
        if the file cannot be read or written.
    """
    path = (cache_root() if cache_dir is None else cache_dir) / f"{key}.npz"
    stored = _read_arrays(path, fields)
    if stored is not None:
        return stored
    arrays = build()
    if set(arrays) != set(fields):
        raise ValueError(f"build gave {sorted(arrays)}, expected {sorted(fields)}")

    def write(target: Path) -> None:
        with open(target, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    atomic_save(path, write)
    return arrays


def _read_arrays(path: Path, fields: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Return the arrays of ``path``, or None if there is no such file or it is not what was written."""
    try:
        with open(path, "rb") as file:
            stored = np.load(file, allow_pickle=False)
            # A bare .npy file loads as an array, which has no ``files``.
            if set(getattr(stored, "files", ())) != set(fields):
                return None
            return {name: stored[name] for name in fields}
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno is None:  # numpy's own "could not read", no word from the system
            return None
        raise storage_error(path, error) from error
    except _UNREADABLE:
        return None
