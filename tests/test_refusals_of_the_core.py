"""What cannot be meant is refused in one line that says what to do: objectives, solvers, checks."""

import math

import pytest
import torch
from torch import nn

from metagrad import (
    CG,
    LBFGS,
    GradientDescent,
    Implicit,
    MetagradError,
    NotFiniteError,
    argmin,
    check_meta_gradient,
)
from metagrad.fewshot import check_network

T = 3
W = {"w": torch.zeros(T, 2)}
G = torch.Generator().manual_seed(0)
DATA = torch.randn(T, 6, 2, generator=G), torch.randn(T, 6, generator=G)
STEPS = GradientDescent(lr=0.1, max_steps=3)


def theta():
    return {"lam": torch.tensor(0.0, requires_grad=True)}


def ridge(phi, theta, data):
    return ((data[0] @ phi["w"] - data[1]) ** 2).mean() + theta["lam"].exp() * phi["w"].square().sum()


def solve(objective=ridge, data=DATA, solver=STEPS, adjoint=None):
    return argmin(objective, W, theta(), data, solver=solver, adjoint=adjoint or Implicit())


def test_an_objective_that_writes_into_its_data_is_refused():
    def shifts(phi, theta, data):
        data[1].add_(1.0)
        return ridge(phi, theta, data)

    with pytest.raises(ValueError, match="the objective writes into phi, theta or data"):
        solve(shifts, tuple(part.clone() for part in DATA))


def test_a_mean_over_no_examples_is_not_finite_though_its_gradient_is():
    with pytest.raises(NotFiniteError, match="not finite at the start, first in task 0"):
        solve(data=(torch.zeros(T, 0, 2), torch.zeros(T, 0)), solver=LBFGS(max_steps=3))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"solver": GradientDescent}, "solver must be an inner solver, .* got the class GradientDescent"),
        ({"solver": "descent"}, "solver must be an inner solver, .* got str"),
        ({"adjoint": Implicit}, "adjoint must be .* got the class Implicit"),
        ({"adjoint": CG()}, r"got CG: write Implicit\(linear_solver=CG\(\.\.\.\)\)"),
        ({"objective": 3}, "objective must be a function"),
    ],
)
def test_parts_that_cannot_be_are_named(parts, says):
    with pytest.raises(TypeError, match=says):
        solve(**parts)
    with pytest.raises(TypeError, match="linear_solver must be one"):
        Implicit(linear_solver=CG)
    with pytest.raises(ValueError, match="x0 has v, phi has w"):
        solve(adjoint=Implicit(x0={"v": torch.zeros(T, 2)}))


@pytest.mark.parametrize(
    ("outer", "says"),
    [
        (lambda phi, theta: theta["lam"] ** 2, "outer does not depend on phi"),
        (lambda phi, theta: phi["w"].square().sum(-1), r"outer must return a scalar, .* got \(3,\)"),
        (lambda phi, theta: 1.0, "outer must return a scalar, .* got float"),
        (lambda phi, theta: torch.ones(()), "neither on phi nor on theta"),
    ],
)
def test_an_outer_that_cannot_be_checked_is_named(outer, says):
    with pytest.raises(ValueError, match=says):
        check_meta_gradient(ridge, lambda theta: W, theta(), DATA, outer=outer, solver=STEPS, adjoint=Implicit())


@pytest.mark.parametrize(
    ("network", "x", "says"),
    [
        (nn.Linear(4, 3), torch.zeros(0, 4), "there are no example inputs"),
        (nn.Linear(4, 3), torch.full((3, 4), math.nan), "hold numbers that are not finite"),
        (nn.LazyLinear(3), torch.zeros(3, 4), "has lazy modules"),
        (lambda x: x, torch.zeros(3, 4), "must be an nn.Module"),
        (nn.Linear, torch.zeros(3, 4), "must be an nn.Module"),
    ],
)
def test_a_check_of_a_network_that_would_show_nothing_is_refused(network, x, says):
    with pytest.raises(MetagradError, match=says):
        check_network(network, x)
    assert not isinstance(network, nn.LazyLinear) or isinstance(network.weight, nn.UninitializedParameter)
