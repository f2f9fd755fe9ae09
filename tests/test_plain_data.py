"""None, numbers and texts among data, and named tuples, reach the objective as they are (float64)."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from ridge_problem import SOLVERS, D, T, given, ridge, solved

from metagrad import CG, LBFGS, Composed, Implicit, Proximal, Unroll, argmin, attach, check_meta_gradient

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
    (gradient,) = torch.autograd.grad(exact.sum(), theta["lam"])
    assert float(checked.reference) == pytest.approx(float(gradient), rel=1e-8)
    assert checked.error < 1e-7
