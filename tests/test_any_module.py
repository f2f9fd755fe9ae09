"""Every kind of module with every method, against plain autograd over one task after the other."""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import plain_loop
import pytest
import torch
from module_kinds import KINDS, Kind
from module_parts import rows
from plain_loop import WAYS, Plain
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from metagrad import CG, GradientDescent, Implicit, tree
from metagrad.errors import MetagradError
from metagrad.fewshot import (
    ANIL,
    BOIL,
    FOMAML,
    IMAML,
    MAML,
    R2D2,
    Batch,
    ITDBiO,
    MemoryReduced,
    ProtoNet,
    Reptile,
    Tasks,
    meta_gradient,
)

TASKS, SHOTS = 2, 2


class Net(nn.Module):
    """Any body below a head."""

    def __init__(self, body, width, head=nn.Linear):
        super().__init__()
        self.body, self.head = body, head(width, WAYS)

    def forward(self, x):
        return self.head(self.body(x))


# The body is frozen, and these methods meta-learn nothing but it.
NOTHING_LEFT = [("a frozen lstm", method) for method in ("memory-reduced", "protonet", "boil", "itd-bio")]

_CG = CG(max_steps=600, tol=1e-13, on_negative="continue")
_DESCENT = GradientDescent(lr=0.05, max_steps=3)


class Case(NamedTuple):
    method: object
    expected: Callable
    near: float = 1e-10


def case_of(name, model):
    head = {key: leaf for key, leaf in model.named_parameters() if key.startswith("head.")}
    steps = {"lr": 0.05, "steps": 3}
    same, P = {"inner_lr": 0.05, "inner_steps": 3}, plain_loop
    return {
        "maml": lambda: Case(MAML(**same), lambda *of: P.unrolled(*of, **steps)),
        "fomaml": lambda: Case(FOMAML(**same), lambda *of: P.unrolled(*of, **steps, graph=False)),
        "reptile": lambda: Case(Reptile(**same), lambda *of: P.reptile(*of, **steps)),
        "anil": lambda: Case(
            ANIL(**same), lambda *of: P.unrolled(*of, **steps, mine=lambda name: name.startswith("head."))
        ),
        "boil": lambda: Case(
            BOIL(**same), lambda *of: P.unrolled(*of, **steps, mine=lambda name: not name.startswith("head."))
        ),
        "itd-bio": lambda: Case(ITDBiO(l2=0.5, **same), lambda *of: P.itd_bio(*of, **steps, l2=0.5, begin=head)),
        "imaml": lambda: Case(
            IMAML(lam=8.0, solver=_DESCENT, adjoint=Implicit(linear_solver=_CG)),
            lambda *of: P.imaml(*of, **steps, lam=8.0, kind="hessian"),
        ),
        "imaml, gauss-newton": lambda: Case(
            IMAML(lam=8.0, solver=_DESCENT, adjoint=Implicit(linear_solver=_CG, curvature="gauss_newton")),
            lambda *of: P.imaml(*of, **steps, lam=8.0, kind="gauss_newton"),
        ),
        "memory-reduced": lambda: Case(
            MemoryReduced(l2=0.5, solver=_DESCENT, adjoint=Implicit(linear_solver=_CG)),
            lambda *of: P.memory_reduced(*of, **steps, l2=0.5, begin=head),
        ),
        "protonet": lambda: Case(ProtoNet(), P.protonet),
        "r2d2": lambda: Case(R2D2(l2=1.0), P.r2d2, 1e-8),
    }[name]()


METHODS = (
    "maml", "fomaml", "reptile", "anil", "boil", "itd-bio", "imaml", "imaml, gauss-newton", "memory-reduced",
    "protonet", "r2d2",
)  # fmt: skip


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def drawn(kind):
    def batch():
        x = pytree.tree_map(lambda *leaves: torch.stack(leaves), *(kind.draw(WAYS * SHOTS) for _ in range(TASKS)))
        return Batch(x, torch.arange(WAYS).repeat(SHOTS).expand(TASKS, -1))

    return Tasks(batch(), batch())


def supported(kind):
    """Whether tasks hold the inputs of this kind."""
    return isinstance(KINDS[kind].draw(1), torch.Tensor) or not hasattr(Tasks, "_fields")


@pytest.mark.filterwarnings("ignore:batch norms in training mode", "ignore:.*does not support several tasks at once")
@pytest.mark.parametrize(
    ("kind", "method"), [pair for pair in product(filter(supported, KINDS), METHODS) if pair not in NOTHING_LEFT]
)
def test_the_meta_gradient_is_that_of_a_plain_loop(kind, method):
    kind = KINDS[kind]
    model, tasks = Net(kind.body(), kind.width, kind.head), drawn(kind)
    before = {name: leaf.clone() for name, leaf in model.state_dict().items()}
    case, net = case_of(method, model), Plain(model)
    theta = case.method.init(model)
    meta_gradient(case.method, model, theta, tasks)
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in theta.items()}
    for task in range(TASKS):
        parts = [
            (tree.map_tensors(lambda leaf: leaf[task], batch.x), batch.y[task])  # noqa: B023
            for batch in (tasks.support, tasks.query)
        ]
        for leaf, grad in zip(leaves.values(), case.expected(net, leaves, parts), strict=True):
            leaf.grad = grad / TASKS if leaf.grad is None else leaf.grad + grad / TASKS
    found, expected = (torch.cat([leaf.grad.flatten() for leaf in part.values()]) for part in (theta, leaves))
    assert (found - expected).norm() <= case.near * expected.norm()
    assert expected.norm() > 1e-6
    assert all(torch.equal(leaf, before[name]) for name, leaf in model.state_dict().items()), "the model was changed"


def frozen_body():
    body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 5)).requires_grad_(False)
    return Kind(lambda: body, 5, rows)


@pytest.mark.parametrize("method", [ProtoNet(), R2D2(l2=1.0), ANIL(), MemoryReduced(), ITDBiO()], ids=repr)
def test_head_methods_on_a_frozen_body_are_those_on_its_features(method):
    kind = frozen_body()
    model, tasks = Net(kind.body(), 5), drawn(kind)
    theta = method.init(model)
    assert not [name for name in theta if name.startswith("body")]
    metrics = meta_gradient(method, model, theta, tasks)
    alone = Net(nn.Identity(), 5)
    alone.head = model.head
    features = Tasks(*(batch._replace(x=model.body(batch.x)) for batch in (tasks.support, tasks.query)))
    with torch.no_grad():
        said, expected = (
            method.predict(net, theta, method.adapt(net, theta, part.support), part.query.x)
            for net, part in ((model, tasks), (alone, features))
        )
    assert (said - expected).norm() <= 1e-10 * expected.norm()
    loss = F.cross_entropy(expected.flatten(0, 1), tasks.query.y.flatten())
    assert abs(metrics.loss - loss) <= 1e-10
    assert all(leaf.grad.norm() > 0 for leaf in theta.values())
    assert all(leaf.grad is None for leaf in model.parameters())


def test_a_head_that_is_the_whole_network_is_still_refused():
    with pytest.raises(MetagradError, match="is the whole network"):
        MemoryReduced(head="*").init(nn.Sequential(nn.Linear(4, 3)))
