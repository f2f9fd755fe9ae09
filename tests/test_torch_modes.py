"""What a caller has set for all of torch changes no result, or is refused in one line."""

import contextlib

import pytest
import strokes
import torch
from torch import nn
from toyruns import new_run, tensors, toy, train

from metagrad import (
    CG,
    LBFGS,
    MINRES,
    Adam,
    Dense,
    GradientDescent,
    Implicit,
    TorchOptimizer,
    Unroll,
    argmin,
    attach,
    check_meta_gradient,
)  # fmt: skip
from metagrad.classifier.learner import Learner
from metagrad.fewshot import (
    ANIL,
    BOIL,
    FOMAML,
    IMAML,
    MAML,
    R2D2,
    Batch,
    Conv4,
    EpisodeSampler,
    ITDBiO,
    MemoryReduced,
    MetaSGD,
    ProtoNet,
    Reptile,
    Tasks,
    admit,
    evaluate,
    meta_gradient,
)  # fmt: skip
from metagrad.implicit.linear.base import dot

CPU = {"device": "cpu", "dtype": torch.float64}


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device):
    """``meta`` stands for a GPU: a tensor that is made without saying where holds no numbers."""
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "another device": lambda: default_device("meta"),
    "deterministic": deterministic,
}
SWITCHED_OFF = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad switched off": lambda: torch.set_grad_enabled(False),
}
AUTOCAST = {"autocast": lambda: torch.autocast("cpu", torch.bfloat16)}


def ridge(phi, theta, data):
    x, y = data
    return ((x @ phi["w"] - y) ** 2).sum() / 2 + theta["lam"] / 2 * (phi["w"] ** 2).sum()


G = torch.Generator().manual_seed(0)
X, Y = (torch.randn(*shape, generator=G, **CPU) for shape in ((3, 6, 4), (3, 6)))
STEPS = GradientDescent(lr=0.05, max_steps=20)


def solved(solver=STEPS, adjoint=None, found=None):
    lam = torch.tensor(1.0, requires_grad=True, **CPU)
    adjoint = adjoint or Implicit()
    if found is not None:
        solution = attach({"w": found}, ridge, {"lam": lam}, (X, Y), adjoint=adjoint)
    else:
        start = {"w": torch.zeros(3, 4, **CPU)}
        solution = argmin(ridge, start, {"lam": lam}, (X, Y), solver=solver, adjoint=adjoint)
    solution.value["w"].sum().backward()
    return lam.grad


def checked():
    found = check_meta_gradient(
        ridge,
        lambda theta: {"w": torch.zeros(3, 4, **CPU)},
        {"lam": torch.tensor(1.0, **CPU)},
        (X, Y),
        outer=lambda phi, theta: phi["w"].sum(),
        solver=STEPS,
        adjoint=Implicit(),
    )
    return found.used


def drawn(tasks, g, dtype=torch.float32):
    def batch(each):
        x = torch.rand(tasks, 3 * each, 1, 14, 14, generator=g, device="cpu", dtype=dtype)
        return Batch(x, torch.arange(3, device="cpu").repeat_interleave(each).repeat(tasks, 1))

    return Tasks(batch(1), batch(2))


class Own(nn.Module):
    """A network whose layers are not a sequence: tasks run under ``vmap``."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3, stride=2)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)).flatten(1))


TASKS = drawn(4, G)
CONV4 = Conv4(3, filters=4, image_size=14, generator=torch.Generator().manual_seed(1))
OWN = admit(Own(), torch.rand(4, 1, 14, 14))
METHODS = [
    IMAML(), MAML(inner_steps=2), FOMAML(inner_steps=2), Reptile(), MetaSGD(), ANIL(), BOIL(), ITDBiO(),
    MemoryReduced(), ProtoNet(), R2D2(),
]  # fmt: skip


def gradient(method, model, theta=None, tasks=TASKS):
    theta = theta or method.init(model)
    meta_gradient(method, model, theta, tasks)
    return torch.cat([leaf.grad.flatten() for leaf in theta.values() if leaf.grad is not None])


SAMPLER = EpisodeSampler(classes=toy().val, ways=3, shots=1, queries=2, rotations=True)
SMALL = Conv4(3, filters=2, image_size=8, generator=torch.Generator().manual_seed(1))


def accuracy(method=None, theta=None):
    method = method or IMAML()
    generator = torch.Generator().manual_seed(0)
    found = evaluate(method, SMALL, theta or method.init(SMALL), SAMPLER, tasks=8, generator=generator)
    return torch.tensor([found.accuracy, found.loss], **CPU)


GRADIENTS = {
    "descent": solved,
    "adam": lambda: solved(Adam(lr=0.1, max_steps=20)),
    "lbfgs": lambda: solved(LBFGS(max_steps=5)),
    "torch's": lambda: solved(TorchOptimizer(factory=lambda p: torch.optim.SGD(p, lr=0.05), max_steps=20)),
    "own": lambda: solved(lambda problem, init: {"w": init["w"] + 0.1}),
    "dense": lambda: solved(adjoint=Implicit(linear_solver=Dense())),
    "minres": lambda: solved(adjoint=Implicit(linear_solver=MINRES())),
    "cg": lambda: solved(adjoint=Implicit(linear_solver=CG())),
    "unroll": lambda: solved(adjoint=Unroll()),
    "attach": lambda: solved(found=torch.ones(3, 4, **CPU)),
}
WORK = {
    "check": checked,
    **{type(method).__name__: lambda method=method: gradient(method, CONV4) for method in METHODS},
    "own network": lambda: gradient(IMAML(), OWN),
    "evaluate": accuracy,
    "sampler": lambda: SAMPLER(3, generator=torch.Generator().manual_seed(0)).query.x,
}


@pytest.mark.parametrize("name", [*GRADIENTS, *WORK])
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_for_all_of_torch_change_nothing(name, setting):
    work = {**GRADIENTS, **WORK}[name]
    expected = work()
    with SETTINGS[setting]():
        found = work()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("setting", ["no_grad", "grad switched off"])
@pytest.mark.parametrize("name", WORK)
def test_gradients_are_computed_where_they_are_switched_off(name, setting):
    expected = WORK[name]()
    with SWITCHED_OFF[setting]():
        found = WORK[name]()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_inference_mode_is_left_or_refused(method):
    theta, other = method.init(SMALL), method.init(CONV4)
    expected = accuracy(method, theta), gradient(method, CONV4, other)
    for leaf in other.values():
        leaf.grad = None
    with torch.inference_mode():
        assert torch.equal(accuracy(method, theta), expected[0])
        assert torch.equal(accuracy(method), expected[0]), "weights made in there are copied"
        copied = Tasks(*(Batch(part.x.clone(), part.y.clone()) for part in TASKS))
        assert torch.equal(gradient(method, CONV4, other, copied), expected[1])
        with pytest.raises(ValueError, match="inference_mode"):
            gradient(method, CONV4)
        with pytest.raises(ValueError, match="inference_mode"):
            solved()


def learner():
    from pathlib import Path

    return Learner.of(Path("glyphs"))


DRAWINGS = torch.from_numpy(255 - strokes.drawings(3, 4, 5)[:, :, ::2, ::2]).flatten(0, 1)[:, None]
LABELS = [label for label in "abc" for _ in range(4)]


def test_runs_and_classifiers_have_settings_of_their_own(tmp_path):
    """A run says its digits and its device; what else is set does not reach it."""
    data = toy()

    def all_of_it(name):
        known = learner()
        classifier = known.adapt(DRAWINGS, LABELS)
        with new_run(tmp_path / name, dataset=data, meta_steps=4, val_every=2) as run:
            train(run, data)
        kept_back = known.leave_one_out(known.network_inputs(DRAWINGS), LABELS)
        left = torch.tensor(kept_back.probabilities, **CPU)
        return *classifier.classify(DRAWINGS), left, tensors(tmp_path / name)["theta/head.weight"]

    expected = all_of_it("usual")
    for name, setting in (SETTINGS | SWITCHED_OFF | AUTOCAST).items():
        with setting():
            found = all_of_it(name)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype, name
            assert torch.equal(one, other), name
        assert torch.get_default_dtype() == torch.float32


def test_autocast_does_not_reach_the_linear_algebra():
    """It is for the network; what solvers add up keeps its digits, and float64 is not touched at all."""
    a, b = torch.randn(2, 3, 50, generator=G, device="cpu", dtype=torch.float32)
    diagonal = torch.linspace(1, 2, 4, device="cpu", dtype=torch.float32).expand(3, 4)

    def system():
        """Solve for a curvature that is free of products that autocast knows."""

        def objective(phi, theta, data):
            return (data * phi["w"].square()).sum() / 2 - (theta["t"] * phi["w"]).sum()

        t = torch.ones(4, device="cpu", dtype=torch.float32, requires_grad=True)
        start = {"w": torch.zeros(3, 4, device="cpu", dtype=torch.float32)}
        cg = Implicit(linear_solver=CG(max_steps=4, tol=0))
        solution = argmin(objective, start, {"t": t}, diagonal, solver=STEPS, adjoint=cg)
        solution.value["w"].square().sum().backward()
        return t.grad

    expected, exact, whole = dot(a, b), system(), solved()
    with torch.autocast("cpu", torch.bfloat16):
        assert dot(a, b).dtype == torch.float32
        assert torch.equal(dot(a, b), expected)
        assert torch.equal(system(), exact)
        assert torch.equal(solved(), whole)


def test_autocast_does_not_hand_out_weights_from_before_an_update():
    """Torch remembers cast weights for as long as an autocast lasts."""

    def twice(inside):
        method, theta = ProtoNet(), ProtoNet().init(CONV4)
        with torch.autocast("cpu", torch.bfloat16) if inside else contextlib.nullcontext():
            for _ in range(2):
                for leaf in theta.values():
                    leaf.grad = None
                with contextlib.nullcontext() if inside else torch.autocast("cpu", torch.bfloat16):
                    meta_gradient(method, CONV4, theta, TASKS)
                with torch.no_grad():
                    for leaf in theta.values():
                        leaf.add_(leaf.grad, alpha=-1.0)
        return theta

    for one, other in zip(twice(True).values(), twice(False).values(), strict=True):
        assert torch.equal(one, other)


def test_inputs_of_other_digits_than_the_weights_are_refused():
    with default_dtype(torch.float64):
        model = Conv4(3, filters=2, image_size=8)
    theta = IMAML().init(model)
    with pytest.raises(ValueError, match=r"float32, the weights torch.float64"):
        evaluate(IMAML(), model, theta, SAMPLER, tasks=2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"float32, the weights torch.float64"):
        meta_gradient(IMAML(), model, theta, SAMPLER(2, generator=torch.Generator().manual_seed(0)))
