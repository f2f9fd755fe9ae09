"""Sequences of the usual layers, which take the task axis themselves.

That saves the dispatch of some hundred small operations and allows faster kernels. Known are torch's own kinds, without
hooks; everything else runs under ``vmap`` (:mod:`metagrad.fewshot.batched_forward`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metagrad import tree
from metagrad.fewshot import module_lock
from metagrad.fewshot.batch_norm import batch_norm
from metagrad.fewshot.convolution import Window, conv2d
from metagrad.fewshot.norms import BatchNorm, Diagonal, UnitLength, uses_batch_statistics
from metagrad.tree import Params

_ELEMENTWISE = (
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus,
    UnitLength,
)  # fmt: skip
_DROPOUTS = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
_PER_IMAGE = (nn.MaxPool2d, nn.AvgPool2d)
BATCH_NORMS = (BatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Layer(NamedTuple):
    """A layer and what its parameters' names start with."""

    name: str
    module: nn.Module

    def own(self, key: str, params: Params, tasks: int) -> Tensor:
        """Return a parameter with its task axis; one that ``params`` lacks is the module's, shared by the tasks."""
        if self.name + key in params:
            return params[self.name + key]
        with module_lock.LOCK:
            leaf: Tensor = getattr(self.module, key)
        return leaf.expand(tasks, *leaf.shape)


def layered(model: nn.Module) -> bool:
    """Whether the model is a sequence of layers that take the task axis themselves."""
    return layers_of(model) is not None


def layers_of(module: nn.Module, name: str = "") -> list[Layer] | None:
    """List the layers in order, or return ``None`` where one is not known here."""
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return [Layer(name, module)] if _known(module) else None
    layers: list[Layer] = []
    for key, child in module._modules.items():
        assert child is not None
        inner = layers_of(child, f"{name}{key}.")
        if inner is None:
            return None
        layers += inner
    return layers


def with_layer_names(model: nn.Module, layers: list[Layer], params: Params) -> Params:
    """Return params with each shared weight under the name of every layer that has it."""
    for layer in layers:
        for key in ("weight", "bias"):
            if layer.name + key not in params and layer.module._parameters.get(key) is not None:
                return module_lock.with_every_name(model, params)
    return params


def through(layers: list[Layer], weights: Params, x: Tensor) -> Tensor:
    """Return the layers' outputs for ``(T, N, ...)`` with weights that all tasks share: no task axis.

    All images go through torch's own convolutions together; layers that use a whole task, such as batch norm, get the
    task axis.
    """
    tasks = len(x)
    for layer in layers:
        module = layer.module
        if isinstance(module, nn.Conv2d | nn.Linear):
            with module_lock.LOCK:
                weight, bias = (weights.get(layer.name + key, getattr(module, key)) for key in ("weight", "bias"))
            if isinstance(module, nn.Linear):
                x = F.linear(x, weight, bias)
                continue
            images = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            x = F.conv2d(images, weight, bias, module.stride, module.padding).unflatten(0, (tasks, -1))
        else:
            own = {name: leaf for name, leaf in weights.items() if name.startswith(layer.name)}
            x = apply(layer, tree.expand(own, tasks), x)
    return x


def frozen_first(layers: list[Layer]) -> int:
    """Return how many of the first layers have no trainable weight; 0 where they have no weight at all."""
    count, has_weights = 0, False
    with module_lock.LOCK:  # while another thread runs the module, it holds that thread's tensors, which look frozen
        for layer in layers:
            leaves = [leaf for leaf in layer.module._parameters.values() if leaf is not None]
            if any(leaf.requires_grad for leaf in leaves):
                break
            count, has_weights = count + 1, has_weights or bool(leaves)
    return count if has_weights else 0


def _known(module: nn.Module) -> bool:
    if type(module) is nn.Conv2d:
        return _plain(module)
    if type(module) is nn.Flatten:
        return module.start_dim == 1 and module.end_dim == -1
    if type(module) in (*BATCH_NORMS, nn.GroupNorm):  # either may lack its shift alone
        return all(module._parameters.get(key) is not None for key in ("weight", "bias"))
    if type(module) is nn.MaxPool2d:
        return not module.return_indices
    return type(module) in (nn.Linear, Diagonal, *_ELEMENTWISE, *_DROPOUTS, *_PER_IMAGE)


def _plain(conv: nn.Conv2d) -> bool:
    square = all(len(set(sides)) == 1 for sides in (conv.kernel_size, conv.stride, conv.padding))
    return (
        square
        and not isinstance(conv.padding, str)
        and conv.padding_mode == "zeros"
        and conv.groups == 1
        and conv.dilation == (1, 1)
    )


def folds(layers: list[Layer]) -> bool:
    """Whether the network begins with a convolution of narrow patches and a batch norm, which fold into one product."""
    if len(layers) < 2:
        return False
    conv, norm = layers[0].module, layers[1].module
    if not isinstance(conv, nn.Conv2d) or not uses_batch_statistics(norm) or conv.bias is not None:
        return False
    with module_lock.LOCK:
        return conv.weight[0].numel() <= conv.out_channels


def window(conv: nn.Module, x: Tensor) -> Window:
    """Return how a convolution's kernel moves over images ``(T, N, C, H, W)``."""
    assert isinstance(conv, nn.Conv2d)
    return Window(conv.kernel_size[0], conv.stride[0], int(conv.padding[0]), (x.shape[3], x.shape[4]))


def apply(layer: Layer, params: Params, x: Tensor) -> Tensor:
    """Apply one layer to ``(T, N, ...)``."""
    module = layer.module

    def own(key: str) -> Tensor:
        return layer.own(key, params, len(x))

    if isinstance(module, nn.Conv2d):
        y = conv2d(x, own("weight"), window(module, x))
        return y if module.bias is None else y + own("bias")[:, None, :, None, None]
    if isinstance(module, BATCH_NORMS):
        if uses_batch_statistics(module):
            return batch_norm(x, own("weight"), own("bias"), module.eps)
        return _fixed_norm(x, module, own("weight"), own("bias"))
    if isinstance(module, nn.Linear):
        rows = x.reshape(len(x), -1, x.shape[-1])
        weight = own("weight").mT
        y = torch.bmm(rows, weight) if module.bias is None else torch.baddbmm(own("bias").unsqueeze(1), rows, weight)
        return y.view(*x.shape[:-1], -1)
    if isinstance(module, Diagonal):
        return x * own("weight").unsqueeze(1)
    if isinstance(module, nn.GroupNorm):
        y = F.group_norm(x.flatten(0, 1), module.num_groups, eps=module.eps).unflatten(0, x.shape[:2])
        weight, bias = (own(key).view(len(x), 1, -1, *[1] * (x.dim() - 3)) for key in ("weight", "bias"))
        return torch.addcmul(bias, y, weight)
    if isinstance(module, nn.Flatten):
        return x.flatten(2)
    if isinstance(module, _PER_IMAGE):
        return module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return x if isinstance(module, _DROPOUTS) else module(x)  # dropout is off, as in eval mode


def _fixed_norm(x: Tensor, norm: nn.Module, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a batch norm in eval mode: by the mean and variance that it holds, each task's scale and shift."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    with module_lock.LOCK:
        mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = weight * torch.rsqrt(variance + norm.eps)
    shape = len(x), 1, -1, *[1] * (x.dim() - 3)
    return torch.addcmul((bias - scale * mean).view(shape), x, scale.view(shape))
