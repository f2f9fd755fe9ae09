"""Networks as values, which build a network for inputs of a shape and a number of outputs."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from metagrad.errors import MetagradError, in_short
from metagrad.fewshot import MLP, Conv4, ResNet12
from metagrad.named_code import imported
from metagrad.scalars import whole

Norm = Literal["batch", "group", "layer"]


class NetworkConfig(Protocol):
    """A frozen dataclass that builds a network."""

    def build(self, inputs: tuple[int, ...], outputs: int, *, generator: torch.Generator | None = None) -> nn.Module:
        """Return a new network for inputs of this shape, without the example axis."""
        ...


@dataclass(frozen=True, kw_only=True)
class Conv4Config:
    """Four convolutions and a linear layer: :class:`metagrad.fewshot.Conv4`.

    Parameters
    ----------
    filters:
        width of the network, in channels; time grows with its square.
    pooling:
        convolve with stride 1 and pool, in place of stride 2: slower, more accurate on photographs.
    pools:
        with pooling: how many of the four blocks pool. 3 leaves places of the image apart, for drawings that fill it.
    norm:
        what to normalise over: the batch of a task (``"batch"``; a prediction then depends on the other images),
        groups of 8 channels of an image (``"group"``), or the whole image (``"layer"``).

    Raises
    ------
    MetagradError
        for a value outside its range.
    """

    filters: int = 32
    pooling: bool = False
    pools: int = 4
    norm: Norm = "batch"

    def __post_init__(self) -> None:
        _require_width("filters", self.filters)
        object.__setattr__(self, "pools", whole("pools", self.pools, 0))
        if self.pools > 4:
            raise MetagradError(f"pools must be at most 4, the number of blocks, got {self.pools}")
        if self.pools != 4 and not self.pooling:
            raise MetagradError(
                f"pools={self.pools} counts blocks that pool, but pooling is off: turn it on, as conv4-pool does"
            )
        if self.norm not in ("batch", "group", "layer"):
            raise MetagradError(f"norm is one of batch, group, layer, got {self.norm!r}")

    def build(self, inputs: tuple[int, ...], outputs: int, *, generator: torch.Generator | None = None) -> nn.Module:
        """Return a new network for images ``(channels, size, size)``."""
        channels, size = _image(inputs)
        return Conv4(
            outputs, channels=channels, image_size=size, filters=self.filters, pooling=self.pooling, pools=self.pools,
            norm=self.norm, generator=generator,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ResNet12Config:
    """Twelve convolutions with shortcuts: :class:`metagrad.fewshot.ResNet12`.

    Parameters
    ----------
    filters:
        channels of the first block; the others have 2, 4 and 8 times as many. Time grows with its square.

    Raises
    ------
    MetagradError
        for a value outside its range.
    """

    filters: int = 32

    def __post_init__(self) -> None:
        _require_width("filters", self.filters)

    def build(self, inputs: tuple[int, ...], outputs: int, *, generator: torch.Generator | None = None) -> nn.Module:
        """Return a new network for images ``(channels, size, size)``."""
        return ResNet12(outputs, channels=_image(inputs)[0], filters=self.filters, generator=generator)


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Fully connected layers with ReLU between them: :class:`metagrad.fewshot.MLP`.

    Parameters
    ----------
    hidden:
        widths of the hidden layers.

    Raises
    ------
    MetagradError
        for a value outside its range.
    """

    hidden: tuple[int, ...] = (256, 256)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for width in self.hidden:
            _require_width("hidden", width)

    def build(self, inputs: tuple[int, ...], outputs: int, *, generator: torch.Generator | None = None) -> nn.Module:
        """Return a new network for inputs of any shape, which it lays end to end."""
        return MLP((torch.Size(inputs).numel(), *self.hidden, outputs), generator=generator)


def build_network(
    network: Any, inputs: tuple[int, ...], outputs: int, *, generator: torch.Generator | None = None
) -> nn.Module:
    """Return a network from its value: a config, a function or class, the import path of one, or a module.

    A function of the user's own draws from torch's global generator, which is seeded from ``generator`` meanwhile.

    Raises
    ------
    MetagradError
        if the function cannot be called without arguments, or returns no ``nn.Module``.
    """
    if isinstance(network, nn.Module):
        return copy.deepcopy(network)
    if hasattr(network, "build"):
        built: nn.Module = network.build(inputs, outputs, generator=generator)
        return built
    path = network if isinstance(network, str) else getattr(network, "__qualname__", str(network))
    called = imported(network, code=(network,)) if isinstance(network, str) else network
    if isinstance(called, nn.Module):
        return copy.deepcopy(called)
    if not callable(called):
        raise MetagradError(f"{path} cannot be called: name a function or class that returns an nn.Module")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if generator is None else generator.initial_seed())
        try:
            module = called()
        except TypeError as error:
            raise MetagradError(f"{path} cannot be called without arguments: {in_short(error)}") from error
    if not isinstance(module, nn.Module):
        raise MetagradError(f"{path} returned {type(module).__name__}: it must return an nn.Module")
    if any(isinstance(leaf, UninitializedParameter) for leaf in module.parameters()):
        raise MetagradError(
            f"{path} has a lazy layer, whose size is not known yet: give the layer its size, or run the network once "
            "on an example before you return it"
        )
    return module


def _image(inputs: tuple[int, ...]) -> tuple[int, int]:
    if len(inputs) != 3 or inputs[1] != inputs[2]:
        raise MetagradError(f"a convolutional network takes square images (C, H, H), these inputs are {tuple(inputs)}")
    return inputs[0], inputs[1]


def _require_width(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**9:
        raise MetagradError(f"{name} must be a whole number of at least 1, got {value!r}")
