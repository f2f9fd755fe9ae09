"""Memory-reduced meta-learning on quadratics with a known solution, and warm starts on networks."""

import pytest
import torch
from test_methods import conv, given, tasks  # noqa: F401

from metagrad import CG, GradientDescent, Implicit, MetagradError
from metagrad.fewshot import ANIL, MemoryReduced, meta_gradient, warm_meta_gradient
from metagrad.recipes import convergence
from metagrad.recipes.protocols import ConvergenceProtocol


@pytest.fixture(scope="module")
def rows():
    protocol = ConvergenceProtocol(iterations=400, repeats=32, batches=(1, 4, 16, 64))
    return convergence.measure(protocol, lambda done, total: None)


def last(rows, form):
    return [row for row in rows if row.form == form][-1].error


def test_the_solution_is_where_the_meta_gradient_vanishes():
    protocol = ConvergenceProtocol()
    drawn = convergence.Quadratics.drawn(7, protocol)
    exact = Implicit(linear_solver=CG(max_steps=30, tol=1e-14))
    slope, _, _ = drawn.gradient(drawn.solution(), torch.arange(7), exact,
                                 GradientDescent(lr=1 / protocol.kappa, max_steps=2000),
                                 {"phi": torch.zeros_like(drawn.c)})  # fmt: skip
    assert slope.norm() < 1e-10
    theta = torch.ones(5).double()
    phi = torch.linalg.solve(drawn.H, (drawn.M @ theta + drawn.c)[..., None])[..., 0]
    assert (phi - drawn.y).norm() > 1


def test_all_tasks_with_warm_starts_converge_exactly_and_cold_ones_do_not(rows):
    assert last(rows, convergence.WARM) < 1e-20
    assert last(rows, convergence.COLD) > 1e-4


def test_rates_in_iterations_and_in_the_batch(rows):
    found = convergence.rates(rows)
    assert found.batch == pytest.approx(-1, abs=0.1)
    assert found.iteration == pytest.approx(-1, abs=0.25)


def test_a_warm_start_on_a_network_becomes_exact(tasks):  # noqa: F811
    """The same theta again and again: one step and one product a time add up, whatever the chunks."""
    model = conv()

    def method(steps, products):
        adjoint = Implicit(linear_solver=CG(max_steps=products, tol=1e-14), curvature="gauss_newton")
        return MemoryReduced(l2=0.2, solver=GradientDescent(lr=0.3, max_steps=steps), adjoint=adjoint)

    few, many = method(5, 3), method(1000, 100)
    exact = given(many, model, tasks)
    theta, warm, off = few.init(model), None, []
    for _ in range(60):
        for leaf in theta.values():
            leaf.grad = None
        metrics, warm = warm_meta_gradient(few, model, theta, tasks, warm, chunk=2)
        off.append(max(float((theta[name].grad - exact[name]).norm() / exact[name].norm()) for name in exact))
    assert off[0] > 1e-3
    assert off[-1] < 1e-8
    assert metrics.grad_norm.shape == (3,)


def test_the_first_step_is_that_of_a_cold_start(tasks):  # noqa: F811
    model, method = conv(), MemoryReduced()
    a, b = method.init(model), method.init(model)
    meta_gradient(method, model, a, tasks)
    warm_meta_gradient(method, model, b, tasks, None)
    assert all(torch.allclose(a[name].grad, b[name].grad, rtol=1e-12) for name in a)


def test_methods_without_a_linear_system_cannot_start_warm(tasks):  # noqa: F811
    with pytest.raises(MetagradError, match="only if the method differentiates implicitly"):
        warm_meta_gradient(ANIL(), model := conv(), ANIL().init(model), tasks, None)
