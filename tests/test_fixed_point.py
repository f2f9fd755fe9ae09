"""Fixed-point iterations, the Neumann series, and their step size (float64)."""

import pytest
import torch
from linear_systems import check_report, named, times

from metagrad import MINRES, DivergedError, FixedPoint, MetagradError, Neumann
from metagrad.implicit import Operator
from metagrad.implicit.linear import solve


def test_a_few_terms_are_the_sum_of_powers():
    made, lr = named("diagonal"), 0.15
    for terms in (1, 2, 5):
        expected = sum(
            lr * times(torch.linalg.matrix_power(torch.eye(5) - lr * made.A, i), made.b) for i in range(terms)
        )
        for solver in (Neumann(terms=terms, lr=lr), FixedPoint(max_steps=terms, lr=lr)):
            found = solve(solver, made.operator, {"x": made.b})
            torch.testing.assert_close(found.value["x"], expected, rtol=1e-12, atol=1e-14)
            assert found.steps.tolist() == [terms, terms]
            check_report(found, made)


@pytest.mark.parametrize("build", [lambda lr: FixedPoint(lr=lr, max_steps=60), lambda lr: Neumann(lr=lr, terms=60)])
def test_a_step_size_that_diverges_is_named_with_the_largest_that_does_not(build):
    made = named("batch")  # largest eigenvalues 5, 1, 10
    build(0.199)(made.operator, {"x": made.b})
    with pytest.raises(
        DivergedError, match=r"^lr=0\.25 diverges .* largest stable lr is about 0\.2, .* about 10$"
    ) as e:
        build(0.25)(made.operator, {"x": made.b})
    assert isinstance(e.value, MetagradError)
    assert isinstance(e.value, ArithmeticError)
    assert "\n" not in str(e.value)
    made = named("indefinite")
    with pytest.raises(DivergedError, match=r"as any lr would: .* about -2; use curvature='gauss_newton' or a larger"):
        build(0.1)(made.operator, {"x": made.b})
    with pytest.raises(DivergedError, match="not finite"):
        build(0.1)(Operator(lambda v: {"x": v["x"] * torch.nan}), {"x": made.b})


def test_an_exact_warm_start_takes_no_step():
    made = named("batch")
    for solver in (MINRES(), FixedPoint(lr=0.1, max_steps=5)):
        found = solve(solver, made.operator, {"x": made.b}, x0={"x": made.u})
        assert found.steps.tolist() == [0, 0, 0]
        assert found.residual.max() < 1e-12
