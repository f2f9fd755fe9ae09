"""Batch norms: ours has torch's values, admit replaces those that train, and those in eval mode stay."""

import copy

import pytest
import torch
from torch import nn

from metagrad import GradientDescent
from metagrad.classifier.network import standalone
from metagrad.errors import MetagradWarning
from metagrad.fewshot import (
    FOMAML,
    IMAML,
    Batch,
    Conv4,
    Tasks,
    admit,
    batched_forward,
    check_network,
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


def test_admit_leaves_known_networks_as_they_are():
    model = Conv4(5, filters=4)
    again = admit(copy.deepcopy(model), torch.rand(5, 1, 28, 28))
    assert [type(m) for m in again.modules()] == [type(m) for m in model.modules()]


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
        taken = standalone(model, dict(theta), x[0])
        torch.testing.assert_close(taken(x[1]), net(x[1]))
    assert not recwarn.list


def test_a_batch_norm_that_trains_goes_by_the_batch_and_says_so():
    model = user_network()
    with pytest.warns(
        MetagradWarning, match=r"do not update their running averages: 1; put pretrained ones into eval mode"
    ):
        theta = FOMAML().init(model)
    assert is_transductive(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    meta_gradient(FOMAML(), model, theta, drawn())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    x = drawn().support.x[0]
    said = standalone(model, dict(model.named_parameters()), x)(x)
    torch.testing.assert_close(said, model(x))


def test_a_batch_norm_counts_by_its_mode():
    model, x = user_network(), torch.randn(6, 1, 8, 8)
    found = check_network(model, x)
    assert (found.by_the_batch, found.transductive) == (("1",), True)
    assert model[1].num_batches_tracked == 0
    found = check_network(model.eval(), x)
    assert (found.by_the_batch, found.transductive) == ((), False)
