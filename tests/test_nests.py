"""Inputs that are a nest of tensors: a network is called with one task's nest as its one argument."""

import pytest
import torch
from torch import nn

from metagrad import tree
from metagrad.errors import MetagradError
from metagrad.fewshot import batched_forward, module_lock
from metagrad.fewshot.head import Head

TASKS, COUNT = 3, 4
f64 = torch.float64


class Reads(nn.Module):
    """Ids with a mask, and a list of tables; a number and nothing beside them are passed on."""

    def __init__(self, memory=False):
        super().__init__()
        self.letters, self.table = nn.Embedding(7, 4, padding_idx=0), nn.Linear(2, 4)
        self.memory = nn.GRU(4, 4, batch_first=True) if memory else None
        self.head = nn.Linear(4, 3)

    def forward(self, inputs):
        h = self.letters(inputs["text"][0])
        if self.memory is not None:
            h = self.memory(h)[0]
        h = (h * inputs["text"][1].unsqueeze(-1)).sum(1).tanh()
        tables = sum(self.table(part) for part in inputs.get("tables", []))
        return self.head(h + inputs.get("scale", 1.0) * tables)


def drawn():
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(7, (TASKS, COUNT, 5), generator=g)
    tables = [torch.randn(TASKS, COUNT, 2, generator=g, dtype=f64) for _ in range(2)]
    return {"text": (ids, ids > 2), "tables": tables, "scale": 0.5, "none": None}


def weights(model):
    g = torch.Generator().manual_seed(1)
    return {name: torch.randn(TASKS, *leaf.shape, generator=g, dtype=f64) for name, leaf in model.named_parameters()}


def part(nest, task):
    return tree.map_tensors(lambda leaf: leaf[task], nest)


@pytest.mark.parametrize("memory", [False, True], ids=["vmap", "one by one"])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.filterwarnings("ignore:.*one by one")
def test_the_network_is_called_with_each_tasks_nest(memory, prepared):
    model, x = Reads(memory).double(), drawn()
    params = weights(model)
    found = batched_forward.outputs(model, params, batched_forward.prepare(model, x) if prepared else x)
    expected = torch.stack([module_lock.call(model, part(params, t), part(x, t)) for t in range(TASKS)])
    assert found.shape == (TASKS, COUNT, 3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory", [False, True], ids=["vmap", "one by one"])
@pytest.mark.filterwarnings("ignore:.*one by one")
def test_features_and_heads(memory):
    model, x = Reads(memory).double(), drawn()
    head = Head.of(model, "head.*")
    body = {name: leaf for name, leaf in model.named_parameters() if not name.startswith("head")}
    heads = {name: leaf for name, leaf in weights(model).items() if name.startswith("head")}
    features = head.features(body, x)
    assert features.shape == (TASKS, COUNT, 4)
    expected = batched_forward.outputs(model, heads, x)
    torch.testing.assert_close(head.outputs(heads, features), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(head.output(part(heads, 1), features[1]), expected[1], rtol=1e-12, atol=1e-12)


def test_a_sequence_that_takes_a_nest_first():
    class First(nn.Module):
        def forward(self, inputs):
            return inputs["a"] * inputs["b"]

    model = nn.Sequential(First(), nn.Linear(2, 3)).double()
    x = {key: torch.randn(TASKS, COUNT, 2, dtype=f64) for key in "ab"}
    params = weights(model)
    expected = torch.stack([module_lock.call(model, part(params, t), part(x, t)) for t in range(TASKS)])
    torch.testing.assert_close(batched_forward.outputs(model, params, x), expected, rtol=1e-12, atol=1e-12)


class Beside(nn.Module):
    """What the head is called with, and what is done with its outputs."""

    def __init__(self, call):
        super().__init__()
        self.body, self.head, self.call = nn.Linear(2, 2), nn.Bilinear(2, 2, 3), call

    def forward(self, x):
        return self.call(self.head, self.body(x), x)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda head, h, x: head(h, x), r"head is called with a dict of 0: \(4, 2\), 1: \(4, 2\) by the model"),
        (lambda head, h, x: head(h, input2=x), r"head is called with a dict of 0: \(4, 2\), input2: \(4, 2\)"),
        (lambda head, h, x: h, "head is not called by the model"),
        (lambda head, h, x: head(h, x) * 1.0, "the outputs of head are not those of the model"),
        (lambda head, h, x: head(h, x) + head(x, h), "the outputs of head are not those of the model"),
    ],
    ids=["two", "named", "none", "after", "twice"],
)
def test_a_head_that_is_not_the_last_word_is_refused_for_its_own_reason(call, says):
    """Also where what is done makes no difference to the numbers at hand."""
    model = Beside(call)
    with pytest.raises(MetagradError, match=says):
        Head.of(model, "head.*").features(dict(model.body.named_parameters(prefix="body")), torch.rand(TASKS, 4, 2))


def test_a_head_with_dropout_is_a_head():
    model = Beside(lambda head, h, x: head(h))
    model.head = nn.Sequential(nn.Dropout(), nn.Linear(2, 3))
    found = Head.of(model, "head.*").features(dict(model.body.named_parameters(prefix="body")), torch.rand(TASKS, 4, 2))
    assert found.shape == (TASKS, 4, 2)
