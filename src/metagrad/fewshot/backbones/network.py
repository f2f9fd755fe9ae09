"""A pretrained network as it is found, before it is cut; what is looked at before it is trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metagrad.errors import MetagradError, in_short

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LARGEST = 4096  # pixels a side


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A network that gives features, and how its images are prepared.

    Attributes
    ----------
    module:
        gives features ``(N, F)`` of normalised images ``(N, 3, S, S)``.
    image_size:
        S, in pixels.
    mean, std:
        of each channel, for values 0 to 1: images are normalised as ``(x - mean) / std``.
    names:
        the module's own name of each tensor, and the one that a file of weights gives it, where they differ.
    num_features:
        F, where it is known beforehand.
    filled:
        whether the chosen file of weights is loaded already.
    version:
        what tells one form of the network from another, beside its name and its weights.
    """

    module: nn.Module
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: Mapping[str, str] | None = None
    num_features: int | None = None
    filled: bool = False
    version: str = ""


def require_preprocessing(name: str, image_size: Any, mean: Any, std: Any) -> None:
    """Refuse what is no image size, or are no three numbers.

    Raises
    ------
    MetagradError
        saying which.
    """
    if isinstance(image_size, bool) or not isinstance(image_size, int) or not 1 <= image_size <= _LARGEST:
        raise MetagradError(
            f"{name}: image_size must be a whole number from 1 to {_LARGEST}, got {in_short(repr(image_size), 60)}"
        )
    for key, value in {"mean": mean, "std": std}.items():
        three = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 3
        if not three or not all(isinstance(one, int | float) and math.isfinite(one) for one in value):
            raise MetagradError(
                f"{name}: {key} must be three numbers, one a channel, for values 0 to 1, got {in_short(value, 60)}"
            )
    if min(std) <= 0:
        raise MetagradError(f"{name}: std must be above 0, got {in_short(repr(std), 60)}")


def count_features(name: str, network: Network) -> int:
    """Return how many features the network gives, from a look at two random images.

    Raises
    ------
    MetagradError
        if it does not give features ``(N, F)``, or a picture's features depend on the pictures beside it.
    """
    if network.num_features is not None:
        return network.num_features
    side = network.image_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            both, alone = network.module(images), network.module(images[:1])
    except Exception as error:  # whatever somebody's network does
        raise MetagradError(
            f"{name} does not take images (N, 3, {side}, {side}): {type(error).__name__}: {in_short(error)}"
        ) from error
    if not (isinstance(both, Tensor) and both.dim() == 2 and len(both) == 2 and both.is_floating_point()):
        told = tuple(both.shape) if isinstance(both, Tensor) else f"a {type(both).__name__}"
        raise MetagradError(f"{name} must give features (N, F): of 2 images it gave {told}")
    if alone.shape != (1, both.shape[1]) or not _alike(both[:1], alone, 1e-3):
        raise MetagradError(
            f"{name} gives a picture other features beside other pictures, or another time: use norms with running "
            "statistics, and nothing random in eval mode"
        )
    return int(both.shape[1])


def _alike(one: Tensor, other: Tensor, tol: float) -> bool:
    """Whether two tensors are the same but for rounding; NaN in the same places, as before weights are loaded, too."""
    scale = other.abs().nan_to_num(0, 0, 0).max().item()
    return torch.allclose(one, other, rtol=tol, atol=tol * scale, equal_nan=True)
