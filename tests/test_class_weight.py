"""Few pictures of some classes and many of others: what counts in the adaptation."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from strokes import drawings

from metagrad import FewShotClassifier, MetagradError
from metagrad.classifier.class_weight import example_weights
from metagrad.classifier.learner import Learner
from metagrad.fewshot import ANIL, IMAML, MAML, R2D2, Batch, ITDBiO, MemoryReduced, WeightedBatch

METHODS = {
    "maml": MAML(inner_lr=0.1, inner_steps=3),
    "imaml": IMAML(),
    "anil": ANIL(),
    "anil, features recomputed": ANIL(features="recomputed"),
    "itd-bio": ITDBiO(),
    "memory-reduced": MemoryReduced(),
    "r2d2": R2D2(),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_weight_of_three_is_the_example_three_times(method):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4, 5, generator=g, dtype=torch.float64), torch.tensor([[0, 1, 1, 2], [2, 0, 1, 0]])
    torch.manual_seed(1)
    body = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh())
    model = torch.nn.Sequential(OrderedDict(body=body, head=torch.nn.Linear(7, 3))).double()
    theta = method.init(model)
    times = torch.tensor([3, 1, 1, 1])
    often = Batch(x.repeat_interleave(times, 1), y.repeat_interleave(times, 1))
    weight = (times / times.double().mean()).expand(2, 4)
    if isinstance(method, R2D2):  # its squares are summed, not averaged
        weight = times.double().expand(2, 4)
    repeated = method.adapt(model, theta, often).value
    weighted = method.adapt(model, theta, WeightedBatch(x, y, weight)).value
    for name, leaf in repeated.items():
        torch.testing.assert_close(weighted[name], leaf, rtol=1e-9, atol=1e-9)


def test_classes_count_alike_unless_told_otherwise():
    y, classes = torch.tensor([0, 1, 1, 1]), ("few", "many")
    weight = example_weights(y, classes, "balanced")
    torch.testing.assert_close(weight, torch.tensor([2.0, 2 / 3, 2 / 3, 2 / 3]))
    assert example_weights(y, classes, None) is None
    assert example_weights(torch.tensor([0, 1, 1, 0]), classes, "balanced") is None, "no bit of balanced tasks changes"
    given = example_weights(y, classes, {"few": 9})
    torch.testing.assert_close(given, torch.tensor([3.0, 1 / 3, 1 / 3, 1 / 3]))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"none": 1.0}, "names 'none': the classes are few, many"),
        ({"few": 0}, "of 'few' must be a positive number"),
        ({"few": float("nan")}, "positive number"),
        ("even", '"balanced", None or numbers by class'),
        (2.0, '"balanced", None or numbers by class'),
    ],
)
def test_weights_that_cannot_be(wrong, says):
    with pytest.raises(MetagradError, match=says):
        example_weights(torch.tensor([0, 1]), ("few", "many"), wrong)


def test_one_picture_of_some_digits_and_many_of_others():
    X, y = load_digits(return_X_y=True)
    rare = np.concatenate([np.flatnonzero(y == c)[: 1 if c < 5 else 60] for c in range(10)])
    asked, truth = X[1000:1300], y[1000:1300]

    def recall(class_weight, network=None):
        model = FewShotClassifier(class_weight=class_weight, network=network)
        return np.mean((model.fit(X[rare], y[rare]).predict(asked) == truth)[truth < 5])

    assert recall("balanced") > 0.8  # nearest neighbours: 0.45
    assert recall(None) == recall("balanced")  # prototypes weigh classes alike, however many pictures each has
    head = "efficientnet-lite0"  # not opened: a matrix is rows of features, here pixels, and a head adapts to them
    assert recall("balanced", head) > recall(None, head) + 0.1
    assert recall(dict.fromkeys(range(5), 60), head) == pytest.approx(recall("balanced", head), abs=0.02)


def test_leaving_one_out_weighs_too(learned):
    few, many = drawings(2, 20, 5)
    images = np.concatenate([few[:2], many])[:, None, ::2, ::2]
    learner, labels = Learner.of(learned), ["few"] * 2 + ["many"] * 20
    found = [
        learner.leave_one_out(learner.network_inputs(torch.from_numpy(255 - images)), labels, class_weight=weight)
        for weight in ("balanced", {"few": 1e-6})
    ]
    assert found[0].as_json()["accuracy"] != found[1].as_json()["accuracy"]
