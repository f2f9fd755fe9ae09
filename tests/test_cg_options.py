"""Conjugate gradients with a preconditioner, damping or a history (float64)."""

import pytest
import torch
from linear_systems import ONE_TO_FIVE, assembled, check_report, named, system, times

from metagrad import CG, MINRES
from metagrad.implicit import Operator
from metagrad.implicit.linear import measured, solve


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
