"""A linear layer on features that were computed before."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from torch import nn

from metagrad.errors import MetagradError
from metagrad.experiment.pretrained import UnitLength
from metagrad.strict_json import is_count, is_number


@dataclass(frozen=True)
class LinearProbe:
    """The head that :class:`~metagrad.experiment.Pretrained` builds on features, without the pretrained network.

    Parameters
    ----------
    num_features:
        Length of the feature vectors.
    scale:
        Norm to which features are scaled.

    Raises
    ------
    MetagradError
        For a value outside its range.

    Examples
    --------
    >>> import torch
    >>> LinearProbe(7).build((7,), 3)(torch.randn(2, 7)).shape
    torch.Size([2, 3])
    """

    num_features: int
    scale: float = field(default=4.0, kw_only=True)

    def __post_init__(self) -> None:
        if not is_count(self.num_features, 1):
            raise MetagradError(f"num_features must be a positive whole number, got {self.num_features!r}")
        if not is_number(self.scale) or not 0 < self.scale < 1e6:
            raise MetagradError(f"scale must be positive and finite, got {self.scale!r}")

    def build(self, inputs: tuple[int, ...], outputs: int, *, generator: torch.Generator | None = None) -> nn.Module:
        """Return a new network for features of this length."""
        if tuple(inputs) != (self.num_features,):
            raise MetagradError(f"the network takes {self.num_features} features, not inputs {tuple(inputs)}")
        head = nn.Linear(self.num_features, outputs)
        if not head.weight.is_meta:
            bound = self.num_features**-0.5
            nn.init.uniform_(head.weight, -bound, bound, generator=generator)
            nn.init.zeros_(head.bias)
        return nn.Sequential(OrderedDict(unit=UnitLength(self.scale), head=head))
