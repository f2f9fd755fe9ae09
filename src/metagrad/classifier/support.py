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
from typing import NamedTuple, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from metagrad.data.archive import DEFAULT_MAX_MEMBER_BYTES, Members, open_members
from metagrad.data.class_folders import ARCHIVES, ENDINGS, FROM_PHONES, JUNK, Candidate, candidates
from metagrad.data.decoding import reason
from metagrad.data.names import short
from metagrad.data.pictures import files_of, some_of
from metagrad.data.reading import COLOURED, Reading
from metagrad.errors import MetagradError

T = TypeVar("T")
_AT_ONCE = 64
_LOOKED_AT = 50  # pictures whose colours are measured


@dataclass(frozen=True)
class Support:
    """Pictures to learn from.

    Attributes
    ----------
    images:
        uint8 ``(N, C, H, W)``.
    labels:
        the class of each: the folders it lies in.
    names:
        the file of each, as people see it.
    notes:
        notes for the user about how they were read.
    """

    images: Tensor
    labels: tuple[str, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())


def read_support(source: Path, reading: Reading, *, most: int) -> Support:
    """Read every picture below ``source``, a folder or zip with one folder a class.

    Unreadable files and duplicates within a class are skipped; the notes list them.

    Raises
    ------
    MetagradError
        if there is none, or more than ``most``, a class has none that can be read, or a picture lies in two classes.
    """
    with open_members(source) as members:
        there = candidates(members)
        names = sorted(there.pictures)
        if not names:
            raise MetagradError(
                f"{source} has no pictures in class folders: make one folder a class and put {', '.join(ENDINGS[:4])} "
                f"files into it{how_to_convert(there.others)}"
            )
        if len(names) > most:
            raise MetagradError(f"{source} has {len(names)} pictures, more than {most}: a few of each class are enough")
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # Pillow lets go of the interpreter
            results = pool.map(lambda name: _tried(partial(members.read, name), reading.told_apart), names)
            images, left_out = _without_repeats(
                (there.pictures[name], result) for name, result in zip(names, results, strict=True)
            )
        coloured = _coloured(members, names[:: len(names) // _LOOKED_AT + 1], reading)
    labels = tuple(label for label, _, _ in images)
    empty = sorted({one.label for one in there.pictures.values()} - set(labels))
    if empty:
        raise MetagradError(
            f"{source}: class {short(empty[0])!r} has no picture that can be read ({short(left_out.skipped[0], 400)})"
        )
    lines = there.notes + [
        f"{short(one)!r} and {short(other)!r} are two classes with nearly the same name"
        for one, other in _alike(set(labels))
    ]
    if left_out.same:
        lines.append(
            f"the network cannot tell these pictures of two classes apart, since it sees drawings centred and of one "
            f"size: {some_of(left_out.same)}"
        )
    if coloured > COLOURED:
        lines.append(
            "these look like photographs, but the network was trained on drawings, so accuracy may be low: colours "
            f"differ by {coloured:.0f} of 255 within a picture, in drawings by less than {COLOURED:.0f}; for photos "
            "use metagrad adapt photos"
        )
    if left_out.skipped:
        lines.append(f"skipped {len(left_out.skipped)} that cannot be read ({some_of(left_out.skipped)})")
    if left_out.twice:
        lines.append(
            f"left out {len(left_out.twice)} that duplicate another of their class ({some_of(left_out.twice)})"
        )
    others, archives = there.others, there.archives
    if others:
        lines.append(
            f"left out {files_of(len(others))} of other kinds, or in no class folder ({some_of(others)})"
            f"{how_to_convert(others)}"
        )
    if without := sorted({*there.empty, *_empty_folders(source, set(labels))}):
        lines.append(f"no class was made of {some_of(without)}: no picture in it")
    if archives:
        lines.append(f"did not open {files_of(len(archives))} inside ({some_of(archives)}): unpack them first")
    files = tuple(name for _, name, _ in images)
    return Support(torch.stack([image for _, _, image in images]), labels, files, tuple(lines))


def how_to_convert(others: Iterable[str]) -> str:
    """Return what to do about pictures in a phone's own format, if there are any."""
    return "; save HEIC and AVIF pictures as JPEG" * any(name.lower().endswith(FROM_PHONES) for name in others)


def _empty_folders(source: Path, labels: set[str]) -> list[str]:
    """Return the folders beside the class folders that hold no file at all; a zip names none."""
    if not source.is_dir():
        return []
    with os.scandir(source) as scan:
        folders = [Path(one.path) for one in scan if one.is_dir() and not one.name.startswith(".")]
    return [one.name for one in folders if one.name not in labels and not any(one.iterdir())]


class _LeftOut(NamedTuple):
    """Files that cannot be read, that repeat another, and pairs of two classes that give the same image."""

    skipped: list[str]
    twice: list[str]
    same: list[str]


def _without_repeats(
    results: Iterable[tuple[Candidate, tuple[np.ndarray, bytes] | str]],
) -> tuple[list[tuple[str, str, Tensor]], _LeftOut]:
    """Return the class, file and image of each picture that can be read and repeats no other of its class."""
    images, left_out = [], _LeftOut([], [], [])
    by_digest: dict[bytes, Candidate] = {}
    by_image: dict[bytes, Candidate] = {}
    for place, result in results:
        label, name = place
        if isinstance(result, str):
            left_out.skipped.append(f"{name}: {result}")
            continue
        image, digest = result
        first = by_digest.setdefault(digest, place)
        if first.label != label:
            raise MetagradError(
                f"{short(first.shown)} and {short(name)} are the same picture in two classes: remove one of them"
            )
        if first.shown != name:
            left_out.twice.append(name)
            continue
        like = by_image.setdefault(image.tobytes(), place)
        if like.label != label:
            left_out.same.append(f"{short(like.shown)} and {short(name)}")
        images.append((label, name, torch.from_numpy(image)))
    return images, left_out


def _coloured(members: Members, names: list[str], reading: Reading) -> float:
    """Return how much the colours of pictures differ from place to place, in the median; 0 where that is usual."""
    found = []
    for name in names if reading.kind == "strokes" else []:
        with contextlib.suppress(Exception):  # a note lists it as unreadable already
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


def listed(places: Sequence[str], lines: Iterable[str], others: list[str] | None = None) -> Iterator[Path]:
    """Return the picture files that are named: files, all pictures below folders, and for ``-`` those of ``lines``.

    Parameters
    ----------
    others:
        takes the names of the other files in these folders.

    Raises
    ------
    MetagradError
        if a place does not exist, or a folder has no pictures.
    """
    others = [] if others is None else others
    for place in places:
        if place == "-":
            yield from (Path(line.removeprefix("\ufeff").rstrip("\r\n")) for line in lines if line.strip())
            continue
        path = Path(place)
        if not path.is_dir():
            if not path.exists():
                raise MetagradError(
                    f"{place} does not exist: give picture files, folders, or - to read names from standard input"
                )
            if place.lower().endswith(ARCHIVES):
                raise MetagradError(f"{place} is an archive: unpack it, then give the folder")
            yield path
            continue
        none, before = True, len(others)
        for picture in _pictures_below(path, others):
            none = False
            yield picture
        if none:
            raise MetagradError(
                f"{place} has no pictures ({', '.join(ENDINGS[:4])}, ...){how_to_convert(others[before:])}"
            )


def _pictures_below(folder: Path, others: list[str]) -> Iterator[Path]:
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
        for file in files:
            if file.lower().endswith(ENDINGS):
                yield Path(file)
            elif os.path.basename(file) not in JUNK:
                others.append(file)
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
