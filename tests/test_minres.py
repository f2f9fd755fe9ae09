"""MINRES, and the ends of the spectrum that the Lanczos recursion gives (float64)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_systems import check_report, named, system, times

from metagrad import MINRES
from metagrad.implicit import Operator, curvature_range, largest_curvature
from metagrad.implicit.linear import solve


@pytest.mark.parametrize("matrix", ["indefinite", "batch", "inconsistent"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_minres_leaves_the_smallest_residual_of_the_krylov_space(matrix, steps):
    made = named(matrix)
    found = solve(MINRES(max_steps=steps, tol=0.0), made.operator, {"x": made.b})
    for t in range(len(made.b)):
        powers = [made.b[t]]
        for _ in range(steps - 1):
            powers.append(made.A[t] @ powers[-1])
        basis = torch.linalg.qr(torch.stack(powers, 1))[0]
        if matrix != "batch" or t != 1:  # the identity's space has one dimension
            y = torch.linalg.lstsq(made.A[t] @ basis, made.b[t][:, None]).solution[:, 0]
            if found.steps[t] == steps and not (matrix == "inconsistent" and t == 1):
                torch.testing.assert_close(found.value["x"][t], basis @ y, rtol=1e-9, atol=1e-10)
            left = (made.b[t] - made.A[t] @ basis @ y).norm() / made.b[t].norm()
            torch.testing.assert_close(found.residual[t], left, rtol=1e-9, atol=1e-12)
    check_report(found, made)


@pytest.mark.parametrize("matrix", ["singular", "inconsistent"])
def test_minres_leaves_alone_what_a_singular_matrix_does_not_see(matrix):
    made = named(matrix)
    start = torch.randn(made.b.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = MINRES(max_steps=30)(made.operator, {"x": made.b}, x0={"x": start})
    unseen = times(made.V, (made.values == 0) * times(made.V.mT, start))
    torch.testing.assert_close(found.value["x"], made.u + unseen, rtol=1e-8, atol=1e-10)


def test_minres_ends_where_a_singular_system_has_no_more_to_give():
    """Rounding hides the end of the Krylov space here: a step too many would be as long as 1 / eps."""
    values = torch.cat([torch.zeros(8, 3), torch.logspace(0, 3, 12).expand(8, 12)], 1).double()
    made = system(values, torch.Generator().manual_seed(0))
    found = solve(MINRES(max_steps=200), made.operator, {"x": made.b})
    left = (made.b - times(made.A, made.u)).norm(dim=1) / made.b.norm(dim=1)
    torch.testing.assert_close(found.residual, left, rtol=1e-8, atol=0)
    assert (found.value["x"].norm(dim=1) <= 1.001 * made.u.norm(dim=1)).all()
    check_report(found, made)


def test_ritz_values_of_a_whole_krylov_space_are_the_eigenvalues():
    for matrix in ("indefinite", "diagonal", "batch", "singular"):
        made = named(matrix)
        found = MINRES(max_steps=30)(made.operator, {"x": made.b})
        reached = torch.where(times(made.V.mT, made.b).abs() > 1e-12, made.values, torch.inf).amin(1)
        torch.testing.assert_close(found.min_curvature, reached, rtol=1e-8, atol=1e-12)
        low, high = curvature_range(made.operator, {"x": made.b})
        torch.testing.assert_close(low, made.values.amin(1), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(high, made.values.amax(1), rtol=1e-10, atol=0)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 12), steps=st.integers(1, 15))
def test_estimated_curvature_lies_in_the_spectrum(seed, size, steps):
    g = torch.Generator().manual_seed(seed)
    made = system(torch.randn(3, size, dtype=torch.float64, generator=g), g)
    low, high = curvature_range(made.operator, {"x": made.b}, steps=steps)
    slack = 1e-12 * made.values.abs().amax(1)
    assert ((made.values.amin(1) - slack <= low) & (low <= high) & (high <= made.values.amax(1) + slack)).all()
    assert torch.equal(largest_curvature(made.operator, {"x": made.b}, steps=steps), high)


def test_a_krylov_space_of_one_dimension_gives_one_eigenvalue():
    A = {"x": torch.full((200, 3), 2.0).double()}
    for end in curvature_range(Operator(lambda v: {"x": 2 * v["x"]}), A):
        torch.testing.assert_close(end, A["x"][:, 0], rtol=1e-12, atol=0)
