"""The heads that are solved in closed form, beside scikit-learn's: any features, any number of shots."""

import numpy as np
import pytest
import torch
from referees import distance
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestCentroid
from torch import nn

from metagrad import CG, HessianFree, Implicit
from metagrad.fewshot import R2D2, Batch, MemoryReduced, ProtoNet

TASKS, WAYS, WIDTH = 3, 4, 6


def network():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.body, model.head = nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh()), nn.Linear(WIDTH, WAYS)
    return model.double()


def drawn(seed, counts):
    """Return examples of each class, as many as ``counts`` says, in no order."""
    g = torch.Generator().manual_seed(seed)
    y = torch.tensor([way for way, count in enumerate(counts) for _ in range(count)])
    y = torch.stack([y[torch.randperm(len(y), generator=g)] for _ in range(TASKS)])
    places = torch.randn(TASKS, WAYS, 5, generator=g, dtype=torch.float64)
    near = torch.randn(TASKS, y.shape[1], 5, generator=g, dtype=torch.float64)
    return Batch(torch.stack([place[own] for place, own in zip(places, y, strict=True)]) + 0.7 * near, y)


def answers(method, model, support, query):
    with torch.no_grad():
        theta = method.init(model)
        scores = method.predict(model, theta, method.adapt(model, theta, support), query.x)
        features = [model.body(part.x).numpy() for part in (support, query)]
    return scores, features


SHOTS = pytest.mark.parametrize("counts", [(1, 1, 1, 1), (5, 5, 5, 5), (1, 7, 2, 3)], ids=str)


@SHOTS
@pytest.mark.parametrize("l2", [0.01, 50.0])
def test_ridge_regression(counts, l2):
    support, query = drawn(1, counts), drawn(2, (3, 3, 3, 3))
    scores, (known, asked) = answers(R2D2(l2=l2, scale=5.0), network(), support, query)
    for task in range(TASKS):
        ridge = Ridge(alpha=l2, fit_intercept=False, solver="svd")
        ridge.fit(known[task], np.eye(WAYS)[support.y[task]])
        assert distance([scores[task]], [5.0 * ridge.predict(asked[task])]) < 1e-10


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # a spread of one example
@SHOTS
def test_nearest_class_mean(counts):
    support, query = drawn(3, counts), drawn(4, (9, 9, 9, 9))
    scores, (known, asked) = answers(ProtoNet(), network(), support, query)
    for task in range(TASKS):
        nearest = NearestCentroid().fit(known[task], support.y[task])
        assert (nearest.predict(asked[task]) == scores[task].argmax(-1).numpy()).all()
        squares = np.square(asked[task][:, None] - nearest.centroids_).sum(-1)
        assert distance([scores[task]], [-squares]) < 1e-12


def test_regularised_softmax_regression():
    """Memory-reduced: a linear head, fitted to the end. Features end in a one: scikit-learn leaves intercepts alone."""
    support, query = drawn(5, (5, 5, 5, 5)), drawn(6, (3, 3, 3, 3))
    l2, solver = 0.1, HessianFree(max_steps=60, tol=1e-11, cg_steps=40)
    method = MemoryReduced(l2=l2, solver=solver, adjoint=Implicit(linear_solver=CG(max_steps=40)))
    scores, (known, asked) = answers(method, network(), support, query)
    for task in range(TASKS):
        own, other = (np.concatenate([part[task], np.ones((len(part[task]), 1))], 1) for part in (known, asked))
        strength = 1 / (l2 * len(own))  # theirs is a sum over examples, ours a mean
        fitted = LogisticRegression(C=strength, fit_intercept=False, solver="newton-cg", tol=1e-13, max_iter=10_000)
        fitted.fit(own, support.y[task])
        assert distance([scores[task]], [fitted.decision_function(other)]) < 1e-8
