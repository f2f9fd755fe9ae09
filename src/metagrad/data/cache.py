"""The cache of made and downloaded data: each file is complete or absent, made once, and checked when it is read.

Who needs an entry reads it, and makes it if it is missing (:func:`prepared`), under the lock of that entry, so that
several processes or threads make it once. Each entry has its own lock: two large sets of pictures may be decoded at
once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import filelock
import platformdirs

from metagrad import strict_json
from metagrad.errors import MetagradError, MetagradWarning
from metagrad.files import is_abandoned, is_leftover, write_atomically, write_text

_Entry = TypeVar("_Entry")

_PATIENCE = 2.0  # seconds to wait for another process before a warning says so
_FORGOTTEN = 2.0  # seconds: between making a temporary file and locking it, or moving it, there are microseconds
# A file system without locks, or a lock that another user made: work may be done twice, but files stay complete.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM)


class Damaged(Exception):
    """A file of the cache is not what was written."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"the cache file {path} is damaged ({why})")


def folder_from(variable: str) -> Path | None:
    """Return the folder that an environment variable names, ``None`` if it is not set; ``~`` is a home folder.

    Raises
    ------
    MetagradError
        for the home of a user whom the system does not know.
    """
    named = os.environ.get(variable)
    try:
        return Path(named).expanduser() if named else None
    except RuntimeError as error:
        raise MetagradError(f"{variable} is {named}, and there is no such home folder: name another") from error


def cache_root() -> Path:
    """Return the folder below which data sets are cached: METAGRAD_CACHE, else the system's cache folder."""
    return folder_from("METAGRAD_CACHE") or Path(platformdirs.user_cache_dir("metagrad"))


def storage_error(path: Path, error: OSError) -> MetagradError:
    """Turn the system's error about a file of the cache into one line that says what to do."""
    reason = error.strerror or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "free some space there, or set METAGRAD_CACHE to a folder on another disk"
    else:
        advice = "set METAGRAD_CACHE to a folder that you may read and write"
    return MetagradError(f"cannot use the cache file {path} ({reason}): {advice}")


def atomic_save(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file of the cache so that ``path`` is only ever absent, as it was before, or complete.

    ``write`` fills the file at the path it is given. Missing folders are made; a link at ``path`` is replaced, not
    followed.

    Raises
    ------
    MetagradError
        if the system refuses, for want of space or permission for example.
    """
    write_atomically(path, write, refused=lambda error: storage_error(path, error))


# --- made once ---------------------------------------------------------------------------------------------


def prepared(
    entry: Path, read: Callable[[], _Entry | None], build: Callable[[], None], *, what: str, anew: bool = False
) -> _Entry:
    """Return what ``read`` returns, after ``build`` if that is ``None``.

    Reading needs no permission to write. A damaged file is made anew, with a warning.

    Parameters
    ----------
    entry
        names the lock, ``entry.lock``.
    read
        returns the entry, ``None`` if it is missing; raises `Damaged`.
    build
        writes the files that ``read`` reads.
    what
        names the entry in a message to a process that waits.
    anew
        build even if the entry is there.

    Raises
    ------
    MetagradError
        if a file cannot be read or written.
    """
    if not anew:
        with contextlib.suppress(Damaged):  # another process may be replacing it: read again below
            result = read()
            if result is not None:
                return result
    with locked(entry, what):
        try:
            result = read()
        except Damaged as damage:
            warnings.warn(f"{damage}: writing it again", MetagradWarning, stacklevel=2)
            result = None
        if result is None or anew:
            result = None  # releases the memory map
            build()
            try:
                result = read()
            except Damaged as damage:
                raise MetagradError(f"{damage} just after it was written: check the disk, or set METAGRAD_CACHE to "
                                    "a folder on another") from damage  # fmt: skip
    if result is None:
        raise MetagradError(f"the cache folder {entry} was removed while metagrad wrote it: try again")
    return result


@contextlib.contextmanager
def locked(entry: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``entry.lock``, which stays; ``what`` names the entry in a message to a process that waits.

    Raises
    ------
    MetagradError
        if the folder cannot be written to.
    """
    path = entry.with_name(f"{entry.name}.lock")
    lock = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()
        _acquire(lock, what)
        if lock.is_locked:
            _remove_forgotten(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: filelock.BaseFileLock, what: str) -> None:
    try:
        lock.acquire(timeout=_PATIENCE)
    except filelock.Timeout:
        warnings.warn(f"another process is preparing {what}: waiting for it", MetagradWarning, stacklevel=4)
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS or not os.access(Path(lock.lock_file).parent, os.W_OK):
            raise


def _remove_forgotten(folder: Path) -> None:
    """Remove half-written files of killed processes; another entry may be in the middle of writing its own."""
    for entry in os.scandir(folder):
        if is_leftover(entry.name) and entry.is_file(follow_symlinks=False):
            with contextlib.suppress(OSError):
                old = time.time() - entry.stat(follow_symlinks=False).st_mtime > _FORGOTTEN
                if old and is_abandoned(Path(entry.path)):
                    os.unlink(entry.path)


# --- facts -------------------------------------------------------------------------------------------------


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Write a small JSON file of the cache with a digest of itself."""
    text = strict_json.dump({**facts, "sha256": _digest(facts)}, indent=1)
    write_text(path, text, refused=lambda error: storage_error(path, error))


def read_facts(path: Path) -> dict[str, Any] | None:
    """Return the facts in a file; ``None`` if there is no file, or an older version wrote it.

    Raises
    ------
    Damaged
        if it is not what was written.
    MetagradError
        if it cannot be read.
    """
    if not is_plain(path):
        return None
    try:
        facts = strict_json.read(path)
        if not isinstance(facts, dict):
            raise ValueError("it is no object")
        if "sha256" not in facts:
            return None
        if facts.pop("sha256") != _digest(facts):
            raise ValueError("its digest is another")
        return facts
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(path, error) from error
    except ValueError as error:  # not JSON, or a number that is none
        raise Damaged(path, str(error)[:120]) from error


def remember(path: Path, name: str, fact: Any) -> None:
    """Add one fact to the file ``path``, which another process may have added to."""
    facts: dict[str, Any] = {}
    with contextlib.suppress(Damaged):  # a warning was printed
        facts = read_facts(path) or {}
    write_facts(path, {**facts, name: fact})


def is_plain(path: Path) -> bool:
    """Say whether there is a file.

    Raises
    ------
    MetagradError
        if there is something else: a read of a pipe might never end.
    """
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return True
        raise OSError(errno.EINVAL, "it is not a plain file")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(path, error) from error


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(strict_json.dump(facts).encode()).hexdigest()
