"""An adapted network as an ordinary one: it looks at one image at a time, and needs nothing of metagrad to run."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from metagrad.errors import MetagradError
from metagrad.fewshot.norms import BatchNorm
from metagrad.fewshot.split import last_layer
from metagrad.tree import Params


def for_ways(saved: Params, like: Params) -> Params:
    """Return meta-learned weights for a network of another number of outputs.

    Every output begins at the mean of the learned ones' rows, and so do the strengths and step sizes that belong to
    them (the mean of their logarithms).

    Parameters
    ----------
    saved:
        theta as it was learned.
    like:
        theta of the network wanted; only shapes matter.

    Raises
    ------
    MetagradError
        if they differ in more than the number of outputs.
    """
    if saved.keys() != like.keys():
        raise MetagradError("the weights are those of another network or method")
    found = {}
    for name, leaf in saved.items():
        wanted = like[name].shape
        if leaf.shape == wanted:
            found[name] = leaf
        elif leaf.dim() and leaf.shape[1:] == wanted[1:]:
            found[name] = leaf.mean(0, keepdim=True).expand(wanted).clone()
        else:
            raise MetagradError(f"{name} is {tuple(leaf.shape)}, and {tuple(wanted)} is wanted: not the same network")
    return found


def ordinary(model: nn.Module, weights: Params, support: Tensor | None = None) -> nn.Module:
    """Return a copy of the model with these weights and torch's own norms in place of those of a batch.

    What a batch norm takes from the images at hand while training, it takes from the support images for good: so a
    prediction depends on nothing but its own image.

    Parameters
    ----------
    weights:
        of one task. Linear layers take the number of outputs that their weights have.
    support:
        ``(N, C, H, W)``, the images adapted to; ``None`` leaves the statistics to be loaded.
    """
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, leaf in weights.items():
            path, _, key = name.rpartition(".")
            module = copied.get_submodule(path)
            setattr(module, key, nn.Parameter(_own(leaf), requires_grad=False))
            if isinstance(module, nn.Linear):
                module.out_features = len(module.weight)
        seen = _statistics(copied, support) if support is not None else {}
        for path, module in list(copied.named_modules()):
            if isinstance(module, BatchNorm):
                copied.set_submodule(path, _frozen(module, seen.get(path)))
    return copied.eval().requires_grad_(False)


def quick(network: nn.Module) -> nn.Module:
    """Return a network of the same outputs, to rounding, that is some three times as fast on photographs.

    A frozen norm becomes part of the convolution before it, and channels lie last in memory.
    """
    copied = copy.deepcopy(network)
    for module in list(copied.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        for (name, first), (after, second) in pairwise(list(module.named_children())):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(first, second))
                setattr(module, after, nn.Identity())
    last: Any = copied  # torch states no type for this
    return last.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def judged(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores of images ``(N, C, H, W)`` and their features ``(N, F)``: what the last layer is given."""
    seen: list[Tensor] = []
    head = network.get_submodule(last_layer(network))
    last = list(network.children())[-1:]
    if type(network).forward is nn.Sequential.forward and last == [head]:  # nothing is added: threads may share it
        features = x
        for child in list(network.children())[:-1]:
            features = child(features)
        return head(features), features.flatten(1)
    me = threading.get_ident()
    hook = head.register_forward_pre_hook(
        lambda module, args: seen.append(args[0]) if threading.get_ident() == me else None
    )
    try:
        scores = network(x)
    finally:
        hook.remove()
    return scores, seen[0].flatten(1)


@dataclass(frozen=True)
class Landmarks:
    """Where the classes lie among the features.

    Attributes
    ----------
    means:
        ``(classes, F)``, the mean of each class's support images.
    spread:
        mean distance between them.
    """

    means: Tensor
    spread: float

    @classmethod
    def of(cls, features: Tensor, y: Tensor, ways: int) -> Landmarks:
        """Take them from the support images' features and labels."""
        hot = torch.nn.functional.one_hot(y, ways).to(features)
        means = hot.T @ features / hot.sum(0)[:, None]
        return cls(means, float(torch.pdist(means).mean()))

    def strangeness(self, features: Tensor) -> Tensor:
        """Return each image's distance from the nearest class, in units of the mean distance between classes."""
        return torch.cdist(features, self.means).amin(1) / max(self.spread, 1e-12)


def _own(leaf: Tensor) -> Tensor:
    """Return a copy, laid out as it will be when it is read from a file."""
    return leaf.detach().clone(memory_format=torch.contiguous_format)


_Statistics = dict[str, tuple[Tensor, Tensor]]


def _statistics(model: nn.Module, images: Tensor) -> _Statistics:
    """Return each batch norm's mean and variance over a batch."""
    found: _Statistics = {}

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            axes = [0, *range(2, args[0].dim())]
            centre = args[0].mean(axes, keepdim=True)
            found[path] = centre.flatten(), (args[0] - centre).square().mean(axes)

        return hook

    hooks = [
        module.register_forward_pre_hook(note(path))
        for path, module in model.named_modules()
        if isinstance(module, BatchNorm)
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _frozen(norm: BatchNorm, seen: tuple[Tensor, Tensor] | None) -> nn.BatchNorm2d:
    like = norm.weight if norm.weight is not None else torch.empty(0, dtype=torch.float32, device="cpu")
    frozen = nn.BatchNorm2d(
        norm.channels, eps=norm.eps, affine=norm.weight is not None, dtype=like.dtype, device=like.device
    )
    if norm.weight is not None and norm.bias is not None:
        frozen.weight, frozen.bias = norm.weight, norm.bias
    if seen is not None:
        assert frozen.running_mean is not None
        assert frozen.running_var is not None
        frozen.running_mean, frozen.running_var = seen
    return frozen
