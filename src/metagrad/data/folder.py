"""Any folder, or zip, of pictures in class folders."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from metagrad import strict_json
from metagrad.data import pictures
from metagrad.data.archive import open_members
from metagrad.data.class_folders import SPLIT_FOLDERS, spelt_as, split_tops
from metagrad.data.class_splits import SPLITS, dataset, require_split
from metagrad.data.classes import Dataset
from metagrad.data.names import short
from metagrad.data.rows import Progress
from metagrad.errors import MetagradError

_SHARES = (0.64, 0.16)  # of the classes, for training and validation, where there is no split


def load(
    source: Path,
    *,
    size: int,
    split: dict[str, Any] | None = None,
    strict: bool = False,
    anew: bool = False,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Load pictures and split their classes.

    Parameters
    ----------
    source:
        a folder or a zip file. Either it has the folders ``train``, ``val`` and ``test``, and class folders in them; or
        class folders and a ``split.json`` that names the classes of each; or class folders alone, which are then
        parted at random, always alike: 64 % of the classes to train on, 16 % to validate, 20 % to test. Folders in a
        class folder are part of the class, unless a split names them as classes of their own
        (``"alphabet/character"``).
    size, strict, anew, cache_dir:
        see :func:`metagrad.data.pictures.load`.
    split:
        which classes are for what, in place of what ``source`` says.

    Raises
    ------
    MetagradError
        as :func:`metagrad.data.pictures.load` does; for a class in two splits; for fewer than six classes to part.
    """
    asked = asked_split(source, split)
    found = pictures.load(
        source, size=size, strict=strict, anew=anew, cache_dir=cache_dir, progress=progress, nested=asked.nested
    )
    parted = part(source, found, asked, strict=strict)
    return dataset(
        parted.name,
        found.images,
        parted.counts,
        parted.split,
        preprocessing=pictures.preprocessing(size),
        content=found.digest,
        notes=parted.notes,
    )


class AskedSplit(NamedTuple):
    """The split that the user gave, not validated yet; ``None`` if there is none."""

    split: Any
    where: str
    given: bool
    nested: bool


def asked_split(source: Path, split: Any = None) -> AskedSplit:
    """Return the split given, else that of ``split.json`` beside the class folders.

    Raises
    ------
    MetagradError
        if there is no ``source``, or its split cannot be read.
    """
    if not source.exists():
        raise MetagradError(f"{source} does not exist: pass the folder or zip of pictures with --data-dir")
    written, where = (split, "the split given") if split is not None else _written(source)
    return AskedSplit(written, where, split is not None, _names_nested(written))


class Parted(NamedTuple):
    """What a folder's data set is called, pictures of each class in their order, classes of each split, and notes."""

    name: str
    counts: dict[str, int]
    split: dict[str, list[str]]
    notes: tuple[str, ...]


def part(source: Path, found: pictures.Pictures, asked: AskedSplit, *, strict: bool) -> Parted:
    """Part the classes that were found: as asked, as the folders say, or at random.

    Raises
    ------
    MetagradError
        as :func:`load` does.
    """
    counts, by_folder, beside = _by_folder(found.counts)
    split, where = asked.split, asked.where
    if not asked.given and (by_folder is not None or split is None):
        split, where = by_folder or _parted(list(counts), source), str(source)
    chosen = require_split(_as_spelt(split, counts), counts, where)
    if strict:
        _refuse_shared(found, counts, chosen, source)
    notes = (*found.notes(), *_left_out(beside, chosen, counts, where))
    return Parted(source.stem or source.absolute().stem, counts, chosen, notes)


def _left_out(beside: list[str], chosen: dict[str, list[str]], counts: dict[str, int], where: str) -> Iterator[str]:
    """Say which folders and classes are in no split."""
    if beside:
        yield f"left out the folder {short(beside[0])!r} beside train, val and test" + _more(beside)
    used = {name for names in chosen.values() for name in names}
    unused = sorted(name for name in counts.keys() - used if not name.endswith("/"))
    if unused:
        yield f"{where} leaves out the class {short(unused[0])!r}" + _more(unused)


def _by_folder(counts: dict[str, int]) -> tuple[dict[str, int], dict[str, list[str]] | None, list[str]]:
    """Return the classes without the name of their split, the split by folders if any, and the other folders."""
    tops = split_tops(f"{label}/" for label in counts)
    if not tops:
        return counts, None, []
    split: dict[str, list[str]] = {which: [] for which in SPLITS}
    renamed: dict[str, int] = {}
    beside: set[str] = set()
    for label, count in counts.items():
        top, _, name = label.partition("/")
        if top not in tops or not name:
            renamed[f"{label}/"] = count  # the file of images holds it all the same; no class has this name
            beside.add(top)
            continue
        which = SPLIT_FOLDERS[top.lower()]
        if name in renamed:
            other = next(place for place in SPLITS if name in split[place])
            raise MetagradError(
                f"the class {short(name)!r} is in {other} and in {which}: take one out, classes must differ"
            )
        split[which].append(name)
        renamed[name] = count
    return renamed, split, sorted(beside)


def _names_nested(split: Any) -> bool:
    """Say whether a split, not checked yet, names folders in folders."""
    lists = [names for names in split.values() if isinstance(names, list)] if isinstance(split, dict) else []
    return any(isinstance(name, str) and "/" in name for names in lists for name in names)


def _as_spelt(split: Any, counts: dict[str, int]) -> Any:
    """Return a split, not checked yet, whose names have their accents written as the folders' have."""
    if isinstance(split, dict):
        return {which: _as_spelt(names, counts) for which, names in split.items()}
    if isinstance(split, list):
        return [spelt_as(name, counts) if isinstance(name, str) else name for name in split]
    return split


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _refuse_shared(
    found: pictures.Pictures, counts: dict[str, int], chosen: dict[str, list[str]], source: Path
) -> None:
    place = {name: which for which, names in chosen.items() for name in names}

    def split_of(file: str) -> str | None:
        folders = file.split("/")[:-1]
        labels = ["/".join(folders[first:last]) for first in (0, 1) for last in range(len(folders), first, -1)]
        known = (spelt_as(label, counts) for label in labels)
        return next((place[label] for label in known if label in place), None)

    for one, other in found.shared:
        if None not in (first := split_of(one), second := split_of(other)) and first != second:
            raise MetagradError(
                f"{source}: {short(one)} is the same picture as {short(other)}, in {first} and {second}: remove one"
            )


def _written(source: Path) -> tuple[dict[str, Any] | None, str]:
    """Return what ``split.json`` says, if there is one beside the class folders."""
    with open_members(source, keep=lambda name: name.rpartition("/")[2] == "split.json") as members:
        if not members.names:
            return None, ""
        name = min(members.names, key=len)
        try:
            return strict_json.parse(members.read(name)), f"{source}: {short(name)}"
        except ValueError as error:
            raise MetagradError(f"{source}: {short(name)} is not JSON ({error})") from error


def _parted(names: list[str], source: Path) -> dict[str, list[str]]:
    if len(names) < 6:
        raise MetagradError(
            f"{source} has {len(names)} classes, but a split into training, validation and test classes needs at least "
            "6, two of each; metagrad adapt needs no split, and takes two classes or more"
        )
    shuffled = sorted(names)
    random.Random(0).shuffle(shuffled)
    train, val = (max(2, round(share * len(names))) for share in _SHARES)
    train = min(train, len(names) - 4)
    parts = shuffled[:train], shuffled[train : train + val], shuffled[train + val :]
    return {which: sorted(part) for which, part in zip(SPLITS, parts, strict=True)}
