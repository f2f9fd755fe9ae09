"""iMAML's meta-gradient beside TorchOpt's ``ImplicitMetaGradientModule``: same solution, same number of products."""

import pytest
import torch
from referees import distance, referee
from torch import nn
from torch.nn import functional as F

from metagrad import CG, GradientDescent, Implicit
from metagrad.fewshot import IMAML, Batch, Tasks, meta_gradient

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*functorch:FutureWarning"),  # TorchOpt's own
]

TASKS, WAYS, LAM, LR, STEPS = 3, 3, 2.0, 0.1, 6


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, WAYS)).double()


def drawn():
    g = torch.Generator().manual_seed(1)

    def batch(count):
        x = torch.randn(TASKS, count, 4, generator=g, dtype=torch.float64)
        return Batch(x, torch.randint(WAYS, (TASKS, count), generator=g))

    return Tasks(batch(6), batch(9))


def inner_module(linear_solve):
    """Return TorchOpt's form of the inner problem: a module that copies the meta-learned one and is held to it."""
    torchopt = referee("torchopt")

    class Inner(torchopt.nn.ImplicitMetaGradientModule, linear_solve=linear_solve):
        def __init__(self, meta):
            super().__init__()
            self.meta, self.net = meta, torchopt.module_clone(meta, by="deepcopy", detach_buffers=True)

        def objective(self, x, y):
            pairs = zip(self.net.parameters(), self.meta.parameters(), strict=True)
            return F.cross_entropy(self.net(x), y) + 0.5 * LAM * sum((p - m).square().sum() for p, m in pairs)

        def solve(self, x, y):
            leaves = list(self.net.parameters())
            for _ in range(STEPS):
                with torch.enable_grad():
                    grads = torch.autograd.grad(self.objective(x, y), leaves)
                with torch.no_grad():
                    for leaf, grad in zip(leaves, grads, strict=True):
                        leaf.sub_(LR * grad)
            return self

    return Inner


def by_torchopt(linear_solve):
    model, tasks, inner = network(), drawn(), inner_module(linear_solve)
    leaves, total = list(model.parameters()), 0.0
    for task in range(TASKS):
        solved = inner(model)
        solved.solve(tasks.support.x[task], tasks.support.y[task])
        loss = F.cross_entropy(solved.net(tasks.query.x[task]), tasks.query.y[task])
        total = total + torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, leaves)]) / TASKS
    return [total]


def by_metagrad(linear_solver):
    model = network()
    solver = GradientDescent(lr=LR, max_steps=STEPS)
    method = IMAML(lam=LAM, solver=solver, adjoint=Implicit(linear_solver=linear_solver, curvature="hessian"))
    theta = method.init(model)
    meta_gradient(method, model, theta, drawn())
    return [leaf.grad for leaf in theta.values()]


@pytest.mark.parametrize("products", [1, 2, 5, 40])
def test_conjugate_gradients_of_so_many_products(products):
    solve = referee("torchopt").linear_solve.solve_cg(maxiter=products, rtol=0.0, atol=0.0)
    ours = CG(max_steps=products, tol=0.0, on_negative="continue")
    assert distance(by_metagrad(ours), by_torchopt(solve)) < 1e-12


def test_few_products_and_many_give_different_gradients():
    few, many = (by_metagrad(CG(max_steps=steps, tol=0.0)) for steps in (1, 40))
    assert distance(few, many) > 1e-3
