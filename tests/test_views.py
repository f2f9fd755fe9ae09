"""Views of drawings: a method that adapts to all of them and averages its outputs."""

import pytest
import torch

from metagrad.data import load
from metagrad.errors import MetagradError
from metagrad.fewshot import IMAML, Conv4, EpisodeSampler, ProtoNet, Variation, evaluate
from metagrad.fewshot.views import Views

NONE = Variation(shift=0.0, turn=0.0, shear=0.0, thickness=0.0)


@pytest.fixture(scope="module")
def letters():
    return EpisodeSampler(classes=load("glyphs").test, ways=3, shots=1, queries=2)


def generator():
    return torch.Generator().manual_seed(0)


def test_a_view_varies_all_images_alike_and_does_not_depend_on_the_others():
    images = torch.rand(6, 1, 28, 28, generator=generator())
    views = Variation().views(images, 4, generator=generator())
    assert views.shape == (4, 6, 1, 28, 28)
    assert torch.allclose(views[:, 2:4], Variation().views(images[2:4], 4, generator=generator()), atol=1e-6)
    assert (views[0] - views[1]).abs().max() > 0.1


@pytest.mark.parametrize("method", [ProtoNet(), IMAML()])
def test_views_that_are_alike_change_nothing(letters, method):
    model = Conv4(3, filters=8, norm="group", generator=generator())
    theta = method.init(model)
    tasks = letters(2, generator=generator())
    same = Views(method=method, variation=NONE, count=3)
    outputs = [
        one.predict(model, theta, one.adapt(model, theta, tasks.support), tasks.query.x).detach()
        for one in (method, same)
    ]
    assert torch.allclose(*outputs, atol=1e-4)


def test_protonets_outputs_are_distances_of_mean_features(letters):
    model = Conv4(3, filters=8, norm="group", generator=generator()).double()
    method = ProtoNet()
    theta = method.init(model)
    tasks = letters(1, generator=generator())
    support, query = tasks.support.x.double(), tasks.query.x.double()
    views = Views(method=method, variation=Variation(), count=4, seed=3)
    with torch.no_grad():
        solution = views.adapt(model, theta, type(tasks.support)(support, tasks.support.y))
        outputs = views.predict(model, theta, solution, query)[0]
        means = [
            model.body(Variation().views(x[0], 4, generator=torch.Generator().manual_seed(3)).flatten(0, 1))
            .flatten(1)
            .unflatten(0, (4, -1))
            .mean(0)
            for x in (support, query)
        ]
    expected = -torch.cdist(means[1], means[0]).square()
    # The same up to a number for each query, the spread of its views, which all classes share.
    gap = outputs - expected
    assert torch.allclose(gap, gap[:, :1].expand_as(gap), rtol=1e-8, atol=1e-8)


def test_evaluate_takes_them(letters):
    model, method = Conv4(3, filters=8, generator=generator()), ProtoNet()
    views = Views(method=method, variation=Variation(), count=2)
    for transductive in (True, False):
        result = evaluate(
            views, model, method.init(model), letters, tasks=3, generator=generator(), transductive=transductive
        )
        assert result.transductive == transductive
    with pytest.raises(MetagradError, match="count"):
        Views(method=method, variation=NONE, count=0)
