"""Data sets, one file each; each offers ``load(...) -> Dataset``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from metagrad.data.classes import Dataset, ImageClasses

Progress = Callable[[int, int, str], None]

__all__ = ["Dataset", "ImageClasses", "load"]


def load(name: str, *, data_dir: Path | None = None, progress: Progress | None = None) -> Dataset:
    """Load a data set by the name the command line gives it.

    Parameters
    ----------
    name:
        ``"glyphs"`` or ``"omniglot"``.
    data_dir:
        folder with the original files; ``None`` means METAGRAD_DATA, else a download. Glyphs needs none.
    progress:
        called with (done, total, what) while files are checked, fetched or decoded.

    Raises
    ------
    MetagradError
        for files that are missing, altered or unreadable.
    """
    if name == "glyphs":
        from metagrad.data import glyphs

        return glyphs.load(progress=progress)
    if name == "omniglot":
        from metagrad.data import omniglot

        return omniglot.load(data_dir=data_dir, progress=progress)
    raise ValueError(f"no data set is called {name!r}")
