"""One weight in several places of a network: named once, used everywhere, also in what is taken away."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metagrad.classifier.network import standalone
from metagrad.errors import MetagradError
from metagrad.fewshot import ANIL, MAML, Batch, Tasks, admit, batched_forward, meta_gradient, module_lock
from metagrad.fewshot.head import adapted, last_layer
from metagrad.fewshot.norms import BatchNorm

f64 = torch.float64


class LanguageModel(nn.Module):
    """The last layer has the embedding's weights."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, 4)
        self.middle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.middle(self.embedding(x).mean(1)).tanh())


def batch(seed, draw):
    g = torch.Generator().manual_seed(seed)
    return Batch(torch.stack([draw(g) for _ in range(2)]), torch.arange(3).repeat(2).expand(2, -1))


def ids(g):
    return torch.randint(3, (6, 5), generator=g)


def rows(g):
    return torch.randn(6, 4, generator=g, dtype=f64)


def test_a_head_with_the_embeddings_weights_adapts_them_where_they_stand():
    model, support, query = LanguageModel().double(), batch(0, ids), batch(1, ids)
    assert adapted(model, "head.*") == ["embedding.weight", "head.bias"]
    assert adapted(model, model.head) == ["embedding.weight", "head.bias"]
    with pytest.raises(MetagradError, match=r"head shares a weight with embedding\.weight.*features='recomputed'"):
        ANIL().adapt(model, ANIL().init(model), support)
    method = ANIL(inner_lr=0.1, inner_steps=2, features="recomputed")
    theta = method.init(model)
    meta_gradient(method, model, theta, Tasks(support, query))

    def net(p, x):
        h = (p["embedding.weight"][x].mean(1) @ p["middle.weight"].T + p["middle.bias"]).tanh()
        return h @ p["embedding.weight"].T + p["head.bias"]

    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in theta.items()}
    total = 0.0
    for t in range(2):
        phi = dict(leaves)
        for _ in range(2):
            mine = ["embedding.weight", "head.bias"]
            loss = F.cross_entropy(net(phi, support.x[t]), support.y[t])
            grads = torch.autograd.grad(loss, [phi[name] for name in mine], create_graph=True)
            phi |= {name: phi[name] - 0.1 * grad for name, grad in zip(mine, grads, strict=True)}
        total = total + F.cross_entropy(net(phi, query.x[t]), query.y[t]) / 2
    for name, grad in zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True):
        assert (theta[name].grad - grad).norm() <= 1e-10 * grad.norm()


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    model[2].weight = model[0].weight
    return model


def repeated():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 3)).double()


class Aliased(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 3)])
        self.head = self.layers[-1]

    def forward(self, x):
        return self.head(self.layers[0](x).tanh())


class NormTwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), BatchNorm(4))
        self.norm, self.head = self.body[1], nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.norm(self.body[0](x)))


@pytest.mark.parametrize("made", [tied, repeated, Aliased, NormTwoNames, LanguageModel])
def test_what_is_taken_away_says_what_the_method_predicts(made):
    model, method = made().double(), MAML(inner_lr=0.5, inner_steps=4)
    support = batch(2, ids if made is LanguageModel else rows)
    theta = method.init(model)
    with torch.no_grad():
        solution = method.adapt(model, theta, support)
        weights = {name: leaf[0] for name, leaf in method.weights(model, theta, solution).items()}
        network = standalone(model, weights, support.x[0])
        said = network(support.x[0])
        expected = method.predict(model, theta, solution, support.x)[0]
        assert (said - model(support.x[0])).norm() > 0.1 * said.norm(), "nothing was adapted"
    torch.testing.assert_close(said, expected, rtol=1e-8, atol=1e-8)
    shared = [here for here in module_lock.places(network).values() if len(here) > 1]
    assert shared or made is NormTwoNames, "the weights are no longer one"
    assert not any(isinstance(module, BatchNorm) for module in network.modules())


@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm1d, (6, 4)), (nn.BatchNorm1d, (6, 4, 5)), (nn.BatchNorm3d, (6, 4, 2, 2, 2))]
)
def test_batch_norms_of_anything_are_frozen(norm, shape):
    model = nn.Sequential(norm(4), nn.Flatten(), nn.Linear(torch.Size(shape[1:]).numel(), 3)).double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=f64)
    with pytest.warns(UserWarning, match="replaced 0"):
        model = admit(model, x)
    network = standalone(model, dict(model.named_parameters()), x)
    assert type(network[0]) is norm
    torch.testing.assert_close(network(x), model(x), rtol=1e-10, atol=1e-10)


def test_a_batch_norm_that_runs_twice_cannot_be_frozen():
    norm = BatchNorm(4)
    model = nn.Sequential(norm, nn.Tanh(), norm)
    with pytest.raises(MetagradError, match="runs twice in one forward pass"):
        standalone(model, dict(model.named_parameters()), torch.rand(5, 4))


def test_the_last_layer_is_the_one_that_was_added_last_whatever_its_weights():
    model = LanguageModel()
    model.head.bias = None
    assert last_layer(model) == "head"


@pytest.mark.parametrize("made", [tied, repeated])
def test_two_tensors_for_one_weight_are_refused(made):
    model = made()
    named = dict(model.named_parameters(remove_duplicate=False))
    params = {name: torch.randn(2, *leaf.shape, dtype=f64) for name, leaf in named.items()}
    x = torch.randn(2, 5, 4, dtype=f64)
    with pytest.raises(MetagradError, match=r"0\.weight and 2\.weight are one weight .* leave out all but 0\.weight"):
        module_lock.call(model, {name: leaf[0] for name, leaf in params.items()}, x[0])
    del params["0.weight"]  # any of its names will do
    params.pop("2.bias") if made is repeated else None
    once = {"0.weight": params["2.weight"], **{name: leaf for name, leaf in params.items() if name != "2.weight"}}
    torch.testing.assert_close(
        batched_forward.outputs(model, params, x), batched_forward.outputs(model, once, x), rtol=0, atol=0
    )
    torch.testing.assert_close(
        module_lock.call(model, {name: leaf[0] for name, leaf in params.items()}, x[0]),
        batched_forward.outputs(model, once, x)[0],
        rtol=1e-12,
        atol=1e-12,
    )


def test_what_tasks_share_goes_through_a_layer_that_stands_twice():
    model = repeated()
    weights = {name: torch.randn_like(leaf) for name, leaf in model.named_parameters()}
    x = torch.randn(2, 5, 4, dtype=f64)
    expected = torch.stack([module_lock.call(model, weights, part) for part in x])
    torch.testing.assert_close(batched_forward.shared_outputs(model, weights, x), expected, rtol=1e-12, atol=1e-12)
