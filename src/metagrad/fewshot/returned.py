"""Words for what a network returns or takes where it is not one tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from metagrad.errors import MetagradError, in_short


def one_tensor(model: nn.Module, output: Any) -> Tensor:
    """Return the one tensor that a network returned.

    Raises
    ------
    MetagradError
        if it returned anything else; the message says what, and how to take one tensor of it.
    """
    if isinstance(output, Tensor):
        return output
    parts = _parts(output) or {}
    tensors = [key for key, part in parts.items() if isinstance(part, Tensor)]
    key = "logits" if "logits" in tensors or not tensors else tensors[0]
    picked = f"[{key!r}]" if isinstance(output, Mapping) or isinstance(key, int) else f".{key}"
    raise MetagradError(
        f"the network ({type(model).__name__}) returns {describe(output)}, and one tensor of outputs is needed, "
        f"(N, ...): wrap it in a module whose forward(self, x) is `return self.network(x){picked}`"
    )


def describe(nest: Any) -> str:
    """Return in one line what a nest holds, and of which shapes."""
    if isinstance(nest, Tensor):
        return str(tuple(nest.shape))
    parts = _parts(nest)
    if parts is None:
        return type(nest).__name__
    named = ", ".join(f"{key}: {describe(part)}" for key, part in parts.items())
    return in_short(f"a {type(nest).__name__} of {named}" if named else f"an empty {type(nest).__name__}", 160)


def _parts(nest: Any) -> dict[Any, Any] | None:
    if isinstance(nest, Mapping):
        return dict(nest)
    if isinstance(nest, tuple | list):
        return dict(zip(getattr(nest, "_fields", range(len(nest))), nest, strict=True))
    if dataclasses.is_dataclass(nest) and not isinstance(nest, type):
        return {field.name: getattr(nest, field.name) for field in dataclasses.fields(nest)}
    return None
