"""Changes to the bytes of a file, whatever it holds, and the choice among all changes."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from . import brought, structures

Change = Callable[[bytes, bytes, random.Random], tuple[str, bytes]]
# What knows the structure of a file, by the kind of its format.
STRUCTURES: dict[str, Change] = {
    "json": structures.json_text,
    "jsonl": structures.json_lines,
    "safetensors": structures.tensors,
    "npy": structures.array,
    "zip": brought.zipped,
    "pickle": brought.pickled,
    "csv": brought.table,
    "png": brought.png,
}


def mutate(path: Path, kind: str, peer: Path, beside: Path, rng: random.Random) -> str:
    """Change a file, or what is at its place; return what was done, in a few words.

    Parameters
    ----------
    kind:
        of the format, a key of ``STRUCTURES``, or anything else for bytes alone.
    peer:
        a file of the same format that belongs elsewhere.
    beside:
        a folder of somebody else, to which a link may lead.
    """
    status, before = path.stat(), path.read_bytes()
    if rng.random() < 0.04:
        return _instead(path, beside, rng)
    other = peer.read_bytes()
    change = STRUCTURES.get(kind, in_bytes) if rng.random() < 0.6 else in_bytes
    what, after = change(before, other, rng)
    path.write_bytes(after)
    if rng.random() < 0.5:  # as what decays on a disk, which has no new time
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        what += ", its time kept"
    return what


def _instead(path: Path, beside: Path, rng: random.Random) -> str:
    what = rng.choice(("gone", "a folder", "a link", "a link to nothing", "a second name"))
    if what == "a link":
        shutil.copy2(path, beside / path.name)
    if what == "a second name":
        os.link(path, beside / path.name)
        return what
    path.unlink()
    if what == "a folder":
        path.mkdir()
    elif what != "gone":
        path.symlink_to(beside / (path.name if what == "a link" else "nowhere"))
    return what


def in_bytes(before: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Flip, cut, repeat, move: what disks, copies and editors do."""
    size = len(before)
    at, end = sorted((rng.randrange(size + 1), rng.randrange(size + 1))) if size else (0, 0)
    end = min(end, at + rng.choice((1, 4, 64, 4096)))
    what = rng.choice(("bit", "bit", "bit", "byte", "zeros", "cut", "append", "repeat", "swap", "insert", "remove",
                       "empty", "another's", "half another's"))  # fmt: skip
    match what:
        case "bit" if at < size:
            after = before[:at] + bytes([before[at] ^ 1 << rng.randrange(8)]) + before[at + 1 :]
        case "byte" if at < size:
            after = before[:at] + bytes([rng.randrange(256)]) + before[at + 1 :]
        case "zeros":
            after = before[:at] + bytes(end - at) + before[end:]
        case "cut":
            after = before[:at]
        case "append":
            after = before + rng.choice((b"\0", b"\n", b"{}\n", before[at:end], rng.randbytes(100)))
        case "repeat":
            after = before[:end] + before[at:end] + before[end:]
        case "swap":
            to = rng.randrange(max(1, size - (end - at)))
            after = bytearray(before)
            after[at:end], after[to : to + end - at] = before[to : to + end - at], before[at:end]
            after = bytes(after)
        case "insert":
            after = before[:at] + rng.randbytes(end - at) + before[at:]
        case "remove":
            after = before[:at] + before[end:]
        case "another's":
            after = other
        case "half another's":
            after = before[:at] + other[at:]
        case _:
            after = b""
    return f"{what} at {at} of {size}", after
