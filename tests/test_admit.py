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
    batched_forward,
    is_transductive,
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
        torch.testing.assert_close(batched_forward.outputs(model, phi, x), torch.stack([net(part) for part in x]))
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
