"""What a user's own objective may and may not do."""

import subprocess
import sys

import pytest
import torch

from metagrad import CG, Composed, Dense, FirstOrder, GradientDescent, Implicit, Proximal, Unroll, argmin
from metagrad.implicit import Problem

SOLVER = GradientDescent(lr=0.1, max_steps=3)
W = torch.ones(2, 3)


def run(objective, theta=None, data=W, init=None, **adjoint):
    theta = {"w": torch.zeros(3, requires_grad=True)} if theta is None else theta
    return argmin(objective, {"w": W} if init is None else init, theta, data, solver=SOLVER,
                  adjoint=Implicit(**adjoint))  # fmt: skip


def test_a_captured_tensor_would_get_no_gradient():
    captured = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="captured a tensor"):
        run(lambda phi, theta, data: ((phi["w"] - captured) ** 2).sum())


def test_the_value_must_be_a_scalar_that_depends_on_phi():
    with pytest.raises(ValueError, match=r"scalar for one task, got \(3,\)"):
        run(lambda phi, theta, data: phi["w"] - data)
    with pytest.raises(ValueError, match="does not depend on phi"):
        run(lambda phi, theta, data: (theta["w"] * data).sum())


def test_gauss_newton_asks_for_the_structure():
    with pytest.raises(TypeError, match="Composed"):
        run(lambda phi, theta, data: ((phi["w"] - theta["w"]) ** 2).sum(), curvature="gauss_newton").value[
            "w"
        ].sum().backward()
    with pytest.raises(ValueError, match="curvature is"):
        Implicit(curvature="newton")


def test_task_axes_must_agree():
    with pytest.raises(ValueError, match="task axis"):
        run(lambda phi, theta, data: (phi["w"] * data).sum(), data=torch.ones(3, 3))


@pytest.mark.parametrize("bad", [{"lr": 0.0}, {"lr": -1.0}, {"max_steps": 0}])
def test_refuses_impossible_steps(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        GradientDescent(**{"lr": 0.1, "max_steps": 1, **bad})


def test_integers_and_frozen_tensors_ride_along_in_data():
    theta = {"w": torch.zeros(3, requires_grad=True), "frozen": torch.ones(3)}

    def objective(phi, theta, data):
        rows, index = data["rows"], data["index"]
        return ((phi["w"] - theta["w"] * theta["frozen"]) ** 2).sum() + (phi["w"][index] * rows).sum()

    data = {"rows": W, "index": torch.tensor([[0, 1, 2], [2, 1, 0]])}
    solution = run(objective, theta, data, linear_solver=CG(max_steps=5))
    solution.value["w"].sum().backward()
    torch.testing.assert_close(theta["w"].grad, torch.full((3,), 2.0))
    assert theta["frozen"].grad is None


def test_init_may_be_the_data_or_theta_themselves():
    """Unrolled from data: phi₁ = w − 0.1 · 2 (w − w₀) with w₀ = w, so solution and derivative are those of w."""
    w = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    solution = argmin(lambda phi, theta, data: ((phi["w"] - data) ** 2).sum(), {"w": w}, {}, w,
                      solver=SOLVER, adjoint=Unroll())  # fmt: skip
    torch.testing.assert_close(solution.value["w"], w)
    torch.testing.assert_close(torch.autograd.grad(solution.value["w"].sum(), w)[0], torch.ones(1, 3))
    doubled = argmin(lambda phi, theta, data: ((phi["w"] - data) ** 2).sum(), {"w": w}, {}, 2 * w,
                     solver=GradientDescent(lr=0.1, max_steps=1), adjoint=Unroll())  # fmt: skip
    torch.testing.assert_close(doubled.value["w"], 1.2 * w)
    torch.testing.assert_close(torch.autograd.grad(doubled.value["w"].sum(), w)[0], torch.full((1, 3), 1.2))


def test_tensors_changed_before_backward_are_noticed():
    theta = {"w": torch.zeros(3, requires_grad=True), "lam": torch.tensor(1.0)}
    solution = run(lambda phi, theta, data: theta["lam"] * ((phi["w"] - theta["w"]) ** 2).sum(), theta)
    theta["lam"].add_(100.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        solution.value["w"].sum().backward()


def test_second_derivatives_are_refused_not_wrong():
    solution = run(lambda phi, theta, data: ((phi["w"] - theta["w"] ** 2) ** 2).sum())
    with pytest.raises(RuntimeError, match="differentiated once only"):
        solution.value["w"].sum().backward(create_graph=True)


def test_scalar_parameters_no_data_and_a_constant_regulariser():
    theta = {"c": torch.tensor(3.0, requires_grad=True)}
    objective = Composed(lambda phi, theta, data: phi["a"] - theta["c"], lambda out, data: out**2,
                         lambda phi, theta: theta["c"] * 0)  # fmt: skip
    for curvature in ("hessian", "gauss_newton"):
        solution = run(objective, theta, None, {"a": torch.zeros(4)}, curvature=curvature)
        (found,) = torch.autograd.grad(solution.value["a"].sum(), theta["c"])
        assert found.item() == pytest.approx(4.0)
    with torch.inference_mode(), pytest.raises(ValueError, match="no_grad"):
        run(objective, theta, None, {"a": torch.zeros(4)})
    with pytest.raises(ValueError, match="no tasks"):
        run(objective, theta, None, {"a": torch.zeros(0)})


def test_a_solution_holds_no_reference_cycle():
    """Freed at once, not when the garbage collector happens by: memory must not pile up over meta-steps."""
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        theta = {"w": torch.zeros(3, requires_grad=True)}
        solution = run(lambda phi, theta, data: ((phi["w"] - theta["w"] * data) ** 2).sum(), theta)
        solution.value["w"].sum().backward()
        watched = weakref.ref(solution.value["w"])
        assert solution.linear is not None
        del solution
        assert watched() is None
    finally:
        gc.enable()


def test_the_core_knows_nothing_of_few_shot_learning():
    """Imports run one way, and importing the library pulls in no plots, downloads or terminals."""
    check = """
import sys, metagrad.implicit
assert not [m for m in sys.modules if m.startswith(("metagrad.fewshot", "metagrad.data", "metagrad.experiment"))]
import metagrad.fewshot
heavy = {"matplotlib", "pooch", "rich", "safetensors", "tensorboard", "platformdirs", "metagrad.experiment"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_command_answers_help_without_torch():
    check = """
import sys
from metagrad.cli.main import main
try: main(["train", "--help"])
except SystemExit: pass
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_a_proximal_term_written_out_is_the_one_autograd_would_take(curvature):
    g = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=g)  # noqa: E731
    x, y, phi, v = draw(3, 5, 2), draw(3, 5), {"w": draw(3, 2), "b": draw(3)}, {"w": draw(3, 2), "b": draw(3)}

    def proximal(phi, theta):
        return 0.35 * ((phi["w"] - theta["w"]).square().sum() + (phi["b"] - theta["b"]).square())

    found = []
    for regulariser in (Proximal(0.7), proximal):
        objective = Composed(
            lambda phi, theta, data: (data[0] @ phi["w"] * theta["scale"] + phi["b"]).sinh(),
            lambda outputs, data: (outputs - data[1]).square().mean(),
            regulariser,
        )
        theta = {"w": draw(2) * 0 + 0.3, "b": draw(()) * 0 - 0.2, "scale": draw(()) * 0 + 0.5}
        theta = {name: leaf.requires_grad_() for name, leaf in theta.items()}
        problem = Problem(objective, theta, (x, y))
        linearised = problem.linearise(phi, curvature)
        product = linearised.operator(v)
        shift = linearised.operator.shift
        gradient = problem.grad(phi)
        unrolled = Problem(objective, theta, (x, y), create_graph=True).grad(
            {name: leaf.clone().requires_grad_() for name, leaf in phi.items()}
        )
        second = torch.autograd.grad(sum(part.square().sum() for part in unrolled.values()), list(theta.values()))
        found.append(
            [problem.value(phi), *gradient.values(), *product.values(), *shift.values(), *second,
             *linearised.theta_vjp(v)]
        )  # fmt: skip
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_part_of_phi_that_the_objective_ignores_is_named():
    """Its curvature is zero: no value of it is the solution, and conjugate gradients would return noise."""

    def half(phi, theta, data):
        return (phi["a"] - theta["w"]).square().sum() + 0 * data.sum()

    init, theta = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}, {"w": torch.ones(3, requires_grad=True)}
    data, solver = torch.zeros(2, 1), GradientDescent(lr=0.1, max_steps=2)
    with pytest.raises(ValueError, match=r"makes no use of phi\['b'\]"):
        argmin(half, init, theta, data, solver=solver, adjoint=Implicit())
    argmin(half, init, theta, data, solver=solver, adjoint=FirstOrder())


@pytest.mark.parametrize("bad", [2.5, "a", 0, None, True * 0.5])
def test_steps_are_whole_numbers(bad):
    with pytest.raises(ValueError, match="max_steps must be a whole number"):
        GradientDescent(lr=0.1, max_steps=bad)


@pytest.mark.parametrize("bad", ["a", 0.0, float("inf"), float("nan"), torch.tensor(0.1)])
def test_step_sizes_and_strengths_are_numbers_or_functions(bad):
    with pytest.raises(ValueError, match="lr must be a positive, finite number"):
        GradientDescent(lr=bad, max_steps=1)
    with pytest.raises(ValueError, match="lam must be a positive, finite number"):
        Proximal(bad)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("lam", [0.7, lambda theta: theta["l"].exp()])
def test_decay_towards_zero_is_the_one_autograd_would_take(curvature, lam):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 3, generator=g).double(), torch.randn(2, 5, generator=g).double()
    found = []
    for written in (Proximal(lam, towards="zero"), None):
        theta = {"l": torch.tensor(0.3).double().requires_grad_()}
        x_now = x.clone().requires_grad_()

        def plain(phi, theta):
            return (lam(theta) if callable(lam) else lam) / 2 * phi["w"].square().sum()

        ridge = Composed(lambda phi, theta, data: data[0] @ phi["w"],
                         lambda out, data: (out - data[1]).square().sum() / 2, written or plain)  # fmt: skip
        solution = argmin(ridge, {"w": torch.zeros(2, 3).double()}, theta, (x_now, y),
                          solver=GradientDescent(lr=0.05, max_steps=3000, tol=1e-12),
                          adjoint=Implicit(linear_solver=Dense(), curvature=curvature))  # fmt: skip
        inputs = [x_now, theta["l"]] if callable(lam) else [x_now]
        found.append([*torch.autograd.grad(solution.value["w"].square().sum(), inputs), solution.value["w"].detach()])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-10)
    strength = torch.tensor(0.3).double().exp() if callable(lam) else 0.7
    exact = torch.linalg.solve(x.mT @ x + strength * torch.eye(3).double(), (x.mT @ y[..., None]).squeeze(-1))
    assert torch.allclose(found[0][-1], exact, rtol=1e-8)


def batched(**functions):
    """Return four regressions whose functions of all tasks are given, and what argmin needs."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(4, 20, 3, generator=generator).double(), torch.randn(4, 20, generator=generator).double()
    objective = Composed(
        outputs=lambda phi, theta, data: data[0] @ phi["w"],
        loss=lambda outputs, data: (outputs - data[1]).square().mean(),
        regulariser=Proximal(1.0),
        **functions,
    )
    theta = {"w": torch.zeros(3, dtype=torch.float64, requires_grad=True)}
    return objective, {"w": torch.zeros(4, 3).double()}, theta, data


HOW = {"solver": GradientDescent(lr=0.1, max_steps=3), "adjoint": Implicit()}


@pytest.mark.parametrize(
    ("functions", "says"),
    [
        ({"loss_of_tasks": lambda outputs, data: (outputs - data[1]).square().mean()}, r"loss_of_tasks .*\(T,\)"),
        ({"loss_of_tasks": lambda outputs, data: (outputs - data[1]).square().sum(1)}, "the same for each task"),
        ({"outputs_of_tasks": lambda phi, theta, data: (data[0] @ phi["w"][..., None]).sum()}, "task axis first"),
        (
            {"outputs_of_tasks": lambda phi, theta, data: 2 * (data[0] @ phi["w"][..., None])[..., 0] + 1},
            "the same for",
        ),
    ],
    ids=["a mean over tasks", "a sum for a mean", "no task axis", "other outputs"],
)
def test_functions_of_all_tasks_must_be_those_of_one(functions, says):
    with pytest.raises(ValueError, match=says):
        argmin(*batched(**functions), **HOW)


def test_an_objective_is_validated_once(monkeypatch):
    """Also one that is made anew each time; another shape, or another captured value, is another objective."""
    calls = []

    def made(factor, scale):
        def objective(phi, theta, data):
            calls.append(factor)
            return factor * (phi["w"] - data).square().sum() + scale(theta["a"]).square()

        return objective

    def evaluations(tasks, factor, scale=torch.sin):
        calls.clear()
        argmin(made(factor, scale), {"w": torch.zeros(tasks, 2)}, {"a": torch.ones(())}, torch.ones(tasks, 2),
               solver=lambda problem, init: init, adjoint=FirstOrder())  # fmt: skip
        return len(calls)

    first = evaluations(3, 1.0)
    assert evaluations(3, 1.0) == first - 2
    assert evaluations(4, 1.0) == first
    assert evaluations(3, 2.0) == first
    assert evaluations(3, 2.0, torch.cos) == first
    assert evaluations(3, 2.0, torch.cos) == first - 2


def test_what_is_wrong_is_said_every_time():
    captured = torch.ones(2, requires_grad=True)

    def objective(phi, theta, data):
        return (phi["w"] * captured).square().sum()

    for _ in range(2):
        with pytest.raises(ValueError, match="captured a tensor"):
            argmin(objective, {"w": torch.zeros(3, 2)}, {}, None, **HOW)
    captured.requires_grad_(False)
    argmin(objective, {"w": torch.zeros(3, 2)}, {}, None, **HOW)
    captured.requires_grad_()
    with pytest.raises(ValueError, match="captured a tensor"):
        argmin(objective, {"w": torch.zeros(3, 2)}, {}, None, **HOW)
