"""Networks that are not ours: how they run, what is swapped, what cannot be right."""

import copy

import pytest
import torch
from torch import nn

from metagrad import GradientDescent
from metagrad.classifier.network import ordinary
from metagrad.errors import MetagradError, MetagradWarning
from metagrad.fewshot import (
    FOMAML,
    IMAML,
    Batch,
    Conv4,
    Tasks,
    admit,
    check_network,
    is_transductive,
    many,
    meta_gradient,
)
from metagrad.fewshot.norms import BatchNorm


@pytest.mark.parametrize(
    ("torchs", "shape"), [(nn.BatchNorm2d(4), (6, 4, 5, 5)), (nn.BatchNorm1d(4), (6, 4))], ids=["2d", "1d"]
)
def test_our_norm_has_torchs_values(torchs, shape):
    g, ours = torch.Generator().manual_seed(0), BatchNorm(4)
    for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
        a.data = b.data = torch.randn(a.shape, generator=g)
    x = 3 + 2 * torch.randn(shape, generator=g)
    torch.testing.assert_close(ours(x), torchs(x), rtol=1e-5, atol=1e-5)


def user_network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3), nn.LayerNorm(3)
    )


def drawn():
    g = torch.Generator().manual_seed(2)
    y = torch.arange(3).expand(2, 3)
    return Tasks(*(Batch(torch.randn(2, 3, 1, 8, 8, generator=g), y) for _ in range(2)))


def test_a_users_network_is_swapped_with_a_warning_and_trains():
    model = user_network()
    model[1].weight.data.fill_(0.5)
    with pytest.warns(UserWarning, match=r"replaced 1 \(BatchNorm2d\) by"):
        admitted = admit(model, torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert isinstance(model[1], nn.BatchNorm2d), "the user's own module is left alone"
    assert isinstance(admitted[1], BatchNorm)
    assert type(admitted[5]) is nn.LayerNorm
    assert is_transductive(admitted)
    theta = IMAML().init(admitted)
    assert torch.equal(theta["1.weight"], torch.full((4,), 0.5))
    meta_gradient(IMAML(solver=GradientDescent(lr=0.1, max_steps=2)), admitted, theta, drawn())
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in theta.values())


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.gain = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x.flatten(1)[:, :3] * self.scale * self.gain


def test_any_other_module_is_measured_and_admitted():
    assert FOMAML().init(admit(Scaled(), torch.randn(4, 6)))["scale"].requires_grad


class Counts(Scaled):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class WrongTwice(torch.autograd.Function):
    """Identity whose second derivative is wrong when it is batched: it mixes the tasks."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()

    @staticmethod
    def vmap(info, in_dims, x):
        return x.detach() + (x - x.detach()) * x.detach().cos(), in_dims[0]


class Wrong(Scaled):
    def forward(self, x):
        return WrongTwice.apply(super().forward(x))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Counts(), "changes buffer calls"),
        (Wrong(), "wrong under vmap"),
        (
            nn.LSTM(6, 3),
            r"\(LSTM\) returns a tuple of 0: \(4, 3\), .*one tensor of outputs is needed.*self\.network\(x\)\[0\]",
        ),
        (nn.Sequential(nn.Flatten(0), nn.Linear(24, 3)), r"a row for each of its 4 inputs, got shape \(3,\)"),
    ],
    ids=["buffer", "wrong", "several", "one row"],
)
def test_what_cannot_be_right_is_refused(model, says):
    with pytest.raises(MetagradError, match=says):
        admit(model, torch.randn(4, 6))


def test_admit_leaves_known_networks_as_they_are():
    model = Conv4(5, filters=4)
    again = admit(copy.deepcopy(model), torch.rand(5, 1, 28, 28))
    assert [type(m) for m in again.modules()] == [type(m) for m in model.modules()]


class Centred(Scaled):
    def forward(self, x):
        return super().forward(x - x.mean(0))


def test_a_network_that_mixes_its_examples_is_found_out():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert is_transductive(admit(Centred(), x))
    assert not is_transductive(admit(Scaled(), x))


def test_frozen_layers_stay_frozen():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 3))
    model[1].requires_grad_(False)
    theta = IMAML().init(model)
    assert set(theta) == {"3.weight", "3.bias"}
    meta_gradient(IMAML(solver=GradientDescent(lr=0.1, max_steps=2)), model, theta, drawn())
    assert theta["3.weight"].grad.norm() > 0
    assert model[1].weight.grad is None


def test_a_network_of_indices_is_admitted():
    """Whole numbers bear no arithmetic: doubled, an index is beyond the table."""
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 3))
    assert not is_transductive(admit(model, torch.randint(0, 10, (4, 3))))


def pretrained():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    for _ in range(5):
        net(2 * torch.randn(8, 1, 8, 8) + 1)
    return net.eval()


@pytest.mark.parametrize("door", [admit, lambda model, x: model], ids=["admitted", "as it is"])
def test_a_pretrained_batch_norm_stays_as_it_was_trained(door, recwarn):
    net, x = pretrained(), torch.randn(2, 6, 1, 8, 8)
    model = door(net, x[0])
    assert type(model[1]) is nn.BatchNorm2d
    assert not is_transductive(model)
    theta = FOMAML().init(model)
    phi = {name: leaf.detach().expand(2, *leaf.shape) for name, leaf in theta.items()}
    with torch.no_grad():
        torch.testing.assert_close(many.outputs(model, phi, x), torch.stack([net(part) for part in x]))
        taken = ordinary(model, dict(theta), x[0])
        torch.testing.assert_close(taken(x[1]), net(x[1]))
    assert not recwarn.list


def test_a_batch_norm_that_trains_goes_by_the_batch_and_says_so():
    model = user_network()
    with pytest.warns(MetagradWarning, match=r"running averages stay as they are: 1; leave the network in training"):
        theta = FOMAML().init(model)
    assert is_transductive(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    meta_gradient(FOMAML(), model, theta, drawn())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    x = drawn().support.x[0]
    said = ordinary(model, dict(model.named_parameters()), x)(x)
    torch.testing.assert_close(said, model(x))


class Read(nn.Module):
    """A recurrent body and a head."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.memory, self.drop = kind(6, 3, batch_first=True), nn.Dropout()
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.drop(self.memory(x)[0][:, -1]))


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(6, 2, dropout=0.1, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.parametrize(
    ("model", "shape", "runs", "because", "off"),
    [
        (Conv4(3, filters=4, image_size=16), (4, 1, 16, 16), "layers", None, ()),
        (Scaled(), (4, 6), "vmap", None, ()),
        (Attends(), (4, 5, 6), "vmap", None, ("attention",)),
        (Read(), (4, 5, 6), "one by one", "memory (LSTM)", ("drop",)),
        (Read(nn.GRU).eval(), (4, 5, 6), "one by one", "memory (GRU)", ()),
    ],
    ids=["layers", "own", "attention", "lstm", "gru"],
)
def test_a_check_says_how_a_network_runs(model, shape, runs, because, off, recwarn):
    before = {name: leaf.clone() for name, leaf in model.state_dict().items()}
    found = check_network(model, torch.randn(shape))
    assert (found.runs, found.because, found.dropout_off) == (runs, because, off)
    assert found.error < 1e-12
    assert (found.learned, found.frozen) == (sum(leaf.numel() for leaf in model.parameters()), 0)
    assert all(torch.equal(leaf, before[name]) for name, leaf in model.state_dict().items())
    assert not recwarn.list


class Branches(Scaled):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(x).sin()


def test_a_check_says_what_vmap_refused():
    found = check_network(Branches(), torch.randn(4, 6))
    assert found.runs == "one by one"
    assert "torch.vmap" in found.because


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


class Below(nn.Module):
    """A function of a layer."""

    def __init__(self, function):
        super().__init__()
        self.body, self.head, self.function = nn.Linear(6, 6), nn.Linear(6, 3), function

    def forward(self, x):
        return self.head(self.function(self.body(x)))


def bagged(y):
    """Give each row as a bag of one, by the function that has no second derivative."""
    rows = torch.arange(len(y))
    return torch.embedding_bag(y, rows, rows)[0]


@pytest.mark.parametrize(
    ("function", "says"),
    [(Once.apply, "no right second derivative .*not symmetric"), (bagged, "no second derivative, .*embedding_bag")],
)
def test_what_differentiates_once_is_refused_but_where_it_is_frozen(function, says):
    """What is frozen needs no derivative."""
    model, x = Below(function), torch.randn(4, 6)
    with pytest.raises(MetagradError, match=says):
        check_network(model, x)
    model.body.requires_grad_(False)
    found = check_network(model, x)
    assert (found.learned, found.frozen, found.frozen_names) == (21, 42, ("body.weight", "body.bias"))
    assert check_network(model.requires_grad_(False), x).error is None


def test_a_batch_norm_counts_by_its_mode():
    model, x = user_network(), torch.randn(6, 1, 8, 8)
    found = check_network(model, x)
    assert (found.by_the_batch, found.transductive) == (("1",), True)
    assert model[1].num_batches_tracked == 0
    found = check_network(model.eval(), x)
    assert (found.by_the_batch, found.transductive) == ((), False)


@pytest.mark.parametrize(
    ("model", "x", "says"),
    [
        (
            Scaled(),
            {"x": torch.randn(4, 6), "n": torch.randn(3)},
            r"same N everywhere, got a dict of x: \(4, 6\), n: \(3,\)",
        ),
        (
            Scaled(),
            {"x": torch.randn(4, 6)},
            r"does not take the example inputs, a dict of x: \(4, 6\) .*AttributeError",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(5, 3)),
            torch.randn(4, 6),
            r"does not take the example inputs, \(4, 6\)",
        ),
    ],
    ids=["two lengths", "dictionary", "shape"],
)
def test_a_refusal_names_the_inputs_where_they_are_the_cause(model, x, says):
    with pytest.raises(MetagradError, match=says):
        check_network(model, x)


class Drops(Scaled):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x))


def test_a_check_names_dropout_that_is_no_module():
    x = torch.randn(4, 6)
    state = torch.get_rng_state()
    assert check_network(Drops(), x).dropout_off == ("forward",)
    assert check_network(Scaled(), x).dropout_off == ()
    assert torch.equal(torch.get_rng_state(), state)


class FromItsOwn(Scaled):
    """Draws from a generator that goes on from call to call."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def __deepcopy__(self, memo):
        return FromItsOwn()

    def forward(self, x):
        return super().forward(x) + torch.rand(3, generator=self.generator)


def test_a_network_that_says_something_else_the_second_time_is_refused():
    with pytest.raises(MetagradError, match=r"other outputs for the same inputs.*pass the numbers in with the inputs"):
        check_network(FromItsOwn(), torch.randn(4, 6))


class Two(nn.Module):
    """Takes ids and a mask, and a table beside."""

    def __init__(self):
        super().__init__()
        self.letters, self.table, self.head = nn.Embedding(5, 4), nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, inputs):
        text, table = inputs
        rows = (self.letters(text["ids"]) * text["mask"].unsqueeze(-1)).sum(1)
        return self.head(rows.tanh() + self.table(table))


def test_inputs_in_a_nest_are_checked_and_admitted():
    ids = torch.randint(5, (4, 6), generator=torch.Generator().manual_seed(0))
    x = ({"ids": ids, "mask": ids > 1}, torch.randn(4, 2))
    found = check_network(Two(), x)
    assert (found.runs, found.transductive) == ("vmap", False)
    assert found.error < 1e-12
    assert type(admit(Two(), x)) is Two


def test_a_check_works_where_gradients_are_off():
    with torch.no_grad():
        assert check_network(Scaled(), torch.randn(4, 6)).error < 1e-12
