"""CIFAR-FS and FC100: CIFAR-100's classes split for few-shot learning (Bertinetto 2019; Oreshkin 2018).

Reads the official binary archive, which holds no code. Its images are told by the MD5 of the archive or, however
records are ordered and packed, by a digest of their sorted hashes.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import tarfile
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from metagrad.data import memmap
from metagrad.data.archive import fingerprint
from metagrad.data.cache import Damaged, cache_root, prepared, read_facts, write_facts
from metagrad.data.class_splits import SPLITS, dataset, published_split, require_split
from metagrad.data.classes import Dataset
from metagrad.data.sources import Progress, data_directory, download, find
from metagrad.errors import MetagradError

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
MD5 = "03b5dce01913d631647c71ecec9e9cb8"
RECORDS = "046da4593433b5d4a5af8c8a4bff2526410ca3531cf9b9cbd64bea9bbe23015e"
PREPROCESSING = "32x32 RGB as published, scaled to [0, 1], no augmentation"
_PLACES = (
    "cifar-100-binary.tar.gz",
    "cifar100/cifar-100-binary.tar.gz",
    "cifar-100-binary",
    "cifar100/cifar-100-binary",
)
_FILES = {"train.bin": 50_000, "test.bin": 10_000}
_RECORD = 2 + 3072  # coarse label, fine label, 3 × 32 × 32 pixels
_NAMES = ("fine_label_names.txt", "coarse_label_names.txt")
_NAMES_BYTES = 10**5
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
    """Load one of the two, from a directory or by downloading it, unpacking it the first time only.

    CIFAR-FS splits the 100 classes at random, FC100 by their 20 groups, so that its test classes are less like those
    that are trained on.

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
        source = find(place, "CIFAR-100", _PLACES, _is_there)
    rows, labels = _unpacked(source, cache, progress, anew)
    counts = dict.fromkeys(labels, _PER_CLASS)
    split = published_split(name)
    if name == "fc100":  # by groups
        split = {which: [one for one in labels if one.split("/")[0] in split[which]] for which in SPLITS}
    split = require_split(split, labels, f"the split of {name}")
    return dataset(name, rows, counts, split, preprocessing=PREPROCESSING, content=RECORDS)


def _is_there(path: Path) -> bool:
    return path.is_file() or (path / "train.bin").is_file()


def _unpacked(source: Path, cache: Path, progress: Progress | None, anew: bool) -> tuple[memmap.Tensor, list[str]]:
    """Return all images, class after class, and the classes' names as ``group/class``."""
    facts_at, stem = cache / "accepted.json", f"images-v{_RECIPE}"
    key = f"{source.resolve()} {fingerprint(source)}"

    def look() -> tuple[memmap.Tensor, list[str]] | None:
        sources, labels = _accepted(facts_at)
        if sources.get(key) != RECORDS:
            return None
        rows = memmap.open_rows(cache / f"{stem}.npy", (len(labels) * _PER_CLASS, 3, 32, 32))
        return None if rows is None else (rows, labels)

    def build() -> None:
        if progress is not None:
            progress(0, 1, "unpacking CIFAR-100")
        records, fine, coarse = _read(source)
        hashes = _accept(source, records)
        labels = [f"{coarse[group]}/{fine[label]}" for group, label in _groups(source, records, fine, coarse)]
        order = sorted(range(len(records)), key=lambda row: (labels[records[row, 1]], hashes[row]))
        memmap.save_rows(cache, (records[row, 2:].reshape(3, 32, 32) for row in order), (3, 32, 32), name=stem)
        sources: dict[str, Any] = {}
        with contextlib.suppress(Damaged):  # it was said
            sources, _ = _accepted(facts_at)
        write_facts(facts_at, {"sources": {**sources, key: RECORDS}, "labels": sorted(labels)})
        if progress is not None:
            progress(1, 1, "unpacking CIFAR-100")

    return prepared(cache / stem, look, build, what="CIFAR-100", anew=anew)


def _accepted(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return what sources were found to be CIFAR-100, and the names of its classes."""
    facts = read_facts(path) or {"sources": {}, "labels": []}
    sources, labels = facts.get("sources"), facts.get("labels")
    if not isinstance(sources, dict) or not isinstance(labels, list) or not all(isinstance(one, str) for one in labels):
        raise Damaged(path, "it does not say what was accepted")
    return sources, labels


def _read(source: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Return the records, ``(60000, 3074)``, and the names of classes and groups."""
    wanted = {name: count * _RECORD for name, count in _FILES.items()}
    try:
        found = _from_folder(source, wanted) if source.is_dir() else _from_archive(source, wanted)
    except Exception as error:  # a damaged archive raises nearly anything
        said = " ".join(str(error).split())[:120]
        raise MetagradError(f"{source} cannot be read ({said}): get {URL} again") from error
    parts = []
    for name, count in _FILES.items():
        if len(found.get(name, b"")) != wanted[name]:
            raise MetagradError(f"{source} is not CIFAR-100's binary version ({name} is missing or cut): get {URL}")
        parts.append(np.frombuffer(found[name], dtype=np.uint8).reshape(count, _RECORD))
    names = [found.get(name, b"").decode("utf-8", "replace").split() for name in _NAMES]
    if [len(some) for some in names] != [100, 20]:
        raise MetagradError(f"{source} has not the 100 classes in 20 groups of CIFAR-100: get {URL} again")
    return np.concatenate(parts), names[0], names[1]


def _from_folder(folder: Path, wanted: dict[str, int]) -> dict[str, bytes]:
    found = {}
    for name, size in {**wanted, **dict.fromkeys(_NAMES, _NAMES_BYTES)}.items():
        if not (folder / name).is_file():  # a pipe would be waited for
            raise OSError(f"{name} is no file")
        with (folder / name).open("rb") as file:
            found[name] = file.read(size + 1)
    return found


def _from_archive(source: Path, wanted: dict[str, int]) -> dict[str, bytes]:
    found = {}
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
                right = member.size == wanted[name] if name in wanted else name in _NAMES
                if member.isfile() and right and member.size <= _MOST_BYTES:
                    stream = archive.extractfile(member)
                    found[name] = b"" if stream is None else stream.read(wanted.get(name, _NAMES_BYTES))
    return found


class _Bounded:
    """What tarfile reads of an unpacked archive, up to a bound: a small one may unpack to anything."""

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


def _groups(source: Path, records: np.ndarray, fine: list[str], coarse: list[str]) -> list[tuple[int, int]]:
    """Return each class's group and number, in the order of numbers."""
    pairs = sorted({(int(label), int(group)) for group, label in records[:, :2]})
    if [label for label, _ in pairs] != list(range(len(fine))) or max(group for _, group in pairs) >= len(coarse):
        raise MetagradError(f"{source} has classes in several groups: get {URL} again")
    return [(group, label) for label, group in pairs]
