"""Every method's meta-gradient against plain autograd, written out task by task (float64), and the identities."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metagrad import CG, Dense, GradientDescent, HessianFree, Implicit, MetagradError
from metagrad.fewshot import (
    ANIL,
    BOIL,
    FOMAML,
    IMAML,
    MAML,
    MLP,
    R2D2,
    Batch,
    Conv4,
    ITDBiO,
    MemoryReduced,
    MetaSGD,
    ProtoNet,
    Reptile,
    ResNet12,
    Tasks,
    admit,
    meta_gradient,
)

T, WAYS, SHOTS, QUERIES, LR = 3, 3, 2, 2, 0.3


class Own(nn.Module):
    """Not a sequence of known layers."""

    def __init__(self):
        super().__init__()
        self.first, self.classifier = nn.Linear(64, 6), nn.Linear(6, WAYS)

    def forward(self, x):
        y = torch.tanh(self.first(x.flatten(1)))
        return self.classifier(y * y.mean(0))  # other images matter


def conv():
    return Conv4(WAYS, image_size=8, filters=4, generator=torch.Generator().manual_seed(1)).double()


def mlp():
    return MLP((64, 6, WAYS), activation=nn.Tanh, generator=torch.Generator().manual_seed(1)).double()


def own():
    torch.manual_seed(1)
    return admit(Own(), torch.rand(4, 1, 8, 8)).double()


def pooled():
    return Conv4(WAYS, image_size=16, filters=4, pooling=True, norm="group",
                 generator=torch.Generator().manual_seed(1)).double()  # fmt: skip


def residual():
    return ResNet12(WAYS, channels=1, filters=2, generator=torch.Generator().manual_seed(1)).double()


MODELS = [(conv, "head.*"), (mlp, "layers.3.*"), (own, "classifier.*")]


@pytest.fixture
def tasks():
    g = torch.Generator().manual_seed(2)
    x = torch.rand(T, WAYS * (SHOTS + QUERIES), 1, 8, 8, generator=g, dtype=torch.float64)
    y = torch.arange(WAYS).repeat(T, SHOTS + QUERIES)
    n = WAYS * SHOTS
    return Tasks(Batch(x[:, :n], y[:, :n]), Batch(x[:, n:], y[:, n:]))


def given(algorithm, model, tasks):
    theta = algorithm.init(model)
    meta_gradient(algorithm, model, theta, tasks, chunk=2)
    return {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in theta.items()}


def names(model, pattern):
    prefix = pattern.removesuffix("*")
    return [name for name, _ in model.named_parameters() if name.startswith(prefix)]


def written_out(model, tasks, loss_of_task, extra=(), without=()):
    """Return the gradient of the mean of ``loss_of_task(weights, extra, task)``, one task at a time."""
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in model.named_parameters()}
    kept = {name: leaf for name, leaf in leaves.items() if name not in without} | dict(extra)
    total = sum(loss_of_task(leaves, kept, tasks.part(t, t + 1)) for t in range(T)) / T
    found = torch.autograd.grad(total, list(kept.values()), materialize_grads=True)
    return dict(zip(kept, found, strict=True))


def score(model, weights, batch):
    return F.cross_entropy(functional_call(model, weights, (batch.x[0],)), batch.y[0])


def descended(model, weights, mine, batch, steps, lr=LR, l2=0.0, recorded=None):
    """Return the weights after steps of descent on those in ``mine``; the last ``recorded`` are differentiated."""
    start, now = {name: weights[name] for name in mine}, {name: weights[name] for name in mine}
    for step in range(steps):
        if recorded is not None and step < steps - recorded:
            now = {name: leaf.detach().requires_grad_() for name, leaf in now.items()}
        elif recorded is not None and step == steps - recorded:
            now = {name: start[name] + (leaf - start[name]).detach() for name, leaf in now.items()}
        value = score(model, {**weights, **now}, batch) + l2 / 2 * sum(leaf.square().sum() for leaf in now.values())
        gradient = torch.autograd.grad(value, list(now.values()), create_graph=True)
        rates = lr if isinstance(lr, dict) else dict.fromkeys(now, lr)
        now = {name: leaf - rates[name] * part for (name, leaf), part in zip(now.items(), gradient, strict=True)}
    if recorded == 0:
        now = {name: start[name] + (leaf - start[name]).detach() for name, leaf in now.items()}
    return {**weights, **now}


def agree(found, expected):
    assert set(found) == set(expected)
    whole = torch.cat([part.flatten() for part in expected.values()]).norm()
    assert whole > 1e-4
    for name, part in expected.items():
        assert (found[name] - part).norm() <= 1e-8 * whole, name


@pytest.mark.parametrize(("make", "head"), MODELS)
@pytest.mark.parametrize("features", ["cached", "recomputed"])
def test_anil(make, head, features, tasks):
    model = make()

    def loss(weights, kept, task):
        return score(model, descended(model, weights, names(model, head), task.support, 3), task.query)

    algorithm = ANIL(head=head, inner_lr=LR, inner_steps=3, features=features)
    agree(given(algorithm, model, tasks), written_out(model, tasks, loss))


@pytest.mark.parametrize(("make", "head"), MODELS)
def test_boil(make, head, tasks):
    model = make()
    body = [name for name, _ in model.named_parameters() if name not in names(model, head)]

    def loss(weights, kept, task):
        return score(model, descended(model, weights, body, task.support, 2), task.query)

    agree(given(BOIL(head=head, inner_lr=LR, inner_steps=2), model, tasks), written_out(model, tasks, loss))


@pytest.mark.parametrize(("make", "head"), MODELS)
@pytest.mark.parametrize("features", ["cached", "recomputed"])
def test_itd_bio(make, head, features, tasks):
    model = make()
    mine = names(model, head)

    def loss(weights, kept, task):
        fixed = {name: weights[name].detach().requires_grad_() for name in mine}
        return score(model, descended(model, {**weights, **fixed}, mine, task.support, 4, l2=0.05), task.query)

    algorithm = ITDBiO(head=head, inner_lr=LR, inner_steps=4, l2=0.05, features=features)
    agree(given(algorithm, model, tasks), written_out(model, tasks, loss, without=mine))


@pytest.mark.parametrize(("make", "head"), MODELS)
@pytest.mark.parametrize("features", ["cached", "recomputed"])
def test_memory_reduced_is_itd_bio_with_many_steps(make, head, features, tasks):
    """At equal l2 > 0, and with both systems solved exactly; the many steps are those of a cached head."""
    model = make()
    solver = HessianFree(max_steps=20, cg_steps=30, tol=1e-12)
    exact = MemoryReduced(head=head, l2=0.2, solver=solver, features=features,
                          adjoint=Implicit(linear_solver=Dense(), curvature="gauss_newton"))  # fmt: skip
    unrolled = ITDBiO(head=head, l2=0.2, inner_lr=LR, inner_steps=400)
    agree(given(exact, model, tasks), given(unrolled, model, tasks))


@pytest.mark.parametrize("truncate", [0, 1, 3])
def test_truncated_maml(truncate, tasks):
    model = mlp()
    everything = [name for name, _ in model.named_parameters()]

    def loss(weights, kept, task):
        return score(model, descended(model, weights, everything, task.support, 3, recorded=truncate), task.query)

    found = given(MAML(inner_lr=LR, inner_steps=3, truncate=truncate), model, tasks)
    agree(found, written_out(model, tasks, loss))
    other = FOMAML(inner_lr=LR, inner_steps=3) if truncate == 0 else MAML(inner_lr=LR, inner_steps=3)
    if truncate != 1:
        agree(found, given(other, model, tasks))


@pytest.mark.parametrize("every", [1, 2, 5])
def test_checkpointed_maml_is_maml(every, tasks):
    model = conv()
    agree(given(MAML(inner_lr=LR, inner_steps=4, checkpoint=every), model, tasks),
          given(MAML(inner_lr=LR, inner_steps=4), model, tasks))  # fmt: skip


def test_meta_sgd(tasks):
    model = mlp()
    everything = [name for name, _ in model.named_parameters()]
    logs = {f".log_lr/{name}": torch.full_like(leaf.detach(), LR).log().requires_grad_()
            for name, leaf in model.named_parameters()}  # fmt: skip

    def loss(weights, kept, task):
        rates = {name: kept[f".log_lr/{name}"].exp() for name in everything}
        return score(model, descended(model, weights, everything, task.support, 2, lr=rates), task.query)

    agree(given(MetaSGD(inner_lr=LR, inner_steps=2), model, tasks), written_out(model, tasks, loss, extra=logs))


def test_reptile(tasks):
    model = conv()
    everything = [name for name, _ in model.named_parameters()]

    def apart(weights, kept, task):
        now = descended(model, weights, everything, task.support, 3)
        return sum((weights[name] - now[name].detach()).square().sum() for name in everything) / 2

    agree(given(Reptile(inner_lr=LR, inner_steps=3), model, tasks), written_out(model, tasks, apart))


def body_of(model, head, weights, x):
    seen = []
    module = model.get_submodule(head.removesuffix(".*"))
    hook = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    functional_call(model, weights, (x,))
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(("make", "head"), MODELS)
def test_prototypes(make, head, tasks):
    model = make()

    def loss(weights, kept, task):
        f, q = (body_of(model, head, weights, batch.x[0]) for batch in task)
        means = torch.stack([f[task.support.y[0] == way].mean(0) for way in range(WAYS)])
        return F.cross_entropy(-torch.cdist(q, means).square(), task.query.y[0])

    agree(given(ProtoNet(head=head), model, tasks), written_out(model, tasks, loss, without=names(model, head)))


@pytest.mark.parametrize(("make", "head"), MODELS)
def test_prototypes_with_a_learned_scale(make, head, tasks):
    model = make()
    log = {".log_scale": torch.tensor(0.2, dtype=torch.float64).log().requires_grad_()}

    def loss(weights, kept, task):
        f, q = (body_of(model, head, weights, batch.x[0]) for batch in task)
        means = torch.stack([f[task.support.y[0] == way].mean(0) for way in range(WAYS)])
        return F.cross_entropy(-kept[".log_scale"].exp() * torch.cdist(q, means).square(), task.query.y[0])

    expected = written_out(model, tasks, loss, extra=log, without=names(model, head))
    assert ".log_scale" in expected
    agree(given(ProtoNet(head=head, scale=0.2), model, tasks), expected)


@pytest.mark.parametrize(("make", "head"), MODELS)
def test_ridge(make, head, tasks):
    model = make()
    logs = {".log_l2": torch.tensor(0.7).double().log().requires_grad_(),
            ".log_scale": torch.tensor(3.0).double().log().requires_grad_()}  # fmt: skip

    def loss(weights, kept, task):
        f, q = (body_of(model, head, weights, batch.x[0]) for batch in task)
        eye = torch.eye(f.shape[1]).double()
        w = torch.linalg.solve(f.T @ f + kept[".log_l2"].exp() * eye, f.T @ F.one_hot(task.support.y[0]).double())
        return F.cross_entropy(kept[".log_scale"].exp() * q @ w, task.query.y[0])

    found = given(R2D2(head=head, l2=0.7, scale=3.0), model, tasks)
    expected = written_out(model, tasks, loss, extra=logs, without=names(model, head))
    whole = torch.cat([part.flatten() for part in expected.values()]).norm()
    for name, part in expected.items():  # CG to 1e-6
        assert (found[name] - part).norm() <= 1e-5 * whole, name


@pytest.mark.parametrize("make", [pooled, residual])
@pytest.mark.parametrize("method", [MAML, ANIL])
def test_other_networks(make, method, tasks):
    model = make()
    larger = Tasks(
        *(Batch(F.interpolate(part.x.flatten(0, 1), size=16).unflatten(0, (T, -1)), part.y) for part in tasks)
    )
    mine = [name for name, _ in model.named_parameters() if method is MAML or name.startswith("head")]

    def loss(weights, kept, task):
        return score(model, descended(model, weights, mine, task.support, 2), task.query)

    agree(given(method(inner_lr=LR, inner_steps=2), model, larger), written_out(model, larger, loss))


def test_anil_with_everything_is_maml(tasks):
    model = conv()
    agree(given(ANIL(head="*", inner_lr=LR, inner_steps=2, features="recomputed"), model, tasks),
          given(MAML(inner_lr=LR, inner_steps=2), model, tasks))  # fmt: skip


def test_a_part_of_the_network_by_pattern_or_module(tasks):
    model = conv()
    for method in (MAML, FOMAML):
        by_pattern = method(inner_lr=LR, inner_steps=2, adapts="head.*")
        agree(
            given(by_pattern, model, tasks), given(method(inner_lr=LR, inner_steps=2, adapts=model.head), model, tasks)
        )
    agree(given(MAML(inner_lr=LR, inner_steps=2, adapts="head.*"), model, tasks),
          given(ANIL(inner_lr=LR, inner_steps=2), model, tasks))  # fmt: skip


@pytest.mark.parametrize("adapts", ["head.*", "*weight"])
def test_imaml_on_a_part(adapts, tasks):
    """Against descent on the proximal problem, unrolled until it stands still."""
    model = mlp() if adapts != "head.*" else conv()
    exact = IMAML(lam=2.0, adapts=adapts, solver=GradientDescent(lr=0.1, max_steps=2000, tol=1e-13),
                  adjoint=Implicit(linear_solver=CG(max_steps=400, tol=1e-14), curvature="hessian"))  # fmt: skip
    mine = [name for name, _ in model.named_parameters() if adapts != "head.*" and name.endswith("weight")] or [
        "head.weight", "head.bias"]  # fmt: skip

    def loss(weights, kept, task):
        now = {name: weights[name] for name in mine}
        for _ in range(300):
            pull = sum((leaf - weights[name]).square().sum() for name, leaf in now.items())
            gradient = torch.autograd.grad(score(model, {**weights, **now}, task.support) + pull, list(now.values()),
                                        create_graph=True)  # fmt: skip
            now = {name: leaf - 0.1 * part for (name, leaf), part in zip(now.items(), gradient, strict=True)}
        return score(model, {**weights, **now}, task.query)

    agree(given(exact, model, tasks), written_out(model, tasks, loss))


def test_imaml_with_a_strong_pull_tends_to_the_query_gradient(tasks):
    model = mlp()
    plain = written_out(model, tasks, lambda weights, kept, task: score(model, weights, task.query))
    apart = []
    for lam in (1e3, 1e4, 1e5):
        found = given(IMAML(lam=lam, solver=GradientDescent(lr=0.5 / lam, max_steps=200),
                            adjoint=Implicit(linear_solver=CG(max_steps=100, tol=1e-14))), model, tasks)  # fmt: skip
        apart.append(sum((found[name] - part).square().sum() for name, part in plain.items()) ** 0.5)
    assert apart[1] / apart[0] == pytest.approx(0.1, rel=0.05)
    assert apart[2] / apart[1] == pytest.approx(0.1, rel=0.05)


def test_published_form_says_that_its_system_is_not_solved(tasks):
    model = Conv4(WAYS, image_size=8, filters=32, generator=torch.Generator().manual_seed(1)).double()
    theta = MemoryReduced.published().init(model)
    metrics = meta_gradient(MemoryReduced.published(inner_lr=LR), model, theta, tasks)
    damped = meta_gradient(MemoryReduced(l2=1e-2), model, MemoryReduced().init(model), tasks)
    assert metrics.residual.min() > 0.5
    assert damped.residual.max() < 0.05


def test_a_head_alone_has_certain_bounds(tasks):
    metrics = meta_gradient(MemoryReduced(l2=0.1), model := conv(), MemoryReduced().init(model), tasks)
    assert metrics.delta.certain
    assert metrics.delta_prime.certain


def test_refusals(tasks):
    model = conv()
    with pytest.raises(MetagradError, match=r"'hed\.\*'; there are body\.0\.\*, body\.1\.\*.*head\.\*"):
        given(ANIL(head="hed.*"), model, tasks)
    with pytest.raises(MetagradError, match="no parameter that the model has"):
        given(MAML(adapts=nn.Linear(2, 2)), model, tasks)
    with pytest.raises(MetagradError, match="take features='recomputed'"):
        given(ANIL(head="*"), model, tasks)
    with pytest.raises(MetagradError, match="take features='recomputed'"):
        given(ANIL(head="*bias"), model, tasks)
    with pytest.raises(MetagradError, match="nothing is left to adapt"):
        given(BOIL(head="*"), model, tasks)
    with pytest.raises(MetagradError, match="no body to meta-learn"):
        MemoryReduced(head="*").init(model)
    with pytest.raises(MetagradError, match="features is"):
        ANIL(features="cache")
    with pytest.raises(ValueError, match="leave out truncate"):
        MAML(learn_lr="scalar", truncate=1)


class Doubled(Own):
    def forward(self, x):
        return super().forward(x) * 2


def test_outputs_that_are_not_the_heads_are_refused(tasks):
    model = admit(Doubled(), torch.rand(4, 1, 8, 8)).double()
    with pytest.raises(MetagradError, match="does something with them"):
        given(ANIL(head="classifier.*"), model, tasks)
