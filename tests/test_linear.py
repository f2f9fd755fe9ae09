"""Every linear solver on every kind of matrix, against dense answers (float64). A new solver joins by a line below."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_systems import SPECTRA, assembled, check_report, named, system, times

from metagrad import CG, MINRES, Dense, DivergedError, FixedPoint, Neumann, Woodbury
from metagrad.implicit import GaussNewton, LinearSolution, Operator
from metagrad.implicit.linear import solve

NEGATIVE = (DivergedError, "negative eigenvalue")
NO_SHIFT = (ValueError, "curves upwards")
SOLVES, LEAST_SQUARES, SLOW, STOPS = "solves", "least squares", "slow", "stops"

# Solver for a largest eigenvalue L, and what it does where it does not solve the system.
RICHARDSON = {"ill": SLOW, "indefinite": NEGATIVE, "inconsistent": LEAST_SQUARES}
SOLVERS = {
    "cg": (lambda L: CG(max_steps=400, tol=1e-13), {"indefinite": STOPS, "inconsistent": STOPS}),
    "cg-shift": (
        lambda L: CG(max_steps=400, tol=1e-13, preconditioner="shift"),
        {"indefinite": STOPS, "inconsistent": STOPS},
    ),
    "minres": (lambda L: MINRES(max_steps=400, tol=1e-13), {}),
    "neumann": (lambda L: Neumann(terms=300, lr=1 / L), RICHARDSON),
    "fixed-point": (lambda L: FixedPoint(max_steps=300, lr=1.5 / L, tol=1e-13), RICHARDSON),
    "dense": (lambda L: Dense(), {}),
    "woodbury": (lambda L: Woodbury(), dict.fromkeys(("indefinite", "singular", "inconsistent"), NO_SHIFT)),
}


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("matrix", SPECTRA)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_on_every_matrix(solver, matrix, warm):
    made, (build, exceptions) = named(matrix), SOLVERS[solver]
    outcome = exceptions.get(matrix, SOLVES)
    start = torch.randn(made.b.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    solver = build(made.values.amax().item())
    run = lambda: solve(solver, made.operator, {"x": made.b}, x0={"x": start} if warm else None)  # noqa: E731
    if isinstance(outcome, tuple):
        with pytest.raises(outcome[0], match=outcome[1]):
            run()
        return
    found = run()
    check_report(found, made)
    u, size = found.value["x"], made.b.norm(dim=1)
    best = (made.b - times(made.A, made.u)).norm(dim=1)
    before = (made.b - times(made.A, start)).norm(dim=1) if warm else size
    if outcome is STOPS:
        assert found.stopped.all()
        assert u.isfinite().all()
    elif outcome is SLOW:
        assert (found.residual * size < before).all()
        assert (u - made.u).norm() > 1e-3 * made.u.norm()
    else:
        assert matrix in ("singular", "inconsistent") or not found.stopped.any()
        torch.testing.assert_close((made.b - times(made.A, u)).norm(dim=1), best, rtol=1e-8, atol=1e-8)
        seen = times(made.V, (made.values != 0) * times(made.V.mT, u))  # without what A maps to zero
        assert ((seen - made.u).norm(dim=1) <= 1e-8 * made.u.norm(dim=1) + 1e-12).all()
        if outcome is SOLVES and not warm:
            assert ((u - made.u).norm(dim=1) <= 1e-8 * made.u.norm(dim=1)).all()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 9), tasks=st.integers(1, 4), definite=st.booleans())
def test_any_well_conditioned_system_is_solved(seed, size, tasks, definite):
    g = torch.Generator().manual_seed(seed)
    values = 10 ** (2 * torch.rand(tasks, size, dtype=torch.float64, generator=g) - 1)
    if not definite:
        values = values * torch.where(torch.rand(values.shape, generator=g) < 0.5, -1.0, 1.0)
    made = system(values, g)
    for name in ("cg", "cg-shift", "minres", "dense", "woodbury") if definite else ("minres", "dense"):
        found = solve(SOLVERS[name][0](1.0), made.operator, {"x": made.b})
        check_report(found, made)
        assert ((found.value["x"] - made.u).norm(dim=1) <= 1e-8 * made.u.norm(dim=1)).all()


@pytest.mark.parametrize("scale", [2.0**-90, 2.0**90])
@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_scale_of_b_changes_not_a_digit(solver, scale):
    made = named("diagonal")
    A, b, values = made.A.float(), made.b.float(), made.values.float()
    parts = GaussNewton(lambda v: v["x"], lambda w: {"x": w}, lambda w: (values - 0.5) * w, b.shape)
    operator = Operator(lambda v: {"x": times(A, v["x"])}, {"x": torch.full_like(b, 0.5)}, parts)
    build = SOLVERS[solver][0]
    plain, large = (solve(build(5.0), operator, {"x": b * by}) for by in (1.0, scale))
    assert torch.equal(plain.value["x"] * scale, large.value["x"])
    assert torch.equal(plain.size * scale, large.size)
    assert torch.equal(plain.residual, large.residual)
    assert plain.value["x"].dtype == plain.residual.dtype == plain.min_curvature.dtype == torch.float32


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_not_finite_is_reported_or_named(solver):
    made = named("diagonal")
    b = {"x": torch.where(torch.arange(2)[:, None] == 1, torch.nan, made.b)}
    found = solve(SOLVERS[solver][0](5.0), made.operator, b)
    assert found.residual[1].isnan()
    torch.testing.assert_close(found.value["x"][0], made.u[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "solver",
    [
        CG(max_steps=50, tol=1e-4),
        CG(max_steps=50, tol=1e-4, preconditioner="shift"),
        MINRES(max_steps=50, tol=1e-4),
        FixedPoint(lr=0.15, max_steps=500, tol=1e-4),
        Neumann(lr=0.15, terms=9),
        Dense(),
        Woodbury(),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_each_task_is_solved_as_if_alone(solver):
    made = named("batch")
    found = solve(solver, made.operator, {"x": made.b})
    for t in range(3):
        alone = assembled(made.V[t : t + 1], made.values[t : t + 1], made.b[t : t + 1])
        one = solve(solver, alone.operator, {"x": alone.b})
        assert one.steps.item() == found.steps[t].item()
        torch.testing.assert_close(found.value["x"][t], one.value["x"][0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.residual[t], one.residual[0], rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(found.min_curvature[t], one.min_curvature[0], rtol=1e-9, atol=0)
    if getattr(solver, "tol", None):
        assert len(set(found.steps.tolist())) > 1
        assert (found.residual <= solver.tol).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_right_hand_sides_and_operators_pair_by_name(solver):
    b = {"c": torch.ones(1, 2).double(), "a": torch.full((1, 1), 3.0).double()}
    parts = GaussNewton(
        lambda v: torch.cat([v["a"], v["c"]], 1),
        lambda w: {"a": w[:, :1], "c": w[:, 1:]},
        lambda w: w * torch.tensor([1.0, 4, 4]).double(),
        torch.Size((1, 3)),
    )
    shift = {"a": torch.ones(1, 1).double(), "c": torch.ones(1, 2).double()}
    found = SOLVERS[solver][0](5.0)(Operator(lambda v: {"a": 2 * v["a"], "c": 5 * v["c"]}, shift, parts), b)
    torch.testing.assert_close(found.value["a"], torch.full((1, 1), 1.5).double(), rtol=1e-10, atol=0)
    torch.testing.assert_close(found.value["c"], torch.full((1, 2), 0.2, dtype=torch.float64), rtol=1e-10, atol=0)


def test_dense_refuses_what_would_not_fit():
    made = named("diagonal")
    with pytest.raises(ValueError, match=r"5 × 5 matrices, beyond max_size=4: use CG or MINRES"):
        Dense(max_size=4)(made.operator, {"x": made.b})
    torch.testing.assert_close(Dense()(made.operator, {"x": made.b}).min_curvature, torch.ones(2).double())


@pytest.mark.parametrize(
    ("solver", "bad"),
    [
        (CG, {"damping": -1.0}),
        (CG, {"preconditioner": "jacobi"}),
        (MINRES, {"max_steps": 0}),
        (MINRES, {"tol": -1.0}),
        (MINRES, {"damping": -1.0}),
        (Neumann, {"terms": 0, "lr": 0.1}),
        (Neumann, {"lr": 0.0, "terms": 1}),
        (FixedPoint, {"lr": float("nan"), "max_steps": 1}),
        (FixedPoint, {"max_steps": 0, "lr": 0.1}),
        (FixedPoint, {"tol": -1.0, "lr": 0.1, "max_steps": 1}),
        (Dense, {"max_size": 0}),
        (Woodbury, {"max_size": 0}),
    ],
)
def test_refuses_impossible_options(solver, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        solver(**bad)


def test_a_solver_may_return_u_alone_and_is_measured():
    made = named("diagonal")
    found = solve(lambda operator, b, x0=None: {"x": made.u}, made.operator, {"x": made.b})
    check = solve(Dense(), made.operator, {"x": made.b})
    assert found.residual.max() < 1e-14
    assert found.steps is None
    torch.testing.assert_close(found.size, check.size)
    u = found.value["x"]
    torch.testing.assert_close(found.min_curvature, (u * times(made.A, u)).sum(1) / (u * u).sum(1))


def test_a_solver_cannot_claim_what_is_not_so():
    made = named("diagonal")
    zero = torch.zeros(2).double()

    def boasting(operator, b, x0=None):
        return LinearSolution({"x": 1e9 * b["x"]}, residual=zero, size=zero, min_curvature=zero + 99)

    found = solve(boasting, made.operator, {"x": made.b})
    true = (made.b - times(made.A, 1e9 * made.b)).norm(dim=1) / made.b.norm(dim=1)
    torch.testing.assert_close(found.residual, true, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.size, made.b.norm(dim=1), rtol=1e-14, atol=0)
    assert (found.min_curvature <= 5).all()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda b: {"y": b["x"]}, "'x' as None"),
        (lambda b: {"x": b["x"][:, :1]}, r"torch.Size\(\[2, 1\]\)"),
        (lambda b: {"x": b["x"].float()}, "float32"),
    ],
)
def test_what_is_no_u_is_refused(wrong, says):
    made = named("diagonal")
    with pytest.raises(ValueError, match=says):
        solve(lambda operator, b, x0=None: wrong(b), made.operator, {"x": made.b})
    with pytest.raises(TypeError, match="returns u, or a LinearSolution, got Tensor"):
        solve(lambda operator, b, x0=None: b["x"], made.operator, {"x": made.b})
