"""Where a data set's original files are looked for, and how they are downloaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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


def read_json(path: Path) -> Any:
    """Return what a person's JSON file says.

    Raises
    ------
    MetagradError
        if it is not there or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise MetagradError(f"{path} cannot be read ({error.strerror}): name a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise MetagradError(f"{path} is not JSON ({error})") from error


def md5_of(path: Path) -> str:
    """Return the MD5 of a file, as its publisher gives it.

    Raises
    ------
    MetagradError
        if it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise MetagradError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def download(url: str, path: Path, *, md5: str, progress: Progress | None, size: str = "") -> Path:
    """Fetch ``url`` to ``path``, unless what is there is it already; return ``path``.

    Raises
    ------
    MetagradError
        if it cannot be fetched, or is not what its MD5 says.
    """
    if path.is_file() and md5_of(path) == md5:
        return path
    # Imported here: only a download needs it, and it takes longer to import than a cached load takes.
    import pooch

    pooch.get_logger().setLevel("WARNING")  # its lines would cut through the caller's progress display
    if progress is not None:
        progress(0, 1, f"downloading {path.name}{size and f' ({size})'}")
    try:
        pooch.retrieve(url, known_hash=f"md5:{md5}", fname=path.name, path=path.parent)
    except Exception as error:  # requests, urllib3, the file system and pooch's checksum each raise their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MetagradError(
            f"cannot download {url}; get {path.name} some other way and name its directory with --data-dir or "
            f"METAGRAD_DATA ({reason})"
        ) from error
    if progress is not None:
        progress(1, 1, f"downloading {path.name}")
    return path
