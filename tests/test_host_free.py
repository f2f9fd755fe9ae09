"""On a GPU the host reads nothing in a meta-gradient or a draw of tasks: it would wait, and no graph could be captured.

Tested on the CPU: with the one predicate that allows looking switched off, no operation may hand a number to Python.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from metagrad import CG
from metagrad.data import ImageClasses
from metagrad.fewshot import FOMAML, IMAML, MAML, EpisodeSampler, meta_gradient
from metagrad.implicit import Operator, host
from workload import Workload, taken

WORK = Workload(tasks=3, ways=3, shots=1, queries=2, filters=4, inner_steps=2, inner_lr=0.1, lam=2.0, cg_steps=3)
METHODS = {
    "gauss_newton": IMAML(inner_steps=2, cg_steps=3),
    "hessian": IMAML(inner_steps=2, cg_steps=25, curvature="hessian"),
    "maml": MAML(inner_steps=2),
    "fomaml": FOMAML(inner_steps=2),
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
        monkeypatch.setattr(host, "may_look", lambda tensor, look=look: look)
        theta = METHODS[name].init(model)
        with Reads() as reads:
            meta_gradient(METHODS[name], model, theta, tasks, chunk=3)
        assert bool(reads.found) == (look and isinstance(METHODS[name], IMAML))  # so the test would see one
        gradients[look] = taken(theta)
    for key, leaf in gradients[True].items():
        assert torch.equal(leaf, gradients[False][key])


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
        monkeypatch.setattr(host, "may_look", lambda tensor, look=look: look)
        operator = Operator(
            lambda v: {"x": (A @ v["x"][..., None])[..., 0]},
            None if shift is None else {"x": torch.full_like(b, shift)},
        )
        found.append(CG(max_steps=12, tol=1e-10, on_negative=on_negative)(operator, {"x": b}))
    assert torch.equal(found[0].value["x"], found[1].value["x"])
    for name in ("residual", "steps", "min_curvature"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name))
