"""Networks of the few-shot literature, written so that they differentiate twice under ``vmap``."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from metagrad.fewshot.norms import BatchNorm


class Conv4(nn.Sequential):
    """Four blocks of [3×3 convolution, norm, ReLU], then a linear layer.

    With stride 2 the Omniglot network of the MAML and iMAML papers (28×28 images, 64 filters); with 2×2 max-pooling
    that of the papers on photographs (64 filters for 32×32 images, 32 for 84×84). Convolutions have no bias: batch norm
    would cancel it. Maps images ``(N, C, H, W)`` to logits ``(N, ways)``.

    Parameters
    ----------
    ways:
        number of outputs.
    channels:
        channels of the images.
    image_size:
        height and width of the images, in pixels.
    filters:
        width of every block.
    pooling:
        convolve with stride 1 and pool, in place of stride 2.
    pools:
        how many of the four blocks pool, where there is pooling. With 3, the features of a 28×28 image keep 3×3 places
        apart, so that it matters where on the image a stroke is.
    norm:
        ``"batch"``: with the statistics of the batch at hand; ``"group"``: of groups of 8 channels of each image;
        ``"layer"``: of the whole of each image.
    generator:
        source of the random initial weights.
    """

    def __init__(
        self,
        ways: int,
        *,
        channels: int = 1,
        image_size: int = 28,
        filters: int = 64,
        pooling: bool = False,
        pools: int = 4,
        norm: Literal["batch", "group", "layer"] = "batch",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        side = image_size
        for number, inputs in enumerate((channels, filters, filters, filters)):
            stride = 1 if pooling else 2
            blocks += [
                nn.Conv2d(inputs, filters, 3, stride=stride, padding=1, bias=False),
                _norm(norm, filters),
                nn.ReLU(),
            ]
            if not pooling:
                side = math.ceil(side / 2)
            elif number < pools:
                blocks.append(nn.MaxPool2d(2))
                side //= 2
        if side == 0:
            raise ValueError(
                f"images of {image_size} pixels are too small to be pooled {pools} times: {2**pools} are needed"
            )
        self.body = nn.Sequential(*blocks, nn.Flatten())
        self.head = nn.Linear(filters * side * side, ways)
        initialise(self, generator)


def _norm(kind: Literal["batch", "group", "layer"], channels: int) -> nn.Module:
    if kind == "batch":
        return BatchNorm(channels)
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 8)) if kind == "group" else 1, channels)


class ResNet12(nn.Sequential):
    """Four residual blocks of three 3×3 convolutions with pooling, the mean over positions, then a linear layer.

    Widths are 1, 2, 4 and 8 times ``filters``, activations leaky ReLU of slope 0.1, norms of the batch at hand
    (Oreshkin et al. 2018; without dropout, which differs from call to call). Maps images ``(N, C, H, W)`` to logits
    ``(N, ways)``.

    Parameters
    ----------
    ways, channels, filters, generator:
        as in :class:`Conv4`; the published network has 64 filters. Images need 16 pixels a side.
    """

    def __init__(
        self, ways: int, *, channels: int = 3, filters: int = 64, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        widths = [channels, *(filters * factor for factor in (1, 2, 4, 8))]
        self.body = nn.Sequential(*(Residual(a, b) for a, b in pairwise(widths)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], ways)
        initialise(self, generator)


class Residual(nn.Module):
    """Three 3×3 convolutions beside a 1×1 one, then 2×2 max-pooling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (inputs, outputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), BatchNorm(outputs), nn.LeakyReLU(0.1)]
        self.path = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), BatchNorm(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return half the height and width."""
        return F.max_pool2d(F.leaky_relu(self.path(x) + self.shortcut(x), 0.1), 2)


class MLP(nn.Sequential):
    """Fully connected network with a smooth or piecewise linear activation: ``(N, ...)`` to ``(N, sizes[-1])``.

    Parameters
    ----------
    sizes:
        inputs, hidden widths, outputs: ``(784, 64, 64, 5)``.
    activation:
        the class of the activation between layers.
    generator:
        source of the random initial weights.
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        *,
        activation: type[nn.Module] = nn.ReLU,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), activation()]
        self.layers = nn.Sequential(*layers[:-1])
        initialise(self, generator)


def initialise(model: nn.Module, generator: torch.Generator | None) -> None:
    """Draw convolution and linear weights anew (He for convolutions, Glorot for linear layers), biases zero."""
    if any(leaf.is_meta for leaf in model.parameters()):  # only shapes matter
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
