"""What tells an objective and its arguments apart from others, so that the same ones are validated once."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Hashable
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_VALUES = (int, float, complex, str, bytes, bool, type(None), type, torch.dtype, torch.device)


def fingerprint(objective: Any, arguments: Any) -> tuple[Hashable, list[weakref.ref[Any]]] | None:
    """Return a key for an objective at arguments of these shapes, and what must be alive for the key to hold.

    An objective is often made anew at every step, from the same lambda and the same network. So the key is its code and
    what it captured, not its own identity. ``None``: something captured has no hash and takes no weak reference.
    """
    held: list[weakref.ref[Any]] = []
    try:
        leaves, spec = pytree.tree_flatten(arguments)
        shapes = tuple(
            (leaf.shape, leaf.dtype, leaf.requires_grad) if isinstance(leaf, Tensor) else _identity(leaf, held)
            for leaf in leaves
        )
        key = (_identity(objective, held), shapes, str(spec))
        hash(key)
    except TypeError:
        return None
    return key, held


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
