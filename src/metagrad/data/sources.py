"""Finds a data set's original files, or downloads them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from metagrad import strict_json
from metagrad.data.cache import folder_from, is_plain, locked, storage_error
from metagrad.data.rows import Progress
from metagrad.errors import MetagradError
from metagrad.files import require_readable


def data_directory(data_dir: Path | None) -> Path | None:
    """Return the folder that the argument or METAGRAD_DATA names, ``None`` if neither does."""
    return folder_from("METAGRAD_DATA") if data_dir is None else data_dir


def find(data_dir: Path, name: str, places: Sequence[str], wanted: Callable[[Path], bool]) -> Path:
    """Return the first of ``places`` below ``data_dir`` that is wanted; `MetagradError` if there is none."""
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
    """Return the content of a user's JSON file; `MetagradError` if it is missing or not JSON."""
    require_readable(path, missing="name a JSON file")
    try:
        return strict_json.read(path)
    except OSError as error:
        raise MetagradError(f"{path} cannot be read ({error.strerror}): name a JSON file") from error
    except ValueError as error:
        raise MetagradError(f"{path} is not JSON ({error})") from error


def md5_of(path: Path) -> str | None:
    """Return the MD5 of a file, ``None`` if it is gone; `MetagradError` if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except FileNotFoundError:  # another process may be replacing it
        return None
    except OSError as error:
        raise MetagradError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def download(url: str, path: Path, *, md5: str, progress: Progress | None, size: str = "") -> Path:
    """Fetch ``url`` to ``path``, unless the file there has this MD5 already; return ``path``.

    Raises
    ------
    MetagradError
        if it cannot be fetched, or is not what its MD5 says.
    """

    def is_there() -> bool:
        return is_plain(path) and md5_of(path) == md5

    if not is_there():
        with locked(path, path.name):
            if not is_there():  # another process may have fetched it
                _fetch(url, path, md5, progress, size)
    return path


def _fetch(url: str, path: Path, md5: str, progress: Progress | None, size: str) -> None:
    # Imported here: only a download needs it, and it takes longer to import than a cached load takes.
    import pooch

    pooch.get_logger().setLevel("WARNING")  # its lines would cut through the caller's progress display
    if progress is not None:
        progress(0, 1, f"downloading {path.name}{size and f' ({size})'}")
    try:
        if path.is_symlink():  # to something else than this file: it stays as it is
            path.unlink()
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        pooch.retrieve(url, known_hash=f"md5:{md5}", fname=path.name, path=path.parent)
    except Exception as error:  # requests, urllib3, the file system and pooch's checksum each raise their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MetagradError(
            f"cannot download {url}; get {path.name} some other way and name its directory with --data-dir or "
            f"METAGRAD_DATA ({reason[:300]})"
        ) from error
    if progress is not None:
        progress(1, 1, f"downloading {path.name}")
