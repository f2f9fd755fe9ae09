"""Masks that go with the inputs: drawn once for a task, so that what it solves is one function."""

import pytest
import torch
from torch import nn

from metagrad import CG, GradientDescent, Implicit, argmin
from metagrad.errors import MetagradError
from metagrad.fewshot import Batch, check_network, classification
from metagrad.fewshot.dropout import dropout_masks

f64 = torch.float64


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, inputs):
        return self.head(self.first(inputs["x"]).tanh() * inputs["hidden"])


def test_factors_keep_the_mean_and_follow_the_generator(g):
    x = torch.zeros(3, 5, 4, dtype=f64)
    drawn = dropout_masks(x, {"a": (200,), "b": (2, 3)}, p=0.25, generator=g)
    assert drawn["a"].shape == (3, 5, 200)
    assert drawn["b"].shape == (3, 5, 2, 3)
    assert drawn["a"].dtype == f64
    assert set(drawn["a"].unique().tolist()) == {0.0, 1 / 0.75}
    assert abs(drawn["a"].mean() - 1) < 0.05
    again = dropout_masks(x, {"a": (200,), "b": (2, 3)}, p=0.25, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    assert not torch.equal(drawn["a"][0], drawn["a"][1]), "tasks have masks of their own"


def test_one_mask_for_a_task_and_none_for_the_query(g):
    x = {"ids": torch.zeros(2, 5, 4, dtype=torch.long)}
    drawn = dropout_masks(x, {"a": (50,)}, p=0.5, generator=g, each="task")["a"]
    assert torch.equal(drawn, drawn[:, :1].expand(-1, 5, -1))
    assert not torch.equal(drawn[0], drawn[1])
    state = g.get_state()
    assert dropout_masks(x, {"a": (50,)}, p=0.0, generator=g)["a"].eq(1).all()
    assert torch.equal(g.get_state(), state), "nothing was drawn"


@pytest.mark.parametrize(("how", "says"), [({"p": 1.0}, "below 1"), ({"p": 0.5, "each": "row"}, "'example' or 'task'")])
def test_what_is_no_probability_is_refused(how, says, g):
    with pytest.raises(MetagradError, match=says):
        dropout_masks(torch.zeros(2, 5), {"a": ()}, generator=g, **how)


def test_the_implicit_gradient_is_that_of_the_masked_network(g):
    """Solved to the end, with a dense solve of what plain autograd says of each task's own masked loss."""
    torch.manual_seed(0)
    model = Dropped().double()
    x, y = torch.randn(2, 9, 4, generator=g, dtype=f64), torch.arange(3).repeat(3).expand(2, -1)
    masks = dropout_masks(x, {"hidden": (6,)}, p=0.5, generator=g)
    theta = {name: leaf.detach().clone().requires_grad_() for name, leaf in model.named_parameters()}
    solution = argmin(
        classification(model, 1.0),
        {name: leaf.detach().expand(2, *leaf.shape).clone() for name, leaf in theta.items()},
        theta,
        Batch({"x": x, **masks}, y),
        solver=GradientDescent(lr=0.3, max_steps=400),
        adjoint=Implicit(linear_solver=CG(max_steps=200, tol=1e-13)),
    )
    assert solution.grad_norm.max() < 1e-9
    v = {name: torch.randn(leaf.shape, generator=g, dtype=f64) for name, leaf in solution.value.items()}
    found = torch.autograd.grad(sum((solution.value[name] * v[name]).sum() for name in v), list(theta.values()))

    expected = 0.0
    for task in range(2):

        def loss(flat, task=task):
            parts = flat.split([leaf.numel() for leaf in theta.values()])
            w, b, head, shift = (p.view(leaf.shape) for p, leaf in zip(parts, theta.values(), strict=True))
            h = (x[task] @ w.T + b).tanh() * masks["hidden"][task]
            return nn.functional.cross_entropy(h @ head.T + shift, y[task])

        phi = torch.cat([leaf[task].detach().flatten() for leaf in solution.value.values()])
        hessian = torch.autograd.functional.hessian(loss, phi)
        expected = expected + torch.linalg.solve(
            hessian + torch.eye(len(phi), dtype=f64), torch.cat([part[task].flatten() for part in v.values()])
        )
    found = torch.cat([part.flatten() for part in found])
    assert (found - expected).norm() <= 1e-8 * expected.norm()


def test_a_masked_network_passes_the_check(g):
    x = torch.randn(1, 4, 4, generator=g)
    given = {"x": x[0], "hidden": dropout_masks(x, {"hidden": (6,)}, p=0.5, generator=g)["hidden"][0]}
    found = check_network(Dropped(), given)
    assert found.error < 1e-12
    assert not found.transductive
