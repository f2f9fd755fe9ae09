"""Where made and fetched data is kept: each file whole or not there, made once, and checked when it is read again.

Whoever needs an entry looks for it, and makes it if it is not there (:func:`prepared`). Who makes it holds the lock of
that entry, so that several processes or threads make it once. A lock for each entry rather than one for the folder: two
large sets of pictures may be decoded at once.
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

_Found = TypeVar("_Found")

_PATIENCE = 2.0  # seconds to wait for another process before it is said
_FORGOTTEN = 2.0  # seconds: between making a temporary file and locking it, or moving it, there are microseconds
# A file system without locks, or a lock that another user made: work may be done twice, but files are whole all the
# same.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM)


class Damaged(Exception):
    """A file of the cache is not what was written."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"the cache file {path} is damaged ({why})")


def folder_from(variable: str) -> Path | None:
    """Return the folder that an environment variable names, if it does; ``~`` is somebody's home.

    Raises
    ------
    MetagradError
        if it is the home of a user whom the system does not know.
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
        the file to make or replace; missing folders are made. A link there is replaced, not followed.
    write
        writes the content to the path it is given.

    Raises
    ------
    MetagradError
        if the system refuses, for want of space or permission for example.
    """
    write_atomically(path, write, refused=lambda error: storage_error(path, error))


# --- made once ---------------------------------------------------------------------------------------------


def prepared(
    entry: Path, look: Callable[[], _Found | None], build: Callable[[], None], *, what: str, anew: bool = False
) -> _Found:
    """Return what ``look`` finds, after ``build`` if it finds nothing.

    Looking needs no permission to write. A damaged file is made anew, which is said.

    Parameters
    ----------
    entry
        names the lock, ``entry.lock``.
    look
        returns what is there, ``None`` if it is not; raises `Damaged`.
    build
        writes the files that ``look`` reads.
    what
        is being prepared, for who waits.
    anew
        build even if it is there.

    Raises
    ------
    MetagradError
        if a file cannot be read or written.
    """
    if not anew:
        with contextlib.suppress(Damaged):  # another process may be replacing it: seen again below
            found = look()
            if found is not None:
                return found
    with locked(entry, what):
        try:
            found = look()
        except Damaged as damage:
            warnings.warn(f"{damage}: it is made anew", MetagradWarning, stacklevel=2)
            found = None
        if found is None or anew:
            found = None  # lets go of a file in memory
            build()
            try:
                found = look()
            except Damaged as damage:
                raise MetagradError(f"{damage} just after it was written: check the disk, or set METAGRAD_CACHE to "
                                    "a folder on another") from damage  # fmt: skip
    if found is None:
        raise MetagradError(f"the cache {entry} vanished while it was made: try again")
    return found


@contextlib.contextmanager
def locked(entry: Path, what: str) -> Iterator[None]:
    """Keep others from making the same entry of the cache.

    Parameters
    ----------
    entry
        names the lock file, ``entry.lock``, which stays.
    what
        is being prepared, for who waits.

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
    """Remove what processes that were killed left half-written; other entries may be in the middle of writing."""
    for entry in os.scandir(folder):
        if is_leftover(entry.name) and entry.is_file(follow_symlinks=False):
            with contextlib.suppress(OSError):
                old = time.time() - entry.stat(follow_symlinks=False).st_mtime > _FORGOTTEN
                if old and is_abandoned(Path(entry.path)):
                    os.unlink(entry.path)


# --- facts -------------------------------------------------------------------------------------------------


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Write a small JSON file of the cache, which carries a digest of itself."""
    whole = {**facts, "sha256": _digest(facts)}
    write_text(path, strict_json.dump(whole, indent=1), refused=lambda error: storage_error(path, error))


def read_facts(path: Path) -> dict[str, Any] | None:
    """Read it again; ``None`` if there is none, or an older version wrote it.

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
    except ValueError as error:  # not JSON, or with what is no number in it
        raise Damaged(path, str(error)[:120]) from error


def is_plain(path: Path) -> bool:
    """Say whether there is a file.

    Raises
    ------
    MetagradError
        if there is something else, which might be waited for without end.
    """
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return True
        raise OSError(errno.EINVAL, "it is no plain file")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(path, error) from error


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(strict_json.dump(facts).encode()).hexdigest()
