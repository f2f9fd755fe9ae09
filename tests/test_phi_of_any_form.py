"""Nests, tensors alone, one problem without a task axis, plain values among data: what argmin and its like take.

Against closed forms and against the same problem laid flat (float64).
"""

from collections import OrderedDict, UserDict, namedtuple
from functools import partial
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F

from metagrad import (
    CG,
    LBFGS,
    Adam,
    Composed,
    Dense,
    FirstOrder,
    GradientDescent,
    HessianFree,
    Implicit,
    MetagradWarning,
    Nesterov,
    Proximal,
    TorchOptimizer,
    Unroll,
    argmin,
    attach,
    check_meta_gradient,
    tree,
)

N, D, T = 12, 3, 3


def randn(*shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ridge(phi, theta, data):
    return (data["x"] @ phi["w"] - data["y"]).square().mean() / 2 + theta["lam"].exp() / 2 * phi["w"].square().sum()


def solved(x, y, lam):
    """Return the ridge regression in closed form, for one task or T."""
    gram = x.mT @ x / N + lam.exp() * torch.eye(D, dtype=torch.float64)
    return torch.linalg.solve(gram, (x.mT @ y[..., None])[..., 0] / N)


def given(*tasks):
    data = {"x": randn(*tasks, N, D, seed=0).requires_grad_(), "y": randn(*tasks, N, seed=1).requires_grad_()}
    return {"lam": torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)}, data


TORCH_LBFGS = partial(optim.LBFGS, line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0, max_iter=5)
SOLVERS = {
    "gradient descent": lambda **o: GradientDescent(lr=0.3, **o),
    "line search": lambda **o: GradientDescent(lr=1.0, line_search=True, **o),
    "nesterov": lambda **o: Nesterov(lr=0.2, **o),
    "lbfgs": LBFGS,
    "hessian-free": lambda **o: HessianFree(curvature="hessian", **o),
    "adam": lambda **o: Adam(lr=0.05, **o),
    "torch sgd": lambda **o: TorchOptimizer(factory=partial(optim.SGD, lr=0.3, momentum=0.2), **o),
    "torch lbfgs": lambda **o: TorchOptimizer(factory=TORCH_LBFGS, **o),
    "own": lambda max_steps, tol: lambda problem, init: descend(problem, init),
}


def descend(problem, init):
    for _ in range(300):
        slope = problem.grad(init)
        init = {name: leaf - 0.3 * slope[name] for name, leaf in init.items()}
    return init


@pytest.mark.parametrize("name", SOLVERS)
def test_one_problem_without_a_task_axis(name):
    theta, data = given()
    close = 1e-3 if name == "adam" else 1e-8
    solver, adjoint = SOLVERS[name](max_steps=400, tol=1e-10), Implicit(linear_solver=CG(max_steps=20))
    found = argmin(ridge, {"w": torch.zeros(D).double()}, theta, data, solver=solver, adjoint=adjoint, batched=False)
    exact = solved(data["x"], data["y"], theta["lam"])
    inputs = [theta["lam"], data["x"], data["y"]]
    expected = torch.autograd.grad(exact.sin().sum(), inputs)
    ours = torch.autograd.grad(found.value["w"].sin().sum(), inputs)
    assert (found.value["w"] - exact).norm() <= close
    for a, b in zip(ours, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= close * (1 + b.norm())
    numbers = [found.steps, found.grad_norm, found.delta.value]
    numbers += [getattr(found.linear, at) for at in ("steps", "residual", "min_curvature", "stopped", "size")]
    assert all(part.shape == () for part in numbers)
    assert found.linear.value["w"].shape == (D,)


@pytest.mark.parametrize("adjoint", [Implicit(), Unroll(), Unroll(truncate=5), Unroll(checkpoint=4), FirstOrder()])
@pytest.mark.parametrize("dims", [(), (1,)])
def test_one_problem_is_a_batch_of_one(adjoint, dims):
    """Also with phi and data that are single numbers."""
    theta = {"a": torch.tensor(0.3, dtype=torch.float64, requires_grad=True)}
    init, y = randn(*dims, seed=2).requires_grad_(), randn(*dims, seed=3).requires_grad_()

    def objective(phi, theta, data):
        return ((phi["w"] - data).square() * theta["a"].exp() + 0.1 * phi["w"] ** 4).sum()

    ends = []
    for single in (True, False):
        found = argmin(objective, {"w": init if single else init[None]}, theta, y if single else y[None],
                       solver=GradientDescent(lr=0.1, max_steps=8), adjoint=adjoint, batched=not single)  # fmt: skip
        w = found.value["w"] if single else found.value["w"][0]
        slopes = torch.autograd.grad(w.square().sum(), [theta["a"], y, init], materialize_grads=True)
        ends.append([w, *slopes])
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b)


def test_what_a_linear_solve_and_a_convex_problem_say_has_no_task_axis():
    theta, data = given()
    objective = Composed(
        lambda w, theta, data: data["x"] @ w,
        lambda out, data: (out - data["y"]).square().mean() / 2,
        Proximal(lambda theta: theta["lam"].exp(), towards="zero"),
        convex=True,
    )
    adjoint = Implicit(linear_solver=CG(max_steps=4, history=True), curvature="gauss_newton")
    w = torch.zeros(D).double()
    found = argmin(objective, w, theta, data, solver=LBFGS(max_steps=30), adjoint=adjoint, batched=False)
    assert found.linear is None
    found.value.sum().backward()
    assert found.delta.certain
    assert found.delta_prime.certain
    assert found.delta.value.shape == found.delta_prime.value.shape == ()
    assert found.linear.history.shape == (5,)
    assert found.linear.value.shape == (D,)
    warm = Implicit(linear_solver=CG(max_steps=4), curvature="gauss_newton", x0=found.linear.value)
    again = argmin(objective, w, theta, data, solver=LBFGS(max_steps=30), adjoint=warm, batched=False)
    again.value.sum().backward()
    assert again.linear.steps == 0, "begun at the solution"


Layer = namedtuple("Layer", "weight bias")

# A new kind of nest joins by a line: how it is built from a matrix and a vector, how these are found in it, and named.
NESTS = {
    "dictionary": (lambda w, b: {"w": w, "b": b}, lambda p: (p["w"], p["b"]), ("w", "b")),
    "nested": (lambda w, b: {"body": {"w": w}, "b": b}, lambda p: (p["body"]["w"], p["b"]), ("body.w", "b")),
    "list": (lambda w, b: [w, b], lambda p: (p[0], p[1]), ("0", "1")),
    "tuple in a list": (lambda w, b: {"layers": [(w, b)]}, lambda p: p["layers"][0], ("layers.0.0", "layers.0.1")),
    "named tuple": (Layer, lambda p: (p.weight, p.bias), ("weight", "bias")),
    "ordered": (lambda w, b: OrderedDict(w=w, r=OrderedDict(b=b)), lambda p: (p["w"], p["r"]["b"]), ("w", "r.b")),
    "read-only": (lambda w, b: MappingProxyType({"w": w, "b": b}), lambda p: (p["w"], p["b"]), ("w", "b")),
    "own mapping": (lambda w, b: UserDict({"z": [w], "b": b}), lambda p: (p["z"][0], p["b"]), ("z.0", "b")),
    "numbers as keys": (lambda w, b: {0: w, 1: b}, lambda p: (p[0], p[1]), ("0", "1")),
}
LAMS = {
    "a number": lambda build: 0.3,
    "learned": lambda build: lambda theta: theta["more"]["lam"].exp(),
    "one for each": lambda build: lambda theta: build(theta["more"]["lam"].exp(), 2 * theta["more"]["lam"].exp()),
}


def network(kind, lam):
    """Return a small network whose phi is a nest, and theta, which has a nest too and the centre by its names."""
    build, take, names = NESTS[kind]
    centre = [randn(D, 2, seed=4).requires_grad_(), randn(2, seed=5).requires_grad_()]
    lam_now = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)

    def outputs(phi, theta, data):
        w, b = take(phi)
        return torch.tanh(data["x"] @ w + b) * theta["more"]["scale"]

    def loss(out, data):
        return (out - data["y"][:, None]).square().mean()

    theta = {**dict(zip(names, centre, strict=True)), "more": {"lam": lam_now, "scale": 1.5}}
    return Composed(outputs, loss, Proximal(LAMS[lam](build))), theta, [*centre, lam_now]


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("lam", LAMS)
@pytest.mark.parametrize("kind", NESTS)
def test_a_nest_is_solved_as_the_same_laid_flat(kind, lam, curvature, single):
    tasks = () if single else (T,)
    _, data = given(*tasks)
    ends = []
    for now in (kind, "dictionary"):
        build, take, _ = NESTS[now]
        objective, theta, inputs = network(now, lam)
        start = build(randn(*tasks, D, 2, seed=6), randn(*tasks, 2, seed=7))
        solver = LBFGS(max_steps=100, tol=1e-11)
        adjoint = Implicit(linear_solver=Dense(), curvature=curvature)
        found = argmin(objective, start, theta, data, solver=solver, adjoint=adjoint, batched=not single)
        w, b = take(found.value)
        inputs = [*inputs, data["x"]]
        ends.append([w, b, *torch.autograd.grad(w.sin().sum() + b.sum(), inputs, materialize_grads=True)])
        assert found.grad_norm.max() < 1e-9
        assert found.linear.residual.shape == tasks
        assert [leaf.shape for leaf in take(found.linear.value)] == [w.shape, b.shape]
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_a_solution_is_built_as_the_start_was():
    def value(init, theta=None):
        def objective(phi, theta, data):
            return sum((leaf - 1).square().sum() for leaf in tree.pytree.tree_leaves(phi))

        solver = GradientDescent(lr=0.5, max_steps=1)
        return argmin(objective, init, theta, None, solver=solver, adjoint=FirstOrder(), batched=True).value

    leaf = torch.zeros(2, 3)
    assert isinstance(value(leaf), torch.Tensor)
    assert type(value((leaf, [leaf]))) is tuple
    assert type(value((leaf, [leaf]))[1]) is list
    assert isinstance(value(Layer(leaf, leaf)), Layer)
    assert type(value({"a": {"b": leaf}})["a"]) is dict
    assert type(value(OrderedDict(a=leaf))) is dict
    assert list(value(OrderedDict(z=leaf, a=leaf))) == ["z", "a"]
    for theta in (torch.ones(2), (), [], None, {"a": None, "b": 2.0, "c": "text", "d": np.float32(1)}):
        assert torch.equal(value(leaf, theta), torch.ones(2, 3))


def test_what_a_module_holds_is_a_nest():
    net = nn.Linear(D, 1, bias=False).double()
    y, w = randn(T, N, D, seed=0), randn(T, D, seed=1)
    holders = [nn.ParameterDict({"w": w}), [nn.ParameterList([w])], {"w": nn.Parameter(w)}]
    thetas = [nn.ParameterDict({"weight": net.weight}), [nn.ParameterList([net.weight])], dict(net.named_parameters())]
    take = [lambda p, name: p[name], lambda p, name: p[0][0], lambda p, name: p[name]]
    ends = []
    for holder, theta, of in zip(holders, thetas, take, strict=True):
        found = argmin(lambda p, t, y, of=of: (y @ of(p, "w") - y @ of(t, "weight")[0]).square().mean(), holder, theta,
                       y, solver=LBFGS(max_steps=60, tol=1e-12), adjoint=Implicit(linear_solver=Dense()))  # fmt: skip
        torch.testing.assert_close(of(found.value, "w"), net.weight.expand(T, D), rtol=1e-9, atol=1e-10)
        ends.append(torch.autograd.grad(of(found.value, "w").square().sum(), net.weight)[0])
    for end in ends:
        torch.testing.assert_close(end, 2 * T * net.weight.detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("regulariser", [Proximal(0.5), lambda phi, theta: 0.25 * (phi - theta).square().sum()])
@pytest.mark.parametrize("adjoint", [Implicit(linear_solver=CG(max_steps=9)), Unroll()])
def test_a_tensor_alone_is_pulled_to_a_tensor_alone(adjoint, regulariser):
    """Phi = (XᵀX + 0.5 I)⁻¹ (Xᵀy + 0.5 theta)."""
    theta, (x, y) = randn(D, seed=1).requires_grad_(), (randn(T, N, D, seed=2) / 4, randn(T, N, seed=3))
    objective = Composed(lambda w, theta, d: d[0] @ w, lambda out, d: (out - d[1]).square().sum() / 2, regulariser)
    found = argmin(objective, torch.zeros(T, D).double(), theta, (x, y), adjoint=adjoint,
                   solver=GradientDescent(lr=0.5, max_steps=300))  # fmt: skip
    gram = x.mT @ x + 0.5 * torch.eye(D).double()
    exact = torch.linalg.solve(gram, (x.mT @ y[..., None])[..., 0] + 0.5 * theta)
    a, b = (torch.autograd.grad(w.sin().sum(), theta)[0] for w in (found.value, exact))
    torch.testing.assert_close(found.value, exact, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("solver", [GradientDescent, Nesterov, Adam])
def test_a_learned_step_size_is_asked_with_theta_as_it_was_given(solver):
    y, ends = randn(T, D, seed=0), []
    for nested in (True, False):
        rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        start = {"a": {"w": y * 0}} if nested else {"w": y * 0}

        def objective(phi, theta, data):
            return (phi.get("a", phi)["w"] - data).square().sum()

        def lr(theta):
            return {"a": {"w": theta["rates"][0]}} if "rates" in theta else theta["rate"]

        found = argmin(objective, start, {"rates": [rate]} if nested else {"rate": rate}, y,
                       solver=solver(lr=lr, max_steps=3), adjoint=Unroll())  # fmt: skip
        w = (found.value["a"] if nested else found.value)["w"]
        ends += [w, torch.autograd.grad(w.square().sum(), rate)[0]]
    assert torch.equal(ends[0], ends[2])
    assert torch.equal(ends[1], ends[3])


def test_a_solver_sees_flat_names():
    seen = []

    def solver(problem, init):
        seen.extend([*init, *problem.theta])
        return init

    init, theta = {"a": (torch.ones(2, 3),)}, {"b": {"c": torch.ones(())}}

    def objective(phi, theta, data):
        return phi["a"][0].square().sum() * theta["b"]["c"]

    argmin(objective, init, theta, torch.ones(2), solver=solver, adjoint=FirstOrder())
    assert seen == ["a.0", "b.c"]


def test_a_nested_objective_is_looked_at_once():
    """Also one that is made anew each time."""
    calls = []

    def ask(single):
        calls.clear()

        def objective(phi, theta, data):
            calls.append(1)
            return (phi["a"]["w"] - data).square().sum() + theta["b"][0]

        w, y = (torch.zeros(2), torch.ones(2)) if single else (torch.zeros(3, 2), torch.ones(3, 2))
        argmin(objective, {"a": {"w": w}}, {"b": [torch.ones(())]}, y, solver=lambda problem, init: init,
               adjoint=FirstOrder(), batched=not single)  # fmt: skip
        return len(calls)

    for single in (True, False):
        first = ask(single)
        assert ask(single) == first - 2


Weighted = namedtuple("Weighted", "x y weight")
PLAIN = {"mask": None, "scale": 0.5, "name": "a", "count": 3, "on": True, "half": np.float32(0.5)}


def tolerant(phi, theta, data):
    out = data["x"] @ phi["w"]
    assert data["mask"] is None
    assert data["name"] == "a"
    assert data["on"] is True
    return data["scale"] * (out - data["y"]).square().mean() + theta["lam"].exp() / 2 * phi["w"].square().sum()


def of_parts(of_tasks):
    def outputs(phi, theta, data):
        assert data["mask"] is None
        assert data["name"] == "a"
        return (data["x"] @ phi["w"][..., None])[..., 0]

    def losses(out, data):
        assert data["mask"] is None
        return data["scale"] * (out - data["y"]).square().mean(-1)

    batched = {"outputs_of_tasks": outputs, "loss_of_tasks": losses} if of_tasks else {}
    return Composed(outputs, losses, Proximal(lambda theta: theta["lam"].exp(), towards="zero"), **batched)


ADJOINTS = {
    "implicit": lambda: Implicit(linear_solver=CG(max_steps=20)),
    "gauss-newton": lambda: Implicit(linear_solver=CG(max_steps=20), curvature="gauss_newton"),
    "unroll": Unroll,
    "truncate": lambda: Unroll(truncate=400),
    "checkpoint": lambda: Unroll(checkpoint=20),
}


OBJECTIVES = {"plain": tolerant, "parts": of_parts(False), "parts of tasks": of_parts(True)}
CASES = [(name, "implicit", "plain", (T,)) for name in SOLVERS if name != "adam"]
for tasks in ((), (T,)):
    CASES += [("gradient descent", name, "plain", tasks) for name in ADJOINTS if name != "gauss-newton"]
    CASES += [("gradient descent", "gauss-newton", name, tasks) for name in OBJECTIVES if name != "plain"]
CASES += [("hessian-free", "gauss-newton", "parts", (1,))]


@pytest.mark.parametrize(("solver", "adjoint", "objective", "tasks"), CASES)
def test_none_numbers_and_texts_among_data(solver, adjoint, objective, tasks):
    objective = OBJECTIVES[objective]
    theta, data = given(*tasks)
    made = SOLVERS[solver](max_steps=400, tol=0.0 if adjoint in ("truncate", "checkpoint") else 1e-11)
    found = argmin(objective, {"w": torch.zeros(*tasks, D).double()}, theta, {**data, **PLAIN}, solver=made,
                   adjoint=ADJOINTS[adjoint](), batched=bool(tasks))  # fmt: skip
    exact = solved(data["x"], data["y"], theta["lam"])
    inputs = [theta["lam"], data["x"], data["y"]]
    torch.testing.assert_close(found.value["w"], exact, rtol=1e-8, atol=1e-8)
    ours, theirs = (torch.autograd.grad(w.sin().sum(), inputs) for w in (found.value["w"], exact))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("single", [False, True])
def test_a_named_tuple_with_nothing_in_a_field(single):
    tasks = () if single else (T,)
    theta, data = given(*tasks)

    def weighted(phi, theta, batch):
        assert batch.weight is None
        return ridge(phi, theta, {"x": batch.x, "y": batch.y})

    handed = Weighted(data["x"], data["y"], None)
    how = {"adjoint": Implicit(linear_solver=CG(max_steps=20)), "batched": not single}
    zero = {"w": torch.zeros(*tasks, D).double()}
    found = argmin(weighted, zero, theta, handed, solver=LBFGS(max_steps=99, tol=1e-11), **how)
    exact = solved(data["x"], data["y"], theta["lam"])
    torch.testing.assert_close(found.value["w"], exact, rtol=1e-8, atol=1e-9)
    again = attach(found.value, weighted, theta, handed, **how)
    for one in (found, again):
        a, b = (torch.autograd.grad(w.sum(), theta["lam"], retain_graph=True)[0] for w in (one.value["w"], exact))
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    checked = check_meta_gradient(weighted, lambda theta: zero, theta, handed, outer=lambda phi, theta: phi["w"].sum(),
                                  solver=LBFGS(max_steps=99, tol=1e-11), **how)  # fmt: skip
    (slope,) = torch.autograd.grad(exact.sum(), theta["lam"])
    assert float(checked.reference) == pytest.approx(float(slope), rel=1e-8)
    assert checked.error < 1e-7


@pytest.mark.parametrize("off", [False, True])
def test_the_check_takes_nests_one_problem_and_runs_where_gradients_are_off(off):
    w0, (_, data) = randn(D, seed=1), given()

    def objective(phi, theta, data):
        out = data["x"] @ phi[0]["w"]
        return (out - data["y"]).square().mean() / 2 + (phi[0]["w"] - theta["start"][0]).square().sum()

    def run():
        return check_meta_gradient(objective, lambda theta: [{"w": theta["start"][0].clone()}], {"start": [w0]}, data,
                                   outer=lambda phi, theta: phi[0]["w"].sin().sum(),
                                   solver=GradientDescent(lr=0.1, max_steps=2), adjoint=Implicit(),
                                   batched=False)  # fmt: skip

    with torch.set_grad_enabled(not off):
        found = run()
    theta = w0.clone().requires_grad_()
    x, y = data["x"].detach(), data["y"].detach()
    exact = torch.linalg.solve(x.mT @ x / N + 2 * torch.eye(D).double(), x.mT @ y / N + 2 * theta)
    assert torch.allclose(found.reference, torch.autograd.grad(exact.sin().sum(), theta)[0], rtol=1e-8)
    assert found.error > 1e-3
    for part in (found.grad_norm, found.residual, found.reference_grad_norm, found.reference_residual,
                 found.reference_min_curvature):  # fmt: skip
        assert part.shape == ()


def test_a_start_of_another_nest_is_refused():
    calls = []

    def start(theta):
        calls.append(1)
        return [theta["w"][None]] if len(calls) > 1 else {"w": theta["w"][None]}

    with pytest.raises(ValueError, match="the start is not built as phi is"):
        check_meta_gradient(lambda phi, theta, data: phi["w"].square().sum(), start, {"w": torch.ones(3)}, None,
                            outer=lambda phi, theta: phi["w"].sum(), solver=GradientDescent(lr=0.1, max_steps=1),
                            adjoint=Implicit())  # fmt: skip


def test_attach_takes_one_problem_and_a_nest():
    theta, data = given()
    exact = solved(data["x"], data["y"], theta["lam"])
    found = attach([exact], lambda phi, theta, data: ridge({"w": phi[0]}, theta, data), theta, data,
                   adjoint=Implicit(linear_solver=CG(max_steps=20)), batched=False)  # fmt: skip
    for a, b in zip(*(torch.autograd.grad(w.sin().sum(), [theta["lam"], data["x"]]) for w in (found.value[0], exact)),
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert found.steps == 0
    with pytest.warns(MetagradWarning, match="attach: phi is not where"):
        attach([exact + 1], lambda phi, theta, data: ridge({"w": phi[0]}, theta, data), theta, data,
               adjoint=Implicit(), batched=False)  # fmt: skip


def test_cross_entropy_of_one_problem():
    """A loss that looks at the number of axes."""
    x, y = randn(N, D, seed=0), torch.arange(N) % 2
    theta = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)

    def objective(w, lam, data):
        return F.cross_entropy(data[0] @ w, data[1]) + lam.exp() * w.square().sum()

    w = torch.zeros(D, 2).double()
    how = {"solver": LBFGS(max_steps=60, tol=1e-11), "adjoint": Implicit(linear_solver=Dense())}
    one = argmin(objective, w, theta, (x, y), batched=False, **how).value
    many = argmin(objective, w.expand(2, D, 2), theta, (x.expand(2, N, D), y.expand(2, N)), **how).value
    a, b = (torch.autograd.grad(found.square().sum(), theta)[0] for found in (one, many[0]))
    torch.testing.assert_close(one, many[0], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
