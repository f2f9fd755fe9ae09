"""Rows on disk by key, in two files that are only ever appended to.

``keys`` holds 40 bytes for each row: its key of 32 bytes, and a checksum of key and row. ``rows`` holds the rows, one
after the other, so that they can be mapped into memory as one tensor. A row counts if both files hold all of it.
Whatever else lies at their ends, after a kill or on a full disk, the next row overwrites. What counts never changes, so
that a process may read while another appends.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metagrad.data.cache import locked
from metagrad.errors import MetagradError
from metagrad.files import open_own

FILES = ("keys", "rows")
KEY = 32  # bytes
RECORD = KEY + 8  # bytes: a key and a checksum
_BLOCK = 4 * 2**20  # bytes that are checked at a time
_THREADS = 4  # hashlib lets go of the interpreter
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


class Records:
    """Rows of one shape and type, found by their keys; for one thread at a time, and any number of processes.

    Parameters
    ----------
    folder:
        where the two files are; made where it may be. Where it may not, there are no rows and none can be appended.
    shape, dtype:
        of a row.
    salt:
        goes into every checksum: rows of something else never count.

    Attributes
    ----------
    at:
        the position of each key's row.
    refused:
        why nothing can be appended; ``None`` if something can.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: np.dtype, salt: bytes) -> None:
        self.folder, self.shape, self.dtype = folder, shape, dtype
        self.row_bytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        self.at: dict[bytes, int] = {}
        self.refused: OSError | MetagradError | None = None
        self._salt = salt
        self._count = 0
        self._known = bytearray()  # what ``keys`` holds of the rows that count
        self._good = bytearray()  # for each row, whether it was compared with its checksum
        self._mapped: Tensor | None = None
        self._keys = self._rows = -1
        try:
            self._open()
        except (OSError, MetagradError) as error:
            self.refused = error
        self.refresh()

    def _open(self) -> None:
        try:
            files = self._opened(os.O_RDWR)
        except FileNotFoundError:
            with locked(self.folder, "cached features"):
                if self.folder.is_symlink():  # it would lead out of the cache
                    raise OSError(errno.ELOOP, "it is a link") from None
                self.folder.mkdir(exist_ok=True)
                files = self._opened(os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            self.refused = error
            files = self._opened(os.O_RDONLY)
        self._keys, self._rows = files

    def _opened(self, flags: int) -> tuple[int, int]:
        if self.folder.is_symlink():
            raise OSError(errno.ELOOP, "it is a link")
        keys = open_own(self.folder / "keys", flags)
        try:
            rows = open_own(self.folder / "rows", flags)
        except OSError:
            os.close(keys)
            raise
        if flags & os.O_RDWR and max(os.fstat(file).st_nlink for file in (keys, rows)) > 1:
            self.refused = OSError(errno.EMLINK, "it has a second name, a hard link")
        return keys, rows

    def close(self) -> None:
        """Close the files; tensors that are mapped stay."""
        for file in (self._keys, self._rows):
            if file >= 0:
                os.close(file)
        self._keys = self._rows = -1

    __del__ = close

    def refresh(self) -> None:
        """Learn what other processes have appended."""
        if self._keys < 0:
            return
        count = min(os.fstat(self._keys).st_size // RECORD, os.fstat(self._rows).st_size // (self.row_bytes or 1))
        if count < self._count:  # somebody cut it
            self.at.clear()
            self._count, self._mapped = 0, None
            del self._known[:], self._good[:]
        new = _read(self._keys, (count - self._count) * RECORD, self._count * RECORD)
        for number in range(len(new) // RECORD):
            self.at[new[number * RECORD : number * RECORD + KEY]] = self._count + number
        self._count += len(new) // RECORD
        self._known += new[: len(new) // RECORD * RECORD]
        self._good += bytes(self._count - len(self._good))

    def mapped(self) -> Tensor:
        """Map all rows into memory, ``(M, *shape)``; what is written into the tensor stays out of the file."""
        if self._mapped is None or len(self._mapped) != self._count:
            if not self._count:
                return torch.from_numpy(np.empty((0, *self.shape), self.dtype))
            whole = mmap.mmap(self._rows, self._count * self.row_bytes, access=mmap.ACCESS_COPY)
            self._mapped = torch.from_numpy(np.frombuffer(whole, self.dtype).reshape(self._count, *self.shape))
        return self._mapped

    def forget_altered(self, keys: Iterable[bytes], told: Callable[[int, int], None] | None = None) -> int:
        """Compare rows with their checksums, each once; forget those that differ, and return how many they were.

        Parameters
        ----------
        keys:
            of the rows; those that are not there are passed over.
        told:
            called with (rows compared, rows in all).
        """
        positions = sorted({self.at[key] for key in keys if key in self.at})
        blocks = list(_blocks([one for one in positions if not self._good[one]], max(1, _BLOCK // self.row_bytes)))
        if not blocks:
            return 0
        total, done, altered = sum(map(len, blocks)), 0, 0
        with ThreadPoolExecutor(max_workers=min(_THREADS, os.cpu_count() or 1)) as pool:
            for block, right in zip(blocks, pool.map(self._are_right, blocks), strict=True):
                for position, good in zip(block, right, strict=True):
                    self._good[position] = good
                    if not good:
                        del self.at[bytes(self._known_of(position)[:KEY])]
                        altered += 1
                done += len(block)
                if told is not None:
                    told(done, total)
        return altered

    def _are_right(self, block: range) -> list[bool]:
        """Compare rows that follow each other; read here, since a disk that fails under a map ends the process."""
        size = self.row_bytes
        try:
            data = memoryview(_read(self._rows, len(block) * size, block.start * size))
        except OSError:
            data = memoryview(b"")
        right = []
        for k, known in enumerate(map(self._known_of, block)):
            right.append(known == self._record(known[:KEY], data[k * size : (k + 1) * size]))
        return right

    def _known_of(self, position: int) -> bytearray:
        return self._known[position * RECORD : (position + 1) * RECORD]

    def _record(self, key: bytes | bytearray, row: memoryview | bytes) -> bytes:
        digest = hashlib.sha256(self._salt + key)
        digest.update(row)
        return bytes(key) + digest.digest()[: RECORD - KEY]

    def append(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Append rows, ``(B, *shape)``, unless another process has done so.

        Raises
        ------
        OSError, MetagradError
            if the system refuses; what counted before still does.
        """
        if self.refused is not None:
            raise self.refused
        with locked(self.folder, "cached features"):
            self.refresh()
            new = [number for number, key in enumerate(keys) if key not in self.at]
            parts = [np.ascontiguousarray(rows[number]).tobytes() for number in new]
            start = self._count
            os.ftruncate(self._keys, start * RECORD)  # no key must find the row of another
            _write(self._rows, b"".join(parts), start * self.row_bytes)
            _write(self._keys, b"".join(self._record(keys[k], row) for k, row in zip(new, parts, strict=True)),
                   start * RECORD)  # fmt: skip
            self.refresh()
            self._good[start : start + len(new)] = bytes([1]) * len(new)


def _blocks(positions: list[int], most: int) -> Iterator[range]:
    """Cut ascending positions into ranges of at most ``most``."""
    start = 0
    for k in range(1, len(positions) + 1):
        if k == len(positions) or positions[k] != positions[k - 1] + 1 or k - start == most:
            yield range(positions[start], positions[k - 1] + 1)
            start = k


def _read(file: int, size: int, offset: int) -> bytes:
    """Read so many bytes, or those that there are."""
    parts = []
    while size > 0:
        part = os.pread(file, size, offset)  # at most 2 GB at a time
        if not part:
            break
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return b"".join(parts)


def _write(file: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, offset)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest, offset = rest[written:], offset + written
