"""Products with the Hessian and the Gauss-Newton matrix of a convolutional network, beside curvlinops."""

import pytest
import torch
from referees import distance, referee
from torch import nn

from metagrad.fewshot import Batch, classification
from metagrad.implicit import Problem

pytestmark = pytest.mark.slow

TASKS, EXAMPLES, WAYS = 3, 7, 4


class Standardised(nn.Module):
    """A norm of each picture, written out: torch's have no forward derivative, which curvlinops takes."""

    def forward(self, x):
        centred = x - x.mean((1, 2, 3), keepdim=True)
        return centred / (centred.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2), Standardised(), nn.GELU(), nn.Conv2d(4, 5, 2), nn.Tanh(), nn.Flatten(),
        nn.Linear(20, WAYS),
    ).double()  # fmt: skip


def drawn(g):
    x = torch.randn(TASKS, EXAMPLES, 2, 8, 8, generator=g, dtype=torch.float64)
    return Batch(x, torch.randint(WAYS, (TASKS, EXAMPLES), generator=g))


@pytest.mark.parametrize("lam", [None, 0.7], ids=["loss alone", "with its pull"])
@pytest.mark.parametrize(
    ("kind", "operator"), [("hessian", "HessianLinearOperator"), ("gauss_newton", "GGNLinearOperator")]
)
def test_products_of_every_task_at_weights_of_its_own(kind, operator, lam):
    curvlinops = referee("curvlinops")
    model, g = network(), torch.Generator().manual_seed(1)
    data = drawn(g)
    theta = {name: leaf.detach() for name, leaf in model.named_parameters()}

    def random(scale):
        draw = {name: torch.randn(TASKS, *leaf.shape, generator=g, dtype=leaf.dtype) for name, leaf in theta.items()}
        return {name: scale * leaf for name, leaf in draw.items()}

    phi = {name: theta[name] + leaf for name, leaf in random(0.3).items()}
    v = random(1.0)
    found = Problem(classification(model, lam), theta, data).curvature(phi, kind)(v)
    for task in range(TASKS):
        own = network()
        own.load_state_dict({name: leaf[task] for name, leaf in phi.items()})
        matrix = getattr(curvlinops, operator)(
            own, nn.CrossEntropyLoss(), list(own.parameters()), [(data.x[task], data.y[task])]
        )
        product = matrix @ [leaf[task] for leaf in v.values()]
        expected = [part + (lam or 0.0) * leaf[task] for part, leaf in zip(product, v.values(), strict=True)]
        assert distance([leaf[task] for leaf in found.values()], expected) < 1e-12


def test_the_two_matrices_differ_here():
    """The Gauss-Newton matrix is another one than the Hessian: what agrees above is not one number twice."""
    model, g = network(), torch.Generator().manual_seed(1)
    data = drawn(g)
    theta = {name: leaf.detach() for name, leaf in model.named_parameters()}
    phi = {name: leaf.expand(TASKS, *leaf.shape) for name, leaf in theta.items()}
    v = {name: torch.randn(leaf.shape, generator=g, dtype=leaf.dtype) for name, leaf in phi.items()}
    problem = Problem(classification(model), theta, data)
    one, other = (problem.curvature(phi, kind)(v) for kind in ("hessian", "gauss_newton"))
    assert distance(one, other) > 0.1
