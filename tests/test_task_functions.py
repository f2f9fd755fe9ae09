"""torch's functions in the form that inner problems need: values as torch's, derivatives right, nothing drawn."""

import threading
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import checkpoint as recomputing

from metagrad import task_functions
from metagrad.errors import MetagradError, MetagradWarning
from metagrad.fewshot import MAML, Batch, batched_forward, check_network, module_lock
from metagrad.fewshot.models import Conv4

f64 = torch.float64


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


def exactly(function, *args, **how):
    with task_functions.exact():
        return function(*args, **how)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 0, -1])
def test_an_embedding_bag_has_torchs_values_and_a_second_derivative(mode, padding, g):
    bag = nn.EmbeddingBag(5, 3, mode=mode, padding_idx=padding).double()
    ids = torch.randint(5, (7, 4), generator=g)
    ids[0] = 0  # nothing but padding, where 0 is
    weights = torch.rand(7, 4, generator=g, dtype=f64) if mode == "sum" else None
    expected = bag(ids, per_sample_weights=weights)
    first = torch.autograd.grad(expected.sin().sum(), bag.weight)[0]
    with task_functions.exact():
        found = bag(ids, per_sample_weights=weights)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sin().sum(), bag.weight, create_graph=True)[0], first)
    table = torch.randn(5, 3, dtype=f64, generator=g, requires_grad=True)
    how = {"mode": mode, "padding_idx": padding, "per_sample_weights": weights}
    assert torch.autograd.gradgradcheck(lambda w: exactly(F.embedding_bag, ids, w, **how), table)


@pytest.mark.parametrize("dim", [0, 1])
def test_weight_norm_has_a_right_second_derivative(dim, g):
    v = torch.randn(3, 4, dtype=f64, generator=g, requires_grad=True)
    scale = torch.randn((3, 1) if dim == 0 else (1, 4), dtype=f64, generator=g, requires_grad=True)
    expected = torch._weight_norm(v, scale, dim)
    with task_functions.exact():
        torch.testing.assert_close(torch._weight_norm(v, scale, dim), expected)
    assert torch.autograd.gradgradcheck(lambda v, scale: exactly(torch._weight_norm, v, scale, dim), (v, scale))


@pytest.mark.parametrize("padding", [0, 2, -1])
def test_no_task_trains_its_padding(padding, g):
    """Also where the examples that one looks at have no padding: the kind of module decides."""
    model = nn.Sequential(nn.Embedding(6, 3, padding_idx=padding), nn.Flatten(), nn.Linear(12, 3)).double()
    x, y = torch.randint(6, (4, 5, 4), generator=g), torch.randint(3, (4, 5), generator=g)
    x[..., 0] = padding % 6
    method = MAML(inner_lr=0.5, inner_steps=2)
    theta = method.init(model)
    adapted = method.adapt(model, theta, Batch(x, y)).value["0.weight"]
    moved = (adapted - theta["0.weight"]).norm(dim=-1)
    assert torch.equal(moved[:, padding], torch.zeros(4, dtype=f64))
    assert (moved.sum(1) > 0).all()


@pytest.mark.parametrize(
    "made",
    [
        lambda: nn.Embedding(5, 3, max_norm=1.0),
        lambda: nn.Embedding(5, 3, scale_grad_by_freq=True),
        lambda: nn.EmbeddingBag(5, 3, max_norm=1.0),
    ],
    ids=["max_norm", "scale_grad_by_freq", "bag"],
)
def test_an_embedding_that_writes_its_weights_is_refused(made):
    with pytest.raises(MetagradError, match="make it without"):
        module_lock.call(made(), {}, torch.zeros(2, 3, dtype=torch.long))


class Noisy(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.layer, self.draw = nn.Linear(4, 3), draw

    def forward(self, x):
        return self.layer(x) + self.draw(x)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: torch.rand(3),
        lambda x: torch.randn_like(x)[:, :3],
        lambda x: torch.empty(3).normal_(),
        lambda x: F.gumbel_softmax(x, -1)[:, :3],
        lambda x: torch.poisson(x)[:, :3],
        lambda x: torch.empty(3).geometric_(0.5),
        lambda x: torch.empty(3).random_(9),
        lambda x: torch.distributions.Normal(x[:, :3], 1.0).rsample(),
        lambda x: torch.distributions.Gamma(x[:, :3] + 1, 1.0).rsample(),  # by a function that we do not know
    ],
)
@pytest.mark.filterwarnings("ignore:.*one by one")
def test_a_network_that_draws_is_refused(draw):
    model = Noisy(draw)
    params = {name: leaf.detach().expand(2, *leaf.shape) for name, leaf in model.named_parameters()}
    with pytest.raises(MetagradError, match="the network draws random numbers"):
        batched_forward.outputs(model, params, torch.rand(2, 5, 4))


def test_a_network_that_draws_from_a_generator_of_its_own_is_let_be():
    model = Noisy(lambda x: torch.rand(3, generator=torch.Generator().manual_seed(0)))
    params = {name: leaf.detach().expand(2, *leaf.shape) for name, leaf in model.named_parameters()}
    x = torch.rand(2, 5, 4)
    with pytest.warns(MetagradWarning, match="one by one"):
        torch.testing.assert_close(batched_forward.outputs(model, params, x)[1], model(x[1]))


def test_a_network_that_draws_and_runs_one_by_one_is_refused():
    model = nn.LSTM(4, 3)
    model.forward = lambda x: nn.LSTM.forward(model, x)[0] + torch._standard_gamma(torch.ones(3))
    params = {name: leaf.detach().expand(2, *leaf.shape) for name, leaf in model.named_parameters()}
    with pytest.raises(MetagradError, match=r"draws random numbers \(torch's own generator\)"):
        batched_forward.outputs(model, params, torch.rand(2, 5, 4))


@pytest.mark.filterwarnings("ignore:.*one by one")
def test_numbers_that_somebody_else_draws_meanwhile_are_not_the_networks():
    class Slow(nn.LSTM):
        def forward(self, x):
            drawing = threading.Thread(target=torch.rand, args=(3,))
            drawing.start()
            drawing.join()
            return super().forward(x)[0]

    model = Slow(4, 3)
    params = {name: leaf.detach().expand(2, *leaf.shape) for name, leaf in model.named_parameters()}
    x, state = torch.rand(2, 5, 4), torch.get_rng_state()
    torch.testing.assert_close(batched_forward.outputs(model, params, x)[1], model(x[1]))
    assert not torch.equal(torch.get_rng_state(), state)


def test_the_installed_torchs_checkpoint_is_passed_through():
    """Its parts are private: a torch that names them otherwise shows here."""
    calls = []

    def part(x):
        calls.append(1)
        return x.sin() * x

    for reentrant in (True, False):
        calls.clear()
        x = torch.ones(2, requires_grad=True)
        with task_functions.exact():
            y = recomputing.checkpoint(part, x, use_reentrant=reentrant)
        y.sum().backward()
        assert len(calls) == 1
    assert task_functions._passes_through()


def test_a_checkpoint_that_is_not_reached_is_refused_and_not_wrong(monkeypatch):
    """As in a torch whose parts have other names."""
    monkeypatch.setattr(task_functions, "_PASSED_THROUGH", {})
    task_functions._passes_through.cache_clear()

    class Recomputing(nn.Sequential):
        def forward(self, x):
            return recomputing.checkpoint(super().forward, x, use_reentrant=False)

    model = Recomputing(nn.Linear(4, 3), nn.Tanh())
    params = {name: leaf.detach().expand(2, *leaf.shape).requires_grad_() for name, leaf in model.named_parameters()}
    try:
        with pytest.raises(MetagradError, match=r"torch.utils.checkpoint of torch .* take the network without it"):
            batched_forward.outputs(model, params, torch.rand(2, 5, 4))
        batched_forward.outputs(nn.Linear(4, 3), params={}, x=torch.rand(2, 5, 4))
        module_lock.call(nn.Linear(4, 3), {}, torch.rand(5, 4))  # what has none of it runs
    finally:
        task_functions._passes_through.cache_clear()


class Counts(nn.Linear):
    """Writes into a buffer, in place or not."""

    def __init__(self, in_place):
        super().__init__(4, 3)
        self.in_place = in_place
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.in_place:
            self.seen += 1
        else:
            self.seen = self.seen + x.sum()
        return super().forward(x)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.filterwarnings("ignore:.*one by one")
def test_a_network_that_writes_into_a_buffer_is_refused(in_place):
    model = Counts(in_place)
    params = {name: leaf.detach().expand(2, *leaf.shape) for name, leaf in model.named_parameters()}
    before = model.seen
    with pytest.raises(MetagradError, match="changes buffer seen of Counts"):
        batched_forward.outputs(model, params, torch.rand(2, 5, 4))
    assert model.seen is before


@dataclass
class Said:
    loss: None
    logits: torch.Tensor


@pytest.mark.parametrize("memory", [False, True], ids=["vmap", "one by one"])
@pytest.mark.parametrize(
    ("made", "says"),
    [
        (
            lambda y: {"logits": y, "states": (y, y)},
            r"a dict of logits: \(5, 3\), states: a tuple .*self.network\(x\)\['logits'\]",
        ),
        (lambda y: (y, None), r"a tuple of 0: \(5, 3\), 1: NoneType.*self\.network\(x\)\[0\]"),
        (lambda y: Said(None, y), r"a Said of loss: NoneType, logits: \(5, 3\).*self\.network\(x\)\.logits"),
        (lambda y: None, "returns NoneType, and one tensor"),
    ],
    ids=["dictionary", "tuple", "dataclass", "nothing"],
)
@pytest.mark.filterwarnings("ignore:.*one by one")
def test_what_is_not_one_tensor_is_named_with_the_way_out(made, says, memory):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.memory = nn.Linear(4, 3), nn.LSTM(1, 1) if memory else None

        def forward(self, x):
            return made(self.layer(x))

    model = Net()
    params = {name: leaf.detach().expand(2, *leaf.shape) for name, leaf in model.named_parameters()}
    with pytest.raises(MetagradError, match=says):
        batched_forward.outputs(model, params, torch.rand(2, 5, 4))
    with pytest.raises(MetagradError, match=says):
        check_network(model, torch.rand(5, 4))


def test_everything_is_as_it_was_after():
    before = dict(vars(recomputing))
    assert exactly(F.dropout, torch.ones(9), 0.5).eq(1).all()
    with pytest.raises(TypeError):
        exactly(F.dropout)
    assert vars(recomputing) == before
    assert not F.dropout(torch.ones(99), 0.5).eq(1).all()


def test_tasks_run_one_by_one_where_torch_has_no_rule_and_one_is_told_once(g):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.memory, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.memory(x)[0][:, -1])

    model, x = Net(), torch.randn(3, 2, 5, 4, generator=g)
    params = {name: leaf.detach().expand(3, *leaf.shape) for name, leaf in model.named_parameters()}
    with pytest.warns(
        MetagradWarning, match=r"memory \(LSTM\) does not support several tasks at once.*one by one"
    ) as told:
        found = [batched_forward.outputs(model, params, x) for _ in range(2)][1]
    assert len(told) == 1
    torch.testing.assert_close(found, torch.stack([model(part) for part in x]))


def test_an_error_of_the_network_is_its_own(g):
    """It is not taken for something that only ``vmap`` cannot do."""
    model = nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(), nn.Linear(5, 2))
    params = {name: leaf.detach().expand(3, *leaf.shape) for name, leaf in model.named_parameters()}
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        batched_forward.outputs(model, params, torch.rand(3, 6, 4))


def test_a_known_network_takes_no_detour(monkeypatch):
    monkeypatch.setattr(module_lock, "call", None)
    model = Conv4(3, filters=4, image_size=16)
    params = {name: leaf.detach().expand(2, *leaf.shape) for name, leaf in model.named_parameters()}
    batched_forward.outputs(model, params, torch.rand(2, 5, 1, 16, 16))


def test_threads_that_come_and_go_leave_torch_as_it_was():
    """The one that comes second must not take the first one's stand-in for torch's own."""
    before = dict(vars(recomputing))
    first, second = task_functions.exact(), threading.Event()

    def overlapping():
        with task_functions.exact():
            second.set()
            left.wait(5)

    left = threading.Event()
    first.__enter__()
    other = threading.Thread(target=overlapping)
    other.start()
    assert second.wait(5)
    first.__exit__(None, None, None)
    assert vars(recomputing) != before, "the second still needs it"
    left.set()
    other.join()
    assert vars(recomputing) == before
