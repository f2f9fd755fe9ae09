"""Tensors and facts in one safetensors file, with a digest that shows whether it was altered."""

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
_LONGEST_HEADER = 10_000_000


@dataclass(frozen=True)
class Stored:
    """The content of a file.

    Attributes
    ----------
    tensors:
        by name, on the CPU.
    facts:
        the JSON beside them.
    digest:
        of both; ``None`` for a file of a version that wrote none.
    """

    tensors: dict[str, Tensor]
    facts: Any
    digest: str | None


def begins_like_one(path: Path, *, key: str) -> bool:
    """Say whether a file begins like one that :func:`write` wrote with ``key``; it may still be damaged."""
    with path.open("rb") as file:
        start = file.read(_HEADER.size)
        length = _HEADER.unpack(start)[0] if len(start) == _HEADER.size else 0
        try:
            return key in json.loads(file.read(min(length, _LONGEST_HEADER)))["__metadata__"]
        except (ValueError, LookupError, TypeError):
            return False


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
    """Write a file in one step; return the digest of its content.

    Parameters
    ----------
    key:
        the name of the facts among the file's metadata.
    refused, follow:
        see :func:`metagrad.files.write_atomically`.
    first:
        called in a thread while the file is written, and done before the file has its name.
    """
    text = json.dumps(facts, ensure_ascii=False, sort_keys=True)
    plain = {name: leaf.detach().cpu().contiguous() for name, leaf in tensors.items()}
    written = ""

    def fill(temporary: Path) -> None:
        nonlocal written
        # The digest takes as long as the writing: both run at once, and the digest replaces its placeholder.
        with ThreadPoolExecutor(max_workers=2) as pool:
            digest, done = pool.submit(digest_of, text, plain), pool.submit(first)
            try:
                save_file(plain, temporary, metadata={key: text, "digest": _PLACEHOLDER})
            except SafetensorError as error:  # it wraps the system's error, disk full among them
                raise OSError(str(error)) from error
            done.result()
            written = digest.result()
        _fill_in(temporary, written)

    write_atomically(path, fill, refused=refused, follow=follow)
    return written


_PLACEHOLDER = "2:" + 64 * "0"


def _fill_in(path: Path, digest: str) -> None:
    """Replace the placeholder in the header by the digest."""
    with path.open("rb+") as file:
        (length,) = _HEADER.unpack(file.read(_HEADER.size))
        # The facts cannot match: they are a string in the header, where quotation marks have backslashes.
        place = file.read(length).index(f'"digest":"{_PLACEHOLDER}"'.encode()) + len('"digest":"')
        file.seek(_HEADER.size + place)
        file.write(digest.encode())


def read(path: Path, *, key: str) -> Stored:
    """Read a file; its bytes only once, as another process may replace it.

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
    """Return a sha256 (hex) over a text and the names, types, shapes and bytes of tensors; large ones in parallel."""

    def one(item: tuple[str, Tensor]) -> bytes:
        name, leaf = item
        sha = hashlib.sha256(f"{name}\0{leaf.dtype}\0{tuple(leaf.shape)}\0".encode())
        sha.update(_bytes(leaf))
        return sha.digest()

    items = sorted(tensors.items())
    if sum(leaf.nbytes for leaf in tensors.values()) < 2**22:  # starting threads would take longer
        parts = [one(item) for item in items]
    else:
        with ThreadPoolExecutor() as pool:  # hashing releases the GIL
            parts = list(pool.map(one, items))
    return "2:" + hashlib.sha256(b"".join([hashlib.sha256(text.encode()).digest(), *parts])).hexdigest()


def _digest_of_version_1(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the digest as model files of metagrad 0.1 have it."""
    digest = hashlib.sha256(text.encode())
    for name, leaf in sorted(tensors.items()):
        digest.update(f"\0{name}\0{leaf.dtype}\0{tuple(leaf.shape)}\0".encode())
        digest.update(_bytes(leaf))
    return digest.hexdigest()


def _bytes(leaf: Tensor) -> memoryview:
    return leaf.contiguous().reshape(-1).view(torch.uint8).numpy().data
