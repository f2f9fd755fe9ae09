"""Pictures in class folders, or in a zip of them, decoded once into a file that is mapped into memory."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from metagrad import strict_json
from metagrad.data.archive import Members, fingerprint, open_members
from metagrad.data.cache import Damaged, cache_root, prepared, read_facts, write_facts
from metagrad.data.class_folders import ENDINGS, Candidate, candidates
from metagrad.data.decoding import decode, reason
from metagrad.data.memmap import open_rows, save_rows
from metagrad.data.names import short
from metagrad.data.rows import Progress
from metagrad.errors import MetagradError

_NAMED = 3  # files in a note
RECIPE = 3  # raise it whenever decoding changes


def preprocessing(size: int) -> str:
    """Say in a line how :func:`load` makes pixels of a picture."""
    return f"upright, RGB, middle square, bicubic to {size}x{size}, scaled to [0, 1], no augmentation"


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures, class after class.

    Attributes
    ----------
    images:
        uint8, ``(N, 3, size, size)``, in a file; or, where only these are kept, the features of each, ``(N, ...)``.
    counts:
        pictures of each class, named by its folders (``"animals/cat"``), in the order of ``images``.
    digest:
        sha256 (hex) of names and contents.
    skipped:
        files that are no pictures that can be read, with the reason.
    twice:
        files that show the very picture of another one of their class; left out.
    archives:
        archives within the folder, which are not opened.
    others:
        files that are neither pictures nor archives.
    empty:
        folders of which nothing could be read.
    shared:
        pairs of files that show the same picture in two classes.
    folders:
        how folders were read, where other readings are possible.
    """

    images: Tensor
    counts: dict[str, int]
    digest: str
    skipped: dict[str, str] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    shared: list[list[str]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        """Return in a few lines which files were left out."""
        said = list(self.folders)
        if self.skipped:
            bad = [f"{short(name)}: {why}" for name, why in self.skipped.items()]
            said.append(f"skipped {files_of(len(self.skipped))} that cannot be read ({some_of(bad)})")
        if self.twice:
            repeat = "duplicates another of its class" if len(self.twice) == 1 else "duplicate another of their class"
            said.append(f"left out {files_of(len(self.twice))} that {repeat} ({some_of(self.twice)})")
        if self.shared:
            same = some_of([f"{short(one)} is {short(other)}" for one, other in self.shared])
            said.append(f"{files_of(len(self.shared))} in two classes at once ({same}): this makes accuracy misleading")
        if self.empty:
            said.append(
                f"left out {len(self.empty)} folder{'s' * (len(self.empty) > 1)} without a readable picture "
                f"({some_of(self.empty)})"
            )
        if self.others:
            said.append(f"left out {files_of(len(self.others))} of other kinds ({some_of(self.others)})")
        if self.archives:
            said.append(
                f"did not open {files_of(len(self.archives))} inside ({short(self.archives[0])}): unpack them first"
            )
        return tuple(said)


def load(
    source: Path,
    *,
    size: int,
    strict: bool = False,
    anew: bool = False,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    labels: Callable[[str], str | None] | None = None,
    nested: bool = False,
) -> Pictures:
    """Decode every picture below ``source``, or find it decoded already.

    Parameters
    ----------
    source:
        a folder or a zip file with one folder a class.
    size:
        pictures become ``size`` × ``size``: turned upright, transparent parts white, RGB, the largest square in the
        middle, resized.
    strict:
        refuse a file that cannot be read, a folder of none that can, and a picture in two classes.
    anew:
        read every file, even if they look as they did when they were last read.
    cache_dir:
        where decoded pictures are kept; the system's cache folder by default.
    labels, nested:
        see :func:`metagrad.data.class_folders.candidates`.

    Raises
    ------
    MetagradError
        if there is nothing to decode, an entry would lead out of the folder, or (``strict``) a file cannot be read.
    """
    cache = (cache_root() if cache_dir is None else cache_dir) / "pictures"
    how = f"{RECIPE}\0{source.resolve()}\0{fingerprint(source)}\0{size}\0{labels is not None}\0{nested}"
    entry = cache / f"seen-{hashlib.sha256(how.encode()).hexdigest()[:24]}"

    def stem(digest: str) -> str:
        return f"rows-v{RECIPE}-{size}-{digest[:24]}"  # the same pictures of two sources are kept once

    def decode_all() -> dict[str, Any]:
        with open_members(source) as members:
            there = candidates(members, labels, nested=nested)
            facts = _decode_all(members, there.pictures, size, cache, stem, progress)
        unread = {one.label for one in there.pictures.values()} - facts["counts"].keys()
        empty = sorted({*there.empty, *unread})
        return facts | {"archives": there.archives, "others": there.others, "empty": empty, "folders": there.notes}

    pictures = decoded(entry, size, stem, decode_all, what=f"the pictures of {source}", anew=anew, progress=progress)
    return refuse(pictures, strict, source)


def decoded(
    entry: Path,
    size: int,
    stem: Callable[[str], str],
    decode_all: Callable[[], dict[str, Any]],
    *,
    what: str,
    anew: bool,
    progress: Progress | None,
) -> Pictures:
    """Return the pictures of a cache ``entry``, after ``decode_all`` if they are not there.

    ``decode_all`` saves the rows and returns fields of `Pictures`, which ``entry.json`` keeps; ``stem`` returns the
    name of the rows' file for a digest.
    """
    facts_at = entry.with_suffix(".json")

    def read() -> Pictures | None:
        facts = read_facts(facts_at)
        if facts is None:
            return None
        if not _are_facts(facts):
            raise Damaged(facts_at, "it does not say what pictures there are")
        shape = (sum(facts["counts"].values()), 3, size, size)
        images = open_rows(entry.with_name(f"{stem(facts['digest'])}.npy"), shape, full=anew, progress=progress)
        return None if images is None else Pictures(images, **facts)

    return prepared(entry, read, lambda: write_facts(facts_at, decode_all()), what=what, anew=anew)


def _are_facts(facts: dict[str, Any]) -> bool:
    """Say whether the content of a file can be fields of `Pictures`."""
    counts, skipped, shared = facts.get("counts"), facts.get("skipped", {}), facts.get("shared", [])
    lists = [facts.get(name, []) for name in ("twice", "archives", "others", "empty", "folders")]
    return (
        facts.keys() <= {field.name for field in fields(Pictures)} - {"images"}
        and re.fullmatch("[0-9a-f]{64}", str(facts.get("digest"))) is not None
        and isinstance(counts, dict)
        and all(strict_json.is_count(count) for count in counts.values())
        and isinstance(skipped, dict)
        and all(isinstance(why, str) for why in skipped.values())
        and all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)
        and isinstance(shared, list)
        and all(isinstance(pair, list) and [type(name) for name in pair] == [str, str] for pair in shared)
    )


def refuse(pictures: Pictures, strict: bool, source: Path) -> Pictures:
    """Return pictures that can be used; raise as :func:`load` does."""
    first, why = next(((short(name), why) for name, why in pictures.skipped.items()), ("", ""))
    if strict and pictures.skipped:
        raise MetagradError(
            f"{source}: {first} cannot be read ({why}), and {len(pictures.skipped) - 1} more: repair or remove them, "
            "or leave out --strict to skip them"
        )
    if not pictures.counts and pictures.skipped:
        raise MetagradError(f"{source}: none of {files_of(len(pictures.skipped))} can be read ({first}: {why})")
    if not pictures.counts and pictures.archives:
        raise MetagradError(
            f"{source} holds archives ({short(pictures.archives[0])}), which are not opened: unpack them"
        )
    if strict and pictures.empty:
        raise MetagradError(
            f"{source}: the folder {short(pictures.empty[0])} has no picture that can be read: remove it"
        )
    if not pictures.counts:
        raise MetagradError(
            f"{source} has no pictures in class folders: make one folder a class and put {', '.join(ENDINGS[:4])} "
            "files into it"
        )
    return pictures


def files_of(count: int) -> str:
    """Return ``"1 file"``, ``"2 files"``."""
    return f"{count} file{'s' * (count != 1)}"


def some_of(names: list[str]) -> str:
    """Return the first few, and how many more there are."""
    rest = f"; and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return "; ".join(short(name, 400) for name in names[:_NAMED]) + rest


def _decode_all(
    members: Members,
    names: dict[str, Candidate],
    size: int,
    cache: Path,
    stem: Callable[[str], str],
    progress: Progress | None,
) -> dict[str, Any]:
    """Save the rows; return the fields of `Pictures` that depend on what could be decoded."""
    counts: Counter[str] = Counter()
    skipped: dict[str, str] = {}
    twice: list[str] = []
    shared: list[list[str]] = []
    firsts: dict[bytes, Candidate] = {}  # the first file with these pixels
    content = hashlib.sha256()

    def rows() -> Iterator[np.ndarray]:
        ordered = sorted(names, key=lambda name: names[name])
        with ThreadPoolExecutor(
            max_workers=min(8, os.cpu_count() or 1)
        ) as pool:  # Pillow releases the interpreter lock
            for start in range(0, len(ordered), 256):
                batch = ordered[start : start + 256]
                results = pool.map(lambda name: decode_member(members, name, size), batch)
                for done, (name, result) in enumerate(zip(batch, results, strict=True), start=start + 1):
                    if progress is not None and (done % 64 == 0 or done == len(names)):
                        progress(done, len(names), "decoding pictures")
                    label, shown = names[name]
                    if isinstance(result, str):
                        skipped[shown] = result
                        continue
                    pixels = hashlib.sha256(result.tobytes()).digest()
                    first = firsts.setdefault(pixels, names[name])
                    if first.shown != shown and first.label == label:
                        twice.append(shown)
                        continue
                    if first.shown != shown:
                        shared.append([shown, first.shown])
                    counts[label] += 1
                    content.update(label.encode() + b"\0" + pixels)
                    yield result

    save_rows(cache, rows(), (3, size, size), name=lambda: stem(content.hexdigest()))
    digest = content.hexdigest()
    return {"counts": dict(counts), "digest": digest, "skipped": skipped, "twice": twice, "shared": shared}


def decode_member(members: Members, name: str, size: int) -> np.ndarray | str:
    """Return uint8 ``(3, size, size)``, or why there is none."""
    try:
        data = members.read(name)
    except MetagradError as error:
        return str(error)
    if not data:
        return "it is empty"
    try:
        return decode(data, size)
    except Exception as error:  # Pillow lets through whatever its parsers raise on a damaged file
        return reason(error)
