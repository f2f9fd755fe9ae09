"""Every kind of module with every method, against plain autograd over one task after the other."""

import inspect
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import plain_loop
import pytest
import torch
from plain_loop import WAYS, Plain
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm as hooked_spectral_norm
from torch.nn.utils import weight_norm as hooked_weight_norm
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils import _pytree as pytree
from torch.utils import checkpoint as recomputing

from metagrad import CG, GradientDescent, Implicit, tree
from metagrad.errors import MetagradError
from metagrad.fewshot import (
    ANIL,
    BOIL,
    FOMAML,
    IMAML,
    MAML,
    R2D2,
    Batch,
    ITDBiO,
    MemoryReduced,
    ProtoNet,
    Reptile,
    Tasks,
    meta_gradient,
)
from metagrad.fewshot.dropout import dropout_masks

TASKS, SHOTS = 2, 2


class Net(nn.Module):
    """Any body below a head."""

    def __init__(self, body, width, head=nn.Linear):
        super().__init__()
        self.body, self.head = body, head(width, WAYS)

    def forward(self, x):
        return self.head(self.body(x))


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

# The body is frozen, and these methods meta-learn nothing but it.
NOTHING_LEFT = [("a frozen lstm", method) for method in ("memory-reduced", "protonet", "boil", "itd-bio")]

_CG = CG(max_steps=600, tol=1e-13, on_negative="continue")
_DESCENT = GradientDescent(lr=0.05, max_steps=3)


class Case(NamedTuple):
    method: object
    expected: Callable
    near: float = 1e-10


def case_of(name, model):
    head = {key: leaf for key, leaf in model.named_parameters() if key.startswith("head.")}
    steps = {"lr": 0.05, "steps": 3}
    same, P = {"inner_lr": 0.05, "inner_steps": 3}, plain_loop
    return {
        "maml": lambda: Case(MAML(**same), lambda *of: P.unrolled(*of, **steps)),
        "fomaml": lambda: Case(FOMAML(**same), lambda *of: P.unrolled(*of, **steps, graph=False)),
        "reptile": lambda: Case(Reptile(**same), lambda *of: P.reptile(*of, **steps)),
        "anil": lambda: Case(
            ANIL(**same), lambda *of: P.unrolled(*of, **steps, mine=lambda name: name.startswith("head."))
        ),
        "boil": lambda: Case(
            BOIL(**same), lambda *of: P.unrolled(*of, **steps, mine=lambda name: not name.startswith("head."))
        ),
        "itd-bio": lambda: Case(ITDBiO(l2=0.5, **same), lambda *of: P.itd_bio(*of, **steps, l2=0.5, begin=head)),
        "imaml": lambda: Case(
            IMAML(lam=8.0, solver=_DESCENT, adjoint=Implicit(linear_solver=_CG)),
            lambda *of: P.imaml(*of, **steps, lam=8.0, kind="hessian"),
        ),
        "imaml, gauss-newton": lambda: Case(
            IMAML(lam=8.0, solver=_DESCENT, adjoint=Implicit(linear_solver=_CG, curvature="gauss_newton")),
            lambda *of: P.imaml(*of, **steps, lam=8.0, kind="gauss_newton"),
        ),
        "memory-reduced": lambda: Case(
            MemoryReduced(l2=0.5, solver=_DESCENT, adjoint=Implicit(linear_solver=_CG)),
            lambda *of: P.memory_reduced(*of, **steps, l2=0.5, begin=head),
        ),
        "protonet": lambda: Case(ProtoNet(), P.protonet),
        "r2d2": lambda: Case(R2D2(l2=1.0), P.r2d2, 1e-8),
    }[name]()


METHODS = (
    "maml", "fomaml", "reptile", "anil", "boil", "itd-bio", "imaml", "imaml, gauss-newton", "memory-reduced",
    "protonet", "r2d2",
)  # fmt: skip


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def drawn(kind):
    def batch():
        x = pytree.tree_map(lambda *leaves: torch.stack(leaves), *(kind.draw(WAYS * SHOTS) for _ in range(TASKS)))
        return Batch(x, torch.arange(WAYS).repeat(SHOTS).expand(TASKS, -1))

    return Tasks(batch(), batch())


def supported(kind):
    """Whether tasks hold the inputs of this kind."""
    return isinstance(KINDS[kind].draw(1), torch.Tensor) or not hasattr(Tasks, "_fields")


@pytest.mark.filterwarnings("ignore:batch norms in training mode", "ignore:.*does not run for several tasks at once")
@pytest.mark.parametrize(
    ("kind", "method"), [pair for pair in product(filter(supported, KINDS), METHODS) if pair not in NOTHING_LEFT]
)
def test_the_meta_gradient_is_that_of_a_plain_loop(kind, method):
    kind = KINDS[kind]
    model, tasks = Net(kind.body(), kind.width, kind.head), drawn(kind)
    before = {name: leaf.clone() for name, leaf in model.state_dict().items()}
    case, net = case_of(method, model), Plain(model)
    theta = case.method.init(model)
    meta_gradient(case.method, model, theta, tasks)
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in theta.items()}
    for task in range(TASKS):
        parts = [
            (tree.map_tensors(lambda leaf: leaf[task], batch.x), batch.y[task])  # noqa: B023
            for batch in (tasks.support, tasks.query)
        ]
        for leaf, grad in zip(leaves.values(), case.expected(net, leaves, parts), strict=True):
            leaf.grad = grad / TASKS if leaf.grad is None else leaf.grad + grad / TASKS
    found, expected = (torch.cat([leaf.grad.flatten() for leaf in part.values()]) for part in (theta, leaves))
    assert (found - expected).norm() <= case.near * expected.norm()
    assert expected.norm() > 1e-6
    assert all(torch.equal(leaf, before[name]) for name, leaf in model.state_dict().items()), "the model was changed"


def frozen_body():
    body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 5)).requires_grad_(False)
    return Kind(lambda: body, 5, rows)


@pytest.mark.parametrize("method", [ProtoNet(), R2D2(l2=1.0), ANIL(), MemoryReduced(), ITDBiO()], ids=repr)
def test_head_methods_on_a_frozen_body_are_those_on_its_features(method):
    kind = frozen_body()
    model, tasks = Net(kind.body(), 5), drawn(kind)
    theta = method.init(model)
    assert not [name for name in theta if name.startswith("body")]
    metrics = meta_gradient(method, model, theta, tasks)
    alone = Net(nn.Identity(), 5)
    alone.head = model.head
    features = Tasks(*(batch._replace(x=model.body(batch.x)) for batch in (tasks.support, tasks.query)))
    with torch.no_grad():
        said, expected = (
            method.predict(net, theta, method.adapt(net, theta, part.support), part.query.x)
            for net, part in ((model, tasks), (alone, features))
        )
    assert (said - expected).norm() <= 1e-10 * expected.norm()
    loss = F.cross_entropy(expected.flatten(0, 1), tasks.query.y.flatten())
    assert abs(metrics.loss - loss) <= 1e-10
    assert all(leaf.grad.norm() > 0 for leaf in theta.values())
    assert all(leaf.grad is None for leaf in model.parameters())


def test_a_head_that_is_the_whole_network_is_still_refused():
    with pytest.raises(MetagradError, match="is the whole network"):
        MemoryReduced(head="*").init(nn.Sequential(nn.Linear(4, 3)))
