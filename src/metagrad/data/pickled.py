"""Pickled arrays, read without running anything: a pickle here may build numpy arrays, and nothing else."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from metagrad.errors import MetagradError

_SAFE = {
    (f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")
} | {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
}  # fmt: skip


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _SAFE:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_arrays(data: bytes, where: str) -> Any:
    """Return what a pickle of plain containers, strings, numbers and numpy arrays holds.

    Parameters
    ----------
    where:
        names the file in an error.

    Raises
    ------
    MetagradError
        if it is no such pickle; nothing of it has been run then.
    """
    try:
        found = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MetagradError(
            f"{where} is not a pickle of plain arrays ({reason}): metagrad runs no code from data; get the file again"
        ) from error
    _require_plain(found, where)
    return found


def _require_plain(found: Any, where: str) -> None:
    pending, seen = [found], set()
    while pending:
        value = pending.pop()
        if id(value) in seen:  # a container may hold itself
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            pending += value
        elif isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                raise MetagradError(f"{where} has an array of Python objects: only arrays of numbers are read")
        elif not isinstance(value, str | bytes | int | float | bool | np.generic | type(None)):
            raise MetagradError(f"{where} holds a {type(value).__name__}: only plain arrays are read")
