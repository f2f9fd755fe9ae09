"""The reproduced figures: what they claim, what they count, and the command that makes them."""

import csv
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import complaint

from metagrad import CG, GradientDescent, Implicit, Nesterov, Unroll, argmin
from metagrad.cli.main import main
from metagrad.recipes import figures, meta_gradient_error, rates
from metagrad.recipes.least_squares import line, power_law
from metagrad.recipes.protocols import ErrorProtocol, RateProtocol
from metagrad.recipes.regression import as_found, dense, diagonal, few, meta_gradient, relative_error, solve, spread

KAPPA, DIMS = 1000.0, 50


def drawn(eigenvalues=few, kappa=KAPPA, dims=DIMS, tasks=4, make=dense, seed=0):
    return make(eigenvalues(kappa, dims), tasks, torch.Generator().manual_seed(seed))


def errors(regression, solver, adjoint, start=None):
    return relative_error(meta_gradient(regression, solver, adjoint, start), regression.exact)


def cg_error(regression, steps):
    """Error of the linear solve alone: at the exact inner solution."""
    return errors(regression, as_found, Implicit(linear_solver=CG(max_steps=steps)), regression.solution)


@pytest.mark.parametrize("make", [dense, diagonal])
@pytest.mark.parametrize("eigenvalues", [few, spread])
def test_the_inner_problem_has_the_spectrum_and_the_answer_it_claims(make, eigenvalues):
    """From the objective alone: its Hessian by autograd, phi* by one Newton step, the meta-gradient by differences."""
    kappa, dims = 50.0, 8
    r = drawn(eigenvalues, kappa, dims, make=make)
    data = r.data(r.theta)

    def newton(theta):
        data = r.data(theta)
        found = []
        for i in range(len(theta)):
            task = tuple(part[i] for part in data)
            value = lambda w, task=task: r.objective({"w": w}, {}, task)  # noqa: E731
            zero = torch.zeros(dims, dtype=torch.float64)
            H = torch.autograd.functional.hessian(value, zero)
            found.append(-torch.linalg.solve(H, torch.autograd.functional.jacobian(value, zero)))
        return torch.stack(found)

    for i in range(4):
        task = tuple(part[i] for part in data)
        H = torch.autograd.functional.hessian(lambda w, task=task: r.objective({"w": w}, {}, task), r.theta[i])
        torch.testing.assert_close(torch.linalg.eigvalsh(H), eigenvalues(kappa, dims), rtol=1e-10, atol=1e-10)
    assert eigenvalues(kappa, dims)[-1] / eigenvalues(kappa, dims)[0] == pytest.approx(kappa)
    torch.testing.assert_close(newton(r.theta), r.solution, rtol=1e-8, atol=1e-10)
    step, direction = 1e-4, torch.randn_like(r.theta)
    up, down = (r.query_loss(newton(r.theta + sign * step * direction)) for sign in (1, -1))
    # F is quadratic in theta: the central difference has no error of its own but rounding.
    assert (r.exact * direction).sum().item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-7)


def test_few_eigenvalues_two_cg_steps_leave_a_floor_and_five_none():
    r = drawn()
    assert (cg_error(r, 2) > 0.05).all()
    assert (cg_error(r, 4) > 1e-4).all()
    assert (cg_error(r, 5) < 1e-12).all()


def test_spread_eigenvalues_five_cg_steps_leave_most_of_the_error():
    r = drawn(spread)
    assert (cg_error(r, 5) > 0.5).all()
    assert (cg_error(r, 20) > 0.05).all()
    assert (cg_error(r, 10 * DIMS) < 1e-9).all()


@pytest.mark.parametrize("solver", [GradientDescent(lr=1 / KAPPA, max_steps=1000),
                                    Nesterov(lr=1 / KAPPA, max_steps=700, convexity=1.0)])  # fmt: skip
def test_many_inner_steps_and_five_of_cg_are_exact_with_few_eigenvalues(solver):
    r = drawn()
    phi = solve(r, solver)
    assert (errors(r, as_found, Implicit(linear_solver=CG(max_steps=5)), phi) < 1e-10).all()
    assert (errors(r, as_found, Implicit(linear_solver=CG(max_steps=2)), phi) > 0.05).all()
    assert (errors(r, solver, Unroll()) < 1e-10).all()


def test_found_first_and_differentiated_afterwards_is_one_argmin():
    r, solver = drawn(spread), Nesterov(lr=1 / KAPPA, max_steps=30, convexity=1.0)
    adjoint = Implicit(linear_solver=CG(max_steps=7))
    whole = meta_gradient(r, solver, adjoint)
    torch.testing.assert_close(meta_gradient(r, as_found, adjoint, solve(r, solver)), whole, rtol=1e-12, atol=0)


def test_unrolled_error_falls_at_the_rate_of_gradient_descent():
    """The slowest direction that moves at all has curvature √κ: a factor 1 − 1/√κ a step."""
    r = drawn(kappa=100.0)
    before, after = (errors(r, GradientDescent(lr=0.01, max_steps=n), Unroll()) for n in (100, 150))
    torch.testing.assert_close(after / before, torch.full_like(after, 0.9**50), rtol=1e-3, atol=0)


def test_error_rows_cover_every_curve_and_agree_with_argmin_called_by_hand():
    protocol = ErrorProtocol(kappa=30.0, dims=6, tasks=3, inner_steps=40, seed=3)
    done = []
    rows = meta_gradient_error.measure(protocol, lambda now, total: done.append(now / total))
    assert done == sorted(done)
    assert done[-1] == 1
    steps = meta_gradient_error.grid(40)
    assert steps[0] == 1
    assert steps[-1] == 40
    assert len(rows) == 2 * 2 * 5 * len(steps)
    r = drawn(spread, 30.0, 6, tasks=3, seed=3)
    theta = r.theta.clone().requires_grad_()
    by_hand = argmin(
        r.objective, {"w": theta}, {}, r.data(theta),
        solver=Nesterov(lr=1 / 30, max_steps=40, convexity=1.0), adjoint=Implicit(linear_solver=CG(max_steps=2)),
    )  # fmt: skip
    r.query_loss(by_hand.value["w"]).backward()
    expected = relative_error(theta.grad, r.exact)
    (row,) = (x for x in rows if (x.spectrum, x.solver, x.cg, x.inner_steps) == ("spread", "Nesterov", "2", 40))
    assert row.error == pytest.approx(expected.median().item(), rel=1e-9)
    assert (row.lowest, row.highest) == pytest.approx((expected.min().item(), expected.max().item()), rel=1e-9)


@settings(deadline=None, max_examples=200)
@given(answer=st.integers(1, 5000), start=st.integers(1, 9000), rate=st.floats(1e-4, 2.0), stairs=st.integers(1, 50))
def test_least_finds_the_first_that_reaches(answer, start, rate, stairs):
    tried = []

    def error(n):
        tried.append(n)
        assert n >= 1
        if n >= answer:  # falls in stairs, and not at all for the first of them
            return math.exp(-rate * ((n - answer) // stairs) * stairs)
        return 1.0001 * math.exp(rate * ((answer - n) // stairs) * stairs) if rate * answer < 600 else 2.0

    n, reached = rates.least(error, 1.0, start=start)
    assert n == answer
    assert reached == error(answer)
    assert len(tried) < 60


def test_power_law_is_least_squares_with_its_standard_error():
    x, y = [1.0, 2.0, 5.0, 9.0, 30.0], [3.0, 7.0, 12.0, 40.0, 77.0]
    u, v = (np.log(values) - np.log(values).mean() for values in (x, y))
    value = (u @ v) / (u @ u)
    rest = v - value * u
    found = power_law(x, y)
    assert (found.value, found.error) == pytest.approx((value, math.sqrt(rest @ rest / 3 / (u @ u))), rel=1e-10)
    straight = line([1, 2, 3, 7], [5, 7, 9, 17])
    assert (straight.value, straight.error) == pytest.approx((2, 0), abs=1e-12)
    with pytest.raises(ValueError, match="three points"):
        power_law([1, 2], [1, 2])


@pytest.fixture(scope="module")
def counted():
    protocol = RateProtocol(kappas=(10.0, 30.0, 100.0, 300.0), target=1e-4, dims=500, tasks=2, unrolled=30.0)
    return protocol, rates.measure(protocol)


def test_gradient_descent_takes_kappa_and_nesterov_its_root(counted):
    _, rows = counted
    fits = rates.fits(rows)
    assert 0.9 < fits["iMAML", "gradient descent"].value < 1.05
    assert 0.45 < fits["iMAML", "Nesterov"].value < 0.58
    assert 0.45 < fits["MAML", "Nesterov"].value < 0.58
    assert ("MAML", "gradient descent") not in fits, "two points have no fit"
    linear = [row for row in rows if (row.method, row.solver) == ("iMAML", "Nesterov")]
    assert 0.4 < power_law([row.kappa for row in linear], [row.products for row in linear]).value < 0.52


def test_counts_are_those_of_the_solvers_and_one_step_fewer_misses(counted):
    protocol, rows = counted
    kappa = 30.0
    r = diagonal(spread(kappa, protocol.dims), protocol.tasks, torch.Generator().manual_seed(0))
    descent = {"gradient descent": lambda n: GradientDescent(lr=1.9 / (kappa + 1), max_steps=n),
               "Nesterov": lambda n: Nesterov(lr=1 / kappa, max_steps=n, convexity=1.0)}  # fmt: skip
    mine = [row for row in rows if row.kappa == kappa]
    assert len(mine) == 4
    for row in mine:
        implicit = row.method == "iMAML"
        adjoint = Implicit(linear_solver=CG(max_steps=row.products, tol=0.0)) if implicit else Unroll()
        at, before = (errors(r, descent[row.solver](n), adjoint).max() for n in (row.inner_steps, row.inner_steps - 1))
        assert at <= protocol.target < before
        assert row.error == pytest.approx(at.item(), rel=1e-6)
        assert row.evaluations == row.inner_steps + row.products
        assert row.held == (1 if implicit else row.inner_steps)
        if implicit:
            assert cg_error(r, row.products).max() <= protocol.target / 2 < cg_error(r, row.products - 1).max()
        else:
            assert row.products == row.inner_steps


QUICK = ["reproduce", "meta-gradient-error", "--kappas", "3", "2", "4", "--inner-steps", "3", "--tasks", "2"]
NAMES = {f"{name}.{ending}" for name in ("meta-gradient-error", "rates") for ending in ("png", "svg", "csv")}


def test_the_command_writes_pictures_and_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(QUICK) == 0
    said = capsys.readouterr().out
    files = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert set(files) == NAMES
    assert all(name in said.replace("\n", "") for name in NAMES)
    for words in ("condition number 1000", "seed 0", "46 at 1", "exponent of κ", " ± "):
        assert words in said
    rows = list(csv.DictReader(files["rates.csv"].decode().splitlines()))
    assert [row["kappa"] for row in rows if row["method"] == "MAML" and row["solver"] == "Nesterov"] == ["2", "3", "4"]
    assert all(float(row["error"]) <= float(row["target"]) == 1e-6 for row in rows)
    rows = list(csv.DictReader(files["meta-gradient-error.csv"].decode().splitlines()))
    assert {row["inner_steps"] for row in rows} == {"1", "2", "3"}
    assert {(row["kappa"], row["dims"], row["tasks"], row["seed"]) for row in rows} == {("1000", "50", "2", "0")}
    assert all(float(row["lowest"]) <= float(row["error"]) <= float(row["highest"]) for row in rows)

    for path in (tmp_path / "figures").iterdir():
        path.write_bytes(b"older")
    assert main([*QUICK, "--out", "figures"]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()} == files


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("figure-9", "has no command 'figure-9': the commands are meta-gradient-error"),
        ("meta-gradient-error --seed -1", "--seed must be from 0"),
        ("meta-gradient-error --tasks 0", "--tasks must be from 1"),
        ("meta-gradient-error --inner-steps 0", "--inner-steps must be from 1"),
        ("meta-gradient-error --kappa 1", "--kappa must be above 1"),
        ("meta-gradient-error --kappa nan", "--kappa must be above 1"),
        ("meta-gradient-error --kappas 10 100 inf", "--kappas must be above 1 and at most 1e+06"),
        ("meta-gradient-error --kappas 10 100 10", "three different"),
        ("meta-gradient-error --kappas ten", "--kappas"),
        ("meta-gradient-error --out file/below", "choose another folder with --out"),
        ("meta-gradient-error --out file", "choose another folder with --out"),
    ],
)
def test_complaints_are_one_line(capsys, monkeypatch, tmp_path, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert says in complaint(capsys, "reproduce", *words.split())
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is left behind"


def test_a_full_disk_leaves_no_half_file(capsys, monkeypatch, tmp_path):
    def fill(figure, path, form):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures, "save", fill)
    assert "No space left on device" in complaint(capsys, *QUICK, "--out", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_it_and_keeps_what_is_whole(capsys, monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(rates, "measure", interrupted)
    assert main([*QUICK, "--out", str(tmp_path)]) == 130
    assert {path.name for path in tmp_path.iterdir()} == {name for name in NAMES if name.startswith("meta")}
