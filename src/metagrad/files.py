"""Files that are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from metagrad.errors import MetagradError


def write_atomically(path: Path, write: Callable[[Path], None], *, advice: str) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there in one step.

    Parameters
    ----------
    write:
        called with the temporary path.
    advice:
        what to do when the disk refuses, the end of the error message.

    Raises
    ------
    MetagradError
        if the file cannot be written (disk full, no permission); what was at ``path`` before is still there.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise MetagradError(f"cannot write {path}: {error.strerror or error}; {advice}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
