"""Normalisation written in primitives.

torch's own BatchNorm, LayerNorm and InstanceNorm give silently wrong second derivatives when a vmapped gradient is
differentiated again. These have the same parameters and values and are right under every transformation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# The attribute in which admit leaves what it measured.
MEASURED_TRANSDUCTIVE = "_metagrad_transductive"


class BatchNorm(nn.Module):
    """Batch normalisation with the statistics of the batch at hand, always (no running averages).

    A batch here is one task's support or query images, so predictions on a query set depend on the whole set: the
    network is transductive (:func:`is_transductive`). Input ``(N, C, *)``, any number of trailing axes.

    Parameters
    ----------
    channels:
        C.
    eps:
        added to the variance.
    affine:
        whether a scale and a shift per channel are learned (``weight``, ``bias``).
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel over the batch and the trailing axes."""
        return _normalise(x, [0, *range(2, x.dim())], self.eps, self.weight, self.bias, 1)

    def extra_repr(self) -> str:
        """Describe the layer in a printed model."""
        return f"{self.channels}, eps={self.eps}, affine={self.weight is not None}"


class InstanceNorm(nn.Module):
    """Normalise each image and channel over its trailing axes. Parameters as in :class:`BatchNorm`."""

    def __init__(self, channels: int, *, eps: float = 1e-5, affine: bool = False) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(N, C, *)``."""
        return _normalise(x, list(range(2, x.dim())), self.eps, self.weight, self.bias, 1)


class LayerNorm(nn.Module):
    """Normalise over the last axes, those of ``shape``; scale and shift have that shape."""

    def __init__(self, shape: tuple[int, ...], *, eps: float = 1e-5, affine: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.shape, self.eps = tuple(shape), eps
        self.weight = nn.Parameter(torch.ones(self.shape)) if affine else None
        self.bias = nn.Parameter(torch.zeros(self.shape)) if affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(*, *shape)``."""
        return _normalise(x, list(range(x.dim() - len(self.shape), x.dim())), self.eps, self.weight, self.bias, None)


def _normalise(
    x: Tensor, axes: list[int], eps: float, weight: Tensor | None, bias: Tensor | None, channel: int | None
) -> Tensor:
    # Not torch.var_mean: on CPU it took 28 % of a whole meta-gradient, these two means a third of that.
    centred = x - x.mean(axes, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
    if channel is not None:
        trailing = [1] * (x.dim() - channel - 1)
        weight = None if weight is None else weight.view(-1, *trailing)
        bias = None if bias is None else bias.view(-1, *trailing)
        # The factors are one number a channel: fold them before they meet the large tensor.
        scale, weight = (scale, None) if weight is None else (scale * weight, None)
    y = centred * scale
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def is_transductive(model: nn.Module) -> bool:
    """Whether a prediction depends on the other images predicted with it.

    Known for networks of known modules; measured by :func:`metagrad.fewshot.admit` for others.
    """
    measured = getattr(model, MEASURED_TRANSDUCTIVE, False)
    return measured or any(isinstance(module, BatchNorm) for module in model.modules())
