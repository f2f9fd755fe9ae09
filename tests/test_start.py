"""What a task's head begins at: learned rows, one row for all classes, or the prototypes."""

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn

from metagrad import Budget, Experiment, Run, argmin, train
from metagrad.errors import MetagradError
from metagrad.fewshot import ANIL, FOMAML, IMAML, MAML, ITDBiO, MemoryReduced, ProtoNet, Tasks, meta_gradient
from metagrad.fewshot.algorithms.base import added, judge_query, query_loss
from metagrad.fewshot.algorithms.start import centre_of, with_raw_data
from metagrad.implicit import CG, GradientDescent, HessianFree, Implicit

SOLVER = HessianFree(max_steps=20, cg_steps=45, tol=1e-11, curvature="hessian")
EXACT = Implicit(linear_solver=CG(max_steps=60, tol=1e-12), curvature="hessian")


def network(ways=3):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(5, ways))).double()


def tasks(ways=3, shots=2, number=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(number, ways, 1, 4, generator=generator, dtype=torch.float64)
    drawn = centres + torch.randn(number, ways, shots + 2, 4, generator=generator, dtype=torch.float64) / 2
    y = torch.arange(ways).repeat_interleave(shots).expand(number, -1)
    asked = torch.arange(ways).repeat_interleave(2).expand(number, -1)
    return Tasks((drawn[:, :, :shots].flatten(1, 2), y), (drawn[:, :, shots:].flatten(1, 2), asked))


def value(method, model, theta, drawn):
    with torch.no_grad():
        return float(query_loss(method, model, theta, drawn, None).loss)


METHODS = {
    "imaml": IMAML(lam=0.5, solver=SOLVER, adjoint=EXACT),
    "imaml, learned lam": IMAML(lam=0.5, learn_lam="parameter", solver=SOLVER, adjoint=EXACT),
    "imaml, head": IMAML(lam=0.5, solver=SOLVER, adjoint=EXACT, adapts="head.*"),
    "maml": MAML(inner_lr=0.1, inner_steps=3, learn_lr="tensor"),
    "anil": ANIL(inner_lr=0.1, inner_steps=3),
    "anil, recomputed": ANIL(inner_lr=0.1, inner_steps=3, features="recomputed"),
}


@pytest.mark.parametrize("start", ["shared", "prototypes"])
@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_is_that_of_finite_differences(name, start):
    method, model, drawn = replace(METHODS[name], start=start, start_scale=0.3), network(), tasks(ways=4)
    theta = method.init(model)
    meta_gradient(method, model, theta, drawn)
    generator = torch.Generator().manual_seed(1)
    way = {key: torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for key, leaf in theta.items()}
    sides = [
        value(method, model, {key: leaf.detach() + step * way[key] for key, leaf in theta.items()}, drawn)
        for step in (1e-5, -1e-5)
    ]
    along = sum(float((leaf.grad * way[key]).sum()) for key, leaf in theta.items())
    assert along == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("start", ["rows", "shared", "prototypes"])
@pytest.mark.parametrize("name", [name for name in METHODS if name.startswith("imaml")])
def test_problems_on_raw_data_have_the_gradient_of_training(name, start):
    """The objective computes the centre itself, for what takes data as given: another route to the same number."""
    method, model, drawn = replace(METHODS[name], start=start, start_scale=0.3), network(), tasks()
    theta = method.init(model)
    meta_gradient(method, model, theta, drawn)
    inner = method.inner(model, theta, drawn.support)
    raw = with_raw_data(method, model, inner, drawn.support)
    solution = argmin(raw.objective, raw.init, theta, raw.data, solver=raw.solver, adjoint=raw.adjoint)
    centre = {} if start == "rows" else centre_of(method, model, theta, drawn.support)
    phi = replace(solution, value=added(solution.value, centre))
    gradients = torch.autograd.grad(
        judge_query(method, model, theta, phi, drawn.query).losses.mean(), [*theta.values()]
    )
    for leaf, gradient in zip(theta.values(), gradients, strict=True):
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", ["imaml", "maml"])
@pytest.mark.parametrize("start", ["shared", "prototypes"])
def test_a_run_whose_heads_begin_at_a_centre_is_checked(tmp_path, method, start):
    made = replace(METHODS[method], start=start, start_scale=0.3)
    budget = Budget(meta_steps=2, tasks_per_step=2, val_tasks=2, test_tasks=2)
    experiment = Experiment(tasks=drawn_tasks, network=network, method=made, budget=budget)
    train(experiment, tmp_path / "run")
    found = Run.open(tmp_path / "run", experiment=experiment).check(tasks=2)
    assert found["error"] < 1e-4
    if method == "imaml":
        assert found["reference_grad_norm"] < 1e-8
        assert found["inner"] < 1e-5


def drawn_tasks(number, *, generator):
    return tasks(number=number, seed=int(torch.randint(10**6, (), generator=generator)))


@pytest.mark.parametrize("name", [*METHODS, "fomaml"])
def test_one_shared_row_is_as_many_alike(name):
    given = METHODS.get(name, FOMAML(inner_lr=0.1, inner_steps=3))
    given = replace(given, learn_lam="scalar") if isinstance(given, IMAML) else given
    model, drawn = network(), tasks()
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight[:1].expand(3, -1))
        model.head.bias.fill_(0.1)
    rows, shared = given.init(model), replace(given, start="shared").init(model)
    assert set(shared) == {n for n in rows if n not in ("head.weight", "head.bias")} | {
        ".start/weight",
        ".start/bias",
    } | {n for n in rows if n.startswith(".")}
    expected = meta_gradient(given, model, rows, drawn)
    found = meta_gradient(replace(given, start="shared"), model, shared, drawn)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(shared[".start/weight"].grad, rows["head.weight"].grad.sum(0), rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(shared["body.0.weight"].grad, rows["body.0.weight"].grad, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_with_cross_entropy_only_that_rows_are_alike_matters(name):
    """Softmax does not see what all rows share: the one row has no gradient, and any other row gives the same loss."""
    method, model, drawn = replace(METHODS[name], start="shared"), network(), tasks()
    theta = method.init(model)
    meta_gradient(method, model, theta, drawn)
    sizes = {name: leaf.grad.abs().max() for name, leaf in theta.items()}
    assert max(size for key, size in sizes.items() if key.startswith(".start/")) < 1e-12 < sizes["body.0.weight"]
    other = {key: leaf + key.startswith(".start/") * torch.ones_like(leaf) for key, leaf in theta.items()}
    assert value(method, model, other, drawn) == pytest.approx(value(method, model, theta, drawn), rel=1e-12)


def test_prototypes_that_hardly_adapt_are_those_of_protonet():
    model, drawn = network(), tasks(ways=5)
    method, reference = MAML(inner_lr=1e-9, start="prototypes", start_scale=0.2), ProtoNet(scale=0.2)
    theta, same = method.init(model), reference.init(model)
    solution = method.adapt(model, theta, drawn.support)
    logits = method.predict(model, theta, solution, drawn.query.x).log_softmax(-1)
    wanted = reference.predict(model, same, reference.adapt(model, same, drawn.support), drawn.query.x).log_softmax(-1)
    torch.testing.assert_close(logits, wanted, rtol=1e-6, atol=1e-6)
    taken = method.weights(model, theta, solution)
    assert taken["head.weight"].shape == (2, 5, 5)


@pytest.mark.parametrize("start", ["shared", "prototypes"])
@pytest.mark.parametrize("ways", [2, 3, 7])
@pytest.mark.parametrize("kind", [IMAML, MAML, FOMAML, ANIL])
def test_any_number_of_ways(kind, ways, start):
    method, model = kind(start=start), network()
    assert method.any_ways
    theta, drawn = method.init(model), tasks(ways=ways)
    metrics = meta_gradient(method, model, theta, drawn)
    assert metrics.loss.isfinite()
    assert all(leaf.grad is not None for leaf in theta.values())
    logits = method.predict(model, theta, method.adapt(model, theta, drawn.support), drawn.query.x)
    assert logits.shape == (2, 2 * ways, ways)


@pytest.mark.parametrize("kind", [MemoryReduced, ITDBiO])
def test_a_fixed_head_that_begins_at_zero_has_as_many_rows_as_classes(kind):
    model = network()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    same = [method.init(model) for method in (kind(), kind(start="zero"))]
    losses = [meta_gradient(m, model, t, tasks()).loss for m, t in zip((kind(), kind(start="zero")), same, strict=True)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(same[0]["body.0.weight"].grad, same[1]["body.0.weight"].grad)
    more = kind(start="zero")
    assert more.any_ways
    assert not kind().any_ways
    assert meta_gradient(more, model, more.init(model), tasks(ways=6)).loss.isfinite()


def test_what_does_not_go_together_is_refused():
    with pytest.raises(MetagradError, match="start is one of rows, shared, prototypes, got 'zero'"):
        IMAML(start="zero")
    with pytest.raises(MetagradError, match="start is 'rows' or 'zero'"):
        MemoryReduced(start="shared")
    with pytest.raises(MetagradError, match="start_scale must be"):
        ANIL(start="prototypes", start_scale=0)
    method, model = IMAML(start="shared", adapts="body.*"), network()
    with pytest.raises(MetagradError, match="needs a head that adapts, but head does not"):
        method.adapt(model, method.init(model), tasks().support)
    unbiased = nn.Sequential(OrderedDict(body=nn.Linear(4, 5), head=nn.Linear(5, 3, bias=False)))
    with pytest.raises(MetagradError, match="has no bias, which prototypes need"):
        IMAML(start="prototypes").init(unbiased)
    assert IMAML(start="shared").init(unbiased).keys() == {"body.weight", "body.bias", ".start/weight"}
    two = nn.Sequential(OrderedDict(body=nn.Linear(4, 5), head=nn.Sequential(nn.Linear(5, 3), nn.ReLU())))
    with pytest.raises(MetagradError, match="head is not a linear layer"):
        IMAML(start="shared").init(two)


def test_the_solver_sees_a_task_that_begins_at_its_centre():
    method = IMAML(lam=1e6, solver=GradientDescent(lr=1e-7, max_steps=1), start="prototypes", start_scale=0.2)
    model, drawn = network(), tasks(ways=4)
    theta = method.init(model)
    inner = method.inner(model, theta, drawn.support)
    assert inner.init["head.weight"].abs().max() == 0
    assert inner.solve().value["head.weight"].abs().max() > 0.01
    begun = inner.solve({**inner.init, **inner.centre, **{n: inner.init[n] for n in ("body.0.weight", "body.0.bias")}})
    torch.testing.assert_close(begun.value["head.weight"], inner.solve().value["head.weight"])
