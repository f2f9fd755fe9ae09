"""Networks with a task axis of their own: the numbers of ``vmap``, at every order of derivative."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from metagrad.fewshot import MLP, Conv4, batched_forward, support_loss
from metagrad.fewshot.norms import BatchNorm
from metagrad.fewshot.tasks import Batch
from metagrad.implicit import Problem

TASKS, IMAGES = 3, 4


def networks():
    g = torch.Generator().manual_seed(0)
    tanh = Conv4(3, filters=4, image_size=9, generator=g)
    for index, module in enumerate(tanh.body):
        if isinstance(module, nn.ReLU):  # smooth: no kink decides the comparison
            tanh.body[index] = nn.Tanh()
    return {
        "conv4": tanh,
        "mlp": MLP((81, 7, 3), activation=nn.Softplus, generator=g),
        "even": nn.Sequential(
            nn.Conv2d(1, 3, 2, stride=2), nn.SiLU(), nn.Conv2d(3, 2, 3, padding=1), nn.Flatten(), nn.Linear(32, 3)
        ),
        "pooled": nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), BatchNorm(3), nn.GELU(), nn.AvgPool2d(2), nn.Conv2d(3, 2, 1, bias=False),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3, bias=False),
        ),
        "groups": nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(196, 4), nn.GroupNorm(1, 4),
            nn.Tanh(), nn.Linear(4, 3),
        ),
        "norm-of-rows": nn.Sequential(nn.Flatten(), nn.Linear(81, 5), BatchNorm(5), nn.ELU(), nn.Linear(5, 3)),
    }  # fmt: skip


@pytest.fixture(params=list(networks()))
def case(request):
    g = torch.Generator().manual_seed(1)
    model = networks()[request.param].double()
    phi = {n: torch.randn(TASKS, *p.shape, dtype=torch.float64, generator=g) for n, p in model.named_parameters()}
    x = torch.randn(TASKS, IMAGES, 1, 9, 9, dtype=torch.float64, generator=g)
    return model, phi, x


def by_vmap(model, phi, x):
    return torch.vmap(lambda p, inputs: functional_call(model, p, (inputs,)))(phi, x)


def derivatives(outputs, model, phi, x, order):
    """Return the outputs (0) or a derivative of them, each of the one before along fixed random directions."""
    g = torch.Generator().manual_seed(2)
    leaves = [leaf.clone().requires_grad_() for leaf in (*phi.values(), x)]
    found = [outputs(model, dict(zip(phi, leaves, strict=False)), leaves[-1])]
    for _ in range(order):
        value = sum((part * torch.randn(part.shape, dtype=part.dtype, generator=g)).sum() for part in found)
        value = value + found[0].square().sum()
        found = torch.autograd.grad(value, leaves, create_graph=True)
    return torch.cat([part.flatten() for part in found]).detach()


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_own_task_axis_gives_the_numbers_of_vmap(case, order):
    found, expected = (derivatives(outputs, *case, order) for outputs in (batched_forward.outputs, by_vmap))
    assert (found - expected).norm() <= 1e-10 * expected.norm()


def test_a_second_derivative_without_a_graph_is_the_same(case):
    """What a curvature product asks for: the last derivative is not differentiated again, and takes a shorter way."""
    model, phi, x = case

    def product(outputs):
        leaves = [leaf.clone().requires_grad_() for leaf in (*phi.values(), x)]
        value = outputs(model, dict(zip(phi, leaves, strict=False)), leaves[-1]).sin().sum()
        first = torch.autograd.grad(value, leaves, create_graph=True)
        second = torch.autograd.grad(sum((part * part.cos()).sum() for part in first), leaves)
        return torch.cat([part.flatten() for part in second])

    found, expected = product(batched_forward.outputs), product(by_vmap)
    assert (found - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("order", [0, 1])
def test_weights_that_tasks_share_give_the_same_without_a_task_axis(case, order):
    """Also with channels last, as theta has its kernels, and with a weight that only the model has."""
    model, phi, x = case
    shared = {name: leaf[0].contiguous() for name, leaf in list(phi.items())[1:]}
    shared = {name: leaf.contiguous(memory_format=torch.channels_last) if leaf.dim() == 4 else leaf
              for name, leaf in shared.items()}  # fmt: skip

    def one_for_all(model, weights, x):
        return by_vmap(model, {name: leaf.expand(TASKS, *leaf.shape) for name, leaf in weights.items()}, x)

    found, expected = (
        derivatives(way, model, shared, x, order) for way in (batched_forward.shared_outputs, one_for_all)
    )
    assert (found - expected).norm() <= 1e-10 * expected.norm()


def test_frozen_weights_are_the_models_own(case):
    model, phi, x = case
    kept = dict(list(phi.items())[:1])
    torch.testing.assert_close(batched_forward.outputs(model, kept, x), by_vmap(model, kept, x), rtol=1e-10, atol=1e-12)


def test_other_modules_run_under_vmap(case):
    model, phi, x = case

    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return 2 * self.inner(x)

    phi = {f"inner.{name}": leaf for name, leaf in phi.items()}
    torch.testing.assert_close(
        batched_forward.outputs(Doubled(), phi, x), by_vmap(Doubled(), phi, x), rtol=1e-10, atol=1e-12
    )


def test_hooks_are_heeded():
    model, seen = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    phi = {name: leaf.detach().expand(2, *leaf.shape) for name, leaf in model.named_parameters()}
    batched_forward.outputs(model, phi, torch.rand(2, 3, 2, 2))
    assert seen


def test_the_objective_for_tasks_is_the_objective_of_each_task(case):
    model, phi, x = case
    theta = {name: leaf[0] + 0.1 for name, leaf in phi.items()}
    y = torch.arange(IMAGES).remainder(3).expand(TASKS, -1)
    objective = support_loss(model, lam=0.7)
    together = Problem(objective, theta, Batch(x, y)).value(phi)
    for t in range(TASKS):
        alone = objective({name: leaf[t] for name, leaf in phi.items()}, theta, Batch(x[t], y[t]))
        assert together[t].item() == pytest.approx(alone.item(), rel=1e-10)


def test_a_narrow_first_layer_folds_and_gives_the_same():
    """The variance comes from the covariance of the patches: right even where kernels cancel nearly all they see."""
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 12, 3, stride=2, padding=1, bias=False), BatchNorm(12), nn.Tanh(), nn.Flatten())
    x = 1 + 1e-3 * torch.rand(2, 5, 1, 9, 9, dtype=torch.float64, generator=g)
    x[:, :, :, [0, -1]] = x[:, :, :, :, [0, -1]] = 0  # an edge, so that no channel is constant
    phi = {n: torch.randn(2, *p.shape, dtype=torch.float64, generator=g) for n, p in model.named_parameters()}
    weight = phi["0.weight"]
    weight[:, :6] -= weight[:, :6].mean((-2, -1), keepdim=True)
    assert batched_forward.prepare(model, x).patches is not None
    expected = by_vmap(model.double(), phi, x)
    torch.testing.assert_close(batched_forward.outputs(model, phi, x), expected, rtol=1e-9, atol=1e-11)
    single = {n: p.float() for n, p in phi.items()}
    ours, direct = (f(model.float(), single, x.float()).double() for f in (batched_forward.outputs, by_vmap))
    assert (ours - expected).abs().max() <= 2 * (direct - expected).abs().max()


def test_inputs_that_ask_for_a_gradient_are_not_folded_away():
    model = nn.Sequential(nn.Conv2d(1, 12, 3, bias=False), BatchNorm(12))
    assert batched_forward.prepare(model, torch.rand(2, 3, 1, 5, 5, requires_grad=True)).patches is None


class Products(TorchDispatchMode):
    """Counts batched matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.bmm.default
        return func(*args, **(kwargs or {}))


def test_a_gauss_newton_product_computes_only_what_it_uses():
    """J v needs two products a convolution and Jᵀ w two more, a Hessian product six."""
    model, layers = networks()["conv4"].double(), 3  # the first asks for nothing in its images
    g = torch.Generator().manual_seed(1)
    phi = {n: torch.randn(TASKS, *p.shape, dtype=torch.float64, generator=g) for n, p in model.named_parameters()}
    x = torch.randn(TASKS, IMAGES, 1, 9, 9, dtype=torch.float64, generator=g)
    y = torch.arange(IMAGES).remainder(3).expand(TASKS, -1)
    problem = Problem(support_loss(model), {}, Batch(x, y))
    counted = {}
    for kind in ("gauss_newton", "hessian"):
        operator = problem.curvature(phi, kind)
        with Products() as products:
            operator(phi)
        counted[kind] = products.count
    assert counted["hessian"] - counted["gauss_newton"] >= 2 * layers
