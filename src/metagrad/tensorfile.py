"""Tensors and facts in one safetensors file that says whether it is as it was written."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from metagrad import strict_json
from metagrad.errors import MetagradError
from metagrad.files import write_atomically

_HEADER = struct.Struct("<Q")  # length of the JSON header that every safetensors file begins with


@dataclass(frozen=True)
class Stored:
    """What a file holds.

    Attributes
    ----------
    tensors:
        by name, on the CPU.
    facts:
        the JSON beside them.
    digest:
        of both, as it was when they were written and is now; ``None`` for a file of a version that wrote none.
    """

    tensors: dict[str, Tensor]
    facts: Any
    digest: str | None


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    facts: Any,
    *,
    key: str,
    refused: Callable[[OSError], MetagradError],
    follow: bool = False,
    first: Callable[[], None] = lambda: None,
) -> str:
    """Write a file in one step; return the digest of what is in it.

    Parameters
    ----------
    key:
        the name of the facts among the file's metadata.
    refused, follow:
        see :func:`metagrad.files.write_atomically`.
    first:
        what must be done before the file has its name; it is called in a thread, while the file is written.
    """
    text = json.dumps(facts, ensure_ascii=False, sort_keys=True)
    plain = {name: leaf.detach().cpu().contiguous() for name, leaf in tensors.items()}
    found: list[str] = []

    def fill(temporary: Path) -> None:
        # The digest takes as long as the writing: both at once, and what was left open for it is filled in.
        with ThreadPoolExecutor(max_workers=2) as pool:
            digest, done = pool.submit(digest_of, text, plain), pool.submit(first)
            try:
                save_file(plain, temporary, metadata={key: text, "digest": _OPEN})
            except SafetensorError as error:  # it wraps the system's error, disk full among them
                raise OSError(str(error)) from error
            done.result()
            found.append(digest.result())
        _fill_in(temporary, found[0])

    write_atomically(path, fill, refused=refused, follow=follow)
    return found[0]


_OPEN = "2:" + 64 * "0"


def _fill_in(path: Path, digest: str) -> None:
    """Write the digest where the header has room for it."""
    with path.open("rb+") as file:
        (length,) = _HEADER.unpack(file.read(_HEADER.size))
        # The facts are a string in the header: there, quotation marks have backslashes before them.
        place = file.read(length).index(f'"digest":"{_OPEN}"'.encode()) + len('"digest":"')
        file.seek(_HEADER.size + place)
        file.write(digest.encode())


def read(path: Path, *, key: str) -> Stored:
    """Read a file, its bytes once: it may be replaced meanwhile.

    Raises
    ------
    OSError
        if it cannot be read.
    ValueError
        if it is not such a file, is cut off, or was altered since it was written.
    """
    data = path.read_bytes()
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(f"it is no safetensors file, or cut off: {str(error)[:100]}") from error
    (length,) = _HEADER.unpack_from(data)
    metadata = strict_json.parse(data[_HEADER.size : _HEADER.size + length]).get("__metadata__", {})
    if key not in metadata:
        raise ValueError("it holds other weights, and no facts of metagrad's beside them")
    text, digest = metadata[key], metadata.get("digest")
    if digest is not None and digest not in (digest_of(text, tensors), _digest_of_version_1(text, tensors)):
        raise ValueError("it was altered since it was written")
    return Stored(tensors, strict_json.parse(text), digest)


def digest_of(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a sha256 (hex) over a text and over names, types, shapes and bytes of tensors; large ones side by side."""

    def one(item: tuple[str, Tensor]) -> bytes:
        name, leaf = item
        sha = hashlib.sha256(f"{name}\0{leaf.dtype}\0{tuple(leaf.shape)}\0".encode())
        sha.update(_bytes(leaf))
        return sha.digest()

    items = sorted(tensors.items())
    if sum(leaf.nbytes for leaf in tensors.values()) < 2**22:  # starting threads would take longer
        parts = [one(item) for item in items]
    else:
        with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
            parts = list(pool.map(one, items))
    return "2:" + hashlib.sha256(b"".join([hashlib.sha256(text.encode()).digest(), *parts])).hexdigest()


def _digest_of_version_1(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return what model files of metagrad 0.1 carry."""
    digest = hashlib.sha256(text.encode())
    for name, leaf in sorted(tensors.items()):
        digest.update(f"\0{name}\0{leaf.dtype}\0{tuple(leaf.shape)}\0".encode())
        digest.update(_bytes(leaf))
    return digest.hexdigest()


def _bytes(leaf: Tensor) -> memoryview:
    return leaf.contiguous().reshape(-1).view(torch.uint8).numpy().data
