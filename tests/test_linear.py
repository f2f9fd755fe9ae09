"""Every linear solver on every kind of matrix, against dense answers (float64). A new solver joins by a line below."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metagrad import (
    CG,
    MINRES,
    Dense,
    DivergedError,
    FixedPoint,
    MetagradError,
    Neumann,
    Woodbury,
)
from metagrad.implicit import GaussNewton, LinearSolution, Operator, curvature_range, largest_curvature
from metagrad.implicit.linear import measured, solve

SOLVES, LEAST_SQUARES, SLOW, STOPS = "solves", "least squares", "slow", "stops"
NEGATIVE = (DivergedError, "negative eigenvalue")
NO_SHIFT = (ValueError, "curves upwards")

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
ONE_TO_FIVE = torch.arange(1.0, 6).double()
SPECTRA = {
    "diagonal": ONE_TO_FIVE.expand(2, 5),
    "identity": torch.ones(2, 5).double(),
    "ill": torch.logspace(0, 6, 5).double().expand(2, 5),
    "batch": torch.stack([ONE_TO_FIVE, torch.ones(5).double(), torch.logspace(0, 1, 5).double()]),
    "zero": ONE_TO_FIVE.expand(2, 5),
    "indefinite": torch.tensor([[-2.0, -1, 1, 2, 3], [-1, 5, 4, 3, 2]]).double(),
    "singular": torch.tensor([[0.0, 1, 2, 3, 4], [0, 0, 1, 4, 5]]).double(),
    "inconsistent": torch.tensor([[0.0, 1, 2, 3, 4], [0, 0, 1, 4, 5]]).double(),
}


class System(NamedTuple):
    """A (T, P, P) = V diag(values) Vᵀ, b, the least-squares solution of least norm, and A as an operator."""

    A: torch.Tensor
    V: torch.Tensor
    values: torch.Tensor
    b: torch.Tensor
    u: torch.Tensor
    operator: Operator


def times(A, v):
    return (A @ v[..., None])[..., 0]


def system(values, generator, rotate=True):
    tasks, size = values.shape
    V = torch.linalg.qr(torch.randn(tasks, size, size, dtype=torch.float64, generator=generator))[0]
    V = V if rotate else torch.eye(size).double().expand(tasks, size, size)
    b = torch.randn(tasks, size, dtype=torch.float64, generator=generator)
    return assembled(V, values, b)


def assembled(V, values, b):
    A = V @ torch.diag_embed(values) @ V.mT
    u = times(V, torch.where(values != 0, times(V.mT, b) / torch.where(values != 0, values, 1.0), 0.0))
    # As a Gauss-Newton matrix: half of the smallest eigenvalue is the shift, the outputs are the eigenvectors' shares.
    shift = values.amin(1, keepdim=True).clamp(min=0).expand_as(values) / 2
    parts = GaussNewton(
        lambda v: times(V.mT, v["x"]), lambda w: {"x": times(V, w)}, lambda w: (values - shift) * w, b.shape
    )
    return System(A, V, values, b, u, Operator(lambda v: {"x": times(A, v["x"])}, {"x": shift}, parts))


def named(name):
    g = torch.Generator().manual_seed(len(name))
    made = system(SPECTRA[name], g, rotate=name != "diagonal")
    if name == "singular":
        made = assembled(made.V, made.values, times(made.A, made.b))
    if name == "zero":
        made = assembled(made.V, made.values, made.b * torch.tensor([[1.0], [0.0]]))
    return made


def check_report(found, made):
    """Compare what a solution says of itself with what is."""
    u, b, tasks = found.value["x"], made.b, len(made.b)
    size = b.norm(dim=1)
    rounding = 1e-14 * (size + made.values.abs().amax(1) * u.norm(dim=1))
    torch.testing.assert_close(found.size, size, rtol=1e-14, atol=0)
    true = (b - times(made.A, u)).norm(dim=1)
    assert ((found.residual * torch.where(size > 0, size, 1.0) - true).abs() <= rounding + 1e-9 * true).all()
    assert (found.min_curvature >= made.values.amin(1) - 1e-13 * made.values.abs().amax(1)).all()
    if found.max_curvature is not None:
        assert (found.max_curvature <= made.values.amax(1) + 1e-13 * made.values.abs().amax(1)).all()
    assert [leaf.shape for leaf in (found.residual, found.steps, found.min_curvature, found.stopped)] == [(tasks,)] * 4
    assert (found.steps.dtype, found.stopped.dtype) == (torch.int64, torch.bool)


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


# Conjugate gradients


def conjugate_gradients(A, b, steps):
    """Return a textbook's iterates for one task."""
    x, r = torch.zeros_like(b), b.clone()
    d, found = r.clone(), [torch.zeros_like(b)]
    for _ in range(steps):
        alpha = (r @ r) / (d @ A @ d)
        x, r_new = x + alpha * d, r - alpha * (A @ d)
        d, r = r_new + (r_new @ r_new) / (r @ r) * d, r_new
        found.append(x)
    return found


@pytest.mark.parametrize("how", ["shift", "function"])
def test_preconditioned_steps_are_those_of_the_system_scaled_on_both_sides(how):
    """CG with M on A is CG on M^-½ A M^-½, here with M = Λ + damping."""
    made = named("batch")
    shift, damping = torch.logspace(-1, 2, 5).double().expand(3, 5), 0.3
    A = made.A + torch.diag_embed(shift)
    operator = Operator(lambda v: {"x": times(A, v["x"])}, {"x": shift})
    by_hand = lambda r: {"x": r["x"] / (shift + damping)}  # noqa: E731
    root = (shift[0] + damping).sqrt()
    for steps in (1, 3):
        solver = CG(max_steps=steps, damping=damping, preconditioner="shift" if how == "shift" else by_hand)
        damped = Operator(lambda v: {"x": times(A, v["x"]) + damping * v["x"]}, {"x": shift})
        found = measured(solver(operator, {"x": made.b}), damped, {"x": made.b})
        for t in range(3):
            system = (A[t] + damping * torch.eye(5).double()) / root / root[:, None]
            expected = conjugate_gradients(system, made.b[t] / root, steps)[-1] / root
            torch.testing.assert_close(found.value["x"][t], expected, rtol=1e-10, atol=1e-13)
        r = made.b - times(A, found.value["x"]) - damping * found.value["x"]
        torch.testing.assert_close(found.residual, r.norm(dim=1) / made.b.norm(dim=1), rtol=1e-10, atol=0)


def test_the_shift_as_preconditioner_saves_steps_where_lam_differs():
    made = named("identity")
    shift = torch.logspace(0, 6, 40).double().expand(1, 40)
    v = torch.randn(1, 40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A = v @ v.mT + torch.diag_embed(shift)
    operator = Operator(lambda v: {"x": times(A, v["x"])}, {"x": shift})
    b = {"x": torch.ones(1, 40).double()}
    plain, better = (CG(max_steps=400, tol=1e-10, preconditioner=how)(operator, b) for how in (None, "shift"))
    assert better.steps.item() <= 6 < plain.steps.item()
    torch.testing.assert_close(better.value["x"], torch.linalg.solve(A, b["x"]), rtol=1e-8, atol=1e-12)
    with pytest.raises(ValueError, match="not positive definite"):
        CG(preconditioner=lambda r: {"x": -r["x"]})(made.operator, {"x": made.b})
    with pytest.raises(ValueError, match="needs an operator with a shift"):
        CG(preconditioner="shift")(Operator(made.operator.matvec), {"x": made.b})


def test_a_preconditioner_that_does_nothing_changes_nothing():
    """Also where a singular matrix lets a direction's curvature fade: the same step is the last."""
    made = system(torch.arange(12.0).double().expand(8, 12), torch.Generator().manual_seed(0))
    plain, same = (CG(max_steps=60, preconditioner=how)(made.operator, {"x": made.b}) for how in (None, lambda r: r))
    assert torch.equal(plain.steps, same.steps)
    torch.testing.assert_close(same.value, plain.value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(same.min_curvature, plain.min_curvature, rtol=1e-6, atol=1e-12)


def test_damping_is_added_to_the_matrix():
    made = named("indefinite")
    for solver in (CG(max_steps=50, damping=2.5), MINRES(max_steps=50, damping=2.5)):
        damped = assembled(made.V, made.values + 2.5, made.b)
        found = measured(solver(made.operator, {"x": made.b}), damped.operator, {"x": made.b})
        check_report(found, damped)
        torch.testing.assert_close(
            found.value["x"], torch.linalg.solve(made.A + 2.5 * torch.eye(5).double(), made.b), rtol=1e-8, atol=1e-9
        )
    operator = Operator(lambda v: {"x": -v["x"]}, {"x": torch.full_like(made.b, 2.0)})
    first_order = solve(CG(damping=0.5), operator, {"x": made.b})
    torch.testing.assert_close(first_order.value["x"], made.b / 2.5)
    assert first_order.stopped.all()
    torch.testing.assert_close(first_order.residual, torch.full((2,), 1.4).double())  # b + b / 2.5


def test_history_is_that_of_the_steps():
    made = named("batch")
    found = CG(max_steps=8, tol=1e-10, history=True)(made.operator, {"x": made.b})
    assert found.history.shape == (9, 3)
    for t in range(3):
        iterates = conjugate_gradients(made.A[t], made.b[t], 5)[: found.steps[t] + 1]
        true = torch.stack([(made.b[t] - made.A[t] @ x).norm() / made.b[t].norm() for x in iterates])
        # The last is rounding.
        torch.testing.assert_close(found.history[: len(true), t][:-1], true[:-1], rtol=1e-8, atol=0)
        assert (found.history[len(true) :, t] == found.history[len(true) - 1, t]).all()
    assert found.steps.tolist() == [5, 1, 5]
    assert CG()(made.operator, {"x": made.b}).history is None
    stops = solve(CG(max_steps=8, history=True), named("indefinite").operator, {"x": named("indefinite").b})
    torch.testing.assert_close(stops.history[-1], stops.residual, rtol=1e-12, atol=0)
    torch.testing.assert_close(stops.history[0], torch.ones(2).double(), rtol=1e-14, atol=0)


def test_a_task_out_of_steps_was_not_stopped():
    made = named("ill")
    assert not CG(max_steps=2)(made.operator, {"x": made.b}).stopped.any()
    mixed = system(torch.stack([ONE_TO_FIVE, ONE_TO_FIVE - 2.5]), torch.Generator().manual_seed(1))
    assert CG(max_steps=9)(mixed.operator, {"x": mixed.b}).stopped.tolist() == [False, True]


# MINRES


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


# Fixed-point iterations and their step size


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


# What is said of a solution


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
