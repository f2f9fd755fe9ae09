"""Which objectives have been looked at: a look costs two evaluations, and a training loop asks at every step."""

from __future__ import annotations

import dataclasses
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_MOST = 256  # looks that are remembered
_VALUES = (int, float, complex, str, bytes, bool, type(None), type, torch.dtype, torch.device)


class Looks:
    """Remembers what a look at an objective came to, for the same code, captured objects and shapes.

    An objective is often made anew at every step, from the same lambda and the same network: so it is known by its code
    and by what it captured, not by its own identity.
    """

    def __init__(self) -> None:
        self._found: OrderedDict[Hashable, tuple[list[weakref.ref[Any]], list[str]]] = OrderedDict()

    def at(self, objective: Any, arguments: Any) -> tuple[Hashable, list[weakref.ref[Any]]] | None:
        """Return the key of an objective at arguments of these shapes; ``None`` for one that cannot be told again."""
        held: list[weakref.ref[Any]] = []
        try:
            leaves, spec = pytree.tree_flatten(arguments)
            shapes = tuple(
                (leaf.shape, leaf.dtype, leaf.requires_grad) if isinstance(leaf, Tensor) else _identity(leaf, held)
                for leaf in leaves
            )
            key = (_identity(objective, held), shapes, str(spec))
            hash(key)
        except TypeError:  # something that neither has a hash nor can be held weakly
            return None
        return key, held

    def get(self, key: Hashable) -> list[str] | None:
        """Return what the last look came to, if nothing that was captured is gone since."""
        known = self._found.get(key)
        if known is None or any(ref() is None for ref in known[0]):  # gone: another object may have its number
            return None
        return known[1]

    def put(self, key: Hashable, held: list[weakref.ref[Any]], result: list[str]) -> None:
        """Remember a look; the oldest is forgotten."""
        self._found[key] = held, result
        if len(self._found) > _MOST:
            self._found.popitem(last=False)


def _identity(part: Any, held: list[weakref.ref[Any]]) -> Hashable:
    if isinstance(part, _VALUES):
        return type(part), part
    if isinstance(part, np.generic):
        return type(part), part.item()
    if isinstance(part, FunctionType):
        cells = tuple(_identity(cell.cell_contents, held) for cell in part.__closure__ or ())
        return part.__code__, cells, tuple(_identity(one, held) for one in part.__defaults__ or ())
    if isinstance(part, MethodType):
        return _identity(part.__func__, held), _identity(part.__self__, held)
    if isinstance(part, pytree.TreeSpec):
        return str(part)
    if isinstance(part, tuple | list):
        return type(part), tuple(_identity(one, held) for one in part)
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return type(part), tuple(_identity(getattr(part, one.name), held) for one in dataclasses.fields(part))
    held.append(weakref.ref(part))
    if isinstance(part, nn.Module):
        return id(part), part.training, tuple(leaf.requires_grad for leaf in part.parameters())
    return id(part), part.requires_grad if isinstance(part, Tensor) else None
