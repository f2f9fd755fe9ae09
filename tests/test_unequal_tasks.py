"""Tasks that differ: in size, in ways, in which classes are there; and gradients that are no numbers."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from metagrad import CG, Implicit, MetagradError, NotFiniteError
from metagrad.fewshot import (
    ANIL,
    IMAML,
    MAML,
    R2D2,
    Batch,
    ProtoNet,
    Reptile,
    Tasks,
    evaluate,
    group_tasks,
    meta_gradient,
)

METHODS = {
    "maml": MAML(),
    "imaml": IMAML(),
    "anil": ANIL(),
    "r2d2": R2D2(),
    "protonet": ProtoNet(),
    "reptile": Reptile(),
}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(outputs=5):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(6, outputs))).double()


def single(ways, shots, queries, seed):
    y, q = torch.arange(ways).repeat(shots), torch.arange(ways).repeat(queries)
    return Batch(randn(len(y), 4, seed=seed), y), Batch(randn(len(q), 4, seed=seed + 100), q)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_gradient_over_groups_is_the_mean_over_all_tasks(method):
    model = network()
    several = [single(5, 1, 3, 0), single(3, 2, 2, 1), single(5, 1, 3, 2), single(2, 4, 1, 3)]
    theta = method.init(model)
    metrics = meta_gradient(method, model, theta, group_tasks(several))
    expected = {name: torch.zeros_like(leaf) for name, leaf in theta.items()}
    losses = []
    for task in several:
        own = method.init(model)
        losses.append(meta_gradient(method, model, own, group_tasks([task])).loss)
        for name, leaf in own.items():
            expected[name] += 0 if leaf.grad is None else leaf.grad / len(several)
    torch.testing.assert_close(metrics.loss, torch.stack(losses).mean(), rtol=1e-12, atol=0)
    assert metrics.score.shape == (4,)
    for name, leaf in theta.items():
        torch.testing.assert_close(leaf.grad, expected[name], rtol=1e-9, atol=1e-13)


def test_evaluate_takes_tasks_of_unequal_size():
    model, method = network(), ProtoNet()
    drawn = []

    def source(num_tasks, *, generator):
        ways = torch.randint(2, 6, (num_tasks,), generator=generator).tolist()
        drawn.extend(ways)
        return group_tasks(single(n, 1, 2, place) for place, n in enumerate(ways))

    found = evaluate(method, model, method.init(model), source, tasks=40, generator=torch.Generator().manual_seed(0))
    assert len(set(drawn)) == 4
    assert found.tasks == len(found.per_task) == 40
    assert found.score == pytest.approx(float(found.per_task.mean()))


def test_a_source_that_draws_another_number_of_tasks_is_refused():
    model, method = network(), ProtoNet()
    with pytest.raises(ValueError, match="the task source must return 4 tasks, got 1"):
        evaluate(
            method, model, method.init(model), lambda n, *, generator: group_tasks([single(2, 1, 1, 0)]), tasks=4,
            generator=torch.Generator(),
        )  # fmt: skip


def test_a_class_without_a_support_example_is_never_predicted():
    model, method = network(3), ProtoNet()
    theta = method.init(model)
    x = randn(2, 6, 4)
    lacking, full = torch.tensor([0, 0, 2, 2, 2, 0]), torch.tensor([0, 1, 2, 0, 1, 2])
    solution = method.adapt(model, theta, Batch(x, torch.stack([lacking, full])))
    outputs = method.predict(model, theta, solution, x)
    assert (outputs[0, :, 1] == -torch.inf).all()
    assert outputs[1].isfinite().all()
    tasks = Tasks((x, torch.stack([lacking, full])), (x, torch.stack([lacking.flip(0), full])))
    metrics = meta_gradient(method, model, theta, tasks)
    two_ways = Batch(x[:1], torch.where(lacking == 2, 1, 0)[None])  # the same task with labels 0 and 1
    alone = meta_gradient(method, model, method.init(model), Tasks(two_ways, (x[:1], two_ways.y.flip(1))))
    other = meta_gradient(method, model, method.init(model), tasks.part(1, 2))
    torch.testing.assert_close(metrics.loss, (alone.loss + other.loss) / 2, rtol=1e-12, atol=0)
    assert all(leaf.grad.isfinite().all() for leaf in theta.values())


def test_a_query_of_a_class_that_the_support_set_lacks_is_refused_with_its_task():
    model, method = network(3), ProtoNet()
    y = torch.tensor([[0, 1, 2], [0, 0, 2]])
    with pytest.raises(ValueError, match="task 1 has label 1 in its query set, but no support example of it"):
        meta_gradient(
            method, model, method.init(model), Tasks((randn(2, 3, 4), y), (randn(2, 3, 4), y[:1].expand(2, 3)))
        )


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_gradient_that_is_not_finite_is_refused_with_its_task_and_leaves_grad_as_it_was(method):
    model = network()
    theta = method.init(model)
    good = [single(5, 1, 3, seed) for seed in range(4)]
    meta_gradient(method, model, theta, group_tasks(good))
    before = {name: leaf.grad.clone() for name, leaf in theta.items()}
    good[2][1].x[0, 0] = torch.nan  # a query: the inner problems are well
    with pytest.raises(NotFiniteError, match="task 2"):
        meta_gradient(method, model, theta, group_tasks(good), chunk=1)
    for name, leaf in theta.items():
        torch.testing.assert_close(leaf.grad, before[name], rtol=0, atol=0)


def test_theta_that_asks_for_no_gradient_gets_one():
    model, method = network(), IMAML()
    tasks = group_tasks([single(5, 1, 3, 0)])
    theta, read = method.init(model), {name: leaf.detach().clone() for name, leaf in method.init(model).items()}
    meta_gradient(method, model, theta, tasks)
    meta_gradient(method, model, read, tasks)
    meta_gradient(method, model, read, tasks)
    for name, leaf in theta.items():
        torch.testing.assert_close(read[name].grad, 2 * leaf.grad)
        assert not read[name].requires_grad


def test_reptile_takes_no_query_gradient():
    model, method = network(), Reptile()
    theta = method.init(model)
    tasks = group_tasks([single(5, 1, 3, 0), single(5, 1, 3, 1)])[0]
    tasks.query.x.requires_grad_()
    meta_gradient(method, model, theta, tasks)
    phi = method.adapt(model, theta, tasks.support).value
    for name, leaf in theta.items():
        torch.testing.assert_close(leaf.grad, leaf - phi[name].mean(0))
    with torch.no_grad():
        loss = method.meta_loss(model, theta, tasks)
    assert loss.solution.value["head.weight"].grad_fn is None


def test_a_theta_of_another_network_or_method_is_refused():
    model, method = network(), IMAML()
    tasks, theta = group_tasks([single(5, 1, 3, 0)]), method.init(model)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    wrong = [
        (theta | {"more": torch.zeros(1).requires_grad_()}, "theta has 'more', which neither"),
        (
            theta | {"head.bias": torch.zeros(1).double()},
            r"is \(1,\), in the network it is \(5,\)",
        ),
        ({name: leaf for name, leaf in theta.items() if name != "head.bias"}, "theta has no 'head.bias'"),
        (IMAML(learn_lam="scalar").init(model), r"theta has '\.log_lam', which neither"),
        ({name: leaf * scale for name, leaf in theta.items()}, "give leaf tensors"),
    ]
    for given, says in wrong:
        with pytest.raises(ValueError, match=says):
            meta_gradient(method, model, given, tasks)
    with pytest.raises(ValueError, match=r"theta has no '\.log_lam'"):
        meta_gradient(IMAML(learn_lam="scalar"), model, theta, tasks)


@pytest.mark.parametrize(
    ("swap", "says"),
    [
        (lambda m, net, theta: (IMAML, net, theta), "the first argument is a method, such as IMAML"),
        (lambda m, net, theta: (net, m, theta), "the first argument is a method"),
        (lambda m, net, theta: (m, lambda x: x, theta), "the network must be an nn.Module, got function"),
        (lambda m, net, theta: (m, net, [1]), "theta is a dictionary of tensors"),
    ],
)
def test_arguments_in_another_order_are_refused(swap, says):
    model, method = network(), IMAML()
    with pytest.raises(TypeError, match=says):
        meta_gradient(*swap(method, model, method.init(model)), group_tasks([single(5, 1, 3, 0)]))


@pytest.mark.parametrize("chunk", [2.0, True, "all", 0])
def test_a_chunk_is_a_whole_number(chunk):
    model, method = network(), IMAML()
    with pytest.raises(ValueError, match="chunk must be"):
        meta_gradient(method, model, method.init(model), group_tasks([single(5, 1, 3, 0)]), chunk=chunk)


def test_numbers_of_numpy_are_numbers_and_bools_and_next_to_nothing_are_none():
    assert MAML(inner_steps=np.int64(3), inner_lr=np.float32(0.5)) == MAML(inner_steps=3, inner_lr=0.5)
    for wrong in (True, 1e-50, float("nan")):
        with pytest.raises(MetagradError, match="lam must be a number, positive and finite"):
            IMAML(lam=wrong)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: IMAML(adjoint=CG()), r"adjoint must be Implicit\(\).*write Implicit\(linear_solver=CG"),
        (lambda: IMAML(solver=torch.optim.SGD), "solver must be an inner solver, .* got the class SGD"),
        (lambda: IMAML(adjoint=Implicit), "got the class Implicit"),
        (lambda: IMAML(adapts=["head.*"]).init(network()), "one pattern of names"),
    ],
)
def test_parts_of_a_method_that_cannot_be_are_refused_when_it_is_made(make, says):
    with pytest.raises(MetagradError, match=says):
        make()
