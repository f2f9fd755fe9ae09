"""Frozen parts cost one forward pass for a set of inputs: no gradient, no memory, no second pass."""

import pytest
import torch
from torch import nn

from metagrad import GradientDescent
from metagrad.fewshot import (
    ANIL,
    FOMAML,
    IMAML,
    MAML,
    R2D2,
    Batch,
    Chunks,
    ITDBiO,
    MemoryReduced,
    ProtoNet,
    Reptile,
    Tasks,
    batched_forward,
    frozen,
    meta_gradient,
)

WIDTH = 1024
_FEW = GradientDescent(lr=0.1, max_steps=3)


class Body(nn.Module):
    """Four million weights that look back at what they were called with."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh(),
            *(layer for _ in range(4) for layer in (nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh())),
            nn.Linear(WIDTH, 8),
        )  # fmt: skip
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layers(x)


class Net(nn.Module):
    def __init__(self, learned):
        super().__init__()
        self.body, self.middle, self.head = Body().requires_grad_(False), nn.Linear(8, 8), nn.Linear(8, 3)
        self.middle.requires_grad_(learned)
        self.eval()

    def forward(self, x):
        return self.head(self.middle(self.body(x)).tanh()) * 1.0


class Plain(Net):
    def forward(self, x):
        return self.head(self.middle(self.body(x)).tanh())


def drawn(seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(3).repeat(2).expand(4, 6)
    return Tasks(*(Batch(torch.randn(4, 6, 6, generator=g), y) for _ in range(2)))


METHODS = [
    (ANIL(), False),
    (MemoryReduced(), False),
    (ITDBiO(), False),
    (R2D2(), False),
    (ProtoNet(), True),
    (R2D2(), True),
    (MemoryReduced(), True),
    (ANIL(), True),
    (IMAML(adapts="head.*", solver=_FEW), False),
    (IMAML(adapts="head.*", solver=_FEW), True),
    (IMAML(solver=_FEW), True),
    (MAML(inner_steps=3), True),
    (FOMAML(inner_steps=3), True),
    (Reptile(inner_steps=3), True),
]


@pytest.mark.parametrize(("method", "learned"), METHODS, ids=lambda part: str(part).split("(")[0])
def test_a_frozen_body_is_run_once_for_each_set_and_leaves_nothing(method, learned):
    torch.manual_seed(0)
    model, tasks = Plain(learned), drawn()
    assert sum(leaf.numel() for leaf in model.body.parameters()) > 4e6
    theta = method.init(model)
    assert not [name for name in theta if name.startswith("body.")]
    meta_gradient(method, model, theta, tasks, chunk=Chunks(4, 4))  # looks at the head and the objective, once
    model.body.calls, saved = 0, []

    def keep(leaf):
        saved.append(leaf.numel())
        return leaf

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda leaf: leaf):
        meta_gradient(method, model, theta, drawn(1), chunk=Chunks(4, 4))
    assert model.body.calls == 2
    assert max(saved, default=0) < 4 * 6 * WIDTH, "something as wide as the body is kept"
    assert all(leaf.grad is None for leaf in model.parameters())
    if theta:
        assert all(leaf.grad is not None for leaf in theta.values())


def test_frozen_layers_stay_frozen():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    model[1].requires_grad_(False)
    theta = IMAML().init(model)
    assert set(theta) == {"3.weight", "3.bias"}
    meta_gradient(IMAML(solver=_FEW), model, theta, drawn())
    assert theta["3.weight"].grad.norm() > 0
    assert model[1].weight.grad is None


@pytest.mark.parametrize("made", [Net, Plain], ids=["something after the head", "head last"])
@pytest.mark.parametrize("learned", [False, True])
def test_what_is_remembered_gives_the_same_numbers(made, learned):
    torch.manual_seed(0)
    model, x = made(learned).double(), drawn().support.x.double()
    phi = {
        name: leaf.detach().expand(4, *leaf.shape) + torch.randn(4, *leaf.shape, dtype=torch.float64)
        for name, leaf in model.named_parameters()
        if leaf.requires_grad
    }
    known = batched_forward.prepare(model, x)
    assert set(known.features) == ({"body"} if learned else {"body", "middle"})
    model.body.calls = 0
    found = batched_forward.outputs(model, phi, known)
    assert model.body.calls == 0
    torch.testing.assert_close(found, batched_forward.outputs(model, phi, x), rtol=1e-12, atol=1e-12)
    assert "forward" not in vars(model.body)


def test_a_frozen_weight_that_is_given_all_the_same_counts():
    torch.manual_seed(0)
    model, x = Plain(True), drawn().support.x
    known = batched_forward.prepare(model, x)
    phi = {"middle.weight": torch.randn(4, 8, 8), "body.layers.0.weight": torch.randn(4, WIDTH, 6)}
    torch.testing.assert_close(batched_forward.outputs(model, phi, known), batched_forward.outputs(model, phi, x))


def test_the_first_layers_of_a_sequence():
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    model[0].requires_grad_(False)
    x = drawn().support.x.double()
    known = batched_forward.prepare(model, x)
    torch.testing.assert_close(known.features[""], model[1](model[0](x)))
    phi = {"2.weight": torch.randn(4, 4, 5, dtype=torch.float64)}
    expected = model[4](torch.tanh(torch.einsum("tnf,tgf->tng", known.features[""], phi["2.weight"]) + model[2].bias))
    torch.testing.assert_close(batched_forward.outputs(model, phi, known), expected)
    phi["0.weight"] = torch.randn(4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(batched_forward.outputs(model, phi, known), batched_forward.outputs(model, phi, x))
    assert batched_forward.prepare(model.requires_grad_(True), x).features is None


class Order(nn.Module):
    """Something learned before, after or inside of what is frozen."""

    def __init__(self, forward):
        super().__init__()
        self.learned, self.still, self.other = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.still.requires_grad_(False), self.other.requires_grad_(False)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


@pytest.mark.parametrize(
    ("forward", "known"),
    [
        (lambda m, x: m.learned(m.still(x)) * m.scale, {"still"}),
        (lambda m, x: m.learned(m.other(m.still(x))), {"still", "other"}),
        (lambda m, x: m.still(m.learned(x)), set()),
        (lambda m, x: m.learned(x) + m.still(x), set()),  # what comes after is not looked at
        (lambda m, x: m.learned(m.still(m.still(x))), set()),
        (lambda m, x: m.still(m.learned(m.still(x)).tanh()), {"still"}),  # the second time by itself
        (lambda m, x: m.learned(m.still(x * m.learned.bias)), set()),  # a weight that is used and not called
        (lambda m, x: nn.functional.linear(x, m.learned.weight) + m.other(x), {"other"}),
    ],
    ids=["before", "two", "after", "beside", "twice", "before and after", "by a weight", "never called"],
)
def test_only_what_nothing_learned_comes_before_is_remembered(forward, known):
    torch.manual_seed(0)
    model, x = Order(forward).double(), drawn().support.x.double()
    assert set(frozen.features(model, x)) == known
    phi = {"learned.weight": torch.randn(4, 6, 6, dtype=torch.float64)}
    found, expected = (batched_forward.outputs(model, phi, given) for given in (batched_forward.prepare(model, x), x))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_part_with_a_hook_is_run_each_time():
    model, seen = Order(lambda m, x: m.learned(m.still(x))), []
    model.still.register_forward_hook(lambda *_: seen.append(1))
    x = drawn().support.x
    known = batched_forward.prepare(model, x)
    assert known.features is None
    seen.clear()
    phi = {"learned.bias": torch.randn(4, 6)}
    assert batched_forward.outputs(model, phi, known).shape == (4, 6, 6)
    assert seen


@pytest.mark.filterwarnings("ignore:.*one by one")
def test_a_frozen_recurrent_part_and_all_that_it_returns():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.memory, self.head = nn.LSTM(6, 5, batch_first=True).requires_grad_(False), nn.Linear(5, 3)

        def forward(self, x):
            out, (h, _) = self.memory(x)
            return self.head(out.mean(1) + h[-1])

    model, x = Reads(), torch.randn(4, 3, 7, 6)
    known = batched_forward.prepare(model, x)
    assert set(known.features) == {"memory"}
    phi = {"head.weight": torch.randn(4, 3, 5)}
    torch.testing.assert_close(batched_forward.outputs(model, phi, known), batched_forward.outputs(model, phi, x))
