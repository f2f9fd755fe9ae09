"""An adapted network as an ordinary torch network: each image is classified by itself, and metagrad is not needed."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from metagrad.errors import MetagradError
from metagrad.fewshot import module_lock
from metagrad.fewshot.head import last_layer
from metagrad.fewshot.norms import BatchNorm, uses_batch_statistics
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
        raise MetagradError("the weights belong to another network or method")
    found = {}
    for name, leaf in saved.items():
        wanted = like[name].shape
        if leaf.shape == wanted:
            found[name] = leaf
        elif leaf.dim() and leaf.shape[1:] == wanted[1:]:
            found[name] = leaf.mean(0, keepdim=True).expand(wanted).clone()
        else:
            raise MetagradError(
                f"{name} has shape {tuple(leaf.shape)} in place of {tuple(wanted)}: not the same network"
            )
    return found


def standalone(model: nn.Module, weights: Params, support: Tensor | None = None) -> nn.Module:
    """Return a copy of the model with these weights and torch's own norms in place of those of a batch.

    Batch norms use the support images' statistics from here on, so a prediction depends only on its own image.

    Parameters
    ----------
    weights:
        of one task. Linear layers take the number of outputs that their weights have.
    support:
        ``(N, C, H, W)``, the images adapted to; ``None`` leaves the statistics to be loaded.

    Raises
    ------
    MetagradError
        if a batch norm runs twice in one pass.
    """
    with module_lock.LOCK:
        copied = copy.deepcopy(model)
    with torch.no_grad():
        known = {place.name: here for here in module_lock.places(copied).values() for place in here}
        for name, leaf in weights.items():
            own = nn.Parameter(_own(leaf), requires_grad=False)
            for module, key, *_ in known[name]:
                setattr(module, key, own)
                if isinstance(module, nn.Linear):
                    module.out_features = len(module.weight)
        seen = _statistics(copied, support) if support is not None else {}
        swapped: dict[nn.Module, nn.Module] = {}  # a norm may have two names
        for path, module in list(copied.named_modules(remove_duplicate=False)):
            if uses_batch_statistics(module):
                if module not in swapped:
                    swapped[module] = _frozen(module, seen.get(module))
                copied.set_submodule(path, swapped[module])
            elif isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.training:
                module.track_running_stats = False  # as here: each example by its own numbers, also in eval mode
                module.running_mean = module.running_var = None
    return copied.eval().requires_grad_(False)


def fused(network: nn.Module) -> nn.Module:
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


def logits_and_features(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of images ``(N, C, H, W)`` and their features ``(N, F)``, the inputs of the last layer."""
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
        logits = network(x)
    finally:
        hook.remove()
    return logits, seen[0].flatten(1)


def feature_length(network: nn.Module, inputs: tuple[int, ...]) -> int:
    """Return the number of features of an image of shape ``inputs``; the network may be on the meta device."""
    last = network.get_submodule(last_layer(network))
    if isinstance(last, nn.Linear):  # without a forward pass, for which torch on meta imports its compiler
        return last.in_features
    return logits_and_features(network, torch.empty(1, *inputs))[1].shape[1]


@dataclass(frozen=True)
class Prototypes:
    """The classes' mean features, and the scale of distances between them.

    Attributes
    ----------
    means:
        ``(classes, F)``, the mean of each class's support images.
    spread:
        mean distance between them.
    cosine:
        whether all features have the same norm, so that only directions are compared.
    """

    means: Tensor
    spread: float
    cosine: bool = False

    @classmethod
    def of(cls, features: Tensor, y: Tensor, ways: int) -> Prototypes:
        """Take them from the support images' features and labels."""
        hot = torch.nn.functional.one_hot(y, ways).to(features)
        means = hot.T @ features / hot.sum(0)[:, None]
        lengths = features.norm(dim=1)
        cosine = bool((lengths - lengths[0]).abs().amax() < 1e-3 * lengths[0])
        return cls(means, float(torch.pdist(means).mean()), cosine)

    def ood_score(self, features: Tensor) -> Tensor:
        """Return the out-of-distribution score of each image, ``(N,)``.

        That is its distance from the nearest prototype, in units of the mean distance between prototypes; of features
        of one length, 1 − the cosine to the nearest prototype.
        """
        if self.cosine:
            directions = torch.nn.functional.normalize(self.means, dim=1)
            return 1 - (torch.nn.functional.normalize(features, dim=1) @ directions.T).amax(1)
        return torch.cdist(features, self.means).amin(1) / max(self.spread, 1e-12)


def _own(leaf: Tensor) -> Tensor:
    """Return a copy, laid out as it will be when it is read from a file."""
    return leaf.detach().clone(memory_format=torch.contiguous_format)


class _Seen(NamedTuple):
    """Inputs of a batch norm: number of axes, and mean and variance of each channel."""

    axes: int
    mean: Tensor
    variance: Tensor


def _statistics(model: nn.Module, images: Tensor) -> dict[nn.Module, _Seen]:
    """Return the statistics of each batch norm's inputs for a batch."""
    found: dict[nn.Module, _Seen] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if module in found:
            raise MetagradError(
                "a batch norm of the model runs twice in one forward pass, so it cannot be frozen at one mean and "
                "variance: use a separate norm for each place"
            )
        axes = [0, *range(2, args[0].dim())]
        centre = args[0].mean(axes, keepdim=True)
        found[module] = _Seen(args[0].dim(), centre.flatten(), (args[0] - centre).square().mean(axes))

    hooks = [module.register_forward_pre_hook(note) for module in model.modules() if uses_batch_statistics(module)]
    try:
        module_lock.call(model, {}, images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


# By the number of axes of what they normalise.
_FROZEN: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d,
}  # fmt: skip


def _frozen(norm: nn.Module, seen: _Seen | None) -> nn.Module:
    assert isinstance(norm, BatchNorm | nn.modules.batchnorm._BatchNorm)
    weight, bias = norm.weight, norm.bias
    like = weight if weight is not None else torch.empty(0, dtype=torch.float32, device="cpu")
    kind = nn.BatchNorm2d if seen is None else _FROZEN[seen.axes]
    channels = norm.channels if isinstance(norm, BatchNorm) else norm.num_features
    frozen = kind(channels, eps=norm.eps, affine=weight is not None, dtype=like.dtype, device=like.device)
    if weight is not None and bias is not None:
        frozen.weight, frozen.bias = weight, bias
    if seen is not None:
        assert frozen.running_mean is not None
        assert frozen.running_var is not None
        frozen.running_mean, frozen.running_var = seen.mean, seen.variance
    return frozen
