"""What a check says of a network: how it runs, which parts are off, and what is refused."""

import pytest
import torch
from torch import nn

from metagrad.errors import MetagradError
from metagrad.fewshot import FOMAML, Conv4, admit, check_network, is_transductive


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


class Centred(Scaled):
    def forward(self, x):
        return super().forward(x - x.mean(0))


def test_a_network_that_mixes_its_examples_is_found_out():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert is_transductive(admit(Centred(), x))
    assert not is_transductive(admit(Scaled(), x))


def test_a_network_of_indices_is_admitted():
    """Whole numbers bear no arithmetic: doubled, an index is beyond the table."""
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 3))
    assert not is_transductive(admit(model, torch.randint(0, 10, (4, 3))))


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
            r"does not take the example inputs, a dict of x: \(4, 6\) .*AttributeError.*self\.network\(\*\*x\)",
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
