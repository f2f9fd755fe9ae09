"""Modules that tests are made with, and inputs for them."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils import checkpoint as recomputing

from metagrad.fewshot.dropout import dropout_masks


class Then(nn.Module):
    """A module, and what is made of its outputs."""

    def __init__(self, module, then):
        super().__init__()
        self.module, self.then = module, then

    def forward(self, x):
        return self.then(self.module, x)


def rows(count):
    return torch.randn(count, 4)


def ids(count):
    return torch.randint(5, (count, 6))


def series(count):
    return torch.randn(count, 3, 4)


def mean(module, x):
    return module(x).mean(1).tanh()


def last(module, x):
    return module(x)[0][:, -1]


def packed(module, x):
    return module(pack_padded_sequence(x, torch.tensor([3] * len(x)), batch_first=True))[1][-1]


class LanguageModel(nn.Module):
    """Attention in a function, positions, and an embedding with padding that is also the last layer."""

    def __init__(self):
        super().__init__()
        self.letters, self.places = nn.Embedding(5, 4, padding_idx=0), nn.Embedding(6, 4)
        self.mix, self.out = nn.Linear(4, 12, bias=False), nn.Linear(4, 5, bias=False)
        self.out.weight = self.letters.weight
        self.register_buffer("before", torch.ones(6, 6).tril().bool())

    def forward(self, x):
        h = self.letters(x) + self.places(torch.arange(x.shape[1]))
        parts = self.mix(h).unflatten(-1, (2, 6)).transpose(1, 2).chunk(3, -1)
        seen = F.scaled_dot_product_attention(*parts, attn_mask=self.before)
        return self.out(F.gelu(seen.transpose(1, 2).flatten(2))).mean(1)


class Masked(nn.Module):
    """A module given inputs in a dictionary: rows of ids, and which of them are there."""

    def __init__(self):
        super().__init__()
        self.letters, self.layer = nn.Embedding(5, 4, padding_idx=0), transformer_layer()

    def forward(self, inputs):
        h = self.layer(self.letters(inputs["ids"]), src_key_padding_mask=~inputs["mask"])
        there = inputs["mask"].unsqueeze(-1)
        return (h * there).sum(1) / there.sum(1)


class Beside(nn.Module):
    """A module given a tuple: images, and a list of two tables."""

    def __init__(self):
        super().__init__()
        self.images, self.table = nn.Conv2d(2, 3, 3), nn.Linear(4, 3)

    def forward(self, inputs):
        images, (one, other) = inputs
        return self.images(images).mean((-1, -2)).tanh() * self.table(one + other).tanh()


class Thinned(nn.Module):
    """A layer of which some is dropped, by factors that go with the inputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, inputs):
        return self.layer(inputs["x"]).tanh() * inputs["kept"]


def rows_and_masks(count):
    x = rows(count)
    drawn = dropout_masks(x[None], {"kept": (5,)}, p=0.4, generator=torch.Generator().manual_seed(count))
    return {"x": x, "kept": drawn["kept"][0]}


def ids_and_mask(count):
    mask = torch.arange(6) < torch.randint(2, 7, (count, 1))
    return {"ids": ids(count).masked_fill(~mask, 0), "mask": mask}


def images_and_tables(count):
    return images(count), [rows(count), rows(count)]


def attention():
    return nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)


def transformer_layer(**how):
    return nn.TransformerEncoderLayer(4, 2, 4, dropout=0.1, activation="gelu", batch_first=True, **how)


def padded(module, x):
    """Leave out what lies beyond a first number that is large; never the first."""
    away = (x[..., 0] > 0.3) & (torch.arange(x.shape[1]) > 0)
    return module(x, src_key_padding_mask=away).mean(1).tanh()


def split_attention(module, x):
    return F.scaled_dot_product_attention(*module(x).chunk(3, -1), None, 0.0, True).mean(1)


def recomputed(**how):
    return lambda module, x: recomputing.checkpoint(module, x, **how).tanh()


def functional_embedding():
    return Then(nn.Embedding(5, 4), lambda m, x: F.embedding(x, m.weight, padding_idx=2).mean(1).tanh())


def images(count):
    return torch.randn(count, 2, 5, 5)


def convolved(norm, *, train=True):
    """Return a convolution and a norm that has seen other pictures."""
    body = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), norm, nn.Tanh(), nn.Flatten())
    for leaf in norm.parameters():
        nn.init.normal_(leaf)
    for _ in range(3):
        body(2 * images(9) + 1)
    return body.train(train)


def pretrained():
    """Convolutions and batch norms as they were trained, frozen, below a layer that learns."""
    body = nn.Sequential(
        convolved(nn.BatchNorm2d(4), train=False)[:2],
        nn.ReLU6(),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Hardswish(),
    )
    return nn.Sequential(body.requires_grad_(False), nn.Flatten(), nn.Dropout(), nn.Linear(16, 4), nn.Tanh())


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).T


def parametrized(norm, *, train=True):
    """Return a layer whose weight is made of others, seen in use; then what a task looks at."""
    layer = norm(nn.Linear(4, 4))
    with torch.no_grad():
        layer(rows(3))
    return Then(layer, lambda m, x: m(x).tanh()).train(train)


class Pooling(nn.Module):
    """A head that weighs the places of ``(N, places, width)``."""

    def __init__(self, width, ways):
        super().__init__()
        self.seek, self.layers = (
            nn.Parameter(torch.randn(width)),
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, ways)),
        )

    def forward(self, x):
        return self.layers(((x @ self.seek).softmax(-1).unsqueeze(-1) * x).sum(1))


def deep_head(width, ways):
    return nn.Sequential(nn.Dropout(), nn.Linear(width, 4), nn.GroupNorm(2, 4), nn.Softplus(), nn.Linear(4, ways))


def layer_twice():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh())


def one_weight_in_two():
    body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
    body[2].weight = body[0].weight
    return body


def module_under_two_names():
    layer = nn.Linear(4, 4)
    return Then(nn.ModuleDict({"a": layer, "b": layer}), lambda m, x: m["b"](m["a"](x).tanh()).tanh())


def half_frozen():
    body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh())
    body[0].requires_grad_(False)
    return body
