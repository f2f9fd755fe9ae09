"""Tasks: what they are made from, what is refused, and how they are parted and grouped."""

import copy
import pickle

import numpy as np
import pytest
import torch

from metagrad.fewshot import Batch, Tasks, WeightedBatch, group_tasks


def batch(tasks=3, examples=4, width=2):
    return Batch(torch.randn(tasks, examples, width), torch.arange(examples).expand(tasks, examples))


def test_tasks_are_made_from_batches_pairs_dictionaries_and_arrays():
    x, y = batch()
    made = [
        Tasks(Batch(x, y), Batch(x, y)),
        Tasks((x, y), [x, y]),
        Tasks({"x": x, "y": y}, {"y": y, "x": x}),
        Tasks((x.numpy(), y.numpy().astype(np.int32)), (x.numpy(), y.numpy().astype(np.uint8))),
        Tasks.of((Batch(x, y), (x, y))),
        Tasks.of({"support": (x, y), "query": {"x": x, "y": y}}),
    ]
    for tasks in made:
        assert len(tasks) == 3
        for one in tasks:
            assert isinstance(one, Batch)
            torch.testing.assert_close(one.x, x)
            torch.testing.assert_close(one.y, y)
    assert Tasks.of(made[0]) is made[0]


def test_weights_make_a_weighted_batch():
    x, y = batch()
    weight = torch.rand(3, 4)
    for given in ((x, y, weight), {"x": x, "y": y, "weight": weight}, WeightedBatch(x, y, weight)):
        tasks = Tasks(given, (x, y))
        assert isinstance(tasks.support, WeightedBatch)
        assert tasks.support.weight is weight
        assert tasks.query.weight is None


def test_inputs_may_be_any_nest():
    ids, mask, y = torch.zeros(3, 4, 7, dtype=torch.int64), torch.ones(3, 4, 7), torch.zeros(3, 4, dtype=torch.int64)
    tasks = Tasks(({"ids": ids, "mask": mask}, y), ({"ids": ids[:, :2], "mask": mask[:, :2]}, y[:, :2]))
    part = tasks.part(1, 3)
    assert len(part) == 2
    assert part.query.x["mask"].shape == (2, 2, 7)


def test_tasks_are_copied_pickled_and_replaced_as_a_value():
    tasks = Tasks(batch(8), batch(8), torch.zeros(8, 4, dtype=torch.int64))
    for same in (copy.copy(tasks), copy.deepcopy(tasks), pickle.loads(pickle.dumps(tasks))):
        assert len(same) == 8
        torch.testing.assert_close(same.query.x, tasks.query.x)
    support, query = tasks
    assert support is tasks.support
    assert query is tasks.query
    assert tasks.part(2, 5).classes.shape == (3, 4)
    assert tasks.to("cpu").device.type == "cpu"


@pytest.mark.parametrize(
    ("support", "query", "says"),
    [
        (batch(3), batch(2), "the support sets are of 3 tasks, the query sets of 2"),
        (batch(0), batch(0), "the support set is empty: 0 tasks of 4 examples"),
        (batch(), batch(3, 0), "the query set is empty: 3 tasks of 0 examples"),
        ((torch.zeros(3, 4, 2), torch.zeros(3, 5)), batch(), r"x is \(3, 4\) \(tasks, examples\), its y"),
        ((torch.zeros(4, 2), torch.zeros(4)), batch(), r"needs a task axis .* add the first by x\[None\]"),
        (batch(), Batch(batch().x.double(), batch().y), "inputs are torch.float32, the query's torch.float64"),
        (batch(), ({"x": torch.zeros(3, 4, 2)}, batch().y), "nests of different form"),
        (batch(), (torch.zeros(3, 4, 2, device="meta"), batch().y), "are on cpu and meta: move all to one"),
        (WeightedBatch(*batch(), torch.ones(3, 5)), batch(), r"its weight \(3, 5\)"),
        (batch(), ([], batch().y), "x holds no tensor"),
        (torch.zeros(3, 4), batch(), "the support set is a Batch, or .* got Tensor"),
        ({"images": torch.zeros(3, 4), "y": torch.zeros(3, 4)}, batch(), "got dict with 'images', 'y'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(support, query, says):
    with pytest.raises((ValueError, TypeError), match=says):
        Tasks(support, query)


def test_something_else_than_tasks_is_refused():
    with pytest.raises(TypeError, match=r"tasks are metagrad.fewshot.Tasks\(support, query\)"):
        Tasks.of([1, 2, 3])
    with pytest.raises(ValueError, match=r"classes must be \(T, ways\) for the 3 tasks"):
        Tasks(batch(), batch(), torch.zeros(2, 4))


def test_single_tasks_are_grouped_by_shape():
    def single(examples, queries, mark):
        return (torch.full((examples, 2), float(mark)), torch.arange(examples)), (
            torch.zeros(queries, 2),
            torch.arange(queries),
        )

    groups = group_tasks([single(2, 3, 0), single(5, 3, 1), single(2, 3, 2), single(2, 4, 3)])
    assert [len(group) for group in groups] == [2, 1, 1]
    assert groups[0].support.x[:, 0, 0].tolist() == [0.0, 2.0]
    assert groups[1].support.x.shape == (1, 5, 2)
