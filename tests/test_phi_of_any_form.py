"""Phi and theta as nests, or as tensors alone, against closed forms and the same problem laid flat (float64)."""

from collections import OrderedDict, UserDict, namedtuple
from types import MappingProxyType

import numpy as np
import pytest
import torch
from ridge_problem import D, N, T, given, randn
from torch import nn

from metagrad import (
    CG,
    LBFGS,
    Adam,
    Composed,
    Dense,
    FirstOrder,
    GradientDescent,
    Implicit,
    Nesterov,
    Proximal,
    Unroll,
    argmin,
    check_meta_gradient,
    tree,
)

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
def test_a_learned_step_size_is_called_with_theta_as_it_was_given(solver):
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
    names = []

    def solver(problem, init):
        names.extend([*init, *problem.theta])
        return init

    init, theta = {"a": (torch.ones(2, 3),)}, {"b": {"c": torch.ones(())}}

    def objective(phi, theta, data):
        return phi["a"][0].square().sum() * theta["b"]["c"]

    argmin(objective, init, theta, torch.ones(2), solver=solver, adjoint=FirstOrder())
    assert names == ["a.0", "b.c"]


def test_a_nested_objective_is_validated_once():
    """Also one that is made anew each time."""
    calls = []

    def evaluations(single):
        calls.clear()

        def objective(phi, theta, data):
            calls.append(1)
            return (phi["a"]["w"] - data).square().sum() + theta["b"][0]

        w, y = (torch.zeros(2), torch.ones(2)) if single else (torch.zeros(3, 2), torch.ones(3, 2))
        argmin(objective, {"a": {"w": w}}, {"b": [torch.ones(())]}, y, solver=lambda problem, init: init,
               adjoint=FirstOrder(), batched=not single)  # fmt: skip
        return len(calls)

    for single in (True, False):
        first = evaluations(single)
        assert evaluations(single) == first - 2


def test_a_start_of_another_nest_is_refused():
    calls = []

    def start(theta):
        calls.append(1)
        return [theta["w"][None]] if len(calls) > 1 else {"w": theta["w"][None]}

    with pytest.raises(ValueError, match="the start is not built as phi is"):
        check_meta_gradient(lambda phi, theta, data: phi["w"].square().sum(), start, {"w": torch.ones(3)}, None,
                            outer=lambda phi, theta: phi["w"].sum(), solver=GradientDescent(lr=0.1, max_steps=1),
                            adjoint=Implicit())  # fmt: skip
