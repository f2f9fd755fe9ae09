"""The class of each picture, by the folders that it lies in."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from metagrad.data.archive import Members, folder_name
from metagrad.data.names import short

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
FROM_PHONES = (".heic", ".heif", ".avif")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
JUNK = ("Thumbs.db", "desktop.ini", "split.json")  # nobody meant them to be pictures


class Candidate(NamedTuple):
    """What may be a picture: its class, and its path in messages."""

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
        folders that hold only other files.
    notes:
        how folders were read, where one may doubt it.
    """

    pictures: dict[str, Candidate]
    archives: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def candidates(
    members: Members, labels: Callable[[str], str | None] | None = None, *, nested: bool = False
) -> Candidates:
    """Find pictures and the class of each.

    A class is a folder with all that lies in it: photographs of one thing by day, year or camera must not end up in
    training and in test. Folders train, val and test hold class folders. Names that differ only in how accents are
    written are one class.

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
    rest = [name for name in visible if name not in known and name.rpartition("/")[2] not in JUNK]
    if labels is not None:
        pictures = {}
        for name in chosen:
            file = name.rpartition("/")[2]
            if (label := labels(file)) is not None:
                pictures[name] = Candidate(label, f"{label}/{file}")
        return Candidates(pictures, archives)
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
    """Return the one of ``known`` that differs from a name only in how accents are written, else the name."""
    known = list(known)
    if name in known:
        return name
    plain = unicodedata.normalize("NFC", name)
    return next((one for one in known if unicodedata.normalize("NFC", one) == plain), name)


def _top(members: Members, names: list[str], nested: bool) -> str:
    """Return the folders around all class folders, with a slash at the end."""
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


def split_tops(files: Iterable[str]) -> set[str]:
    """Return the folders named train, val and test that split the class folders in them; none if they do not.

    They do if there are all three, or nothing lies beside them.
    """
    places = [file.split("/") for file in files if "/" in file]
    tops = {place[0] for place in places if len(place) > 2 and place[0].lower() in SPLIT_FOLDERS}
    complete = {SPLIT_FOLDERS[top.lower()] for top in tops} == set(SPLIT_FOLDERS.values())
    return tops if complete or all(place[0] in tops and len(place) > 2 for place in places) else set()


def _labels(files: set[str], nested: bool) -> Callable[[str], str]:
    """Return a function that gives the class of a file by where it lies."""
    if nested:
        return lambda file: file.rpartition("/")[0]
    tops = split_tops(files)
    return lambda file: "/".join(file.split("/")[:-1][: 2 if file.split("/")[0] in tops else 1])


def _one_spelling(pictures: dict[str, Candidate]) -> tuple[dict[str, Candidate], list[str]]:
    """Make one class of those whose names differ only in how accents are written, with a note."""
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
    """Return a note where folders in class folders became parts of their class."""
    parts: dict[str, set[str]] = {}
    for label, shown in pictures.values():
        # A merged class may be spelt otherwise: compare the number of folders, not the letters.
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
