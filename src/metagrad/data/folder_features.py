"""Features of the pictures in class folders, too many of them to keep as pixels."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from metagrad.data import folder, pictures
from metagrad.data.archive import Members, fingerprint, open_members
from metagrad.data.cache import Damaged, cache_root, read_facts, write_facts
from metagrad.data.class_folders import Candidate, Candidates, candidates
from metagrad.data.class_splits import SPLITS
from metagrad.data.classes import Classes, Dataset, ImageClasses
from metagrad.data.feature_store import FeatureStore, Found
from metagrad.data.features import THREADS, FeatureDataset, FeatureExtractor, in_threads
from metagrad.data.rows import Progress
from metagrad.errors import MetagradError

_Kind = TypeVar("_Kind", bound=Classes)


def features_of_folder(
    source: Path,
    extractor: FeatureExtractor,
    *,
    split: dict[str, Any] | None = None,
    strict: bool = False,
    anew: bool = False,
    thumbnails: int | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> FeatureDataset:
    """Return the features of the pictures in class folders; no decoded picture is kept.

    The classes, their split and the notes about unreadable files are those of
    :func:`metagrad.data.folder.load`, except that two files count as the same picture only if they are the same byte
    for byte.

    Parameters
    ----------
    source:
        a folder or zip, as of :func:`metagrad.data.folder.load`.
    split, strict, anew, cache_dir:
        as there.
    thumbnails:
        side in pixels of small pictures that are kept to look at; by default none are.
    progress:
        called with (done, total, what).

    Raises
    ------
    MetagradError
        as there.
    """
    size = extractor.image_size
    asked = folder.asked_split(source, split)
    with open_members(source) as members:
        there = candidates(members, nested=asked.nested)
        keyed = _member_keys(members, there, cache_root() if cache_dir is None else cache_dir, anew, progress)
        names = sorted(keyed.keys, key=lambda name: there.pictures[name])
        keys = [keyed.keys[name] for name in names]
        store = extractor.store(f"{pictures.preprocessing(size)} ({pictures.RECIPE})", cache_dir)
        with _Decoder(members, names, size) as decoder:
            found = store.find(keys, decoder, extractor.of_bytes, progress=progress)
        chosen, kept = _chosen(names, keys, found, there, keyed.unread, decoder.reasons)
        pictures.refuse(chosen, strict, source)
        parted = folder.part(source, chosen, asked, strict=strict)
        small = None
        if thumbnails is not None:
            small = _thumbnails(members, [names[k] for k in kept], [keys[k] for k in kept], thumbnails, cache_dir,
                                progress)  # fmt: skip
    says = f"{pictures.preprocessing(size)}; features of {extractor.name}"
    made_of = json.dumps([chosen.digest, store.identity, [parted.split[which] for which in SPLITS]])
    digest = hashlib.sha256(made_of.encode()).hexdigest()
    shown = None
    if small is not None:
        of_small = [_classes(ImageClasses, small, parted.counts).subset(parted.split[which]) for which in SPLITS]
        how = pictures.preprocessing(small.shape[-1])
        shown = Dataset(parted.name, of_small[0], of_small[1], of_small[2], False, how, digest, parted.notes)
    everything = _classes(Classes, chosen.images, parted.counts)
    train, val, test = (everything.subset(parted.split[which]) for which in SPLITS)
    return FeatureDataset(parted.name, train, val, test, says, digest, parted.notes, shown)


class _Keyed(NamedTuple):
    """The key of each picture by the name of its member, and why others have none."""

    keys: dict[str, bytes]
    unread: dict[str, str]


def _member_keys(members: Members, there: Candidates, cache: Path, anew: bool, progress: Progress | None) -> _Keyed:
    """Return keys, kept for as long as no file changes: a hundred thousand photographs take minutes to read."""
    how = f"{members.source.resolve()}\0{fingerprint(members.source)}"
    path = cache / "pictures" / f"keys-{hashlib.sha256(how.encode()).hexdigest()[:24]}.json"
    if not anew and (known := _known_keys(path, there.pictures)) is not None:
        return known
    names = list(there.pictures)
    found = _Keyed({}, {})

    def key(name: str) -> bytes | str:
        try:
            data = members.read(name)
        except MetagradError as error:
            return str(error)
        return hashlib.sha256(data).digest() if data else "it is empty"

    for done, (name, result) in enumerate(zip(names, in_threads(key, names), strict=True), start=1):
        if isinstance(result, str):
            found.unread[name] = result
        else:
            found.keys[name] = result
        if progress is not None and (done % 64 == 0 or done == len(names)):
            progress(done, len(names), "reading pictures")
    with contextlib.suppress(MetagradError):  # where nothing can be kept, they are read again the next time
        write_facts(path, {"keys": {name: one.hex() for name, one in found.keys.items()}, "unread": found.unread})
    return found


def _known_keys(path: Path, names: Iterable[str]) -> _Keyed | None:
    try:
        facts = read_facts(path)
        if facts is None or {*facts["keys"], *facts["unread"]} != set(names):
            return None
        return _Keyed({name: bytes.fromhex(one) for name, one in facts["keys"].items()}, facts["unread"])
    except (Damaged, MetagradError, KeyError):
        return None


class _Decoder:
    """Decodes members in threads; used in a ``with`` statement.

    Attributes
    ----------
    reasons:
        why members cannot be decoded.
    """

    def __init__(self, members: Members, names: list[str], size: int) -> None:
        self.reasons: dict[str, str] = {}
        self._members, self._names, self._size = members, names, size
        self._pool = ThreadPoolExecutor(max_workers=THREADS)

    def __enter__(self) -> _Decoder:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, numbers: list[int]) -> list[np.ndarray | None]:
        """Return uint8 ``(3, size, size)`` of each, ``None`` for one that cannot be decoded."""
        names = [self._names[number] for number in numbers]
        found: list[np.ndarray | None] = []
        for name, one in zip(names, self._pool.map(self._decoded, names), strict=True):
            if isinstance(one, str):
                self.reasons[name] = one
            found.append(None if isinstance(one, str) else one)
        return found

    def _decoded(self, name: str) -> np.ndarray | str:
        return pictures.decode_member(self._members, name, self._size)


def _chosen(
    names: list[str], keys: list[bytes], found: Found, there: Candidates, unread: dict[str, str], bad: dict[str, str]
) -> tuple[pictures.Pictures, list[int]]:
    """Return features with notes about files that are left out, and the numbers of the other files."""
    skipped = {there.pictures[name].shown: why for name, why in unread.items()}
    why = {key: bad[name] for name, key in zip(names, keys, strict=True) if name in bad}
    counts: Counter[str] = Counter()
    first_of: dict[bytes, Candidate] = {}
    kept: list[int] = []
    twice: list[str] = []
    shared: list[list[str]] = []
    content = hashlib.sha256()
    for number, (name, key, row) in enumerate(zip(names, keys, found.index.tolist(), strict=True)):
        label, shown = there.pictures[name]
        if row < 0:
            skipped[shown] = why[key]
            continue
        first = first_of.setdefault(key, there.pictures[name])
        if first.shown != shown and first.label == label:
            twice.append(shown)
            continue
        if first.shown != shown:
            shared.append([shown, first.shown])
        counts[label] += 1
        content.update(label.encode() + b"\0" + key)
        kept.append(number)
    rows = found.gather(torch.tensor(kept, dtype=torch.int64, device="cpu"))
    without = {one.label for one in there.pictures.values()} - counts.keys()
    chosen = pictures.Pictures(rows, dict(counts), content.hexdigest(), skipped, twice, there.archives, there.others,
                               sorted({*there.empty, *without}), shared, there.notes)  # fmt: skip
    return chosen, kept


def _thumbnails(
    members: Members,
    names: list[str],
    keys: list[bytes],
    size: int,
    cache_dir: Path | None,
    progress: Progress | None,
) -> Tensor:
    """Return the same pictures, small: uint8 ``(N, 3, size, size)``."""
    store = FeatureStore.open(
        f"pictures of {size} pixels",
        shape=(3, size, size),
        directory=None if cache_dir is None else cache_dir / "features",
        name="small pictures",
        preprocessing=f"{pictures.preprocessing(size)} ({pictures.RECIPE})",
        dtype=torch.uint8,
    )
    with _Decoder(members, names, size) as decoder:
        return store.features(keys, decoder, lambda batch: batch, progress=progress)


def _classes(kind: type[_Kind], data: Tensor, counts: dict[str, int]) -> _Kind:
    """Return all classes of rows that lie class after class in the order of ``counts``."""
    return kind(data, torch.tensor(list(counts.values()), device="cpu"), tuple(counts))
