"""Images in a file that is mapped into memory: rows that nobody uses are not read.

Beside ``NAME.npy`` lies ``NAME.sha256.json``: the array's shape, a digest of every 4 MiB, and the file's identity when
it was last checked. A small file is checked whenever it is opened; a large one if its identity changed, or on demand.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import secrets
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from metagrad.data.cache import Damaged, atomic_save, is_plain, prepared, read_facts, storage_error, write_facts
from metagrad.data.rows import Progress
from metagrad.errors import MetagradError
from metagrad.files import sync_folder

_BLOCK = 4 * 2**20
_ALWAYS = 256 * 2**20  # bytes that are checked at every opening: a quarter of a second
_THREADS = 4  # hashlib releases the interpreter lock


def cached_rows(path: Path, shape: tuple[int, ...], build: Callable[[], Iterable[np.ndarray]], *, what: str) -> Tensor:
    """Return a small uint8 array of ``shape`` from the file ``path``, after ``build`` made its rows if need be.

    It is a copy in memory: a file that is cut later does no harm. The file's name must change whenever ``build`` would
    make other rows; ``what`` names them in a message.
    """

    def write() -> None:
        save_rows(path.parent, build(), shape[1:], name=path.stem)

    return prepared(path.with_suffix(""), lambda: open_rows(path, shape), write, what=what).clone()


def save_rows(
    folder: Path, rows: Iterable[np.ndarray], shape: tuple[int, ...], *, name: str | Callable[[], str]
) -> None:
    """Write uint8 arrays of one ``shape`` to a file of the cache as they come, with a digest of each block.

    ``name`` is the file's, without its ending; a function is called after the last row, for a name that depends on
    the rows.

    Raises
    ------
    MetagradError
        if the file cannot be written.
    """
    part = folder / f".metagrad-{secrets.token_hex(8)}.tmp"  # its name may not be known yet
    facts: dict[str, Any] = {}
    try:
        atomic_save(part, lambda path: facts.update(_write(path, rows, shape)))
        path = folder / f"{name if isinstance(name, str) else name()}.npy"
        try:
            part.replace(path)
            sync_folder(folder)
            facts["file"] = _identity(path.stat())
        except OSError as error:
            raise storage_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    write_facts(_facts_of(path), facts)


def open_rows(
    path: Path, shape: tuple[int, ...], *, full: bool = False, progress: Progress | None = None
) -> Tensor | None:
    """Return the array of ``shape`` as a uint8 tensor backed by the file, or ``None`` if the file is missing.

    Writes to the tensor do not reach the file. ``full`` checks every byte, however large the file is.

    Raises
    ------
    Damaged
        if the file is not what was written.
    MetagradError
        if it cannot be read.
    """
    facts = read_facts(_facts_of(path))
    if facts is None or not is_plain(path):
        return None
    digests, size = facts.get("sha256s"), math.prod(shape)
    if facts.get("shape") != list(shape) or facts.get("block") != _BLOCK or not isinstance(digests, list):
        raise Damaged(path, "it has another shape")
    if len(digests) != -(-size // _BLOCK):
        raise Damaged(path, "its digests are not all there")
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            array = _mapped(path, shape)
            if status.st_size != array.offset + size or _identity(path.stat()) != _identity(status):
                raise Damaged(path, "it is cut, or was replaced meanwhile")
            same = facts.get("file") == _identity(status)
            if full or not same or size <= _ALWAYS:
                _check(path, file, array.offset, digests, progress)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(path, error) from error
    if not same:
        with contextlib.suppress(MetagradError):  # a read-only cache is checked again the next time
            write_facts(_facts_of(path), {**facts, "file": _identity(status)})
    return torch.from_numpy(array)


def _facts_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}.sha256.json")


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _mapped(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Map a .npy file; writes stay in memory."""
    try:
        array = np.lib.format.open_memmap(path, mode="c")
    except OSError:
        raise
    except Exception as error:  # numpy's parser of headers raises nearly anything
        raise Damaged(path, f"it is cut, or no array: {str(error)[:80]}") from error
    if array.shape != shape or array.dtype != np.uint8 or not array.flags.c_contiguous:
        raise Damaged(path, "it is cut, or has another shape")
    return array


def _write(path: Path, rows: Iterable[np.ndarray], shape: tuple[int, ...]) -> dict[str, Any]:
    """Write the array; return its shape and the digests of the rows that came, not of what the disk holds.

    Not through a memory map: a full disk would end the process there.
    """
    count, digests, waiting = 0, [], bytearray()
    with path.open("wb") as file:

        def header() -> None:
            facts = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
            np.lib.format.write_array_header_1_0(file, facts)

        def flush(least: int) -> None:
            while len(waiting) >= least:
                block = waiting[:_BLOCK]
                digests.append(hashlib.sha256(block).hexdigest())
                file.write(block)
                del waiting[:_BLOCK]

        header()
        start = file.tell()
        for row in rows:
            if row.shape != shape or row.dtype != np.uint8:
                raise ValueError(f"a row is {row.dtype} {row.shape}, not uint8 {shape}")
            waiting += row.tobytes()
            count += 1
            flush(_BLOCK)
        flush(1)
        file.seek(0)
        header()  # numpy leaves room in a header for more rows
        if file.tell() != start:
            raise ValueError(f"the header of {count} rows has another length than that of none")
    return {"shape": [count, *shape], "block": _BLOCK, "sha256s": digests}


def _check(path: Path, file: IO[bytes], start: int, digests: list[Any], progress: Progress | None) -> None:
    """Raise `Damaged` unless every block is as it was written.

    Reads the file, not the memory map: a disk that cannot return a page would end the process there.
    """
    reading = threading.Lock()

    def same(number: int) -> bool:
        with reading:
            file.seek(start + number * _BLOCK)
            block = file.read(_BLOCK)
        return hashlib.sha256(block).hexdigest() == digests[number]

    with ThreadPoolExecutor(max_workers=min(_THREADS, os.cpu_count() or 1)) as pool:
        for number, right in enumerate(pool.map(same, range(len(digests)))):
            if progress is not None:
                progress(number + 1, len(digests), "checking cached pictures")
            if not right:
                raise Damaged(path, f"bytes {number * _BLOCK} and following are not what was written")
