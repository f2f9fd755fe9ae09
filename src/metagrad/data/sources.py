"""Where a data set's original files are looked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from metagrad.errors import MetagradError

Progress = Callable[[int, int, str], None]


def data_directory(data_dir: Path | None) -> Path | None:
    """Return the folder that was named, by argument or METAGRAD_DATA, if one was."""
    if data_dir is not None:
        return data_dir
    named = os.environ.get("METAGRAD_DATA")
    return Path(named).expanduser() if named else None


def find(data_dir: Path, name: str, places: Sequence[str], wanted: Callable[[Path], bool]) -> Path:
    """Return the first of ``places`` below ``data_dir`` that is wanted.

    Raises
    ------
    MetagradError
        if there is none.
    """
    if not data_dir.exists():
        raise MetagradError(f"{data_dir} does not exist; pass another with --data-dir or METAGRAD_DATA")
    try:
        for place in places:
            if wanted(data_dir / place):
                return data_dir / place
    except OSError as error:
        raise MetagradError(f"{data_dir} cannot be read ({error.strerror}); check its permissions") from error
    raise MetagradError(f"{name} is not in {data_dir}: looked for {', '.join(places)}; pass another with --data-dir")
