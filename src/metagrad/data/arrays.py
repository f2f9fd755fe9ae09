"""Small arrays in the cache: read whole, each with a checksum; nothing is unpickled."""

from __future__ import annotations

import errno
import hashlib
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from metagrad.data.cache import Damaged, atomic_save, cache_root, is_plain, prepared, storage_error

_MOST_HEADER = 4096  # bytes before an array


def cached_arrays(
    key: str,
    build: Callable[[], dict[str, np.ndarray]],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
    cache_dir: Path | None = None,
) -> dict[str, np.ndarray]:
    """Return the uint8 arrays stored under ``key``, building and storing them if they are missing or damaged.

    Nothing is unpickled. Each array carries a checksum, and the file a sha256 of all: a disk that lost a bit and a
    program that put other pictures there are both noticed.

    Parameters
    ----------
    key
        names the file, ``cache_dir/key-2.npz`` (2: of this form); it must change whenever ``build`` would return
        something else.
    build
        makes the arrays, by name.
    shapes
        what ``build`` gives; a file that has others is made anew.
    what
        is being prepared, for who waits for another process.
    cache_dir
        the folder; ``None`` means :func:`cache_root`.

    Raises
    ------
    MetagradError
        if the file cannot be read or written.
    """
    path = (cache_root() if cache_dir is None else cache_dir) / f"{key}-2.npz"

    def make() -> None:
        arrays = build()
        if {name: (array.dtype.str, array.shape) for name, array in arrays.items()} != {
            name: ("|u1", shape) for name, shape in shapes.items()
        }:
            raise ValueError(f"build gave other arrays than {dict(shapes)}")
        atomic_save(path, lambda target: _write_arrays(target, arrays))

    return prepared(path.with_suffix(""), lambda: _read_arrays(path, shapes), make, what=what)


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **{_DIGEST: _digest(arrays)}, **arrays)


_DIGEST = "sha256"  # the array that holds it


def _digest(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(name.encode())
        found.update(np.ascontiguousarray(array).data)
    return np.frombuffer(found.digest(), np.uint8)


def _read_arrays(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray] | None:
    """Return the arrays of ``path``, ``None`` if there is no such file; what it claims is compared first."""
    if not is_plain(path):
        return None
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            if sorted(archive.namelist()) != sorted(f"{name}.npy" for name in (*shapes, _DIGEST)):
                raise Damaged(path, "it holds other arrays")
            found = {name: _read_array(archive, name, shape) for name, shape in shapes.items()}
            if not np.array_equal(_digest(found), _read_array(archive, _DIGEST, (32,))):
                raise Damaged(path, "it was altered since it was written")
            return found
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (None, errno.EIO, errno.EINVAL):  # a disk that lost it; a place before the file's start
            raise Damaged(path, str(error)) from error
        raise storage_error(path, error) from error
    except Damaged:
        raise
    except Exception as error:  # zipfile and numpy's parser of headers raise nearly anything
        raise Damaged(path, str(error)[:120] or type(error).__name__) from error


def _read_array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if archive.getinfo(f"{name}.npy").file_size > math.prod(shape) + _MOST_HEADER:
        raise ValueError(f"its {name} have another length")
    with archive.open(f"{name}.npy") as member:  # at the end, zipfile compares the checksum
        found = np.lib.format.read_array(member, allow_pickle=False)
    if found.shape != shape or found.dtype != np.uint8:
        raise ValueError(f"its {name} are {found.dtype} {found.shape}, not uint8 {shape}")
    return found
