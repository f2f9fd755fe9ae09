"""What a network returned or is given, in words, where it is not one tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from metagrad.errors import MetagradError, in_short


def one_tensor(model: nn.Module, found: Any) -> Tensor:
    """Return what a network returned.

    Raises
    ------
    MetagradError
        if that is anything but one tensor; says what is in it, and how to take one of it.
    """
    if isinstance(found, Tensor):
        return found
    parts = _parts(found) or {}
    tensors = [key for key, part in parts.items() if isinstance(part, Tensor)]
    key = "logits" if "logits" in tensors or not tensors else tensors[0]
    picked = f"[{key!r}]" if isinstance(found, Mapping) or isinstance(key, int) else f".{key}"
    raise MetagradError(
        f"the network ({type(model).__name__}) returns {described(found)}, and one tensor of outputs is needed, "
        f"(N, ...): wrap it in a module whose forward(self, x) is `return self.network(x){picked}`"
    )


def described(found: Any) -> str:
    """Return in one line what a nest holds, and of which shapes."""
    if isinstance(found, Tensor):
        return str(tuple(found.shape))
    parts = _parts(found)
    if parts is None:
        return type(found).__name__
    named = ", ".join(f"{key}: {described(part)}" for key, part in parts.items())
    return in_short(f"a {type(found).__name__} of {named}" if named else f"an empty {type(found).__name__}", 160)


def _parts(found: Any) -> dict[Any, Any] | None:
    if isinstance(found, Mapping):
        return dict(found)
    if isinstance(found, tuple | list):
        return dict(zip(getattr(found, "_fields", range(len(found))), found, strict=True))
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        return {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return None
