"""Files that are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metagrad.errors import MetagradError


def is_number(value: Any) -> bool:
    """Say whether a value that was read from JSON is a number, and not one of true and false."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 10**300  # else it is beyond every float
    return isinstance(value, float)


def write_atomically(path: Path, write: Callable[[Path], None], *, refused: Callable[[OSError], MetagradError]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there in one step.

    Parameters
    ----------
    path:
        the file to make or replace; missing folders are made.
    write:
        called with the temporary path, which ends as ``path`` does.
    refused:
        makes the exception to raise from what the system said (disk full, no permission).

    Raises
    ------
    MetagradError
        as ``refused`` says; what was at ``path`` before is still there, and no temporary file is left.
    """
    temporary = None
    path = Path(os.path.realpath(path))  # a link stays; what it leads to is replaced
    try:
        if path.exists() and not path.is_file():  # a device, a pipe: the move would do away with it
            raise OSError(errno.EINVAL, "it is no plain file")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile: its files are for their owner alone, and a cache or a run may be shared.
        temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(6)}{path.suffix}")
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # a library may have put a file of its own there, for its owner alone
        with temporary.open("rb+") as written:  # else a crash may leave the new name on an empty file
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise refused(error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # a name too long cannot even be looked for
                temporary.unlink(missing_ok=True)  # gone already if it was moved into place


def require_readable(path: Path, *, missing: str) -> None:
    """Refuse what cannot be opened as a plain file, in the system's words rather than a library's.

    Parameters
    ----------
    missing:
        what to do where there is no such file.

    Raises
    ------
    MetagradError
        saying why.
    """
    try:
        if path.exists() and not path.is_file():
            raise MetagradError(f"{path} is {'a folder' if path.is_dir() else 'no plain file'}: name a file")
        path.open("rb").close()
    except PermissionError as error:
        raise MetagradError(f"cannot read {path} (permission denied): ask its owner for permission") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise MetagradError(f"{path} does not exist: {missing}") from error


def require_text(*names: str | Path) -> None:
    """Refuse names of files that are bytes but no text: what reads and writes weights cannot follow them.

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
        says of a file's name whether it is one that is read from such a folder.

    Raises
    ------
    MetagradError
        saying which.
    """
    here = out.resolve()
    for source in sources:
        there = source.resolve()
        within = there in here.parents and out.exists() and ours(out.name)
        if here == there or within:
            raise MetagradError(f"--out {out} would replace what is read from {source}: name another file")
