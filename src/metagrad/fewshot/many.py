"""One network with many sets of weights: the outputs of T tasks at once.

Any module runs under ``vmap``. Sequences of the usual layers need not: here each layer takes the task axis itself,
which saves the dispatch of some hundred small operations and allows faster kernels. Both give the same numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metagrad import tree
from metagrad.errors import MetagradWarning, in_short, is_out_of_memory
from metagrad.fewshot import module_lock
from metagrad.fewshot.batch_norm import batch_norm
from metagrad.fewshot.convolution import Seen, Window, conv2d, look, normalised_conv2d
from metagrad.fewshot.norms import BatchNorm, looks_at_the_batch
from metagrad.tree import Params

_ELEMENTWISE = (
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus,
)  # fmt: skip
_PER_IMAGE = (nn.MaxPool2d, nn.AvgPool2d)
_BATCH_NORMS = (BatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# torch has no batching rule for what these call.
_ONE_BY_ONE = (nn.RNNBase, nn.LSTMCell, nn.RNNCell)
_REFUSED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # what torch.vmap said of a network
_SAID: WeakSet[nn.Module] = WeakSet()  # networks whose tasks run one by one, of which one was told


class Prepared(NamedTuple):
    """Inputs ``x``, ``(T, N, ...)``, and what the network's first layers see of them where they can use it."""

    x: Tensor
    seen: Seen | None


class _Layer(NamedTuple):
    """A layer and what its parameters' names start with."""

    name: str
    module: nn.Module

    def own(self, key: str, params: Params, tasks: int) -> Tensor:
        """Return a parameter with its task axis; one that ``params`` lacks is the module's, shared by the tasks."""
        found = params.get(self.name + key)
        if found is None:
            with module_lock.LOCK:
                leaf: Tensor = getattr(self.module, key)
            found = leaf.expand(tasks, *leaf.shape)
        return found


def prepare(model: nn.Module, x: Tensor) -> Prepared:
    """Do once what :func:`outputs` would else do each time it is given the same inputs ``(T, N, ...)``."""
    layers = _layers(model)
    if layers is None or x.requires_grad or not _folds(layers):
        return Prepared(x, None)
    return Prepared(x, look(x, _window(layers[0].module, x)))


def outputs(model: nn.Module, params: Params, x: Tensor | Prepared) -> Tensor:
    """Return ``(T, N, ...)``: task t's inputs ``x[t]`` through the model with the weights ``params[...][t]``.

    Parameters named in ``params`` have a leading task axis; the model's own serve for the others.
    """
    y, seen = x if isinstance(x, Prepared) else prepare(model, x)
    layers = _layers(model)
    if layers is None:
        return task_by_task(model, lambda phi, inputs: module_lock.call(model, phi, inputs), params, y)
    params = _under_their_names(model, layers, params)
    if seen is not None:
        conv, norm, *layers = layers
        assert isinstance(norm.module, _BATCH_NORMS)
        gamma, beta = (norm.own(key, params, len(y)) for key in ("weight", "bias"))
        rows = normalised_conv2d(seen, conv.own("weight", params, len(y)), gamma, beta, norm.module.eps)
        y = rows.view(*y.shape[:2], *_window(conv.module, y).out, -1).movedim(-1, 2)
    for layer in layers:
        y = _apply(layer, params, y)
    return y


def shared_outputs(model: nn.Module, weights: Params, x: Tensor) -> Tensor:
    """Return what :func:`outputs` does for weights that all tasks share, without a task axis; once differentiable.

    ``model`` is a sequence of layers that take the task axis (:func:`layered`). All images go through torch's own
    convolutions together; only what looks at a whole task, such as batch norm, is told tasks apart.
    """
    layers = _layers(model)
    assert layers is not None
    tasks, weights = len(x), _under_their_names(model, layers, weights)
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
            x = _apply(layer, tree.expand(own, tasks), x)
    return x


def task_by_task(model: nn.Module, output: Callable[[Params, Tensor], Tensor], params: Params, x: Tensor) -> Tensor:
    """Return ``(T, N, ...)``, what ``output`` makes of each task's weights and inputs: by ``vmap``, or one by one.

    One by one where the model has a module that is known not to run for several tasks at once, and from then on where
    torch says that something does not; a warning says so once.
    """
    if one_by_one(model) is None:
        try:
            return torch.vmap(output)(params, x)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            refused = f"the network ({type(model).__name__}; torch.vmap: {in_short(error, 120)})"
    else:
        refused = ""
    found = [output({name: leaf[task] for name, leaf in params.items()}, x[task]) for task in range(len(x))]
    if refused:  # and it ran: it is not the network that is wrong
        _REFUSED[model] = refused
    if model not in _SAID:
        _SAID.add(model)
        warnings.warn(
            f"{one_by_one(model)} does not run for several tasks at once: they run one by one, which gives the same "
            "numbers and takes longer",
            MetagradWarning,
            stacklevel=2,
        )
    return torch.stack(found)


def one_by_one(model: nn.Module) -> str | None:
    """Return what keeps the model's tasks from running at once, if something is known to."""
    for name, module in model.named_modules():
        if isinstance(module, _ONE_BY_ONE):
            return f"{name or 'the network'} ({type(module).__name__})"
    return _REFUSED.get(model)


def layered(model: nn.Module) -> bool:
    """Whether the model is a sequence of layers that take the task axis themselves."""
    return _layers(model) is not None


def _layers(module: nn.Module, name: str = "") -> list[_Layer] | None:
    """List the layers in order, or return ``None`` where one is not known here."""
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return [_Layer(name, module)] if _known(module) else None
    found: list[_Layer] = []
    for key, child in module._modules.items():
        assert child is not None
        inner = _layers(child, f"{name}{key}.")
        if inner is None:
            return None
        found += inner
    return found


def _under_their_names(model: nn.Module, layers: list[_Layer], params: Params) -> Params:
    """Name each weight as every layer that has it does: ``params`` names one that several layers have once."""
    for layer in layers:
        for key in ("weight", "bias"):
            if layer.name + key not in params and layer.module._parameters.get(key) is not None:
                return module_lock.under_every_name(model, params)
    return params


def _known(module: nn.Module) -> bool:
    if type(module) is nn.Conv2d:
        return _plain(module)
    if type(module) is nn.Flatten:
        return module.start_dim == 1 and module.end_dim == -1
    if type(module) in _BATCH_NORMS:
        return module._parameters.get("weight") is not None
    if type(module) is nn.GroupNorm:
        return module.affine
    return type(module) in (nn.Linear, *_ELEMENTWISE, *_PER_IMAGE)


def _plain(conv: nn.Conv2d) -> bool:
    square = all(len(set(sides)) == 1 for sides in (conv.kernel_size, conv.stride, conv.padding))
    return (
        square
        and not isinstance(conv.padding, str)
        and conv.padding_mode == "zeros"
        and conv.groups == 1
        and conv.dilation == (1, 1)
    )


def _folds(layers: list[_Layer]) -> bool:
    """Whether the network begins with a convolution of narrow patches and a batch norm, which fold into one product."""
    if len(layers) < 2:
        return False
    conv, norm = layers[0].module, layers[1].module
    if not isinstance(conv, nn.Conv2d) or not looks_at_the_batch(norm) or conv.bias is not None:
        return False
    with module_lock.LOCK:
        return conv.weight[0].numel() <= conv.out_channels


def _window(conv: nn.Module, x: Tensor) -> Window:
    assert isinstance(conv, nn.Conv2d)
    return Window(conv.kernel_size[0], conv.stride[0], int(conv.padding[0]), (x.shape[3], x.shape[4]))


def _apply(layer: _Layer, params: Params, x: Tensor) -> Tensor:
    """Apply one layer to ``(T, N, ...)``."""
    module = layer.module

    def own(key: str) -> Tensor:
        return layer.own(key, params, len(x))

    if isinstance(module, nn.Conv2d):
        y = conv2d(x, own("weight"), _window(module, x))
        return y if module.bias is None else y + own("bias")[:, None, :, None, None]
    if isinstance(module, _BATCH_NORMS):
        if looks_at_the_batch(module):
            return batch_norm(x, own("weight"), own("bias"), module.eps)
        return _fixed_norm(x, module, own("weight"), own("bias"))
    if isinstance(module, nn.Linear):
        rows = x.reshape(len(x), -1, x.shape[-1])
        weight = own("weight").mT
        y = torch.bmm(rows, weight) if module.bias is None else torch.baddbmm(own("bias").unsqueeze(1), rows, weight)
        return y.view(*x.shape[:-1], -1)
    if isinstance(module, nn.GroupNorm):
        y = F.group_norm(x.flatten(0, 1), module.num_groups, eps=module.eps).unflatten(0, x.shape[:2])
        weight, bias = (own(key).view(len(x), 1, -1, *[1] * (x.dim() - 3)) for key in ("weight", "bias"))
        return torch.addcmul(bias, y, weight)
    if isinstance(module, nn.Flatten):
        return x.flatten(2)
    if isinstance(module, _PER_IMAGE):
        return module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return module(x)


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
