"""What argmin refuses before it solves, in one line that says what to do; and what can be imported."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.autograd import functional as AF

import metagrad
from metagrad import (
    Composed,
    FirstOrder,
    GradientDescent,
    Implicit,
    Proximal,
    Unroll,
    argmin,
    attach,
    check_meta_gradient,
)

SOLVER = GradientDescent(lr=0.1, max_steps=200)
a = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)


def distance(phi, theta, data):
    return 0.5 * (phi["w"] - theta["a"]).square().sum()


def ask(objective, init, theta=None, data=None, **how):
    how = {"solver": SOLVER, "adjoint": Implicit(), **how}
    return argmin(objective, init, {"a": a} if theta is None else theta, data, **how)


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# Each is one problem whose task axis was forgotten, and would be three problems with another solution.
FORGOTTEN = {
    "a sum of squares": (distance, torch.zeros(3)),
    "from anywhere": (distance, torch.tensor([0.3, -1.0, 2.0])),
    "of a matrix": (
        lambda phi, theta, data: (phi["w"] - theta["a"][:, None] * torch.ones(3, 2)).square().sum(),
        torch.zeros(3, 2),
    ),
    "a constant from outside": (
        lambda phi, theta, data: (phi["w"] - a.detach()).square().sum() + 0 * theta["a"].sum(),
        torch.zeros(3),
    ),
    "a norm": (lambda phi, theta, data: (1 + phi["w"].square().sum()).sqrt() - phi["w"].sum() / 4, torch.zeros(3)),
    "a product, which needs an axis": (
        lambda phi, theta, data: (phi["w"] @ phi["w"]) / 2 - phi["w"] @ theta["a"],
        torch.zeros(3),
    ),
    "with a proximal term": (
        Composed(
            lambda phi, theta, data: phi["w"] - theta["a"],
            lambda out, data: out.square().sum(),
            Proximal(1.0, towards="zero"),
        ),
        torch.zeros(3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGOTTEN)
def test_a_forgotten_task_axis_is_asked_about(name):
    objective, w = FORGOTTEN[name]
    with pytest.raises(ValueError, match="batched=False") as error:
        ask(objective, {"w": w})
    assert "batched=True" in one_line(error)
    found = ask(objective, {"w": w}, batched=False)
    assert found.value["w"].shape == w.shape
    assert found.grad_norm.shape == ()
    exact = {"a norm": torch.full((3,), 0.25 / (1 - 3 / 16) ** 0.5), "of a matrix": a[:, None].expand(3, 2),
             "with a proximal term": a * 2 / 3}.get(name, a)  # fmt: skip
    assert torch.allclose(found.value["w"], exact, atol=1e-4)


def test_a_forgotten_task_axis_is_asked_about_wherever_one_may_forget_it():
    with pytest.raises(ValueError, match="batched=False"):
        ask(lambda w, theta, data: distance({"w": w}, theta, data), torch.zeros(3))
    with pytest.raises(ValueError, match="batched=False"):
        ask(lambda p, theta, data: distance({"w": p["b"]["w"]}, theta, data), {"b": {"w": torch.zeros(3)}})
    with pytest.raises(ValueError, match="batched=False"):
        attach({"w": a}, distance, {"a": a}, None, adjoint=Implicit())
    with pytest.raises(ValueError, match="batched=False"):
        check_meta_gradient(distance, lambda theta: {"w": torch.zeros(3)}, {"a": a}, None, solver=SOLVER,
                            adjoint=Implicit(), outer=lambda phi, theta: phi["w"].sum())  # fmt: skip
    with pytest.raises(ValueError, match="batched=False"):
        ask(lambda p, theta, data: (p["w"] - data["scale"] * theta["a"]).square().sum(), {"w": torch.zeros(3)},
            data={"scale": 2.0, "mask": None})  # fmt: skip
    x, y = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), torch.ones(3)  # as many rows as columns
    with pytest.raises(ValueError, match=r"fails with phi of one task.*batched=False"):
        ask(lambda phi, theta, data: (data[0] @ phi["w"] - data[1]).square().sum(), {"w": torch.zeros(3)}, {}, (x, y))
    for _ in range(2):  # each time
        with pytest.raises(ValueError, match="batched=False"):
            ask(distance, {"w": torch.zeros(3)})


# Programs that mean what they say: from several starts, or one number a task.
MEANT = {
    "several starts": (distance, torch.zeros(2, 3)),
    "as many starts as numbers": (distance, torch.randn(3, 3, generator=torch.Generator().manual_seed(0))),
    "their norm": (lambda phi, theta, data: ((phi["w"] - theta["a"]).square().sum() + 1).sqrt(), torch.zeros(2, 3)),
    "a mean": (lambda phi, theta, data: (phi["w"] - theta["a"]).square().mean(), torch.zeros(2, 3)),
    "one number a task": (lambda phi, theta, data: (phi["w"] - theta["a"][0]).square(), torch.zeros(4)),
    "one number, summed": (lambda phi, theta, data: (phi["w"] - theta["a"][0]).square().sum(), torch.zeros(4)),
    "with an offset": (lambda phi, theta, data: (phi["w"] - 1).square().sum() + theta["a"].sum(), torch.zeros(4)),
    "two unknowns": (
        lambda phi, theta, data: (phi["w"][0] - theta["a"][0]) ** 2 + (phi["w"][1] - phi["w"][0]) ** 2,
        torch.tensor([[0.0, 0.0], [1.0, -1.0]]),
    ),
    "one task": (distance, torch.zeros(1, 3)),
}


@pytest.mark.parametrize("name", MEANT)
def test_a_program_that_means_tasks_is_left_alone(name):
    objective, w = MEANT[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        left_alone = ask(objective, {"w": w})
        said = ask(objective, {"w": w}, batched=True)
    assert torch.equal(left_alone.value["w"], said.value["w"])
    assert left_alone.steps.shape == w.shape[:1]


def test_tasks_that_look_like_one_problem_may_be_said_to_be_tasks():
    found = ask(distance, {"w": torch.zeros(3)}, batched=True)
    assert torch.allclose(found.value["w"], torch.full((3,), 2.0), atol=1e-4), "three times the mean of a"


BAD = {
    "no task axis in data": ({"w": torch.zeros(3)}, torch.ones(5), ValueError, r"task axis.*phi 3, data 5.*batched"),
    "a single number": ({"w": torch.zeros(())}, None, ValueError, r"task axis.*no axis.*batched=False"),
    "a number in data": ({"w": torch.zeros(3)}, torch.tensor(1.0), ValueError, r"data no axis.*into theta"),
    "nothing": ({}, torch.ones(3), ValueError, "phi is empty"),
    "nothing nested": ([{}, ()], torch.ones(3), ValueError, "phi is empty"),
    "integers": ({"w": torch.zeros(3, dtype=torch.int64)}, torch.ones(3), ValueError, r"phi\['w'\] is torch.int64"),
    "complex": (torch.zeros(3, dtype=torch.complex64), torch.ones(3), ValueError, "phi is torch.complex64"),
    "two dtypes": (
        {"w": torch.zeros(3), "v": torch.zeros(3).double()}, torch.ones(3), ValueError,
        "torch.float32 and torch.float64: give them one dtype",
    ),
    "two devices": (
        {"w": torch.zeros(3), "v": torch.zeros(3, device="meta")}, torch.ones(3), ValueError,
        "cpu and meta: give them one device",
    ),
    "a list of numbers": ({"w": [1.0, 2.0]}, None, TypeError, "phi holds a float"),
    "an array as phi": ({"w": np.zeros(3)}, None, TypeError, "phi holds a NumPy array at 'w'.*from_numpy"),
    "an array in data": ({"w": torch.zeros(3)}, {"x": [np.ones(3)]}, TypeError, r"data holds a NumPy array at 'x\.0'"),
    "a module": (torch.nn.Linear(2, 1), None, TypeError, r"phi holds a module: take dict\(module"),
    "an object in data": ({"w": torch.zeros(3)}, [object()], TypeError, "data holds a object at '0'.*tensors in dict"),
    "one name twice": (
        {"a.b": torch.zeros(3), "a": {"b": torch.zeros(3)}}, None, ValueError, r"two tensors by the name of 'a\.b'",
    ),
    "no tasks": ({"w": torch.zeros(0, 3)}, None, ValueError, "no tasks"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_said_in_a_line(name):
    init, data, kind, says = BAD[name]
    with pytest.raises(kind, match=says) as error:
        ask(lambda phi, theta, data: phi["w"].square().sum(), init, {}, data)
    one_line(error)


@pytest.mark.parametrize("other", ["theta", "data"])
@pytest.mark.parametrize("change", [{"device": "meta"}, {"dtype": torch.float64}])
def test_an_objective_that_fails_of_another_device_or_dtype(change, other):
    x = torch.ones(2, 4, 3)
    given = {"theta": x[0], "data": x}
    given[other] = given[other].to(**change)
    says = "on cpu, theta or data on meta" if "device" in change else "float32, theta or data torch.float64"
    with pytest.raises(ValueError, match=says) as error:
        ask(lambda phi, theta, data: (data @ phi["w"] - theta["x"] @ phi["w"]).square().sum(), {"w": torch.zeros(2, 3)},
            {"x": given["theta"]}, given["data"])  # fmt: skip
    one_line(error)


def test_other_dtypes_that_the_objective_can_take_are_left_alone():
    y, half = torch.ones(2, 3), torch.ones(2, 3).half()
    found = ask(lambda phi, theta, data: (phi["w"] - data[0].float() * theta["a"]).square().sum() * data[1].sum(),
                {"w": torch.zeros(2, 3)}, {"a": torch.tensor(2.0).double()}, (half, y.long() * 0 + 1))  # fmt: skip
    assert torch.allclose(found.value["w"], torch.full((2, 3), 2.0), atol=1e-4)


@pytest.mark.parametrize("theta", [{}, {"w": torch.zeros(3, 4)}, {"w": torch.zeros(())}])
def test_a_proximal_term_needs_its_centre(theta):
    objective = Composed(lambda phi, theta, data: phi["w"], lambda out, data: out.square().sum(), Proximal(1.0))
    with pytest.raises(ValueError, match=r"pulls phi\['w'\].*towards theta\['w'\].*towards='zero'") as error:
        ask(objective, {"w": torch.zeros(2, 4)}, theta, torch.ones(2))
    one_line(error)


def solved(theta, adjoint=None):
    return ask(distance, {"w": torch.zeros(3)}, {"a": theta}, adjoint=adjoint or Implicit(), batched=False).value["w"]


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(a.detach()),
    "vjp": lambda f: torch.func.vjp(f, a.detach()),
    "jvp": lambda f: torch.func.jvp(f, (a.detach(),), (a.detach(),)),
    "jacrev": lambda f: torch.func.jacrev(f)(a.detach()),
    "jacfwd": lambda f: torch.func.jacfwd(f)(a.detach()),
    "hessian": lambda f: torch.func.hessian(lambda x: f(x).sum())(a.detach()),
    "vmap": lambda f: torch.vmap(f)(torch.ones(2, 3)),
}


@pytest.mark.parametrize("adjoint", [Implicit(), Unroll(), FirstOrder()])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_torch_func_are_refused(name, adjoint):
    with pytest.raises(ValueError, match=r"argmin does not go with torch\.func.*plain autograd") as error:
        TRANSFORMS[name](lambda theta: solved(theta, adjoint))
    one_line(error)


def test_a_transform_is_refused_wherever_it_is_met():
    with pytest.raises(ValueError, match=r"does not go with torch\.func"):
        torch.func.grad(lambda x: attach(x[None], distance, x, None, adjoint=Implicit()).value.sum())(a.detach())
    with pytest.raises(ValueError, match=r"check_meta_gradient does not go with torch\.func"):
        torch.vmap(lambda x: check_meta_gradient(distance, None, {"a": x}, None, outer=None, solver=SOLVER,
                                                 adjoint=Implicit()))(torch.ones(2, 3))  # fmt: skip


def test_plain_autograd_and_its_functions_go_through():
    assert torch.allclose(AF.jacobian(solved, a), torch.eye(3), atol=1e-5)
    assert torch.allclose(AF.vjp(solved, a, torch.ones(3))[1], torch.ones(3), atol=1e-5)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        AF.hessian(lambda x: solved(x).square().sum(), a)
    curved = AF.hessian(lambda x: solved(x, Unroll()).square().sum(), a)
    assert torch.allclose(curved, 2 * torch.eye(3), atol=1e-5)


def test_what_autograd_cannot_carry_is_refused_and_not_lost():
    with pytest.raises(ValueError, match=r"an implicit gradient does not go with.*vectorize=True") as error:
        AF.jacobian(solved, a, vectorize=True)
    one_line(error)
    for primal in (a, a.detach()):
        with (
            forward_ad.dual_level(),
            pytest.raises(ValueError, match=r"no forward mode.*Unroll\(\)"),
        ):
            solved(forward_ad.make_dual(primal, torch.ones(3)))
    with forward_ad.dual_level():
        through = solved(forward_ad.make_dual(a.detach(), torch.ones(3)), Unroll())
        assert torch.allclose(forward_ad.unpack_dual(through).tangent, torch.ones(3), atol=1e-5)


STAR = """
import sys
{block}
names = {{}}
exec("from metagrad import *", names)
assert "argmin" in names and "DivergedError" in names
print("FewShotClassifier" in names, "FewShotClassifier" in dir(__import__("metagrad")))
"""
FINDER = """
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sklearn":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Without())
"""


@pytest.mark.parametrize(
    ("block", "has"),
    [("", "True True"), ("sys.modules['sklearn'] = None", "False False"), (FINDER, "False False")],
    ids=["with scikit-learn", "none in sys.modules", "not found"],
)
def test_everything_can_be_imported_at_once_on_a_plain_install(block, has):
    if not block:
        pytest.importorskip("sklearn")
    done = subprocess.run([sys.executable, "-c", STAR.format(block=block)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == has


def test_what_is_listed_is_there():
    assert sorted(set(metagrad.__all__)) == sorted(metagrad.__all__)
    for name in metagrad.__all__:
        assert getattr(metagrad, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = metagrad.nothing


def test_packages_are_there_after_import_metagrad():
    program = "import metagrad; print(metagrad.report.write.__name__, metagrad.fewshot.IMAML.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["write", "IMAML"], done.stderr
