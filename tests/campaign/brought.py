"""Changes to what people bring: zips of pictures, pickles, tables, the header of a PNG."""

from __future__ import annotations

import csv
import io
import pickle
import random
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

from .structures import another


def zipped(before: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Change a member of a zip file, or its name."""
    with zipfile.ZipFile(io.BytesIO(before)) as archive:
        held = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(held))
    name, data = held[at]
    what, method = rng.choice(("drop", "name", "name", "twice", "bomb", "content", "link", "method", "flags", "offset",
                               "nested")), zipfile.ZIP_DEFLATED  # fmt: skip
    mode = 0o100644
    match what:
        case "drop":
            del held[at]
        case "name":
            name = rng.choice(("../out.png", "/tmp/out.png", "a\\b.png", "C:/x/y.png", "", "a//b.png", "./a.png",
                               f"{name}\0.txt", "kind00/" + "x" * 5000 + ".png", f"{name}/",
                               ".hidden/a.png"))  # fmt: skip
            held[at] = (name, data)
        case "twice":
            held.append((name, b"another"))
        case "bomb":
            held[at] = (name, bytes(rng.choice((10**6, 10**8))))
        case "content":
            held[at] = (name, bytes(len(data)))
        case "link":
            mode = 0o120777
        case "method":
            method = rng.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED))
        case "nested":
            held[at] = ("kind00/" * 1000 + "a.png", data)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for number, (name, data) in enumerate(held):
            info = zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = method, (mode if number == at else 0o100644) << 16
            archive.writestr(info, data)
    after = bytearray(file.getvalue())
    central = [spot for spot in range(len(after) - 4) if after[spot : spot + 4] == b"PK\1\2"]
    if what == "flags":  # encrypted, or with a name in utf-8 that is none
        after[rng.choice(central) + 8 + rng.randrange(2)] ^= 1 << rng.randrange(8)
    if what == "offset" and len(central) > 1:  # one member lies where another does
        one, to = rng.sample(central, 2)
        after[one + 42 : one + 46] = after[to + 42 : to + 46]
    return f"{what} of member {at}", bytes(after)


class _Runs:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("echo ran > beside/ran.txt",)


def pickled(before: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Change the arrays or the classes of a mini-ImageNet pickle; or make it one that runs or fills memory."""
    try:
        held = pickle.loads(before)
    except Exception:
        return "as it was", before
    label, rows = rng.choice(sorted(held["class_dict"].items()))
    what = rng.choice(("images", "images", "rows", "rows", "label", "drop", "key", "runs", "bomb", "self", "deep",
                       "whole", "reduce"))  # fmt: skip
    protocol = rng.randrange(6)
    match what:
        case "images":
            said, held["image_data"] = another(held["image_data"], rng)
            what = f"images: {said}"
        case "rows":
            held["class_dict"][label] = rng.choice(([], [-1], [10**9], [0.5], ["x"], None, 7, rows * 2, [10**30],
                                                    [[0, 1]], np.array(rows, np.float64), {}, [True],
                                                    [None]))  # fmt: skip
        case "label":
            held["class_dict"][rng.choice((1, None, b"x", ("a", "b"), "x\ud800", "", 2.5))] = rows
        case "drop":
            del held["class_dict"][label]
        case "key":
            held.pop(rng.choice(sorted(held)))
        case "runs":
            held[rng.choice(("image_data", "more"))] = _Runs()
        case "bomb":
            made = (b"ndarray\n((L200000000000L\nltR.", b"ndarray\n((L20000000000L\nltR.",
                    b"_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR.")  # fmt: skip
            call = rng.choice(made)
            return "bomb", (b"cnumpy\n" if call.startswith(b"nd") else b"cnumpy._core.multiarray\n") + call
        case "self":
            held["class_dict"][label] = held
        case "deep":
            deep: Any = []
            for _ in range(300):
                deep = [deep]
            held["more"] = deep
        case "whole":
            held = rng.choice(([], {}, None, 1, "x", held["image_data"], [held]))
        case _:
            held["more"] = rng.choice((np.float32(1), np.dtype("O"), complex(1), {1}, frozenset({1}), bytearray(9)))
    return what, pickle.dumps(held, protocol)


def table(before: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Change a cell, a row or the header of a table."""
    rows = list(csv.reader(io.StringIO(before.decode())))
    at = rng.randrange(len(rows))
    what = rng.choice(("cell", "cell", "cell", "drop", "repeat", "column", "short", "long", "quote", "encoding"))
    match what:
        case "cell":
            rows[at][rng.randrange(2)] = rng.choice(("", "x", "a\0b", "é", "a" * 200_000, "\u2028", '"', "../x.png"))
        case "drop":
            del rows[at]
        case "repeat":
            rows.insert(at, [rows[at][0], rng.choice(rows)[1]])
        case "column":
            rows = [row[::-1] for row in rows]
        case "short":
            rows[at] = rows[at][:1]
        case "long":
            rows[at] = rows[at] * 3
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    after = file.getvalue()
    if what == "quote":
        after = after.replace(",", ',"', 1)
    encoded = after.encode("utf-16" if what == "encoding" else "utf-8")
    return f"{what} in row {at}", encoded


def png(before: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Promise other sizes or another kind of pixels in a PNG's header, with a checksum that fits."""
    header = list(struct.unpack(">IIBBBBB", before[16:29]))
    at = rng.randrange(7)
    header[at] = rng.choice((0, 1, 3, 16, 255, *((65_535, 9_000, 2**31 - 1) if at < 2 else ())))
    chunk = b"IHDR" + struct.pack(">IIBBBBB", *header)
    return f"header {header}", before[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + before[33:]
