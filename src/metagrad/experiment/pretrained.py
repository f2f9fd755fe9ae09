"""A pretrained network as a value: a frozen trunk that computes features, and a trainable top."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from metagrad.data.features import FeatureExtractor, fit_images
from metagrad.errors import MetagradError
from metagrad.fewshot import backbones
from metagrad.fewshot.backbones import Backbone, open_backbone
from metagrad.fewshot.norms import Diagonal, UnitLength

Body = Literal["nothing", "diagonal", "linear", "last-block", "all"]
Layer = Literal["identity", "whitening"]
_CENTRED = "efficientnet-lite0"
_PACKAGES = ("timm", "torchvision", "hf")
_BODIES = ("nothing", "diagonal", "linear", "last-block", "all")


@dataclass(frozen=True)
class Pretrained:
    """A pretrained network for pictures, and a head on its features.

    Parameters
    ----------
    name:
        ``"efficientnet-lite0"`` (or 1, 2; the extra ``photos``), ``"timm:NAME"``, ``"torchvision:NAME"``,
        ``"hf:NAME"``, or ``"package.module:function"`` of your own that returns an ``nn.Module`` whose outputs are
        features ``(N, F)``.
    body:
        Which part trains below the head. ``"nothing"``: all is frozen. ``"diagonal"``, ``"linear"``: one new layer on
        the features, which starts as the identity. ``"last-block"``: the network's last block. ``"all"``: the whole
        network, which is slow.
    scale:
        Norm to which features are scaled before the head.
    centred:
        Subtract the mean feature of photographs, which comes with metagrad for efficientnet-lite0, before features
        are scaled. Only for photographs, with body ``"nothing"``.
    layer:
        With body ``"linear"``, initial value of the layer: ``"identity"``, or ``"whitening"``, which makes the
        covariance of features within the training classes the identity; computed once before the first meta-step.
    weights:
        safetensors file with a ``state_dict``, used in place of the package's weights.

    Raises
    ------
    MetagradError
        For a value outside its range. Missing packages or weights are reported when the network is built.

    Examples
    --------
    >>> from metagrad.experiment import Pretrained
    >>> Pretrained("efficientnet-lite0", body="linear").scale
    4.0
    """

    name: str = "efficientnet-lite0"
    body: Body = field(default="nothing", kw_only=True)
    scale: float = field(default=4.0, kw_only=True)
    centred: bool = field(default=False, kw_only=True)
    layer: Layer = field(default="identity", kw_only=True)
    weights: str | None = field(default=None, kw_only=True)

    # Found on validation tasks of 16 CIFAR-100 classes, 64 others of 20 pictures to learn from, 5-way 1-shot: 300 steps
    # gain 4.3, 4.8 and 4.5 points over the class mean at 1e-4, 2e-4 and 3e-4 (each ± 0.9); 150 of them gain most of it.
    _MANY_STEPS: ClassVar[int] = 500
    _TASKS: ClassVar[int] = 8
    _LR: ClassVar[float] = 2e-4

    def __post_init__(self) -> None:
        if self.body not in _BODIES:
            raise MetagradError(f"body is one of {', '.join(_BODIES)}, got {self.body!r}")
        if self.layer not in ("identity", "whitening"):
            raise MetagradError(f"layer is one of identity, whitening, got {self.layer!r}")
        if self.layer == "whitening" and self.body != "linear":
            raise MetagradError(f"layer whitening is for body linear, not {self.body}: leave it out")
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float) or not 0 < self.scale < 1e6:
            raise MetagradError(f"scale must be positive and finite, got {self.scale!r}")
        if self.centred and (self.body != "nothing" or self.name != _CENTRED or self.weights is not None):
            raise MetagradError(f"centred is for {_CENTRED} as it is, body nothing: leave it out")

    def backbone(self) -> Backbone:
        """Return the pretrained network, cut where training begins.

        Raises
        ------
        MetagradError
            If its package or its weights are missing, or the weights are another network's.
        """
        return _opened(self.name, self.body, self.weights)

    @property
    def meta_steps(self) -> int | None:
        """Default number of meta-steps; ``None``: that of the tasks."""
        return self._MANY_STEPS if self.has_features else None

    @property
    def tasks_per_step(self) -> int | None:
        """Default number of tasks of a meta-step; ``None``: that of other networks."""
        return self._TASKS if self.has_features else None

    @property
    def outer_lr(self) -> float:
        """Default outer step size."""
        return self._LR

    @property
    def has_features(self) -> bool:
        """Whether a frozen trunk computes features, which is needed only once for each picture."""
        return self.body != "all"

    def build(self, inputs: tuple[int, ...], outputs: int, *, generator: torch.Generator | None = None) -> nn.Module:
        """Return a new network for features, or for images ``(channels, height, width)``.

        For inputs of the trunk's output shape it is the top alone, which is what trains; for images the frozen trunk
        comes before it.
        """
        backbone = self.backbone()
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if tuple(inputs) != feature_shape(self):
            parts["fit"] = FitImages(backbone.image_size)
            parts["trunk"] = copy.deepcopy(backbone.trunk)  # a network may be moved to another device
        if backbone.top is not None:
            parts["layer"] = copy.deepcopy(backbone.top).requires_grad_()
        elif self.body == "diagonal":
            parts["layer"] = Diagonal(backbone.num_features)
        elif self.body == "linear":
            parts["layer"] = _identity(backbone.num_features)
        parts["unit"] = UnitLength(self.scale, _centre() if self.centred else None)
        parts["head"] = _head(backbone.num_features, outputs, generator)
        return nn.Sequential(parts)


def trunk_of(network: Any) -> nn.Module | None:
    """Return the frozen part of a pretrained network, or ``None`` for another network.

    It takes images ``(N, C, H, W)`` in [0, 1] of one or three channels and any size, and gives features.
    """
    if not isinstance(network, Pretrained) or not network.has_features:
        return None
    backbone = network.backbone()
    return nn.Sequential(FitImages(backbone.image_size), backbone.trunk).eval()


def own_path(network: Any) -> tuple[str, ...]:
    """Return the import path of a pretrained network of the user's own code, if it is one."""
    if not isinstance(network, Pretrained):
        return ()
    package, colon, _ = network.name.partition(":")
    return (network.name,) if colon and package not in _PACKAGES else ()


def trunk_digest(network: Pretrained) -> str:
    """Return a sha256 over the weights of the frozen part and over how images are prepared for it."""
    return network.backbone().digest


def feature_shape(network: Any) -> tuple[int, ...] | None:
    """Return the shape of one picture's features, or ``None`` where the network takes images."""
    if not isinstance(network, Pretrained) or not network.has_features:
        return None
    return _output_shape(network.backbone())


def extractor_of(network: Any) -> FeatureExtractor | None:
    """Return the extractor that computes features of pictures, or ``None`` if the network takes images."""
    shape = feature_shape(network)
    if shape is None:
        return None
    backbone = network.backbone()
    return FeatureExtractor(
        name=backbone.name, digest=backbone.digest, shape=shape, image_size=backbone.image_size, compute=backbone.trunk
    )


class FitImages(nn.Module):
    """Give images the size and the three channels that a pretrained network takes.

    Parameters
    ----------
    size:
        Height and width, pixels.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Return images ``(N, 3, size, size)`` of images ``(N, C, H, W)``, both in [0, 1]."""
        return fit_images(x, self.size)


def _centre() -> Tensor:
    """Return 0.8 of the mean of features of length one, of 120 classes of Tiny-ImageNet (docs/results-diary.md)."""
    path = Path(backbones.__file__).parent / "efficientnet-lite0-centre.safetensors"
    return load_file(path)["centre"].to(torch.empty(0).device)  # which may be meta, where shapes alone are wanted


def _identity(num_features: int) -> nn.Linear:
    layer = nn.Linear(num_features, num_features, bias=False)
    nn.init.eye_(layer.weight)
    return layer


def _head(num_features: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    head = nn.Linear(num_features, outputs)
    bound = num_features**-0.5
    if not head.weight.is_meta:
        nn.init.uniform_(head.weight, -bound, bound, generator=generator)
        nn.init.zeros_(head.bias)
    return head


@functools.lru_cache(maxsize=4)
def _output_shape(backbone: Backbone) -> tuple[int, ...]:
    images = torch.zeros(1, 3, backbone.image_size, backbone.image_size, device="cpu")
    with torch.no_grad():
        return tuple(backbone.trunk(images).shape[1:])


@functools.lru_cache(maxsize=4)
def _opened(name: str, body: Body, weights: str | None) -> Backbone:
    with torch.device("cpu"):  # it is kept, and the first to ask may be somewhere else
        return open_backbone(name, body=body, weights=weights, code=(name,))
