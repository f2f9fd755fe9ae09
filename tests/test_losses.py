"""Losses of outputs and targets: their values against torch's, and the meta-gradients of methods that have them."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metagrad import CG, GradientDescent, Implicit, MetagradError
from metagrad.fewshot import (
    ANIL,
    BOIL,
    FOMAML,
    IMAML,
    MAML,
    R2D2,
    Batch,
    BinaryCrossEntropy,
    CrossEntropy,
    ITDBiO,
    MemoryReduced,
    MetaSGD,
    ProtoNet,
    Reptile,
    Sinusoids,
    SquaredError,
    Tasks,
    WeightedBatch,
    classification,
    evaluate,
    meta_gradient,
)
from metagrad.fewshot.task_losses import loss_of_one, loss_of_tasks

T, N, C = 3, 5, 3


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape, ways=C, seed=0):
    return torch.randint(ways, shape, generator=torch.Generator().manual_seed(seed))


def network(outputs=C):
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(body=nn.Sequential(nn.Linear(4, 6), nn.Tanh()), head=nn.Linear(6, outputs))
    ).double()


def huber(outputs, targets):
    return F.huber_loss(outputs, targets)


def huber_each(outputs, targets):
    return F.huber_loss(outputs, targets, reduction="none").mean(-1)


IGNORED = torch.where(torch.arange(N) == 2, -100, labels(T, N, seed=1))
SOFT = randn(T, N, C, seed=2).softmax(-1)
# A new loss joins by a line: the loss, its targets, and what torch says for one task.
LOSSES = {
    "cross-entropy": (CrossEntropy(), labels(T, N), F.cross_entropy),
    "class weights": (
        CrossEntropy(class_weight=(1, 2, 5)), labels(T, N),
        lambda o, y: F.cross_entropy(o, y, weight=torch.tensor([1, 2, 5], dtype=o.dtype)),
    ),
    "label smoothing": (
        CrossEntropy(label_smoothing=0.2), labels(T, N), lambda o, y: F.cross_entropy(o, y, label_smoothing=0.2),
    ),
    "smoothed, weighted, ignored": (
        CrossEntropy(label_smoothing=0.2, class_weight=[1, 2, 5]), IGNORED,
        lambda o, y: F.cross_entropy(o, y, label_smoothing=0.2, weight=torch.tensor([1, 2, 5], dtype=o.dtype)),
    ),
    "ignored labels": (CrossEntropy(), IGNORED, F.cross_entropy),
    "another ignored label": (
        CrossEntropy(ignore_index=1), labels(T, N), lambda o, y: F.cross_entropy(o, y, ignore_index=1)
    ),
    "soft labels": (CrossEntropy(), SOFT, F.cross_entropy),
    "squared error": (SquaredError(), randn(T, N, C, seed=3), F.mse_loss),
    "yes or no": (BinaryCrossEntropy(), labels(T, N, C, ways=2).bool(),
                  lambda o, y: F.binary_cross_entropy_with_logits(o, y.to(o))),
    "yes weighs more": (
        BinaryCrossEntropy(positive_weight=3.0), labels(T, N, C, ways=2),
        lambda o, y: F.binary_cross_entropy_with_logits(o, y.to(o), pos_weight=o.new_tensor(3.0)),
    ),
    "own, a mean": (huber, randn(T, N, C, seed=4), huber),
    "own, each example": (huber_each, randn(T, N, C, seed=4), huber),
    "own, a module": (nn.SmoothL1Loss(), randn(T, N, C, seed=4), F.smooth_l1_loss),
}  # fmt: skip


@pytest.mark.parametrize(("loss", "targets", "torchs"), LOSSES.values(), ids=LOSSES)
def test_all_tasks_at_once_are_what_torch_says_of_each(loss, targets, torchs):
    outputs = 3 * randn(T, N, C, seed=9)
    expected = torch.stack([torchs(o, y) for o, y in zip(outputs, targets, strict=True)])
    torch.testing.assert_close(loss_of_tasks(loss, outputs, Batch(None, targets)), expected, rtol=1e-12, atol=0)
    for task in range(T):
        one = loss_of_one(loss, outputs[task], Batch(None, targets[task]))
        torch.testing.assert_close(one, expected[task], rtol=1e-12, atol=0)
        if not isinstance(loss, CrossEntropy | BinaryCrossEntropy | SquaredError):
            continue
        torch.testing.assert_close(loss(outputs[task], targets[task]), expected[task], rtol=1e-12, atol=0)


def test_labels_of_pixels_and_their_mean():
    outputs, targets = randn(T, N, C, 2, 4), labels(T, N, 2, 4)
    targets[0, 0, 0] = -100
    found = loss_of_tasks(CrossEntropy(), outputs, Batch(None, targets))
    expected = torch.stack([F.cross_entropy(o, y) for o, y in zip(outputs, targets, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_task_says_the_same_of_ignored_labels_alone_and_among_others():
    model = network()
    phi = {name: leaf.detach() for name, leaf in model.named_parameters()}
    x, y = randn(2, 6, 4), torch.tensor([[0, 1, -100, -100, -100, -100], [0, 1, 2, 0, 1, 2]])
    objective = classification(model)
    together = objective.fit({name: leaf.expand(2, *leaf.shape) for name, leaf in phi.items()}, phi, Batch(x, y))
    alone = [objective(phi, phi, Batch(x[task], y[task])) for task in range(2)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(class_weight=(1, 2, 3)), SquaredError(), huber_each],
                         ids=["cross-entropy", "class weights", "squared error", "own"])  # fmt: skip
def test_an_example_that_weighs_three_is_there_three_times(loss):
    times = torch.tensor([3, 1, 2, 1, 1])
    outputs = randn(T, N, C)
    targets = labels(T, N) if isinstance(loss, CrossEntropy) else randn(T, N, C, seed=5)
    weighted = loss_of_tasks(loss, outputs, WeightedBatch(None, targets, times.double().expand(T, N)))
    often = loss_of_tasks(loss, outputs.repeat_interleave(times, 1), Batch(None, targets.repeat_interleave(times, 1)))
    torch.testing.assert_close(weighted, often, rtol=1e-12, atol=0)


def plain(model, theta, task, loss, lam, lr, steps):
    """One task's iMAML gradient at the weights after some steps of descent, by dense matrices."""
    (x, y), (qx, qy) = task
    names, start = list(theta), torch.cat([leaf.detach().flatten() for leaf in theta.values()])
    shapes = [leaf.shape for leaf in theta.values()]

    def run(flat, x, y):
        parts = [part.view(shape) for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        return loss(torch.func.functional_call(model, dict(zip(names, parts, strict=True)), x), y)

    phi = start.clone()
    for _ in range(steps):
        leaf = phi.clone().requires_grad_()
        (grad,) = torch.autograd.grad(run(leaf, x, y), leaf)
        phi = phi - lr * (grad + lam * (phi - start))
    leaf = phi.clone().requires_grad_()
    value = run(leaf, qx, qy)
    (v,) = torch.autograd.grad(value, leaf)
    hessian = torch.autograd.functional.hessian(lambda flat: run(flat, x, y), phi)
    return value.detach(), lam * torch.linalg.solve(hessian + lam * torch.eye(len(phi), dtype=phi.dtype), v)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_imaml_is_that_of_dense_matrices(name):
    loss, targets, torchs = LOSSES[name]
    model, lam, lr, steps = network(), 3.0, 0.05, 4
    method = IMAML(
        lam=lam, loss=loss, solver=GradientDescent(lr=lr, max_steps=steps),
        adjoint=Implicit(linear_solver=CG(max_steps=200, tol=1e-13), curvature="hessian"),
    )  # fmt: skip
    theta = method.init(model)
    tasks = Tasks((randn(T, N, 4), targets), (randn(T, N, 4, seed=1), targets.roll(1, 0)))
    metrics = meta_gradient(method, model, theta, tasks, chunk=2)
    expected = [
        plain(model, theta, ((sx, sy), (qx, qy)), torchs, lam, lr, steps)
        for sx, sy, qx, qy in zip(*tasks.support, *tasks.query, strict=True)
    ]
    values, grads = (torch.stack(part).mean(0) for part in zip(*expected, strict=True))
    torch.testing.assert_close(metrics.loss, values, rtol=1e-10, atol=0)
    found = torch.cat([leaf.grad.flatten() for leaf in theta.values()])
    torch.testing.assert_close(found, grads, rtol=1e-8, atol=1e-11)


METHODS = {
    "maml": MAML, "meta-sgd": MetaSGD, "fomaml": FOMAML, "reptile": Reptile, "imaml": IMAML, "anil": ANIL, "boil": BOIL,
    "itd-bio": ITDBiO, "memory-reduced": MemoryReduced,
}  # fmt: skip


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_every_method_that_adapts_weights_learns_a_regression(make):
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(body=nn.Sequential(nn.Linear(1, 40), nn.Tanh()), head=nn.Linear(40, 1)))
    source = Sinusoids(shots=10, queries=10)
    method = make(loss=SquaredError(), **({"inner_lr": 0.02} if make not in (IMAML, MemoryReduced) else {}))
    if make is IMAML:
        method = IMAML(loss=SquaredError(), lam=1.0, solver=GradientDescent(lr=0.02, max_steps=5))
    theta = method.init(model)
    optimizer = torch.optim.Adam(theta.values(), lr=0.01)
    generator = torch.Generator().manual_seed(0)

    def judged():
        return evaluate(method, model, theta, source, tasks=64, generator=torch.Generator().manual_seed(1))

    before = judged()
    for _ in range(100):
        metrics = meta_gradient(method, model, theta, source(8, generator=generator))
        optimizer.step()
        optimizer.zero_grad()
    after = judged()
    assert after.metric == metrics.metric == "squared error"
    assert after.score == after.loss < 0.8 * before.loss
    with pytest.raises(AttributeError, match="the metric here is 'squared error', not accuracy"):
        _ = after.accuracy


def test_ridge_regression_onto_numbers_is_that_of_the_normal_equations():
    model, l2 = network(2), 0.7
    method = R2D2(l2=l2, scale=1.0, loss=SquaredError())
    theta = method.init(model)
    x, y, query = randn(T, N, 4), randn(T, N, 2, seed=1), randn(T, 3, 4, seed=2)
    found = method.predict(model, theta, method.adapt(model, theta, Batch(x, y)), query)
    for task in range(T):
        features, asked = model.body(x[task]), model.body(query[task])
        w = torch.linalg.solve(features.T @ features + l2 * torch.eye(6, dtype=x.dtype), features.T @ y[task])
        torch.testing.assert_close(found[task], asked @ w, rtol=1e-9, atol=1e-12)


def test_an_own_metric_is_shown_and_may_replace_the_loss_in_evaluate():
    def farthest(outputs, targets):
        return (outputs - targets).abs().max()

    model = network(1)
    method = MAML(loss=huber, metric=farthest, inner_lr=0.01)
    theta = method.init(model)

    def source(num_tasks, *, generator):
        x = torch.randn(num_tasks, N, 4, generator=generator, dtype=torch.float64)
        return (x, x.sum(-1, keepdim=True)), (x, x.sum(-1, keepdim=True))

    metrics = meta_gradient(method, model, theta, source(4, generator=torch.Generator().manual_seed(0)))
    assert metrics.metric == "farthest"
    assert metrics.score.shape == (4,)
    found = [
        evaluate(method, model, theta, source, tasks=4, generator=torch.Generator().manual_seed(0), **given)
        for given in ({}, {"loss": SquaredError()}, {"metric": lambda o, y: 1.0})
    ]
    assert [one.metric for one in found] == ["farthest", "squared error", "<lambda>"]
    torch.testing.assert_close(found[0].score, float(metrics.score.mean()))
    assert found[0].loss == pytest.approx(float(metrics.loss))
    assert found[1].loss == found[1].score != found[0].loss
    assert found[2].score == 1.0
    assert MAML(loss=huber).loss is huber
    without = evaluate(MAML(loss=huber, inner_lr=0.01), model, theta, source, tasks=4,
                       generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert (without.metric, without.score) == ("loss", pytest.approx(without.loss))


NUMBERS = r"set's targets are numbers to regress, not probabilities: give loss=SquaredError\(\) \(--loss squared-"


@pytest.mark.parametrize(
    ("loss", "targets", "says"),
    [
        (CrossEntropy(), labels(T, N, 1), r"labels for logits \(5, 3\) must be \(5,\) a task, got \(5, 1\)"),
        (CrossEntropy(), randn(T, N), NUMBERS),
        (CrossEntropy(), torch.ones(T, N, 1), NUMBERS),
        (CrossEntropy(), randn(T, N, C), NUMBERS),
        (CrossEntropy(), 1.1 * SOFT, NUMBERS),
        (CrossEntropy(), randn(T, N, 4).softmax(-1), r"probabilities for logits \(5, 3\) must be \(5, 3\) a task, got"),
        (CrossEntropy(), torch.full((T, N), 3), "a label is 3, but the network has 3 outputs, for labels 0 to 2"),
        (CrossEntropy(), torch.full((T, N), -1), "has a label -1: labels are 0, 1, …, or -100 to ignore"),
        (CrossEntropy(), torch.full((T, N), -100), "the support set of task 0 has no label that counts"),
        (CrossEntropy(class_weight=(1.0, 2.0)), labels(T, N), "class_weight has 2 numbers for 3 logits"),
        (CrossEntropy(), labels(T, N, ways=2).bool(), "of torch.bool"),
        (SquaredError(), randn(T, N), r"targets must be of the outputs' shape, \(5, 3\) a task, got \(5,\)"),
        (BinaryCrossEntropy(), labels(T, N, ways=2), r"yes-or-no labels must be of the outputs' shape"),
        (BinaryCrossEntropy(), labels(T, N, C), "the support set has targets outside of 0 … 1"),
        (lambda o, y: o, labels(T, N), r"the loss <lambda> must return a scalar or one value for each of a task's 5"),
        (lambda o, y: 1.0, labels(T, N), "the loss must return a tensor, got float"),
        (SquaredError(), {"a": randn(T, N, C)}, "SquaredError needs one tensor of targets, got dict"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", [MAML, ANIL, IMAML])
def test_targets_that_do_not_fit_are_refused_in_one_line(method, loss, targets, says):
    model = network()
    chosen = method(loss=loss)
    with pytest.raises(ValueError, match=says):
        meta_gradient(chosen, model, chosen.init(model), Tasks((randn(T, N, 4), targets), (randn(T, N, 4), targets)))


def test_probabilities_in_few_digits_are_probabilities():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        CrossEntropy().require_targets(randn(T, N, 100).softmax(-1).to(dtype), "support")
        CrossEntropy().require_targets(F.one_hot(labels(T, N)).to(dtype), "support")


def test_a_regression_whose_loss_is_forgotten_is_refused_at_the_door(tmp_path):
    from metagrad.experiment import Experiment, MLPConfig, train

    experiment = Experiment(tasks=Sinusoids(shots=5, queries=5), network=MLPConfig(hidden=(4,)), method=MAML())
    with pytest.raises(MetagradError, match=NUMBERS):
        train(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_need_a_loss_of_examples():
    model, x, y = network(), randn(T, N, 4), randn(T, N, C)
    method = MAML(loss=huber)
    with pytest.raises(ValueError, match="examples have weights, and the loss huber returns their mean"):
        method.adapt(model, method.init(model), WeightedBatch(x, y, torch.ones(T, N)))


def test_options_out_of_range_are_refused():
    for make in (
        lambda: CrossEntropy(label_smoothing=1.0),
        lambda: CrossEntropy(class_weight=(1, 0)),
        lambda: BinaryCrossEntropy(positive_weight=0.0),
    ):
        with pytest.raises(MetagradError, match="must be"):
            make()


def test_prototypes_need_labels():
    model = network()
    method = ProtoNet()
    with pytest.raises(ValueError, match="ProtoNet needs labels"):
        method.adapt(model, method.init(model), Batch(randn(T, N, 4), randn(T, N, C)))
