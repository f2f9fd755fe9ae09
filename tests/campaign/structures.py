"""Changes to what metagrad writes: JSON, tensors, arrays stay readable and say something else."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load

from metagrad.tensorfile import digest_of

_DEEP = 100_000
_TEXTS = {
    "null": "null", "true": "true", "zero": "0", "one": "1", "negative": "-1", "fraction": "0.5", "NaN": "NaN",
    "Infinity": "Infinity", "-Infinity": "-Infinity", "1e999": "1e999", "1e308": "1e308", "400 digits": "9" * 400,
    "5000 digits": "9" * 5000, "empty text": '""', "text": '"x"', "lone surrogate": '"\\ud800"',
    "control": '"\\u001b[2J\\n"', "long text": json.dumps("a" * 5000), "list": "[]", "object": "{}",
    "deep list": "[" * _DEEP + "]" * _DEEP, "deep object": '{"a":' * _DEEP + "1" + "}" * _DEEP,
}  # fmt: skip


def json_text(before: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Change one value of a JSON text."""
    try:
        value, theirs = json.loads(before), json.loads(other)
    except ValueError:
        return "as it was", before
    places = list(_places(value))
    path = rng.choice(places)
    what, raw = rng.choice(("drop", "add", "twice", "text", "text", "text", "swap", "theirs", "scale", "type")), ""
    changed = {"_": copy.deepcopy(value)}
    holder, key = _holder(changed, ("_", *path))
    match what:
        case "drop" if path:
            del holder[key]
        case "add" if isinstance(holder[key], dict):
            holder[key]["a name of no meaning"] = 1
        case "add" if isinstance(holder[key], list):
            holder[key].append(holder[key][-1] if holder[key] else 1)
        case "twice" if isinstance(holder, dict) and path:
            holder["\0twice"] = rng.choice((holder[key], None, -1))
        case "swap":
            holder2, key2 = _holder(changed, ("_", *rng.choice(places)))
            if isinstance(holder, type(holder2)) and not isinstance(holder[key], dict | list):
                holder[key], holder2[key2] = holder2[key2], holder[key]
        case "theirs":
            there, name = _holder({"_": theirs}, ("_", *path))
            holder[key] = copy.deepcopy(there[name]) if there is not None else theirs
        case "scale" if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = rng.choice((holder[key] + 1, -holder[key], holder[key] * 2, holder[key] * 1e-9, 2**64))
        case "type":
            holder[key] = rng.choice((str(holder[key]), [holder[key]], {"value": holder[key]}))
        case _:
            what, raw = rng.choice(list(_TEXTS.items()))
            holder[key] = "\0raw"
    after = json.dumps(changed["_"], indent=2 if b"\n  " in before else None, ensure_ascii=False)
    after = after.replace('"\\u0000raw"', raw).replace('"\\u0000twice"', json.dumps(str(key)))
    return f"{what} of {'.'.join(map(str, path)) or 'all'}", after.encode("utf-8", "surrogatepass")


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield from _places(one, (*path, key))


def _holder(value: Any, path: tuple[Any, ...]) -> tuple[Any, Any]:
    try:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]]
    except (LookupError, TypeError):
        return None, None
    return value, path[-1]


def json_lines(before: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Change, drop, repeat or move a line."""
    lines, theirs = before.splitlines(), other.splitlines()
    at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
    what = rng.choice(("value", "value", "value", "drop", "repeat", "swap", "blank", "junk", "theirs", "no end", "cut"))
    match what:
        case "value":
            said, lines[at] = json_text(lines[at], theirs[min(at, len(theirs) - 1)], rng)
            what = f"value: {said}"
        case "drop":
            del lines[at]
        case "repeat":
            lines.insert(to, lines[at])
        case "swap":
            lines[at], lines[to] = lines[to], lines[at]
        case "blank":
            lines.insert(at, b"")
        case "junk":
            lines.insert(at, rng.choice((b"\xff\xfe", b"null", b"[]", b"{}", b'{"step": 3', b"\0" * 40)))
        case "theirs":
            lines[at] = theirs[min(at, len(theirs) - 1)]
        case "cut":
            lines[-1] = lines[-1][: rng.randrange(len(lines[-1]))]
    ended = what not in ("no end", "cut")
    return f"{what} in line {at}", b"\n".join(lines) + b"\n" * (ended and bool(lines))


def tensors(before: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Change a tensor, its name, its shape, its type or the metadata of a safetensors file."""
    header, data = opened(before)
    their_header, theirs = opened(other)
    names = sorted(name for name in header if name != "__metadata__")
    name, metadata = rng.choice(names), header.get("__metadata__", {})
    begin, end = header[name]["data_offsets"]
    alike = [one for one in names if header[one]["shape"] == header[name]["shape"] and one != name]
    what = rng.choice(("drop", "rename", "reshape", "retype", "number", "number", "values", "swap", "their header",
                       "their tensor", "their data", "metadata", "metadata", "metadata", "no checksum", "no metadata",
                       "huge", "add", "offsets"))  # fmt: skip
    match what:
        case "drop":
            del header[name]
            header, data = _packed({one: (header[one], data) for one in names if one != name}, metadata)
        case "rename":
            header[rng.choice((f"{name}x", "", "theta/../x", "theta/head.weight\ud800"))] = header.pop(name)
        case "reshape":
            shape = header[name]["shape"]
            header[name]["shape"] = rng.choice((shape[::-1], [*shape, 1], [1, *shape], [int(np.prod(shape))]))
        case "retype":
            swaps = {"F32": ("I32", "U32"), "I64": ("F64", "U64"), "U8": ("I8", "BOOL")}
            header[name]["dtype"] = rng.choice(swaps.get(header[name]["dtype"], ("F16", "I16")))
        case "number" if end - begin >= 4:
            at = begin + 4 * rng.randrange((end - begin) // 4)
            number = rng.choice((float("nan"), float("inf"), -float("inf"), 0.0, 1e30, -1.0))
            data[at : at + 4] = struct.pack("<f", number)
            what = f"number {number}"
        case "values":
            data[begin:end] = rng.randbytes(end - begin)
        case "swap" if alike:
            to = rng.choice(alike)
            header[name], header[to] = header[to], header[name]
        case "their header":
            header = their_header
        case "their data":
            data = theirs
        case "their tensor" if name in their_header and their_header[name]["data_offsets"] == [begin, end]:
            data[begin:end] = theirs[begin:end]
        case "metadata" if metadata:
            key = rng.choice(sorted(metadata))
            said, text = json_text(metadata[key].encode(), their_header["__metadata__"].get(key, "1").encode(), rng)
            header["__metadata__"][key] = text.decode("utf-8", "replace")
            what = f"metadata {key}: {said}"
        case "no checksum":
            header["__metadata__"] = {key: text for key, text in metadata.items() if key in ("facts", "metagrad")}
        case "no metadata":
            header.pop("__metadata__", None)
        case "huge":
            header[name]["shape"] = rng.choice(([2**40], [2**31, 2**31], [2**63, 2], [0, 2**62]))
        case "add":
            header["a name of no meaning"] = {"dtype": "U8", "shape": [0], "data_offsets": [len(data), len(data)]}
        case _:
            header[name]["data_offsets"] = rng.choice(([0, 0], [begin + 1, end + 1], [end, begin], [0, 2**62], [-1, 4]))
    after = _closed(header, data)
    if what != "no checksum" and rng.random() < 0.3 and (signed := _signed(header, data)):
        return f"signed: {what} ({name})", signed
    return f"{what} ({name})", after


def _closed(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + bytes(data)


def _signed(header: dict[str, Any], data: bytes) -> bytes | None:
    """Return a file with a checksum that fits, as one has that somebody made on purpose; ``None`` where none can."""
    metadata = header.get("__metadata__", {})
    key = next((key for key in ("facts", "metagrad") if key in metadata), None)
    try:
        metadata["digest"] = digest_of(metadata[key], load(_closed(header, data)))
    except (SafetensorError, KeyError, ValueError):
        return None
    return _closed(header, data)


def opened(file: bytes) -> tuple[dict[str, Any], bytearray]:
    """Return the header of a safetensors file and its data."""
    size = struct.unpack("<Q", file[:8])[0]
    return json.loads(file[8 : 8 + size]), bytearray(file[8 + size :])


def _packed(kept: dict[str, tuple[dict[str, Any], bytearray]], metadata: Any) -> tuple[dict[str, Any], bytearray]:
    header, data = {"__metadata__": metadata} if metadata else {}, bytearray()
    for name, (facts, source) in kept.items():
        begin, end = facts["data_offsets"]
        header[name] = {**facts, "data_offsets": [len(data), len(data) + end - begin]}
        data += source[begin:end]
    return header, data


def another(array: np.ndarray, rng: random.Random) -> tuple[str, np.ndarray]:
    """Return an array that is not quite this one."""
    what = rng.choice(("pixel", "block", "order", "shape", "type", "shorter", "longer", "Fortran", "empty", "objects"))
    array = array.copy()
    match what:
        case "pixel" if array.dtype == np.uint8 and array.size:
            array.flat[rng.randrange(array.size)] ^= 1 << rng.randrange(8)
        case "block" if array.size:
            at = rng.randrange(len(array)) if array.ndim else 0
            array[at:] = 0
        case "order":
            array = array[::-1].copy()
        case "shape":
            array = array.reshape(array.shape[::-1]) if rng.random() < 0.5 else array.reshape(-1)
        case "type":
            array = array.astype(rng.choice((np.int8, np.float32, np.int64, bool, "U4")))
        case "shorter":
            array = array[: len(array) // 2]
        case "longer":
            array = np.concatenate([array, array])
        case "Fortran":
            array = np.asfortranarray(array)
        case "empty":
            array = array[:0]
        case _:
            array = np.array([{}, 1], dtype=object)
    return what, array


def array(before: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Change an ``.npy`` file, its header too."""
    try:
        what, found = another(np.load(io.BytesIO(before)), rng)
    except (ValueError, EOFError):
        return "as it was", before
    file = io.BytesIO()
    np.save(file, found)
    if rng.random() < 0.3:  # a header that promises more, less, or nonsense
        shape = rng.choice((b"(1000000000, 3, 16, 16)", b"(0, 3, 16, 16)", b"(-1,)", b"(2.5,)", b"()", b"'x'"))
        text = (b"{'descr': '|u1', 'fortran_order': False, 'shape': " + shape + b"}").ljust(117) + b"\n"
        return f"header {shape.decode()}", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + before[128:]
    return what, file.getvalue()
