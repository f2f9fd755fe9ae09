"""CIFAR-FS and FC100: CIFAR-100's classes split for few-shot learning (Bertinetto 2019; Oreshkin 2018).

Reads the official binary archive, which holds no code. It is accepted by a digest of its records' sorted hashes, which
does not depend on their order or on how they are packed.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from io import BufferedReader
from pathlib import Path

import numpy as np
from torch import Tensor

from metagrad.data import memmap
from metagrad.data.archive import fingerprint
from metagrad.data.cache import cache_root, prepared, read_facts, remember
from metagrad.data.class_splits import SPLITS, dataset, published_split, require_split
from metagrad.data.classes import Dataset
from metagrad.data.rows import Progress
from metagrad.data.sources import data_directory, download, find
from metagrad.errors import MetagradError

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
MD5 = "03b5dce01913d631647c71ecec9e9cb8"
RECORDS = "046da4593433b5d4a5af8c8a4bff2526410ca3531cf9b9cbd64bea9bbe23015e"
PREPROCESSING = "32x32 RGB as published, scaled to [0, 1], no augmentation"
_PLACES = tuple(f"{folder}cifar-100-binary{ending}" for ending in (".tar.gz", "") for folder in ("", "cifar100/"))
_FILES = {"train.bin": 50_000, "test.bin": 10_000}
_RECORD = 2 + 3072  # coarse label, fine label, 3 × 32 × 32 pixels
_MOST_BYTES = 400 * 2**20  # of the archive, unpacked: twice what it has
_MOST_MEMBERS = 1000  # it has six
_PER_CLASS = 600
_RECIPE = 1


def load(
    name: str,
    *,
    data_dir: Path | None = None,
    anew: bool = False,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Load one of the two, from a directory or by downloading it; the archive is unpacked the first time only.

    CIFAR-FS splits the 100 classes at random, FC100 by their 20 groups, so that its test classes are less like its
    training classes.

    Parameters
    ----------
    name:
        ``"cifar-fs"`` or ``"fc100"``.
    data_dir:
        directory with ``cifar-100-binary.tar.gz``, or unpacked; also in ``cifar100`` below it. Without it the
        environment variable ``METAGRAD_DATA`` names the directory; without that too, the archive is downloaded.
    anew:
        read the archive, even if it seems to be the one that was unpacked.
    cache_dir:
        where unpacked images and the download are kept; the system's cache folder by default.

    Returns
    -------
    Dataset
        600 images a class, in the order of their hashes.

    Raises
    ------
    MetagradError
        if the archive is not where it should be, is not the official one, or cannot be downloaded.
    """
    cache = (cache_root() if cache_dir is None else cache_dir) / "cifar100"
    place = data_directory(data_dir)
    if place is None:
        source = download(URL, cache / "cifar-100-binary.tar.gz", md5=MD5, progress=progress, size="161 MB")
    else:
        source = find(place, "CIFAR-100", _PLACES, lambda path: path.is_file() or (path / "train.bin").is_file())
    labels = sorted(label for names in published_split("cifar-fs").values() for label in names)  # group/class
    images = _unpacked(source, labels, cache, progress, anew)
    split = published_split(name)
    if name == "fc100":  # by groups
        split = {which: [label for label in labels if label.split("/")[0] in split[which]] for which in SPLITS}
    split = require_split(split, labels, f"the split of {name}")
    counts = dict.fromkeys(labels, _PER_CLASS)
    return dataset(name, images, counts, split, preprocessing=PREPROCESSING, content=RECORDS)


def _unpacked(source: Path, labels: list[str], cache: Path, progress: Progress | None, anew: bool) -> Tensor:
    """Return all images, class after class in the order of ``labels``."""
    memory, stem = cache / "accepted.json", f"images-v{_RECIPE}"
    path, state = str(source.resolve()), [fingerprint(source), RECORDS]

    def read() -> Tensor | None:
        if (read_facts(memory) or {}).get(path) != state:
            return None
        return memmap.open_rows(cache / f"{stem}.npy", (len(labels) * _PER_CLASS, 3, 32, 32))

    def build() -> None:
        if progress is not None:
            progress(0, 1, "unpacking CIFAR-100")
        records = _read(source)
        hashes = _accept(source, records)
        by_number = sorted(labels, key=lambda label: label.split("/")[1])  # the names of classes are in this order
        order = sorted(range(len(records)), key=lambda row: (by_number[records[row, 1]], hashes[row]))
        memmap.save_rows(cache, (records[row, 2:].reshape(3, 32, 32) for row in order), (3, 32, 32), name=stem)
        remember(memory, path, state)
        if progress is not None:
            progress(1, 1, "unpacking CIFAR-100")

    return prepared(cache / stem, read, build, what="CIFAR-100", anew=anew)


def _read(source: Path) -> np.ndarray:
    """Return the records of both files, uint8 ``(N, 3074)``."""
    sizes = {name: count * _RECORD for name, count in _FILES.items()}
    try:
        content = (_from_folder if source.is_dir() else _from_archive)(source, sizes)
    except Exception as error:  # a damaged archive raises nearly anything
        reason = " ".join(str(error).split())[:120]
        raise MetagradError(f"{source} cannot be read ({reason}): get {URL} again") from error
    for name, size in sizes.items():
        if len(content.get(name, b"")) != size:
            raise MetagradError(f"{source} is not CIFAR-100's binary version ({name} is missing or cut): get {URL}")
    return np.concatenate([np.frombuffer(content[name], np.uint8).reshape(-1, _RECORD) for name in sizes])


def _from_folder(folder: Path, sizes: dict[str, int]) -> dict[str, bytes]:
    content = {}
    for name, size in sizes.items():
        if not (folder / name).is_file():  # a read of a pipe might never end
            raise OSError(f"{name} is no file")
        with (folder / name).open("rb") as file:
            content[name] = file.read(size + 1)
    return content


def _from_archive(source: Path, sizes: dict[str, int]) -> dict[str, bytes]:
    content = {}
    with source.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        plain = gzip.GzipFile(fileobj=file) if packed else file
        # mypy: tarfile needs no more of a file than this.
        with tarfile.open(fileobj=_Bounded(plain), mode="r:") as archive:  # type: ignore[call-overload]
            for count, member in enumerate(archive):
                if count > _MOST_MEMBERS:
                    raise ValueError(f"it has more than {_MOST_MEMBERS} members")
                name = member.name.rpartition("/")[2]
                if member.isfile() and member.size == sizes.get(name):
                    stream = archive.extractfile(member)
                    content[name] = b"" if stream is None else stream.read(member.size)
    return content


class _Bounded:
    """The part of a file that tarfile uses, up to a bound: a small archive may unpack to any size."""

    def __init__(self, file: gzip.GzipFile | BufferedReader) -> None:
        self._file = file
        self.tell, self.close = file.tell, file.close

    def read(self, size: int) -> bytes:
        self._refuse(self._file.tell() + size)
        return self._file.read(size)

    def seek(self, place: int) -> int:
        self._refuse(place)
        return self._file.seek(place)

    def _refuse(self, place: int) -> None:
        if place > _MOST_BYTES:
            raise ValueError(f"it unpacks to more than {_MOST_BYTES // 2**20} MB")


def _accept(source: Path, records: np.ndarray) -> list[bytes]:
    """Return each record's hash, if together they are those of CIFAR-100."""
    hashes = [hashlib.sha256(row.tobytes()).digest() for row in records]
    if hashlib.sha256(b"".join(sorted(hashes))).hexdigest() != RECORDS:
        raise MetagradError(
            f"{source} is not the official CIFAR-100: it has the right number of images, but some are altered; "
            f"get {URL} again"
        )
    return hashes
