"""Every inner solver on every problem, against solutions found another way (float64)."""

from functools import partial

import pytest
import torch
from torch import nn, optim
from torch.func import functional_call
from torch.nn import functional as F

from metagrad import (
    CG,
    LBFGS,
    Adam,
    Composed,
    FirstOrder,
    GradientDescent,
    HessianFree,
    Implicit,
    Nesterov,
    Proximal,
    TorchOptimizer,
    Unroll,
    argmin,
    tree,
)
from metagrad.fewshot import Conv4, admit, support_loss
from metagrad.fewshot.tasks import Batch
from metagrad.implicit import Problem, Solution

T = 3


def randn(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def quadratic():
    A, b, theta = randn(T, 6, 6, seed=0), randn(T, 6, seed=1), randn(6, seed=2)
    A = A @ A.mT / 6 + torch.eye(6, dtype=torch.float64)
    g = Composed(
        outputs=lambda phi, theta, data: torch.linalg.cholesky(data[0]).mT @ phi["w"],
        loss=lambda out, data: 0.5 * out @ out + data[1] @ torch.linalg.solve(torch.linalg.cholesky(data[0]).mT, out),
        regulariser=Proximal(0.5),
    )
    return g, {"w": theta}, (A, b)


def logistic():
    x, y = randn(T, 20, 4, seed=3), (randn(T, 20, seed=4) > 0).long()
    g = Composed(
        outputs=lambda phi, theta, data: data[0] @ phi["w"] + phi["b"],
        loss=lambda out, data: F.cross_entropy(out, data[1]),
        regulariser=Proximal(0.1),
    )
    return g, {"w": randn(4, 2, seed=5), "b": randn(2, seed=6)}, (x, y)


def mlp():
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    with torch.no_grad():
        for seed, leaf in enumerate(net.parameters()):
            leaf.copy_(0.5 * randn(*leaf.shape, seed=seed + 20))
    x, y = randn(T, 8, 3, seed=7), randn(T, 8, 1, seed=8)
    g = Composed(
        outputs=lambda phi, theta, data: functional_call(net, phi, (data[0],)),
        loss=lambda out, data: (out - data[1]).square().mean(),
        regulariser=Proximal(1.0),
    )
    return g, {name: leaf.detach() for name, leaf in net.named_parameters()}, (x, y)


def conv4():
    # Smooth: with ReLU, minimisers sit on kinks and gradients do not vanish.
    model = Conv4(3, channels=1, image_size=12, filters=2, generator=torch.Generator().manual_seed(0)).double()
    for name, part in list(model.named_modules()):
        if isinstance(part, nn.ReLU):
            home, _, last = name.rpartition(".")
            setattr(model.get_submodule(home), last, nn.Softplus())
    model = admit(model, torch.rand(4, 1, 12, 12, dtype=torch.float64))
    x, y = randn(T, 6, 1, 12, 12, seed=9), torch.arange(3).repeat(T, 2)
    theta = {name: leaf.detach() for name, leaf in model.named_parameters()}
    return support_loss(model, lam=20.0), theta, Batch(x, y)


# A new solver joins by a line: (name, made from a step size, as some need it). The step size is right for the problem.
PROBLEMS = {"quadratic": (quadratic, 0.15), "logistic": (logistic, 0.5), "mlp": (mlp, 0.1), "conv4": (conv4, 0.02)}
TORCH_LBFGS = partial(optim.LBFGS, line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0, max_iter=5)
SOLVERS = {
    "gradient descent": lambda lr, **o: GradientDescent(lr=lr, **o),
    "momentum": lambda lr, **o: GradientDescent(lr=lr, momentum=0.5, **o),
    "line search": lambda lr, **o: GradientDescent(lr=8 * lr, line_search=True, **o),
    "nesterov": lambda lr, **o: Nesterov(lr=lr / 2, **o),
    "nesterov, convexity known": lambda lr, **o: Nesterov(lr=lr / 2, convexity=0.1, **o),
    "hessian-free": lambda lr, **o: HessianFree(**o),
    "hessian-free, 30 products": lambda lr, **o: HessianFree(cg_steps=30, curvature="hessian", **o),
    "hessian-free, damped": lambda lr, **o: HessianFree(damping=3.0, cg_steps=10, **o),
    "lbfgs": lambda lr, **o: LBFGS(**o),
    "torch SGD": lambda lr, **o: TorchOptimizer(factory=partial(optim.SGD, lr=lr, momentum=0.3, nesterov=True), **o),
    "torch LBFGS": lambda lr, **o: TorchOptimizer(
        factory=partial(optim.LBFGS, line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0, max_iter=5),
        **o,
    ),
    "adam": lambda lr, **o: Adam(lr=0.03, **o),
    "torch Adam": lambda lr, **o: TorchOptimizer(factory=partial(optim.Adam, lr=0.03), **o),
}
# Gradient norm asked for and error allowed, where not 1e-9 and 1e-8: Adam circles a solution at a constant step size;
# torch's line search goes by values alone, which rounding hides.
LESS = {"adam": (1e-2, 0.1), "torch Adam": (1e-2, 0.1), "torch LBFGS": (1e-6, 1e-6)}


@pytest.fixture(scope="module")
def oracles():
    """Newton's method with dense matrices, one task at a time: nothing in common with the solvers but the objective."""
    return {name: dense_newton(*make()) for name, (make, _) in PROBLEMS.items()}


def dense_newton(g, theta, data):
    flat_of = partial(torch.cat, dim=0)
    found = []
    for task in range(T):
        mine = tree.map_tensors(lambda leaf, task=task: leaf[task], data)

        def value(flat, mine=mine):
            parts = flat.split([leaf.numel() for leaf in theta.values()])
            phi = {name: part.view_as(leaf) for (name, leaf), part in zip(theta.items(), parts, strict=True)}
            return g(phi, theta, mine)

        flat = flat_of([leaf.reshape(-1) for leaf in theta.values()])
        for _ in range(100):
            grad = torch.func.grad(value)(flat)
            if grad.norm() < 1e-13:
                break
            values, vectors = torch.linalg.eigh(torch.func.hessian(value)(flat))
            step = -vectors @ ((vectors.mT @ grad) / values.abs().clamp(min=1e-3))
            length = 1.0
            while value(flat + length * step) > value(flat) + 1e-14 and length > 1e-6:
                length /= 2
            flat = flat + length * step
        found.append(flat)
    return torch.stack(found)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_finds_the_minimum(solver, problem, oracles):
    make, lr = PROBLEMS[problem]
    g, theta, data = make()
    tol, allowed = LESS.get(solver, (1e-9, 1e-8))
    solve = SOLVERS[solver](lr, max_steps=2000, tol=tol)
    solution = solve(Problem(g, theta, data), tree.expand(theta, T))
    found = torch.cat([solution.value[name].reshape(T, -1) for name in theta], 1)
    error = (found - oracles[problem]).norm(dim=1)
    assert (error <= allowed * oracles[problem].norm(dim=1)).all(), (error, solution.steps)
    # What it says of itself is so.
    assert (solution.grad_norm <= tol).all()
    true = tree.norm(Problem(g, theta, data).grad(solution.value))
    torch.testing.assert_close(solution.grad_norm, true, rtol=1e-6, atol=1e-14)
    assert solution.steps.shape == (T,)
    assert (solution.steps > 0).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_task_stops_by_itself(solver):
    """A task solved alone takes the same steps to the same answer, and one that starts solved takes none."""
    g, theta, data = quadratic()
    solve = SOLVERS[solver](0.15, max_steps=2000, tol=1e-2)
    start = tree.expand(theta, T)
    together = solve(Problem(g, theta, data), start)
    for task in range(T):
        mine = tree.map_tensors(lambda leaf, task=task: leaf[task : task + 1], (data, start))
        alone = solve(Problem(g, theta, mine[0]), mine[1])
        assert alone.steps.item() == together.steps[task].item()
        torch.testing.assert_close(alone.value["w"][0], together.value["w"][task], rtol=1e-9, atol=1e-11)
    again = solve(Problem(g, theta, data), together.value)
    assert again.steps.tolist() == [0] * T
    assert torch.equal(again.value["w"], together.value["w"])


UNROLLED = {
    "gradient descent": GradientDescent(lr=0.15, max_steps=400),
    "momentum": GradientDescent(lr=0.15, max_steps=300, momentum=0.3),
    "line search": GradientDescent(lr=1.0, max_steps=80, line_search=True),
    "nesterov": Nesterov(lr=0.12, max_steps=200),
    "nesterov, convexity known": Nesterov(lr=0.12, max_steps=200, convexity=1.5),
    "adam": Adam(lr=lambda theta: torch.tensor(0.05), max_steps=900),
    "torch SGD": TorchOptimizer(factory=partial(optim.SGD, lr=0.15, differentiable=True), max_steps=400),
}


@pytest.mark.parametrize("solver", UNROLLED)
def test_unrolled_meets_implicit(solver):
    g, theta, data = quadratic()
    theta = {name: leaf.requires_grad_() for name, leaf in theta.items()}
    gradients = []
    for adjoint in (Unroll(), Implicit(linear_solver=CG(max_steps=50, tol=1e-14))):
        solution = argmin(g, tree.expand(theta, T), theta, data, solver=UNROLLED[solver], adjoint=adjoint)
        gradients.append(torch.autograd.grad(solution.value["w"].square().sum(), theta["w"])[0])
    tolerance = 1e-2 if solver == "adam" else 1e-8
    assert (gradients[0] - gradients[1]).norm() <= tolerance * gradients[1].norm()


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "ASGD"])
def test_torch_rules_unroll_rightly(name):
    g, theta, data = quadratic()
    solver = TorchOptimizer(factory=partial(getattr(optim, name), lr=0.05, differentiable=True), max_steps=7)

    def outer(w):
        return argmin(g, {"w": w.expand(T, 6)}, {"w": w}, data, solver=solver, adjoint=Unroll()).value["w"]

    w = theta["w"].requires_grad_()
    (found,) = torch.autograd.grad(outer(w).square().sum(), w)
    steps = 1e-6 * torch.eye(6, dtype=torch.float64)
    with torch.no_grad():
        around = [(outer(w + e).square().sum() - outer(w - e).square().sum()) / 2e-6 for e in steps]
    assert (found - torch.stack(around)).norm() <= 1e-8 * found.norm()


ELEMENTWISE = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "ASGD", "Rprop")


@pytest.mark.parametrize("name", [*ELEMENTWISE, "LBFGS", "Adafactor"])
def test_torch_optimisers_see_each_task_alone(name):
    """Batched or one by one, a task's answer is what the optimiser gives that task by itself."""
    g, theta, data = mlp()
    factory = partial(getattr(optim, name), lr=0.05)
    solver = TorchOptimizer(factory=factory, max_steps=12)
    solution = solver(Problem(g, theta, data), tree.expand(theta, T))
    for task in range(T):
        phi = {key: leaf.clone().requires_grad_() for key, leaf in theta.items()}
        mine = tree.map_tensors(lambda leaf, task=task: leaf[task], data)
        optimizer = factory(list(phi.values()))

        def closure(phi=phi, mine=mine, optimizer=optimizer):
            optimizer.zero_grad()
            value = g(phi, theta, mine)
            value.backward()
            return value

        for _ in range(12):
            optimizer.step(closure)
        for key, leaf in phi.items():
            torch.testing.assert_close(solution.value[key][task], leaf.detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "solver",
    [
        HessianFree(max_steps=2),
        LBFGS(max_steps=2),
        TorchOptimizer(factory=partial(optim.LBFGS), max_steps=2),
        TorchOptimizer(factory=partial(optim.SGD, lr=0.1), max_steps=2),
        TorchOptimizer(factory=partial(optim.SGD, lr=0.1, momentum=0.5, differentiable=True), max_steps=2),
        TorchOptimizer(factory=partial(optim.Rprop, lr=0.1, differentiable=True), max_steps=2),
    ],
)
def test_refuses_to_be_unrolled_where_it_would_be_wrong(solver):
    g, theta, data = quadratic()
    theta["w"].requires_grad_()
    with pytest.raises(ValueError, match="unroll"):
        argmin(g, tree.expand(theta, T), theta, data, solver=solver, adjoint=Unroll())


def test_accepts_a_users_own_function():
    g, theta, data = quadratic()
    theta["w"].requires_grad_()

    def mine(problem, init):
        phi = init
        for _ in range(400):
            phi = tree.add(phi, problem.grad(phi), -0.15)
        return phi

    expected = argmin(g, tree.expand(theta, T), theta, data, solver=GradientDescent(lr=0.15, max_steps=400),
                      adjoint=Implicit(linear_solver=CG(max_steps=50)))  # fmt: skip
    found = argmin(g, tree.expand(theta, T), theta, data, solver=mine, adjoint=Implicit(linear_solver=CG(max_steps=50)))
    for solution in (expected, found):
        solution.value["w"].square().sum().backward()
    torch.testing.assert_close(found.value["w"], expected.value["w"])
    torch.testing.assert_close(found.grad_norm, expected.grad_norm)
    assert isinstance(found, Solution)
    with pytest.raises(ValueError, match="shapes"):
        argmin(g, tree.expand(theta, T), theta, data, solver=lambda problem, init: {"w": init["w"][:, :2]},
               adjoint=FirstOrder())  # fmt: skip


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: GradientDescent(lr=0.1, max_steps=1, momentum=1.0), "momentum"),
        (lambda: GradientDescent(lr=0.1, max_steps=1, momentum=0.5, line_search=True), "line_search"),
        (lambda: GradientDescent(lr=0.1, max_steps=1, tol=-1), "tol"),
        (lambda: Nesterov(lr=0.1, max_steps=1, convexity=11.0), "convexity"),
        (lambda: HessianFree(max_steps=0), "max_steps"),
        (lambda: HessianFree(max_steps=1, cg_steps=0), "cg_steps"),
        (lambda: HessianFree(max_steps=1, damping=-1), "damping"),
        (lambda: LBFGS(max_steps=1, history=0), "history"),
        (lambda: Adam(lr=0.1, max_steps=1, betas=(1.0, 0.9)), "betas"),
        (lambda: TorchOptimizer(factory=optim.SGD, max_steps=0), "max_steps"),
        (lambda: Proximal(0.0), "lam"),
    ],
)
def test_refuses_impossible_options(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
@pytest.mark.parametrize(
    ("loss", "starts"),
    [
        (lambda outputs, data: (1 + outputs.square()).sqrt().sum() - outputs.numel(), (2.0, 8.0, 12.0, 20.0)),
        (lambda outputs, data: (F.softplus(outputs) - 0.5 * outputs).sum() + 5e-7 * outputs.square().sum(),
         (2.0, 6.0, 9.0, 12.0)),
    ],
    ids=["square root", "softplus"],
)  # fmt: skip
def test_newton_with_too_long_a_step_raises_its_damping_until_one_goes_down(loss, starts, curvature):
    """Where the line search finds no length, the next step must not be the same again."""
    g = Composed(lambda phi, theta, data: phi["x"], loss)
    solver = HessianFree(max_steps=60, tol=1e-10, curvature=curvature)
    start = {"x": torch.tensor(starts).double()[:, None]}
    found = argmin(g, start, {}, None, solver=solver, adjoint=FirstOrder())
    assert found.grad_norm.max() < 1e-9
    assert found.value["x"].abs().max() < 1e-8
    assert found.steps.max() < 30


@pytest.mark.parametrize("seed", range(3))
def test_a_line_search_takes_fewer_steps_than_one_over_the_largest_curvature(seed):
    """However long its first step is."""
    vectors = torch.linalg.qr(randn(20, 20, seed=seed)).Q
    curvatures = torch.logspace(-1, 1, 20, dtype=torch.float64)
    data = (vectors * curvatures @ vectors.mT)[None]
    problem = Problem(lambda phi, theta, data: 0.5 * phi["w"] @ data @ phi["w"], {}, data)
    init = {"w": randn(1, 20, seed=seed + 50)}
    fixed = GradientDescent(lr=1 / 10, max_steps=5000, tol=1e-6)(problem, init)
    for first in (1e-3, 0.3, 30.0):
        searched = GradientDescent(lr=first, max_steps=5000, tol=1e-6, line_search=True)(problem, init)
        assert searched.grad_norm.item() <= 1e-6
        assert searched.steps.item() < 0.2 * fixed.steps.item(), (first, searched.steps, fixed.steps)
