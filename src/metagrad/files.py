"""Write files that are complete or absent, even after a crash, and that are never links."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path

from metagrad.errors import MetagradError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\.metagrad-[0-9a-f]{16}\.tmp")
# Windows has neither O_NOFOLLOW nor O_CLOEXEC; it needs O_BINARY.
_OWN_FILE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def write_atomically(
    path: Path, write: Callable[[Path], object], *, refused: Callable[[OSError], MetagradError], follow: bool = False
) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there in one step.

    The new file has the permissions of the one it replaces. After a power cut there is the new file or the old one.

    Parameters
    ----------
    path:
        the file to make or replace; makes missing folders.
    write:
        called with the temporary path, ``.metagrad-<16 hexadecimal digits>.tmp``.
    refused:
        turns the system's error (disk full, no permission) into the exception to raise.
    follow:
        for a path that a person named: replace the target of a link. Otherwise the link itself is replaced.

    Raises
    ------
    MetagradError
        from ``refused``; the file at ``path`` is as before, and no temporary file is left.
    """
    temporary = held = None
    if follow:
        path = Path(os.path.realpath(path))
    try:
        mode, new = _mode_of(path), not os.path.lexists(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".metagrad-{secrets.token_hex(8)}.tmp")
        # With the old file's permissions from the first byte on. Not tempfile: only the owner can read its files, and a
        # cache or a run may be shared.
        held = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _OWN_FILE, 0o666 if mode is None else mode)
        _lock(held)  # while it is written: is_abandoned sees the lock
        mode = stat.S_IMODE(temporary.stat().st_mode) if mode is None else mode
        write(temporary)
        temporary.chmod(mode)  # a library may have put a file of its own there, which only its owner can read
        with temporary.open("rb+") as written:  # else a crash may leave the new name on an empty file
            os.fsync(written.fileno())
        os.replace(temporary, path)
        if new:  # where one file replaces another, one of the two survives a power cut anyway
            sync_folder(path.parent)
    except OSError as error:
        raise refused(error) from error
    finally:
        if held is not None:
            os.close(held)
        if temporary is not None:
            with contextlib.suppress(OSError):  # a name too long cannot even be looked for
                temporary.unlink(missing_ok=True)  # it is missing if it was moved into place


def write_text(path: Path, text: str, *, refused: Callable[[OSError], MetagradError], follow: bool = False) -> None:
    """Write a text file as :func:`write_atomically` does, in UTF-8."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"), refused=refused, follow=follow)


def open_own(path: Path, flags: int) -> int:
    """Open a file of our own, which is no link, pipe or device, and return its descriptor.

    Parameters
    ----------
    flags:
        as of :func:`os.open`.

    Raises
    ------
    OSError
        if the system refuses, or there is something else.
    """
    file = os.open(path, flags | _OWN_FILE | getattr(os, "O_NONBLOCK", 0), 0o666)  # a pipe would be waited for
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is not a plain file")
    return file


def append_line(path: Path, line: str) -> None:
    """Append a line of text to a file, after a newline if a kill or a full disk cut the last line off.

    A file that has other names (hard links) becomes a copy first, so that the others stay as they are.

    Raises
    ------
    OSError
        if the system refuses, or ``path`` is a link; the file is as it was before.
    """
    _unshare(path)
    file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | _OWN_FILE, 0o666)
    try:
        size = os.fstat(file).st_size
        cut = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        data = f"{chr(10) if cut else ''}{line}\n".encode()
        try:
            if os.write(file, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def truncate(path: Path, size: int) -> None:
    """Cut a file to ``size`` bytes; other names (hard links) of it keep their content.

    Raises
    ------
    OSError
        if the system refuses, or ``path`` is a link.
    """
    _unshare(path)
    file = os.open(path, os.O_WRONLY | _OWN_FILE)
    try:
        os.ftruncate(file, size)
    finally:
        os.close(file)


def sync_file(path: Path) -> None:
    """Make sure that appended lines survive a power cut; do nothing if there is no such file."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make sure that the names in a folder survive a power cut, if the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders, some file systems sync none
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def is_leftover(name: str) -> bool:
    """Whether this is the name of a temporary file, which a killed process may have left."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in a folder that no other process writes to."""
    for entry in os.scandir(folder):
        if is_leftover(entry.name) and entry.is_file(follow_symlinks=False):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)


def is_abandoned(path: Path) -> bool:
    """Whether no process writes to a temporary file any more; where files cannot be locked, after a day."""
    try:
        file = os.open(path, os.O_WRONLY | _OWN_FILE)
    except OSError:
        return False
    try:
        return _lock(file) if fcntl else time.time() - os.fstat(file).st_mtime > 86400
    finally:
        os.close(file)


def _lock(file: int) -> bool:
    """Lock an open file until it is closed; return whether no other process had locked it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked by another, or a file system without locks
        return False
    return True


def require_readable(path: Path, *, missing: str) -> None:
    """Refuse a path that is no readable plain file, before a library gives its own error.

    Parameters
    ----------
    missing:
        what to do if there is no such file.

    Raises
    ------
    MetagradError
        with the reason.
    """
    try:
        if path.exists() and not path.is_file():
            raise MetagradError(f"{path} is {'a folder' if path.is_dir() else 'not a plain file'}: name a file")
        path.open("rb").close()
    except PermissionError as error:
        raise MetagradError(f"cannot read {path} (permission denied): ask its owner for permission") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise MetagradError(f"{path} does not exist: {missing}") from error


def require_text(*names: str | Path) -> None:
    """Refuse file names that are not UTF-8: safetensors cannot open them.

    Raises
    ------
    MetagradError
        naming the first.
    """
    for name in names:
        try:
            str(name).encode()
        except UnicodeEncodeError as error:
            raise MetagradError(f"{name}: this name is not text in UTF-8: choose another, or rename it") from error


def require_apart(out: Path, *sources: Path, ours: Callable[[str], bool] = lambda name: False) -> None:
    """Refuse to write where something is read from.

    Parameters
    ----------
    sources:
        files, or folders.
    ours:
        whether a file of this name is read from such a folder.

    Raises
    ------
    MetagradError
        naming the source.
    """
    here = out.resolve()
    for source in sources:
        there = source.resolve()
        within = there in here.parents and out.exists() and ours(out.name)
        if here == there or within:
            raise MetagradError(f"--out {out} would replace what is read from {source}: name another file")


def _mode_of(path: Path) -> int | None:
    """Return the permissions of the plain file at ``path``, ``None`` where there is none; a link has none.

    Raises
    ------
    OSError
        if there is a device or a pipe, or the file is write-protected.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):  # the move would remove it
        raise OSError(errno.EINVAL, "it is not a plain file")
    mode = stat.S_IMODE(status.st_mode)
    if not mode & stat.S_IWUSR:  # a move needs no permission to write to it
        raise OSError(errno.EACCES, "it is write-protected")
    return mode


def _unshare(path: Path) -> None:
    """Replace a file of several names (hard links) by a copy."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        data = path.read_bytes()
        write_atomically(path, lambda part: part.write_bytes(data), refused=_as_it_is)


def _as_it_is(error: OSError) -> MetagradError:
    raise error
