"""Bounds of a zip file, checked in its directory before anything is unpacked."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

from metagrad.data.names import unsafe
from metagrad.errors import MetagradError

# A directory of more is no data set: ImageNet's 1.3 million files have one of 170 MB.
_MOST_MEMBERS = 2_000_000
_MOST_DIRECTORY_BYTES = 256 * 2**20
# What all members may unpack to: photographs hardly shrink, drawings and plain bitmaps to a hundredth at the most, a
# bomb to a thousandth. Below the first bound it does not matter, as members are unpacked one by one.
_UNPACKED_BYTES = 4 * 2**30
_UNPACKED_RATIO = 100
_LOCAL_HEADER = 30  # bytes of it that every member has


class ZipFile(io.BufferedReader):
    """A zip file of ``size`` bytes that refuses too large a directory, which zipfile reads in one go and keeps.

    ``directory`` says whether zipfile now reads the directory.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.size = os.fstat(self.fileno()).st_size
        self.directory = True

    def read(self, size: int | None = -1) -> bytes:
        """Read as any file; refuse too much of a directory."""
        if not self.directory:
            return super().read(size)
        if size is not None and size > _MOST_DIRECTORY_BYTES:
            raise ValueError(f"its directory has {size:,} bytes, more than {_MOST_DIRECTORY_BYTES:,}")
        data = super().read(size)
        if data.count(b"PK\1\2") > _MOST_MEMBERS:
            raise ValueError(f"it has more than {_MOST_MEMBERS:,} members")
        return data


def refuse_overlaps(source: Path, archive: zipfile.ZipFile) -> None:
    """Refuse members that share bytes: a bomb makes us unpack the same bytes again and again."""
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    ends = [info.header_offset for info in infos[1:]] + [archive.start_dir]
    for info, end in zip(infos, ends, strict=False):
        if info.header_offset + _LOCAL_HEADER + info.compress_size > end:
            raise unsafe(source, info.orig_filename, "overlaps another one")


def refuse_total(source: Path, infos: Iterable[zipfile.ZipInfo], size: int) -> None:
    """Refuse members that unpack to far more than an archive of ``size`` bytes should."""
    total, most = sum(info.file_size for info in infos), max(_UNPACKED_BYTES, _UNPACKED_RATIO * size)
    if total > most:
        raise MetagradError(
            f"{source} would unpack to {total / 2**30:,.1f} GB, more than {most / 2**30:,.1f} GB, which an archive of "
            f"{size / 2**20:,.1f} MB should not: get it again, or unpack it and name the folder"
        )
