"""A pretrained network in two parts: a frozen trunk, and a top that may train."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from metagrad import tensorfile
from metagrad.errors import MetagradError
from metagrad.fewshot.backbones.cut import cut
from metagrad.fewshot.backbones.fold import fold
from metagrad.fewshot.backbones.network import Network
from metagrad.fewshot.backbones.weights import tensors_of

Body = Literal["nothing", "diagonal", "linear", "last-block", "all"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A pretrained network, cut into a trunk that stays as it is and a top that trains.

    What the trunk makes of a picture never changes, so it may be computed once and kept. Both parts are in eval mode:
    batch norms use their running statistics, and a picture's features depend on that picture alone.

    Attributes
    ----------
    name:
        the name that it was opened by.
    trunk:
        takes images ``(N, 3, S, S)``, float32, 0 to 1, with ``S = image_size``; normalises them itself. Without a top
        it gives features ``(N, num_features)``, otherwise what the top takes. None of its weights asks for a gradient.
    top:
        the last block, or the whole network; gives features ``(N, num_features)``. ``None`` where nothing of the
        network itself trains.
    image_size:
        height and width of the images, in pixels.
    num_features:
        length of the feature vector of a picture.
    digest:
        sha256 (64 hexadecimal digits) over name, image size, normalisation, cut and weights. What the trunk of one
        backbone gave may be used with another of the same digest.
    """

    name: str
    trunk: nn.Module
    top: nn.Module | None
    image_size: int
    num_features: int
    digest: str

    def features(self, images: Tensor) -> Tensor:
        """Return the features ``(N, num_features)`` of images ``(N, 3, S, S)``."""
        through: Tensor = self.trunk(images)
        if self.top is not None:
            through = self.top(through)
        return through


class Normalise(nn.Module):
    """``(x - mean) / std`` for each channel of images of one size."""

    mean: Tensor
    std: Tensor

    def __init__(self, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return images ``(N, 3, S, S)`` normalised; another shape is a ``ValueError``."""
        side = self.image_size
        if images.dim() != 4 or images.shape[1:] != (3, side, side):
            raise ValueError(
                f"a backbone takes images (N, 3, {side}, {side}), got {tuple(images.shape)}: use to_images"
            )
        return (images - self.mean) / self.std


def assembled(name: str, network: Network, num_features: int, body: Body) -> Backbone:
    """Return a network, weights and all, cut as ``body`` says, its trunk frozen and made fast.

    Raises
    ------
    MetagradError
        if the network cannot be cut there; the message lists the places where it can.
    """
    digest = _digest(name, network, body)
    before: list[nn.Module] = [network.module]
    top: nn.Module | None = None
    if body == "all":
        before, top = [], network.module
    elif body == "last-block":
        parts = cut(network.module, network.image_size)
        if parts is None:
            raise MetagradError(
                f"{name} cannot be cut before a last block, as its parts do not simply run one after another: "
                "choose nothing, diagonal, linear or all as the body"
            )
        before, top = parts[0], nn.Sequential(*parts[1]).eval()
    trunk = nn.Sequential(Normalise(network.image_size, network.mean, network.std), *before)
    fold(trunk.eval())
    trunk.eval().requires_grad_(False)  # what was folded is new
    for leaf in trunk.parameters():
        if leaf.dim() == 4:  # faster on a CPU; what a convolution returns has the layout of its weights
            leaf.data = leaf.data.contiguous(memory_format=torch.channels_last)
    return Backbone(
        name=name, trunk=trunk, top=top, image_size=network.image_size, num_features=num_features, digest=digest
    )


def _digest(name: str, network: Network, body: Body) -> str:
    facts = {
        "version": 1, "name": name, "image_size": network.image_size, "mean": network.mean, "std": network.std,
        "cut": body if body in ("last-block", "all") else "none", "network": network.version,
    }  # fmt: skip
    return tensorfile.digest_of(json.dumps(facts, sort_keys=True), tensors_of(network.module)).removeprefix("2:")
