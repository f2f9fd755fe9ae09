"""One network with many sets of weights: the outputs of T tasks at once.

Any module runs under ``vmap`` (:mod:`metagrad.fewshot.by_task`). Sequences of the usual layers need not
(:mod:`metagrad.fewshot.layers`): there each layer takes the task axis itself. Both give the same numbers.

Inputs are a tensor, ``(T, N, ...)``, or any nest of such (dictionaries, tuples, lists), which the network is called
with as its one argument.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from metagrad.fewshot import frozen, module_lock
from metagrad.fewshot.by_task import one_by_one, task_by_task
from metagrad.fewshot.convolution import PatchStatistics, normalised_conv2d, patch_statistics
from metagrad.fewshot.layers import (
    BATCH_NORMS,
    apply,
    folds,
    frozen_first,
    layered,
    layers_of,
    through,
    window,
    with_layer_names,
)
from metagrad.tree import Params

__all__ = ["Prepared", "layered", "one_by_one", "outputs", "prepare", "shared_outputs", "task_by_task"]


class Prepared(NamedTuple):
    """Inputs ``x``, ``(T, N, ...)``, and what is computed from them once, whatever the weights.

    Attributes
    ----------
    x:
        a tensor, or any nest of them.
    patches:
        what the first two layers need of them, where these fold into one product.
    features:
        outputs of frozen parts of the network, by their paths; "" is for the first layers of a sequence.
    """

    x: Any
    patches: PatchStatistics | None
    features: frozen.Features | None = None


def prepare(model: nn.Module, x: Any) -> Prepared:
    """Compute once what :func:`outputs` would else compute each time from the same inputs ``(T, N, ...)``."""
    layers = layers_of(model)
    if layers is None or not isinstance(x, Tensor):
        return Prepared(x, None, frozen.features(model, x) or None)
    if x.requires_grad:
        return Prepared(x, None)
    if count := frozen_first(layers):
        return Prepared(x, None, {"": through(layers[:count], {}, x)})
    return Prepared(x, patch_statistics(x, window(layers[0].module, x)) if folds(layers) else None)


def outputs(model: nn.Module, params: Params, x: Any) -> Tensor:
    """Return ``(T, N, ...)``: task t's inputs ``x[t]`` through the model with the weights ``params[...][t]``.

    Parameters named in ``params`` have a leading task axis; the model's own serve for the others. ``x`` is a tensor, a
    nest of them, or the result of :func:`prepare`.

    Raises
    ------
    MetagradError
        if the network returns anything but one tensor, draws random numbers, or writes into a buffer.
    """
    layers = layers_of(model)
    if layers is not None and isinstance(x, Tensor):
        x = prepare(model, x)
    y, patches, features = x if isinstance(x, Prepared) else Prepared(x, None)
    if layers is None or not isinstance(y, Tensor):
        if features and frozen.still_frozen(model, features, params):
            return task_by_task(model, lambda phi, given: _with_features(model, phi, *given), params, (y, features))
        return task_by_task(model, lambda phi, inputs: module_lock.call(model, phi, inputs), params, y)
    params = with_layer_names(model, layers, params)
    if features is not None:
        skipped, rest = layers[: (count := frozen_first(layers))], layers[count:]
        if not any(layer.name + key in params for layer in skipped for key in layer.module._parameters):
            y, layers = features[""], rest
    if patches is not None:
        conv, norm, *layers = layers
        assert isinstance(norm.module, BATCH_NORMS)
        gamma, beta = (norm.own(key, params, len(y)) for key in ("weight", "bias"))
        rows = normalised_conv2d(patches, conv.own("weight", params, len(y)), gamma, beta, norm.module.eps)
        y = rows.view(*y.shape[:2], *window(conv.module, y).out, -1).movedim(-1, 2)
    for layer in layers:
        y = apply(layer, params, y)
    return y


def _with_features(model: nn.Module, phi: Params, x: Any, features: frozen.Features) -> Tensor:
    with frozen.replayed(model, features):
        return module_lock.call(model, phi, x)


def shared_outputs(model: nn.Module, weights: Params, x: Tensor) -> Tensor:
    """Return what :func:`outputs` does for weights that all tasks share, without a task axis; once differentiable.

    ``model`` is a sequence of layers that take the task axis (:func:`layered`).
    """
    layers = layers_of(model)
    assert layers is not None
    return through(layers, with_layer_names(model, layers, weights), x)
