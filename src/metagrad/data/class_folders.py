"""Which class a picture is of, by the folders that it lies in."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from metagrad.data.archive import Members, folder_name
from metagrad.data.names import short

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_JUNK = ("Thumbs.db", "desktop.ini", "split.json")  # what no one put there as a picture


class Candidate(NamedTuple):
    """What may be a picture: its class, and where it lies, as people are told."""

    label: str
    shown: str


@dataclass(frozen=True)
class Candidates:
    """What lies in a folder or zip.

    Attributes
    ----------
    pictures:
        what may be pictures, by the names of the members.
    archives, others:
        archives, and files that are neither.
    empty:
        folders that hold other files alone.
    notes:
        how folders were read, where that can be doubted.
    """

    pictures: dict[str, Candidate]
    archives: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def candidates(
    members: Members, labels: Callable[[str], str | None] | None = None, *, nested: bool = False
) -> Candidates:
    """Look for pictures, and say of which class each is.

    A class is a folder with all that lies in it: photographs of one thing by day, year or camera must not end up in
    training and in test. Folders train, val and test hold class folders. Names that differ in how accents are written
    alone are one class.

    Parameters
    ----------
    labels:
        the class of a file by its bare name, ``None`` to leave it out; by default the folders it lies in.
    nested:
        take folders in class folders for classes of their own, named by all folders: alphabets of characters.
    """
    visible = [
        name for name in members.names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    ]
    chosen = [name for name in visible if name.lower().endswith(ENDINGS)]
    archives = [name for name in visible if name.lower().endswith(ARCHIVES)]
    known = {*chosen, *archives}
    rest = [name for name in visible if name not in known and name.rpartition("/")[2] not in _JUNK]
    if labels is not None:
        found = {}
        for name in chosen:
            file = name.rpartition("/")[2]
            if (label := labels(file)) is not None:
                found[name] = Candidate(label, f"{label}/{file}")
        return Candidates(found, archives)
    top = _top(members, chosen, nested)
    shown = {name: name[len(top) :] if name.startswith(top) else name.partition("/")[2] for name in [*chosen, *rest]}
    label_of = _labels({shown[name] for name in chosen}, nested)
    pictures = {name: Candidate(label_of(shown[name]), shown[name]) for name in chosen if "/" in shown[name]}
    pictures, notes = _one_spelling(pictures)
    loose = [shown[name] for name in chosen if "/" not in shown[name]]
    others = sorted([shown[name] for name in rest] + loose)
    full = {one.label for one in pictures.values()}
    folders = {label_of(file) for file in others if "/" in file}
    empty = sorted(folder for folder in folders - full if not any(one.startswith(f"{folder}/") for one in full))
    return Candidates(pictures, archives, others, empty, _deeper(pictures) + notes)


def spelt_as(name: str, known: Iterable[str]) -> str:
    """Return the one of ``known`` that differs from a name in how accents are written alone, else the name."""
    known = list(known)
    if name in known:
        return name
    plain = unicodedata.normalize("NFC", name)
    return next((one for one in known if unicodedata.normalize("NFC", one) == plain), name)


def _top(members: Members, names: list[str], nested: bool) -> str:
    """Return what all names begin with that says nothing of classes, so long as class folders are left."""
    folder = members.source.is_dir()  # its members' names begin with its own
    own = f"{folder_name(members.source)}/" if folder else ""
    if not names or (folder and nested):
        return own
    parts = [name.split("/")[:-1] for name in names]
    depth = 1 if folder else 0
    while all(len(folders) > depth + 1 for folders in parts) and len({folders[depth] for folders in parts}) == 1:
        if folder and parts[0][depth].lower() in SPLIT_FOLDERS:
            break
        depth += 1
    return "".join(f"{part}/" for part in parts[0][:depth])


def _labels(files: set[str], nested: bool) -> Callable[[str], str]:
    """Return what tells the class of a file by where it lies."""
    if nested:
        return lambda file: file.rpartition("/")[0]
    inside = {file for file in files if file.split("/")[0].lower() in SPLIT_FOLDERS and file.count("/") > 1}
    # As in a split's folders: all three of them, or nothing beside.
    whole = {SPLIT_FOLDERS[file.split("/")[0].lower()] for file in inside}
    tops = {file.split("/")[0] for file in inside}
    if not (len(whole) == 3 or all(file in inside or "/" not in file for file in files)):
        tops = set()
    return lambda file: "/".join(file.split("/")[:-1][: 2 if file.split("/")[0] in tops else 1])


def _one_spelling(pictures: dict[str, Candidate]) -> tuple[dict[str, Candidate], list[str]]:
    """Make one class of those whose names differ in how accents are written alone, and say so."""
    spellings: dict[str, set[str]] = {}
    for one in pictures.values():
        spellings.setdefault(unicodedata.normalize("NFC", one.label), set()).add(one.label)
    several = {label: name for name, labels in spellings.items() if len(labels) > 1 for label in labels}
    merged = {name: one._replace(label=several.get(one.label, one.label)) for name, one in pictures.items()}
    notes = [
        f"two folders are one class, {short(name)!r}: their names differ in how accents are written alone"
        for name in sorted(set(several.values()))
    ]
    return merged, notes


def _deeper(pictures: dict[str, Candidate]) -> list[str]:
    """Say where folders in class folders were taken for parts of them."""
    parts: dict[str, set[str]] = {}
    for label, shown in pictures.values():
        # A merged class may be spelt otherwise: its folders are counted, not its letters.
        folders = shown.split("/")[:-1]
        if len(folders) > label.count("/") + 1:
            parts.setdefault(label, set()).add("/".join(folders))
    if not parts:
        return []
    label, some = next(iter(parts.items()))
    more = f", as in {len(parts) - 1} more" if len(parts) > 1 else ""
    return [
        f"folders in a class folder are part of the class: {short(min(some))!r} is of {short(label)!r}{more}; where "
        "they are classes of their own, name them so in a split, or move them up"
    ]
