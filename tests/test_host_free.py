"""On a GPU the host reads nothing in a meta-gradient or a draw of tasks: it would wait, and no graph could be captured.

Tested on the CPU: with the one predicate that allows looking switched off, no operation may hand a number to Python.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from metagrad import CG, LBFGS, MINRES, Adam, FixedPoint, GradientDescent, HessianFree, Implicit, Nesterov, Neumann
from metagrad.data import ImageClasses
from metagrad.fewshot import (
    ANIL,
    BOIL,
    FOMAML,
    IMAML,
    MAML,
    R2D2,
    EpisodeSampler,
    ITDBiO,
    MemoryReduced,
    MetaSGD,
    ProtoNet,
    Reptile,
    meta_gradient,
)
from metagrad.implicit import Operator, curvature_range, host
from metagrad.implicit.linear import solve
from workload import Workload, taken

WORK = Workload(tasks=3, ways=3, shots=1, queries=2, filters=4, inner_steps=2, inner_lr=0.1, lam=2.0, cg_steps=3)
TWO = GradientDescent(lr=0.1, max_steps=2)
METHODS = {
    "gauss_newton": IMAML(solver=TWO),
    "hessian": IMAML(solver=TWO, adjoint=Implicit(linear_solver=CG(max_steps=25))),
    "maml": MAML(inner_steps=2),
    "fomaml": FOMAML(inner_steps=2),
    "truncated maml": MAML(inner_steps=3, truncate=1),
    "checkpointed maml": MAML(inner_steps=4, checkpoint=2),
    "meta-sgd": MetaSGD(inner_steps=2),
    "reptile": Reptile(inner_steps=2),
    "anil": ANIL(inner_steps=2),
    "boil": BOIL(inner_steps=2),
    "itd-bio": ITDBiO(inner_steps=2),
    "memory-reduced": MemoryReduced(solver=TWO),
    "protonet": ProtoNet(),
    "r2d2": R2D2(),
}
READS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "unique_dim"}


class Reads(TorchDispatchMode):
    """Remembers the operations whose result, or the shape of it, only the host could know."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name.startswith("index") and any(
            part is not None and part.dtype == torch.bool for part in (args[1] if isinstance(args[1], list) else [])
        )
        if name in READS or masks or str(func) == "aten.repeat_interleave.Tensor":
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", METHODS)
def test_a_meta_gradient_reads_nothing(name, monkeypatch):
    model, _, tasks = WORK.draw(3, torch.float64)
    gradients = {}
    for look in (True, False):
        monkeypatch.setattr(host, "may_read", lambda tensor, look=look: look)
        theta = METHODS[name].init(model)
        with Reads() as reads:
            meta_gradient(METHODS[name], model, theta, tasks, chunk=3)
        ways = name in ("protonet", "r2d2")  # of which one number is read, whatever the network's head has
        if look:
            assert reads.found  # so the test would see one
        else:
            assert len(reads.found) == ways
        gradients[look] = taken(theta)
    for key, leaf in gradients[True].items():
        assert torch.equal(leaf, gradients[False][key])


@pytest.mark.parametrize(
    "solver",
    [
        GradientDescent(lr=0.1, max_steps=3, tol=1e-3, momentum=0.5),
        GradientDescent(lr=0.1, max_steps=3, line_search=True),
        Nesterov(lr=0.1, max_steps=3, tol=1e-3),
        Adam(lr=0.01, max_steps=3, tol=1e-3),
        LBFGS(max_steps=3, tol=1e-3),
        HessianFree(max_steps=2, tol=1e-3),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_an_inner_solver_reads_nothing(solver, monkeypatch):
    model, _, tasks = WORK.draw(3, torch.float64)
    algorithm, gradients = IMAML(solver=solver), {}
    for look in (True, False):
        monkeypatch.setattr(host, "may_read", lambda tensor, look=look: look)
        theta = algorithm.init(model)
        with Reads() as reads:
            meta_gradient(algorithm, model, theta, tasks, chunk=3)
        assert bool(reads.found) == look
        gradients[look] = taken(theta)
    for key, leaf in gradients[True].items():
        torch.testing.assert_close(leaf, gradients[False][key], rtol=1e-9, atol=1e-12)


def test_a_draw_of_tasks_reads_nothing():
    images = torch.randint(256, (40, 1, 4, 4), dtype=torch.uint8)
    classes = ImageClasses(images, torch.full((4,), 10), tuple("abcd"))
    sampler = EpisodeSampler(classes=classes, ways=3, shots=1, queries=2, rotations=True)
    generator = torch.Generator().manual_seed(0)
    sampler(2, generator=generator)  # the first may learn how large the classes are
    with Reads() as reads:
        sampler(5, generator=generator)
    assert not reads.found


@pytest.mark.parametrize("shift", [None, 2.0])
@pytest.mark.parametrize("on_negative", ["stop", "continue"])
def test_conjugate_gradients_without_looking_give_the_same(shift, on_negative, monkeypatch):
    """Tasks that converge at once, at the end, never; that have nothing to solve; that stop at the first direction."""
    A = torch.stack([torch.eye(6), torch.diag(torch.arange(1.0, 7)), torch.eye(6), -torch.eye(6)]).double()
    b = torch.stack([torch.ones(6), torch.ones(6), torch.zeros(6), torch.ones(6)]).double()
    found = []
    for look in (True, False):
        monkeypatch.setattr(host, "may_read", lambda tensor, look=look: look)
        operator = Operator(
            lambda v: {"x": (A @ v["x"][..., None])[..., 0]},
            None if shift is None else {"x": torch.full_like(b, shift)},
        )
        found.append(solve(CG(max_steps=12, tol=1e-10, on_negative=on_negative), operator, {"x": b}))
    assert torch.equal(found[0].value["x"], found[1].value["x"])
    for name in ("residual", "steps", "min_curvature"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name))


DEFINITE = torch.stack([torch.eye(6), torch.diag(torch.arange(1.0, 7)), torch.eye(6)]).double()
ANY = torch.cat([DEFINITE, torch.diag(torch.tensor([0.0, 1, -2, 3, 4, 5])).double()[None]])


@pytest.mark.parametrize(
    ("solver", "A"),
    [
        (CG(max_steps=25, preconditioner="shift", damping=0.5, history=True), ANY),
        (CG(max_steps=12, preconditioner=lambda r: {"x": r["x"] / 2}, history=True), ANY),
        (MINRES(max_steps=25), ANY),
        (MINRES(max_steps=4, damping=0.5), ANY),
        (FixedPoint(lr=0.3, max_steps=40, tol=1e-8), DEFINITE),
        (Neumann(lr=0.3, terms=4), DEFINITE),
    ],
    ids=["cg-shift", "cg-function", "minres", "minres-damped", "fixed-point", "neumann"],
)
@pytest.mark.parametrize("warm", [False, True])
def test_linear_solvers_read_nothing_and_give_the_same(solver, A, warm, monkeypatch):
    """Tasks that converge at once, at the end, that have nothing to solve, that have no solution."""
    b = torch.ones(len(A), 6).double() * torch.tensor([1.0, 1, 0, 1])[: len(A), None]
    operator = Operator(
        lambda v: {"x": (A @ v["x"][..., None])[..., 0]}, {"x": torch.linspace(1, 2, 6).double().expand_as(b)}
    )
    x0 = {"x": b.cumsum(1)} if warm else None
    found = []
    for look in (True, False):
        monkeypatch.setattr(host, "may_read", lambda tensor, look=look: look)
        with Reads() as reads:
            found.append(solve(solver, operator, {"x": b}, x0=x0))
        assert bool(reads.found) == look
    assert torch.equal(found[0].value["x"], found[1].value["x"])
    for name in ("residual", "steps", "size", "stopped"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name))
    torch.testing.assert_close(found[1].min_curvature, found[0].min_curvature, rtol=1e-7, atol=1e-7)
    if found[0].history is not None:
        assert torch.equal(found[0].history, found[1].history)


def test_the_ends_of_the_spectrum_are_found_without_looking(monkeypatch):
    operator, like = Operator(lambda v: {"x": (ANY @ v["x"][..., None])[..., 0]}), {"x": torch.ones(4, 6).double()}
    seen = curvature_range(operator, like)
    monkeypatch.setattr(host, "may_read", lambda tensor: False)
    with Reads() as reads:
        unseen = curvature_range(operator, like)
    assert not reads.found
    for a, b in zip(seen, unseen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_what_the_host_would_raise_shows_in_the_residual(monkeypatch):
    monkeypatch.setattr(host, "may_read", lambda tensor: False)
    operator, b = Operator(lambda v: {"x": (DEFINITE @ v["x"][..., None])[..., 0]}), {"x": torch.ones(3, 6).double()}
    assert solve(FixedPoint(lr=1.0, max_steps=20), operator, b).residual[1] > 1e3
    found = solve(CG(preconditioner=lambda r: {"x": -r["x"]}), operator, b)
    assert found.stopped.all()
    assert (found.residual == 1).all()
