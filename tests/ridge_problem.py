"""Ridge regression with its closed form, and a way to make every inner solver, for tests of the core (float64)."""

from functools import partial

import torch
from torch import optim

from metagrad import LBFGS, Adam, GradientDescent, HessianFree, Nesterov, TorchOptimizer

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
        gradient = problem.grad(init)
        init = {name: leaf - 0.3 * gradient[name] for name, leaf in init.items()}
    return init
