"""Kinds of modules, each with the inputs that it takes: a new kind joins by a line in ``KINDS``."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from module_parts import (
    Beside,
    LanguageModel,
    Masked,
    Pooling,
    Symmetric,
    Then,
    Thinned,
    attention,
    convolved,
    deep_head,
    functional_embedding,
    half_frozen,
    ids,
    ids_and_mask,
    images,
    images_and_tables,
    last,
    layer_twice,
    mean,
    module_under_two_names,
    one_weight_in_two,
    packed,
    padded,
    parametrized,
    pretrained,
    recomputed,
    rows,
    rows_and_masks,
    series,
    split_attention,
    transformer_layer,
)
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm as hooked_spectral_norm
from torch.nn.utils import weight_norm as hooked_weight_norm
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization


class Kind(NamedTuple):
    body: Callable[[], nn.Module]
    width: int
    draw: Callable[[int], Any]
    head: Callable[[int, int], nn.Module] = nn.Linear


KINDS = {
    "linear": Kind(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh()), 5, rows),
    "a layer twice": Kind(layer_twice, 4, rows),
    "one weight in two layers": Kind(one_weight_in_two, 4, rows),
    "a module under two names": Kind(module_under_two_names, 4, rows),
    "convolution": Kind(
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Softplus(), nn.AvgPool2d(3), nn.Flatten()), 3, images
    ),
    "convolution of groups": Kind(
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2, dilation=2, padding="same"), nn.Tanh(), nn.Flatten()),
        100,
        images,
    ),
    "convolution of series": Kind(lambda: Then(nn.Conv1d(3, 4, 2), lambda m, x: m(x).tanh().mean(-1)), 4, series),
    "transposed convolution": Kind(
        lambda: Then(nn.ConvTranspose2d(2, 3, 2, stride=2), lambda m, x: m(x).tanh().mean((-1, -2))), 3, images
    ),
    "pooling": Kind(lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.MaxPool2d(2), nn.Tanh(), nn.Flatten()), 12, images),
    "batch norm": Kind(lambda: convolved(nn.BatchNorm2d(4)), 16, images),
    "batch norm of rows": Kind(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()), 4, rows),
    "batch norm in eval mode": Kind(lambda: convolved(nn.BatchNorm2d(4), train=False), 16, images),
    "batch norm without weights": Kind(lambda: convolved(nn.BatchNorm2d(4, affine=False)), 16, images),
    "batch norm without averages": Kind(lambda: convolved(nn.BatchNorm2d(4, track_running_stats=False)), 16, images),
    "batch norm under vmap": Kind(lambda: Then(convolved(nn.BatchNorm2d(4)), lambda m, x: m(x) + 1), 16, images),
    "eval norm under vmap": Kind(
        lambda: Then(convolved(nn.BatchNorm2d(4), train=False), lambda m, x: m(x) + 1), 16, images
    ),
    "batch norm without averages in eval mode": Kind(
        lambda: convolved(nn.BatchNorm2d(4, track_running_stats=False), train=False), 16, images
    ),
    "instance norm in eval mode": Kind(
        lambda: convolved(nn.InstanceNorm2d(4, affine=True, track_running_stats=True), train=False), 16, images
    ),
    "layer norm without weights": Kind(
        lambda: convolved(nn.LayerNorm((4, 2, 2), elementwise_affine=False)), 16, images
    ),
    "local response norm": Kind(lambda: convolved(nn.LocalResponseNorm(2)), 16, images),
    "instance norm": Kind(lambda: convolved(nn.InstanceNorm2d(4, affine=True)), 16, images),
    "instance norm with averages": Kind(lambda: convolved(nn.InstanceNorm2d(4, track_running_stats=True)), 16, images),
    "group norm": Kind(lambda: convolved(nn.GroupNorm(2, 4)), 16, images),
    "layer norm": Kind(lambda: convolved(nn.LayerNorm((4, 2, 2))), 16, images),
    "rms norm": Kind(lambda: nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4), nn.Tanh()), 4, rows),
    "weight norm as a hook": Kind(lambda: parametrized(hooked_weight_norm), 4, rows),
    "spectral norm": Kind(lambda: parametrized(spectral_norm), 4, rows),
    "spectral norm in eval mode": Kind(lambda: parametrized(spectral_norm, train=False), 4, rows),
    "spectral norm as a hook": Kind(lambda: parametrized(hooked_spectral_norm), 4, rows),
    "orthogonal weight": Kind(lambda: parametrized(orthogonal), 4, rows),
    "symmetric weight": Kind(
        lambda: parametrized(lambda m: register_parametrization(m, "weight", Symmetric())), 4, rows
    ),
    "weight norm": Kind(lambda: Then(weight_norm(nn.Linear(4, 4)), lambda m, x: m(x).tanh()), 4, rows),
    "dropout": Kind(lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Tanh(), nn.AlphaDropout()), 4, rows),
    "dropout in eval mode": Kind(lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout().eval(), nn.Tanh()), 4, rows),
    "squeeze and excitation": Kind(
        lambda: Then(nn.Conv2d(2, 3, 2), lambda m, x: (lambda h: (h * F.hardsigmoid(9 * h)).mean((-1, -2)))(m(x))),
        3,
        images,
    ),
    "random relu": Kind(lambda: nn.Sequential(nn.Linear(4, 4), nn.RReLU()), 4, rows),
    "embedding": Kind(lambda: Then(nn.Embedding(5, 4), mean), 4, ids),
    "embedding with padding": Kind(lambda: Then(nn.Embedding(5, 4, padding_idx=0), mean), 4, ids),
    "embedding with the last row as padding": Kind(lambda: Then(nn.Embedding(5, 4, padding_idx=-1), mean), 4, ids),
    "embedding in a function": Kind(functional_embedding, 4, ids),
    "embedding bag": Kind(lambda: Then(nn.EmbeddingBag(5, 4), lambda m, x: m(x).tanh()), 4, ids),
    "embedding bag with padding": Kind(
        lambda: Then(nn.EmbeddingBag(5, 4, padding_idx=1), lambda m, x: m(x).tanh()), 4, ids
    ),
    "embedding bag of sums": Kind(
        lambda: Then(nn.EmbeddingBag(5, 4, mode="sum", padding_idx=2), lambda m, x: m(x).tanh()), 4, ids
    ),
    "embedding bag of maxima": Kind(lambda: Then(nn.EmbeddingBag(5, 4, mode="max"), lambda m, x: m(x).tanh()), 4, ids),
    "attention": Kind(lambda: Then(attention(), lambda m, x: m(x, x, x, need_weights=False)[0].mean(1)), 4, series),
    "attention with weights": Kind(lambda: Then(attention(), lambda m, x: m(x, x, x)[0].mean(1)), 4, series),
    "attention in a function": Kind(lambda: Then(nn.Linear(4, 12), split_attention), 4, series),
    "transformer layer": Kind(lambda: Then(transformer_layer(), mean), 4, series),
    "transformer": Kind(lambda: Then(nn.TransformerEncoder(transformer_layer(), 2), mean), 4, series),
    "transformer in eval mode": Kind(
        lambda: Then(nn.TransformerEncoder(transformer_layer(), 1).eval(), mean), 4, series
    ),
    "transformer, norm first": Kind(
        lambda: Then(nn.TransformerEncoder(transformer_layer(norm_first=True), 2, nn.LayerNorm(4), False), mean),
        4,
        series,
    ),
    "transformer with a mask": Kind(lambda: Then(transformer_layer(), padded), 4, series),
    "transformer with a mask, norm first": Kind(lambda: Then(transformer_layer(norm_first=True), padded), 4, series),
    "transformer with a mask in eval mode": Kind(
        lambda: Then(nn.TransformerEncoder(transformer_layer(), 2).eval(), padded), 4, series
    ),
    "lstm": Kind(lambda: Then(nn.LSTM(4, 3, batch_first=True), last), 3, series),
    "lstm of two layers, both ways": Kind(
        lambda: Then(nn.LSTM(4, 2, 2, bidirectional=True, dropout=0.5, batch_first=True), last), 4, series
    ),
    "gru": Kind(lambda: Then(nn.GRU(4, 3, batch_first=True), last), 3, series),
    "rnn": Kind(lambda: Then(nn.RNN(4, 3, batch_first=True), last), 3, series),
    "gru of two layers, both ways": Kind(
        lambda: Then(nn.GRU(4, 2, 2, bidirectional=True, batch_first=True), last), 4, series
    ),
    "rnn of two layers, both ways": Kind(
        lambda: Then(nn.RNN(4, 2, 2, nonlinearity="tanh", bidirectional=True, batch_first=True), last), 4, series
    ),
    "lstm with a projection": Kind(lambda: Then(nn.LSTM(4, 3, proj_size=2, batch_first=True), last), 2, series),
    "lstm cell": Kind(lambda: Then(nn.LSTMCell(4, 3), lambda m, x: m(x)[0]), 3, rows),
    "gru cell": Kind(lambda: Then(nn.GRUCell(4, 3), lambda m, x: m(x)), 3, rows),
    "rnn cell": Kind(lambda: Then(nn.RNNCell(4, 3), lambda m, x: m(x)), 3, rows),
    "gru over packed rows": Kind(lambda: Then(nn.GRU(4, 3, 2, dropout=0.5, batch_first=True), packed), 3, series),
    "transformer decoder": Kind(
        lambda: Then(nn.TransformerDecoderLayer(4, 2, 4, batch_first=True), lambda m, x: m(x, x).mean(1).tanh()),
        4,
        series,
    ),
    "tied, padded language model": Kind(LanguageModel, 5, ids),
    "a frozen lstm": Kind(lambda: Then(nn.LSTM(4, 3, batch_first=True), last).requires_grad_(False), 3, series),
    "checkpoint": Kind(lambda: Then(nn.Linear(4, 4), recomputed(use_reentrant=False)), 4, rows),
    "reentrant checkpoint": Kind(lambda: Then(nn.Linear(4, 4), recomputed(use_reentrant=True)), 4, rows),
    "a branch on the data": Kind(
        lambda: Then(nn.Linear(4, 4), lambda m, x: m(x).tanh() if x.sum() > 0 else m(x).sin()), 4, rows
    ),
    "a frozen layer": Kind(half_frozen, 5, rows),
    "a pretrained network below a layer": Kind(pretrained, 4, images),
    "a head of several layers": Kind(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh()), 5, rows, deep_head),
    "a head over places": Kind(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh()), 5, series, Pooling),
    "dropout by masks": Kind(Thinned, 5, rows_and_masks),
    "a dictionary": Kind(Masked, 4, ids_and_mask),
    "a tuple with a list": Kind(Beside, 3, images_and_tables),
}
if "bias" in inspect.signature(nn.BatchNorm2d).parameters:  # torch 2.13
    KINDS |= {
        "batch norm without shift": Kind(lambda: convolved(nn.BatchNorm2d(4, bias=False)), 16, images),
        "batch norm without shift in eval mode": Kind(
            lambda: convolved(nn.BatchNorm2d(4, bias=False), train=False), 16, images
        ),
        "group norm without shift": Kind(lambda: convolved(nn.GroupNorm(2, 4, bias=False)), 16, images),
    }
