"""iMAML and MAML written out in numpy: derivatives by hand, matrices in full, nothing of torch and nothing of ours.

The network is ``x → tanh(x W + b) V + c``. Its Hessian is put together from the Jacobian of the outputs and the second
derivatives of each output, the linear system is solved by a factorisation.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from referees import distance
from torch import nn
from torch.nn import functional as F

from metagrad import (
    CG,
    MINRES,
    Composed,
    Dense,
    GradientDescent,
    HessianFree,
    Implicit,
    Proximal,
    Unroll,
    Woodbury,
    argmin,
    check_meta_gradient,
)
from metagrad.fewshot import FOMAML, IMAML, MAML, Batch, Tasks, meta_gradient

TASKS, INPUTS, HIDDEN, OUTPUTS, SUPPORT, QUERY = 3, 3, 4, 3, 6, 5
SIZE = HIDDEN * (INPUTS + 1) + OUTPUTS * (HIDDEN + 1)
LAM, LR, STEPS = 1.5, 0.2, 7
EVEN = LAM * np.ones(SIZE)
TO_THE_END = {"lr": 0.05, "steps": 100, "newton": 6}


def split(phi):
    """Return W, b, V, c of a vector that has them in torch's order: weights are (out, in)."""
    ends = np.cumsum([HIDDEN * INPUTS, HIDDEN, OUTPUTS * HIDDEN])
    w, b, v, c = np.split(phi, ends)
    return w.reshape(HIDDEN, INPUTS), b, v.reshape(OUTPUTS, HIDDEN), c


def outputs(phi, x):
    w, b, v, c = split(phi)
    return np.tanh(x @ w.T + b) @ v.T + c


def first_and_second(phi, x):
    """Return the outputs' Jacobian, (N, OUTPUTS, SIZE), and second derivatives, (N, OUTPUTS, SIZE, SIZE)."""
    w, b, v, _ = split(phi)
    h = np.tanh(x @ w.T + b)
    slope, bend = 1 - h**2, -2 * h * (1 - h**2)
    n, ones = len(x), np.ones((len(x), 1))
    extended = np.concatenate([x, ones], 1)  # what W and b are multiplied with
    first, second = np.zeros((n, OUTPUTS, SIZE)), np.zeros((n, OUTPUTS, SIZE, SIZE))
    at = {"v": HIDDEN * (INPUTS + 1), "c": HIDDEN * (INPUTS + 1) + OUTPUTS * HIDDEN}
    for j in range(HIDDEN):
        own = [j * INPUTS + i for i in range(INPUTS)] + [HIDDEN * INPUTS + j]  # places of W_j and b_j
        for k in range(OUTPUTS):
            place = at["v"] + k * HIDDEN + j
            first[:, k, own] = (v[k, j] * slope[:, j])[:, None] * extended
            first[:, k, place] = h[:, j]
            second[np.ix_(range(n), [k], own, own)] = np.einsum(
                "n,na,nb->nab", v[k, j] * bend[:, j], extended, extended
            )[:, None]
            cross = slope[:, j][:, None] * extended
            second[:, k, place, own] = cross
            second[:, k, own, place] = cross
    for k in range(OUTPUTS):
        first[:, k, at["c"] + k] = 1.0
    return first, second


def softmax_loss(scores, y):
    """Return the slope, (N, OUTPUTS), and curvature, (N, OUTPUTS, OUTPUTS), of the mean cross-entropy in the scores."""
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    n, eye = len(p), np.eye(OUTPUTS)
    return (p - eye[y]) / n, (p[:, :, None] * (eye - p[:, None, :])) / n


def squared_loss(scores, y):
    """Return the same of the mean over all outputs of the squared error."""
    n = scores.size
    return 2 * (scores - y) / n, np.broadcast_to(2 * np.eye(OUTPUTS) / n, (len(scores), OUTPUTS, OUTPUTS))


def derivatives(phi, x, y, loss):
    """Return the loss' gradient, Hessian and Gauss-Newton matrix in phi."""
    first, second = first_and_second(phi, x)
    slope, curvature = loss(outputs(phi, x), y)
    gauss_newton = np.einsum("nka,nkl,nlb->ab", first, curvature, first)
    return np.einsum("nk,nka->a", slope, first), gauss_newton + np.einsum("nk,nkab->ab", slope, second), gauss_newton


class Data(NamedTuple):
    theta: np.ndarray
    support: list
    query: list


def drawn(loss):
    rng = np.random.default_rng(7)

    def batch(count):
        y = rng.integers(OUTPUTS, size=count) if loss is softmax_loss else rng.normal(size=(count, OUTPUTS))
        return rng.normal(size=(count, INPUTS)), y

    return Data(rng.normal(size=SIZE), [batch(SUPPORT) for _ in range(TASKS)], [batch(QUERY) for _ in range(TASKS)])


def imaml_by_hand(data, loss, kind, *, lam=EVEN, lr=LR, steps=STEPS, newton=0):
    """Return ``dF/dtheta`` and ``dF/dlam``, lam one a weight, after steps of descent and then of Newton's method."""
    total, by_lam = np.zeros(SIZE), np.zeros(SIZE)
    for support, query in zip(data.support, data.query, strict=True):
        phi = data.theta
        for _ in range(steps):
            phi = phi - lr * (derivatives(phi, *support, loss)[0] + lam * (phi - data.theta))
        for _ in range(newton):
            slope, hessian, _ = derivatives(phi, *support, loss)
            phi = phi - np.linalg.solve(hessian + np.diag(lam), slope + lam * (phi - data.theta))
        _, hessian, gauss_newton = derivatives(phi, *support, loss)
        v = derivatives(phi, *query, loss)[0]
        u = np.linalg.solve((hessian if kind == "hessian" else gauss_newton) + np.diag(lam), v)
        total, by_lam = total + lam * u / TASKS, by_lam - u * (phi - data.theta) / TASKS
    return total, by_lam


def maml_by_hand(data, loss, steps, *, first_order=False):
    total = np.zeros(SIZE)
    for support, query in zip(data.support, data.query, strict=True):
        phi, jacobian = data.theta, np.eye(SIZE)
        for _ in range(steps):
            slope, hessian, _ = derivatives(phi, *support, loss)
            phi, jacobian = phi - LR * slope, jacobian if first_order else jacobian - LR * hessian @ jacobian
        total = total + jacobian.T @ derivatives(phi, *query, loss)[0] / TASKS
    return total


def network(theta):
    model = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, OUTPUTS)).double()
    with torch.no_grad():
        for leaf, part in zip(model.parameters(), split(theta), strict=True):
            leaf.copy_(torch.from_numpy(part))
    return model


def stacked(batches):
    x, y = zip(*batches, strict=True)
    return Batch(torch.from_numpy(np.stack(x)), torch.from_numpy(np.stack(y)))


def by_metagrad(method, data):
    model = network(data.theta)
    theta = method.init(model)
    meta_gradient(method, model, theta, Tasks(stacked(data.support), stacked(data.query)))
    return {name: leaf.grad for name, leaf in theta.items()}


@pytest.mark.parametrize(
    "solver",
    [CG(max_steps=200, tol=1e-14, on_negative="continue"), MINRES(max_steps=200, tol=1e-14), Dense()],
    ids=repr,
)
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_imaml_of_a_classifier(kind, solver):
    data = drawn(softmax_loss)
    descent = GradientDescent(lr=LR, max_steps=STEPS)
    adjoint = Implicit(linear_solver=solver, curvature=kind)
    found = by_metagrad(IMAML(lam=LAM, learn_lam="scalar", solver=descent, adjoint=adjoint), data)
    log_lam = [found.pop(name) for name in list(found) if name.startswith(".log_lam")]
    theta, lam = imaml_by_hand(data, softmax_loss, kind)
    assert distance(found, [theta]) < 1e-11
    assert distance(log_lam, [[LAM * lam.sum()]]) < 1e-11


@pytest.mark.parametrize("form", ["tensor", "parameter"])
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_a_strength_for_each_tensor_or_weight_none_like_another(form, kind):
    data, rng = drawn(softmax_loss), np.random.default_rng(8)
    cg = CG(max_steps=300, tol=1e-14, on_negative="continue")
    adjoint = Implicit(linear_solver=cg, curvature=kind)
    method = IMAML(learn_lam=form, solver=GradientDescent(lr=LR, max_steps=STEPS), adjoint=adjoint)
    model = network(data.theta)
    theta = method.init(model)
    strengths = {name: leaf for name, leaf in theta.items() if name.startswith(".log_lam")}
    weights = [leaf for name, leaf in theta.items() if name not in strengths]
    for leaf in strengths.values():
        leaf.data.copy_(torch.from_numpy(rng.uniform(-0.3, 0.8, tuple(leaf.shape))))
    meta_gradient(method, model, theta, Tasks(stacked(data.support), stacked(data.query)))
    pairs = zip(strengths.values(), weights, strict=True)
    lam = torch.cat([leaf.detach().exp().expand_as(weight).flatten() for leaf, weight in pairs]).numpy()
    total, by_lam = imaml_by_hand(data, softmax_loss, kind, lam=lam)
    each = np.split(lam * by_lam, np.cumsum([weight.numel() for weight in weights])[:-1])
    expected = each if form == "parameter" else [[part.sum()] for part in each]
    assert distance([leaf.grad for leaf in weights], [total]) < 1e-11
    assert distance([leaf.grad for leaf in strengths.values()], expected) < 1e-11


def test_woodbury_is_the_whole_system_too():
    data = drawn(softmax_loss)
    adjoint = Implicit(linear_solver=Woodbury(), curvature="gauss_newton")
    found = by_metagrad(IMAML(lam=LAM, solver=GradientDescent(lr=LR, max_steps=STEPS), adjoint=adjoint), data)
    assert distance(found, [imaml_by_hand(data, softmax_loss, "gauss_newton")[0]]) < 1e-11


@pytest.mark.parametrize("steps", [1, STEPS])
@pytest.mark.parametrize(("method", "first_order"), [(MAML, False), (FOMAML, True)])
def test_maml_of_a_classifier(method, first_order, steps):
    data = drawn(softmax_loss)
    expected = maml_by_hand(data, softmax_loss, steps, first_order=first_order)
    assert distance(by_metagrad(method(inner_lr=LR, inner_steps=steps), data), [expected]) < 1e-12


def regression(model):
    def scores(phi, theta, data):
        return torch.func.functional_call(model, phi, (data.x,))

    return Composed(scores, lambda out, data: F.mse_loss(out, data.y), Proximal(lambda theta: theta[".lam"]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_imaml_of_a_regression_solved_to_the_end(kind):
    """Any solver ends where descent ends, and the gradient is that of the solution."""
    data = drawn(squared_loss)
    model, query = network(data.theta), stacked(data.query)
    theta = {name: leaf.detach().requires_grad_() for name, leaf in model.named_parameters()}
    theta[".lam"] = torch.tensor(LAM, dtype=torch.float64, requires_grad=True)
    init = {name: leaf.detach().expand(TASKS, *leaf.shape) for name, leaf in theta.items() if name != ".lam"}
    solver = HessianFree(max_steps=100, tol=1e-13, cg_steps=SIZE)
    adjoint = Implicit(linear_solver=CG(max_steps=200, tol=1e-14, on_negative="continue"), curvature=kind)
    solution = argmin(regression(model), init, theta, stacked(data.support), solver=solver, adjoint=adjoint)
    of_tasks = torch.vmap(lambda phi, x: torch.func.functional_call(model, phi, (x,)))(solution.value, query.x)
    F.mse_loss(of_tasks, query.y).backward()
    total, lam = imaml_by_hand(data, squared_loss, kind, **TO_THE_END)
    by_lam = theta.pop(".lam").grad
    assert distance([leaf.grad for leaf in theta.values()], [total]) < 1e-10
    assert distance([by_lam], [[lam.sum()]]) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("steps", [3, 40])
def test_what_a_gradient_is_compared_with_is_the_exact_one(steps):
    """``check_meta_gradient`` after few or many steps: its reference, and the error that it states."""
    data = drawn(squared_loss)
    model, query = network(data.theta), stacked(data.query)
    theta = {name: leaf.detach().requires_grad_() for name, leaf in model.named_parameters()}

    def outer(phi, theta):
        outputs = torch.vmap(lambda phi, x: torch.func.functional_call(model, phi, (x,)))(phi, query.x)
        return F.mse_loss(outputs, query.y)

    def scores(phi, theta, data):
        return torch.func.functional_call(model, phi, (data.x,))

    objective = Composed(scores, lambda out, data: F.mse_loss(out, data.y), Proximal(LAM))
    adjoint = Implicit(linear_solver=CG(max_steps=300, tol=1e-14, on_negative="continue"))
    check = check_meta_gradient(
        objective,
        lambda theta: {name: leaf.expand(TASKS, *leaf.shape) for name, leaf in theta.items()},
        theta,
        stacked(data.support),
        outer=outer,
        solver=GradientDescent(lr=TO_THE_END["lr"], max_steps=steps),
        adjoint=adjoint,
    )
    exact, _ = imaml_by_hand(data, squared_loss, "hessian", **TO_THE_END)
    early, _ = imaml_by_hand(data, squared_loss, "hessian", lr=TO_THE_END["lr"], steps=steps)
    assert distance([check.reference], [exact]) < 1e-8
    assert distance([check.used], [early]) < 1e-10
    assert abs(check.error - distance([early], [exact])) < 1e-8
    assert abs(check.cosine - early @ exact / np.linalg.norm(early) / np.linalg.norm(exact)) < 1e-8


@pytest.mark.slow
def test_unrolled_descent_on_the_regression_tends_to_the_implicit_gradient():
    data = drawn(squared_loss)
    model, query = network(data.theta), stacked(data.query)
    theta = {name: leaf.detach().requires_grad_() for name, leaf in model.named_parameters()}
    fixed = {**theta, ".lam": torch.tensor(LAM, dtype=torch.float64)}
    init = {name: leaf.expand(TASKS, *leaf.shape) for name, leaf in theta.items()}
    solver = GradientDescent(lr=TO_THE_END["lr"], max_steps=1200)
    solution = argmin(regression(model), init, fixed, stacked(data.support), solver=solver, adjoint=Unroll())
    of_tasks = torch.vmap(lambda phi, x: torch.func.functional_call(model, phi, (x,)))(solution.value, query.x)
    F.mse_loss(of_tasks, query.y).backward()
    expected, _ = imaml_by_hand(data, squared_loss, "hessian", **TO_THE_END)
    assert distance([leaf.grad for leaf in theta.values()], [expected]) < 1e-10


@pytest.mark.parametrize("loss", [softmax_loss, squared_loss])
def test_the_derivatives_by_hand_are_those_of_differences(loss):
    data = drawn(loss)
    support, step = data.support[0], 1e-5
    slope, hessian, gauss_newton = derivatives(data.theta, *support, loss)
    columns = [
        (derivatives(data.theta + step * e, *support, loss)[0] - derivatives(data.theta - step * e, *support, loss)[0])
        / (2 * step)
        for e in np.eye(SIZE)
    ]
    assert distance([hessian], [np.stack(columns, 1)]) < 1e-8
    assert distance([gauss_newton], [hessian]) > 0.01
    assert np.linalg.norm(slope) > 0.01
