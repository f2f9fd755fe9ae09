"""A person's own pictures: those to learn from, in class folders, and those to label."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from metagrad.data.archive import DEFAULT_MAX_MEMBER_BYTES, Members, open_members
from metagrad.data.class_folders import ENDINGS, Candidate, candidates
from metagrad.data.decoding import reason
from metagrad.data.names import short
from metagrad.data.pictures import files_of, some_of
from metagrad.data.reading import COLOURED, Reading
from metagrad.errors import MetagradError

T = TypeVar("T")
_AT_ONCE = 64
_LOOKED_AT = 50  # pictures whose colours are looked at


@dataclass(frozen=True)
class Support:
    """Pictures to learn from.

    Attributes
    ----------
    images:
        uint8 ``(N, C, H, W)``.
    labels:
        the class of each: the folders it lies in.
    notes:
        what a person should know of how they were read.
    """

    images: Tensor
    labels: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())


def read_support(source: Path, reading: Reading, *, most: int) -> Support:
    """Read every picture below ``source``, a folder or zip with one folder a class.

    A file that cannot be read is skipped, as is one that repeats another of its class; both are said.

    Raises
    ------
    MetagradError
        if there is none, or more than ``most``, a class has none that can be read, or a picture lies in two classes.
    """
    with open_members(source) as members:
        there = candidates(members)
        names, archives, others = there.pictures, there.archives, there.others
        if not names:
            raise MetagradError(
                f"{source} has no pictures in class folders: make one folder a class and put {', '.join(ENDINGS[:4])} "
                "files into it"
            )
        if len(names) > most:
            raise MetagradError(
                f"{source} has {len(names)} pictures, more than {most}: a few of each class do, test on the rest"
            )
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # Pillow lets go of the interpreter
            read = pool.map(lambda name: _tried(partial(members.read, name), reading.told_apart), sorted(names))
            found = [(names[name], result) for name, result in zip(sorted(names), read, strict=True)]
        coloured = _coloured(members, sorted(names)[:: len(names) // _LOOKED_AT + 1], reading)
    images, labels, skipped, twice = [], [], [], []
    seen: dict[bytes, Candidate] = {}
    looks: dict[bytes, Candidate] = {}
    same: list[str] = []
    for place, result in found:
        label, name = place
        if isinstance(result, str):
            skipped.append(f"{name}: {result}")
            continue
        image, told = result
        first = seen.setdefault(told, place)
        if first.label != label:
            raise MetagradError(
                f"{short(first.shown)} and {short(name)} are the same picture in two classes: remove one of them"
            )
        if first.shown != name:
            twice.append(name)
            continue
        like = looks.setdefault(image.tobytes(), place)
        if like.label != label:
            same.append(f"{short(like.shown)} and {short(name)}")
        images.append(torch.from_numpy(image))
        labels.append(label)
    empty = sorted({one.label for one in names.values()} - set(labels))
    if empty:
        raise MetagradError(
            f"{source}: class {short(empty[0])!r} has no picture that can be read ({short(skipped[0], 400)})"
        )
    notes = there.notes + [
        f"{short(one)!r} and {short(other)!r} are two classes, though named alike" for one, other in _alike(set(labels))
    ]
    if same:
        notes.append(
            f"of two classes, yet alike to the network, which sees drawings in the middle and of one size: "
            f"{some_of(same)}; it cannot tell these apart"
        )
    if coloured > COLOURED:
        notes.append(
            "these look like photographs, of which a network for drawings knows nothing: their colours differ by "
            f"{coloured:.0f} of 255 from place to place, those of drawings by less than {COLOURED:.0f}; expect little"
        )
    if skipped:
        notes.append(f"skipped {len(skipped)} that cannot be read ({some_of(skipped)})")
    if twice:
        notes.append(f"left out {len(twice)} that repeat another of their class ({some_of(twice)})")
    if others:
        notes.append(f"left out {files_of(len(others))} of other kinds, or in no class folder ({some_of(others)})")
    if archives:
        notes.append(f"did not open {files_of(len(archives))} inside ({some_of(archives)}): unpack them first")
    return Support(torch.stack(images), tuple(labels), tuple(notes))


def _coloured(members: Members, names: list[str], reading: Reading) -> float:
    """Return how much the colours of pictures differ from place to place, in the median; 0 where that is usual."""
    found = []
    for name in names if reading.kind == "strokes" else []:
        with contextlib.suppress(Exception):  # it was said already that it cannot be read
            found.append(reading.colours(members.read(name)))
    return median(found) if found else 0.0


def _alike(names: set[str]) -> list[tuple[str, str]]:
    """Return pairs of names that differ in case, or in how their accents are written, alone."""
    seen: dict[str, str] = {}
    return [
        (first, name)
        for name in sorted(names)
        if (first := seen.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)) != name
    ]


def listed(places: Sequence[str], lines: Iterable[str]) -> Iterator[Path]:
    """Return the picture files that are named: files, all pictures below folders, and for ``-`` those of ``lines``.

    Raises
    ------
    MetagradError
        if a place does not exist, or a folder has no pictures.
    """
    for place in places:
        if place == "-":
            yield from (Path(line.removeprefix("\ufeff").rstrip("\r\n")) for line in lines if line.strip())
            continue
        path = Path(place)
        if not path.is_dir():
            if not path.exists():
                raise MetagradError(f"{place} does not exist: name pictures, folders of them, or - for a list on stdin")
            yield path
            continue
        none = True
        for picture in _pictures_below(path):
            none = False
            yield picture
        if none:
            raise MetagradError(f"{place} has no pictures ({', '.join(ENDINGS[:4])}, ...)")


def _pictures_below(folder: Path) -> Iterator[Path]:
    """Return the picture files of a folder, then those of the folders in it; not by recursion, however deep it is."""
    pending = [str(folder)]
    while pending:
        try:
            with os.scandir(pending.pop()) as scan:
                entries = sorted((one for one in scan if not one.name.startswith(".")), key=lambda one: one.name)
            folders = [one.path for one in entries if one.is_dir(follow_symlinks=False)]
            files = [one.path for one in entries if not one.is_dir()]
        except OSError as error:
            _refuse_folder(error)
        yield from (Path(file) for file in files if file.lower().endswith(ENDINGS))
        pending += reversed(folders)


def read_all(paths: Iterable[Path], reading: Reading) -> Iterator[tuple[list[Path], Tensor, list[tuple[Path, str]]]]:
    """Read pictures a few at a time: those that could be read, their images, and the others with the reason."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        rest = iter(paths)
        while some := list(islice(rest, _AT_ONCE)):
            results = list(pool.map(lambda path: _tried(partial(_contents, path), reading), some))
            good = [(path, result) for path, result in zip(some, results, strict=True) if not isinstance(result, str)]
            bad = [(path, result) for path, result in zip(some, results, strict=True) if isinstance(result, str)]
            blank = np.empty((0, reading.channels, reading.size, reading.size), np.uint8)
            images = torch.from_numpy(np.stack([result for _, result in good]) if good else blank)
            yield [path for path, _ in good], images, bad


def _refuse_folder(error: OSError) -> NoReturn:
    raise MetagradError(
        f"{short(str(error.filename))} cannot be listed ({error.strerror}): ask its owner for permission"
    )


def _contents(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise OSError("it is not a plain file")  # a pipe would be waited for
    if path.stat().st_size > DEFAULT_MAX_MEMBER_BYTES:
        raise OSError(f"it has {path.stat().st_size / 2**20:.0f} MB, more than {DEFAULT_MAX_MEMBER_BYTES // 2**20}")
    return path.read_bytes()


def _tried(read: Callable[[], bytes], look: Callable[[bytes], T]) -> T | str:
    """Return what is seen in a file, or why nothing is."""
    try:
        data = read()
        if not data:
            return "it is empty"
        return look(data)
    except Exception as error:  # Pillow lets through whatever its parsers raise on a damaged file
        return reason(error)
