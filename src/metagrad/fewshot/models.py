"""Networks of the few-shot literature, written so that they differentiate twice under ``vmap``."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn

from metagrad.fewshot.norms import BatchNorm


class Conv4(nn.Sequential):
    """Four blocks of [3×3 convolution with stride 2, batch norm, ReLU], then a linear layer.

    The Omniglot network of the MAML and iMAML papers: 28×28 images, 64 filters. Convolutions have no bias: batch
    norm would cancel it. Maps images ``(N, C, H, W)`` to scores ``(N, ways)``.

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
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        side = image_size
        for inputs in (channels, filters, filters, filters):
            blocks += [
                nn.Conv2d(inputs, filters, 3, stride=2, padding=1, bias=False),
                BatchNorm(filters),
                nn.ReLU(),
            ]
            side = math.ceil(side / 2)
        self.body = nn.Sequential(*blocks, nn.Flatten())
        self.head = nn.Linear(filters * side * side, ways)
        initialise(self, generator)


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
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
