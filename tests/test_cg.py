"""Conjugate gradients on matrices whose answer is known (float64)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metagrad import CG
from metagrad.implicit import Operator, linear


def operator(A, shift=None):
    return Operator(lambda v: {"x": (A @ v["x"][..., None])[..., 0]}, shift)


def solve(A, b, shift=None, **options):
    return linear.solve(CG(**options), operator(A, shift), {"x": b})


def residual(A, x, b):
    return (b - (A @ x[..., None])[..., 0]).norm(dim=1) / b.norm(dim=1)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_matches_a_textbook_cg_on_diag_1_to_5(steps):
    A, b = torch.diag(torch.arange(1.0, 6)).double(), torch.ones(5, dtype=torch.float64)
    x, r = torch.zeros_like(b), b.clone()
    d = r.clone()
    for _ in range(steps):
        alpha = (r @ r) / (d @ A @ d)
        x, r_new = x + alpha * d, r - alpha * (A @ d)
        d, r = r_new + (r_new @ r_new) / (r @ r) * d, r_new
    found = solve(A.expand(2, 5, 5), b.expand(2, 5), max_steps=steps)
    torch.testing.assert_close(found.value["x"], x.expand(2, 5), rtol=1e-10, atol=1e-12)
    if steps == 5:
        assert residual(A, found.value["x"], b.expand(2, 5)).max() < 1e-12


def test_identity_converges_in_one_step_and_zero_in_none():
    b = torch.stack([torch.arange(1.0, 5), torch.zeros(4)]).double()
    found = solve(torch.eye(4).double().expand(2, 4, 4), b, max_steps=10)
    assert torch.equal(found.value["x"], b)
    assert found.steps.tolist() == [1, 0]
    assert found.residual.tolist() == [0.0, 0.0]


def test_each_task_stops_by_itself():
    A = torch.stack([torch.eye(6), torch.diag(torch.arange(1.0, 7))]).double()
    b = torch.ones(2, 6).double()
    found = solve(A, b, max_steps=20, tol=1e-12)
    assert found.steps.tolist() == [1, 6]
    alone = solve(A[1:], b[1:], max_steps=20, tol=1e-12)
    torch.testing.assert_close(found.value["x"][1:], alone.value["x"], rtol=1e-13, atol=0)


def test_stops_before_non_positive_curvature_and_says_so():
    A = torch.diag(torch.tensor([4.0, 2.0, -1.0])).double().expand(1, 3, 3)
    b = torch.tensor([[1.0, 1.0, 1.0]]).double()
    stopped = solve(A, b, max_steps=10)
    assert stopped.min_curvature.item() <= 0
    assert stopped.steps.item() < 3
    torch.testing.assert_close(stopped.residual, residual(A, stopped.value["x"], b), rtol=1e-10, atol=0)
    went_on = solve(A, b, max_steps=10, on_negative="continue")
    torch.testing.assert_close(went_on.value["x"], torch.linalg.solve(A, b), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("shift", "expected"), [(None, 0.0), (2.0, 0.5)])
def test_stopped_at_the_first_direction_is_the_first_order_answer(shift, expected):
    A, b = -torch.eye(3).double().expand(2, 3, 3), torch.ones(2, 3).double()
    found = solve(A, b, None if shift is None else {"x": torch.full((2, 3), shift).double()}, max_steps=3)
    torch.testing.assert_close(found.value["x"], expected * b)
    assert found.steps.tolist() == [0, 0]
    torch.testing.assert_close(found.residual, residual(A, found.value["x"], b))


def test_warm_start_continues_and_an_exact_one_takes_no_step():
    A, b = torch.diag(torch.arange(1.0, 6)).double().expand(1, 5, 5), torch.ones(1, 5).double()
    exact = torch.linalg.solve(A, b)
    found = linear.solve(CG(max_steps=5), operator(A), {"x": b}, x0={"x": exact})
    assert found.steps.item() == 0
    assert found.residual.item() < 1e-14


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 12), tasks=st.integers(1, 4))
def test_solves_any_positive_definite_system(seed, size, tasks):
    g = torch.Generator().manual_seed(seed)
    m = torch.randn(tasks, size, size, dtype=torch.float64, generator=g)
    A = m @ m.mT / size + torch.eye(size, dtype=torch.float64)
    b = torch.randn(tasks, size, dtype=torch.float64, generator=g)
    found = solve(A, b, max_steps=3 * size + 5, tol=1e-12)
    torch.testing.assert_close(found.value["x"], torch.linalg.solve(A, b), rtol=1e-8, atol=1e-9)
    # Rayleigh quotients lie inside the spectrum, and the reported residual is the true one.
    assert (found.min_curvature >= torch.linalg.eigvalsh(A)[:, 0] - 1e-9).all()
    assert (residual(A, found.value["x"], b) - found.residual).abs().max() < 1e-10


@pytest.mark.parametrize("bad", [{"max_steps": 0}, {"tol": -1.0}, {"on_negative": "ignore"}])
def test_refuses_impossible_options(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        CG(**bad)


def test_singular_systems_do_not_blow_up():
    """The part of b in the null space cannot be met: what is left of it is the residual, and u stays finite."""
    A, b = torch.diag(torch.tensor([5.0, 4, 3, 2, 1, 0])).double().expand(1, 6, 6), torch.ones(1, 6).double()
    found = solve(A, b, max_steps=40)
    assert found.value["x"].abs().max() < 1e3
    torch.testing.assert_close(found.residual, residual(A, found.value["x"], b), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
@pytest.mark.parametrize("steps", [5, 60])
def test_float32_scale_of_b_changes_nothing(scale, steps):
    g = torch.Generator().manual_seed(0)
    A = torch.diag(torch.logspace(0, 2, 20)).expand(1, 20, 20)
    b = torch.randn(1, 20, generator=g)
    plain, scaled = solve(A, b, max_steps=steps), solve(A, b * scale, max_steps=steps)
    torch.testing.assert_close(scaled.residual, plain.residual, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(scaled.value["x"] / scale, plain.value["x"], rtol=1e-4, atol=1e-5)
    assert abs(plain.residual - residual(A.double(), plain.value["x"].double(), b.double())).item() < 1e-5


def test_right_hand_sides_and_operators_pair_by_name():
    def matvec(v):
        return {"a": 2 * v["a"], "c": 5 * v["c"]}

    b = {"c": torch.ones(1, 2), "a": torch.ones(1, 2)}
    found = CG(max_steps=5)(Operator(lambda v: dict(sorted(matvec(v).items()))), b)
    torch.testing.assert_close(found.value["a"], torch.full((1, 2), 0.5))
    torch.testing.assert_close(found.value["c"], torch.full((1, 2), 0.2))


@pytest.mark.parametrize("size", [1_000, 1_000_000])
def test_float32_goes_on_at_any_number_of_unknowns(size):
    """Curvature of 1 beside 1000 is no rounding: what a dot product loses does not grow with its length."""
    values = torch.logspace(0, 3, 30, dtype=torch.float64).float()[torch.arange(size) % 30][None]
    b = {"x": torch.randn(1, size, generator=torch.Generator().manual_seed(0))}
    diagonal = Operator(lambda v: {"x": values * v["x"]})
    found = linear.solve(CG(max_steps=60, tol=1e-6), diagonal, b)
    assert not found.stopped.any()
    assert found.steps.item() == 60
    assert found.residual.item() < 3e-3
    low, high = linear.curvature_range(diagonal, b)
    assert 1 <= low.item() < 3
    assert high.item() == pytest.approx(1000, rel=1e-2)


@pytest.mark.parametrize("size", [100, 1_000_000])
def test_float32_still_stops_where_there_is_no_curvature_but_rounding(size):
    values = torch.cat([torch.ones(size // 2), torch.full((size - size // 2,), 1e-7)])[None]
    b = {"x": torch.ones(1, size)}
    found = linear.solve(CG(max_steps=20), Operator(lambda v: {"x": values * v["x"]}), b)
    assert found.stopped.all()
    assert found.steps.tolist() == [1]


@pytest.mark.parametrize(("dtype", "least"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_the_default_tolerance_is_as_far_as_the_digits_reach(dtype, least):
    A = torch.diag(torch.logspace(0, 2, 40)).to(dtype).expand(1, 40, 40)
    found = solve(A, torch.ones(1, 40, dtype=dtype), max_steps=400)
    assert found.steps.item() < 100
    assert found.residual.item() < 3 * least
