"""Gradients through the steps of an inner optimiser, beside higher and TorchOpt."""

from functools import partial

import pytest
import torch
from referees import distance, referee
from torch import nn, optim
from torch.nn import functional as F

from metagrad import Adam, GradientDescent, TorchOptimizer, Unroll, argmin
from metagrad.fewshot import ANIL, FOMAML, MAML, Batch, Tasks, classification, meta_gradient

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*functorch:FutureWarning"),  # TorchOpt's own
]

TASKS, WAYS, STEPS = 3, 3, 4


@pytest.fixture(autouse=True)
def double():
    """Double by default: the others' optimisers keep counts and sums in the default dtype, whatever the weights' is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def network():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.body = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.LayerNorm(6), nn.SiLU(), nn.Flatten(), nn.Linear(24, 5), nn.Tanh()
    )
    model.head = nn.Linear(5, WAYS)
    return model


def drawn():
    g = torch.Generator().manual_seed(1)

    def batch(count):
        x = torch.randn(TASKS, count, 2, 8, generator=g, dtype=torch.float64)
        return Batch(x, torch.randint(WAYS, (TASKS, count), generator=g))

    return Tasks(batch(6), batch(9))


def one_by_one(tasks):
    for task in range(TASKS):
        yield [(part.x[task], part.y[task]) for part in (tasks.support, tasks.query)]


def by_higher(model, tasks, factory, *, override=None, adapts=""):
    """Return the mean loss on the query sets, differentiable in the model's weights and ``override``."""
    higher, total = referee("higher"), 0.0
    for (x, y), (query_x, query_y) in one_by_one(tasks):
        mine = [{"params": [leaf]} for name, leaf in model.named_parameters() if name.startswith(adapts)]
        with higher.innerloop_ctx(model, factory(mine), copy_initial_weights=False, override=override) as (net, steps):
            for _ in range(STEPS):
                steps.step(F.cross_entropy(net(x), y))
            total = total + F.cross_entropy(net(query_x), query_y) / TASKS
    return total


@pytest.mark.parametrize(
    ("method", "adapts"), [(MAML(inner_lr=0.3, inner_steps=STEPS), ""), (ANIL(inner_lr=0.3, inner_steps=STEPS), "head")]
)
def test_all_weights_or_the_head(method, adapts):
    model, tasks = network(), drawn()
    theta = method.init(model)
    meta_gradient(method, model, theta, tasks)
    loss = by_higher(model, tasks, partial(optim.SGD, lr=0.3), adapts=adapts)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    assert list(theta) == [name for name, _ in model.named_parameters()]
    assert distance([leaf.grad for leaf in theta.values()], expected) < 1e-12


@pytest.mark.parametrize("form", ["scalar", "tensor"])
def test_learned_step_sizes(form):
    model, tasks = network(), drawn()
    method = MAML(inner_lr=0.3, inner_steps=STEPS, learn_lr=form)
    theta = method.init(model)
    meta_gradient(method, model, theta, tasks)
    leaves = list(model.parameters())
    lr = [torch.tensor(0.3, dtype=torch.float64, requires_grad=True) for _ in leaves]
    loss = by_higher(model, tasks, partial(optim.SGD, lr=0.3), override={"lr": lr})
    weights, sizes = (torch.autograd.grad(loss, of, retain_graph=True) for of in (leaves, lr))
    names = [name for name in theta if name.startswith(".log_lr")]
    assert distance([theta[name].grad for name, _ in model.named_parameters()], weights) < 1e-12
    by_log = 0.3 * torch.stack(sizes)  # d / d log(lr)
    assert distance([theta[name].grad for name in names], by_log if form == "tensor" else [by_log.sum()]) < 1e-12


# Torch's own SGD cannot be unrolled with momentum. Of Adam, higher has an older form, with eps elsewhere: see below.
RULES = {
    "sgd with weight decay": partial(optim.SGD, lr=0.1, weight_decay=0.02),
    "adagrad": partial(optim.Adagrad, lr=0.1, initial_accumulator_value=0.01),
    "rmsprop": partial(optim.RMSprop, lr=0.02, alpha=0.9, eps=1e-4),
}


def unrolled(model, tasks, solver):
    """Return metagrad's gradient of the mean loss on the query sets."""
    theta = {name: leaf.detach().clone().requires_grad_() for name, leaf in model.named_parameters()}
    init = {name: leaf.expand(TASKS, *leaf.shape) for name, leaf in theta.items()}
    objective = classification(model)
    solution = argmin(objective, init, theta, tasks.support, solver=solver, adjoint=Unroll())
    value = sum(
        F.cross_entropy(torch.func.functional_call(model, {n: leaf[t] for n, leaf in solution.value.items()}, (x,)), y)
        for t, (_, (x, y)) in enumerate(one_by_one(tasks))
    )
    return torch.autograd.grad(value / TASKS, list(theta.values()))


@pytest.mark.filterwarnings("ignore:Differentiable RMSprop")  # of running averages that are zero; none are here
@pytest.mark.parametrize("rule", RULES)
def test_rules_of_torch_beside_higher(rule):
    model, tasks = network(), drawn()
    solver = TorchOptimizer(factory=partial(RULES[rule], differentiable=True), max_steps=STEPS)
    expected = torch.autograd.grad(by_higher(model, tasks, RULES[rule]), list(model.parameters()))
    assert distance(unrolled(model, tasks, solver), expected) < 1e-12


@pytest.mark.parametrize(
    ("solver", "peer", "options"),
    [
        (GradientDescent(lr=0.1, max_steps=STEPS, momentum=0.8), "MetaSGD", {"lr": 0.1, "momentum": 0.8}),
        (Adam(lr=0.05, eps=1e-4, max_steps=STEPS), "MetaAdam", {"lr": 0.05, "eps": 1e-4}),
        (
            TorchOptimizer(factory=partial(optim.Adam, lr=0.05, eps=1e-4, differentiable=True), max_steps=STEPS),
            "MetaAdam",
            {"lr": 0.05, "eps": 1e-4},
        ),
    ],
    ids=["momentum", "adam", "torch adam"],
)
def test_rules_beside_torchopt(solver, peer, options):
    torchopt, tasks = referee("torchopt"), drawn()
    expected = 0.0
    for (x, y), (query_x, query_y) in one_by_one(tasks):
        net = network()
        start = list(net.parameters())
        optimizer = getattr(torchopt, peer)(net, **options)
        for _ in range(STEPS):
            optimizer.step(F.cross_entropy(net(x), y))
        grads = torch.autograd.grad(F.cross_entropy(net(query_x), query_y), start)
        expected = expected + torch.cat([part.flatten() for part in grads]) / TASKS
    assert distance(unrolled(network(), tasks, solver), [expected]) < 1e-12


def test_first_order():
    model, tasks = network(), drawn()
    method = FOMAML(inner_lr=0.3, inner_steps=STEPS)
    theta = method.init(model)
    meta_gradient(method, model, theta, tasks)
    higher, expected = referee("higher"), 0.0
    for (x, y), (query_x, query_y) in one_by_one(tasks):
        with higher.innerloop_ctx(model, optim.SGD(model.parameters(), lr=0.3), track_higher_grads=False) as (
            net,
            steps,
        ):
            for _ in range(STEPS):
                steps.step(F.cross_entropy(net(x), y))
            last = list(net.parameters())  # theirs has no link to the start: its gradient is that of the last weights
            grads = torch.autograd.grad(F.cross_entropy(net(query_x), query_y), last)
        expected = expected + torch.cat([part.flatten() for part in grads]) / TASKS
    assert distance([leaf.grad for leaf in theta.values()], [expected]) < 1e-12
