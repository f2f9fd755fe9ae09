"""Weights of the support images in an adaptation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from metagrad.data.names import short
from metagrad.errors import MetagradError, in_short
from metagrad.fewshot import Batch, WeightedBatch
from metagrad.fewshot.tasks import AnyBatch
from metagrad.strict_json import is_number

ClassWeight = Literal["balanced"] | Mapping[str, float] | None


def example_weights(y: Tensor, classes: Sequence[str], class_weight: ClassWeight) -> Tensor | None:
    """Return the weight of each image, 1 on average, or ``None`` if all are equal.

    Raises
    ------
    MetagradError
        for weights of unknown classes, or weights that are not positive.
    """
    if class_weight is None:
        return None
    counts = torch.bincount(y, minlength=len(classes)).double()
    if class_weight == "balanced":
        each = 1 / counts.clamp(min=1)
    elif isinstance(class_weight, Mapping):
        if stray := sorted(str(name) for name in class_weight if name not in classes):
            raise MetagradError(f"class_weight names {short(stray[0])!r}: the classes are {short(', '.join(classes))}")
        for name, value in class_weight.items():
            if not is_number(value) or value <= 0:
                raise MetagradError(f"class_weight of {short(name)!r} must be a positive number, got {in_short(value)}")
        each = torch.tensor([float(class_weight.get(name, 1.0)) for name in classes], dtype=torch.float64)
    else:
        raise MetagradError(f'class_weight is "balanced", None or numbers by class, not {in_short(class_weight)}')
    weight = each[y]
    return None if (weight == weight[0]).all() else (weight / weight.mean()).float()


def batch_of(x: Tensor, y: Tensor, weight: Tensor | None) -> AnyBatch:
    """Return support sets with these example weights, ``(N,)``."""
    return Batch(x, y) if weight is None else WeightedBatch(x, y, weight.expand_as(y))
