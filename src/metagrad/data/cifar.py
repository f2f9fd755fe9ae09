"""CIFAR-FS and FC100: CIFAR-100's classes split for few-shot learning (Bertinetto 2019; Oreshkin 2018).

Reads the official binary archive, which holds no code. Its images are told by the MD5 of the archive or, however
records are ordered and packed, by a digest of their sorted hashes.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np

from metagrad.data import mapped
from metagrad.data.archive import fingerprint
from metagrad.data.cache import atomic_save, cache_root
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
_PER_CLASS = 600
_RECIPE = 1


def load(
    name: str,
    *,
    data_dir: Path | None = None,
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
    rows, labels = _unpacked(source, cache, progress)
    counts = dict.fromkeys(labels, _PER_CLASS)
    file = resources.files("metagrad.data") / "splits" / f"{name}.json"
    split = json.loads(file.read_text(encoding="utf-8"))
    if name == "fc100":  # by groups
        split = {which: [one for one in labels if one.split("/")[0] in split[which]] for which in mapped.SPLITS}
    split = mapped.require_split(split, labels, f"the split of {name}")
    return mapped.dataset(name, rows, counts, split, preprocessing=PREPROCESSING, content=RECORDS)


def _is_there(path: Path) -> bool:
    return path.is_file() or (path / "train.bin").is_file()


def _unpacked(source: Path, cache: Path, progress: Progress | None) -> tuple[mapped.Tensor, list[str]]:
    """Return all images, class after class, and the classes' names as ``group/class``."""
    facts_at, rows_at = cache / "accepted.json", cache / f"images-v{_RECIPE}.npy"
    accepted = mapped.read_facts(facts_at) or {}
    key = f"{source.resolve()} {fingerprint(source)}"
    rows = mapped.open_rows(rows_at)
    if rows is not None and accepted.get("sources", {}).get(key) == RECORDS:
        return rows, accepted["labels"]
    if progress is not None:
        progress(0, 1, "unpacking CIFAR-100")
    records, fine, coarse = _read(source)
    hashes = _accept(source, records)
    labels = [f"{coarse[group]}/{fine[label]}" for group, label in _groups(source, records, fine, coarse)]
    order = sorted(range(len(records)), key=lambda row: (labels[records[row, 1]], hashes[row]))
    images = (records[row, 2:] for row in order)
    atomic_save(rows_at, lambda path: _write(path, images))
    sources = {**accepted.get("sources", {}), key: RECORDS}
    mapped.write_facts(facts_at, {"sources": sources, "labels": sorted(labels)})
    if progress is not None:
        progress(1, 1, "unpacking CIFAR-100")
    return mapped.retried(rows_at, lambda: None), sorted(labels)


def _write(path: Path, images: Iterator[np.ndarray]) -> None:
    mapped.write_rows(path, images, (3, 32, 32))


def _read(source: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Return the records, ``(60000, 3074)``, and the names of classes and groups."""
    wanted = {**dict.fromkeys(_FILES, 10**9), "fine_label_names.txt": 10**5, "coarse_label_names.txt": 10**5}
    found: dict[str, bytes] = {}
    try:
        if source.is_dir():
            found = {name: (source / name).read_bytes() for name in wanted}
        else:
            with tarfile.open(source, "r:*") as archive:
                for member in archive:
                    name = member.name.rpartition("/")[2]
                    if member.isfile() and name in wanted and member.size <= wanted[name]:
                        stream = archive.extractfile(member)
                        assert stream is not None
                        found[name] = stream.read()
    except (OSError, tarfile.TarError, EOFError) as error:
        raise MetagradError(f"{source} cannot be read ({error}): get {URL} again") from error
    parts = []
    for name, count in _FILES.items():
        if len(found.get(name, b"")) != count * _RECORD:
            raise MetagradError(f"{source} is not CIFAR-100's binary version ({name} is missing or cut): get {URL}")
        parts.append(np.frombuffer(found[name], dtype=np.uint8).reshape(count, _RECORD))
    names = [
        found.get(f"{kind}_label_names.txt", b"").decode("utf-8", "replace").split() for kind in ("fine", "coarse")
    ]
    if [len(some) for some in names] != [100, 20]:
        raise MetagradError(f"{source} has not the 100 classes in 20 groups of CIFAR-100: get {URL} again")
    return np.concatenate(parts), names[0], names[1]


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
