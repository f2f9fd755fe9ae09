"""Any source of tasks will do: training, evaluation, calibration and the report ask only the call."""

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from strokes import dataset
from torch import nn
from toyruns import new_run, sources, toy

from metagrad.classifier import calibrate as calibration
from metagrad.classifier.learner import Learner
from metagrad.experiment import Episodes
from metagrad.experiment.loop import train_run
from metagrad.experiment.measure import measure
from metagrad.fewshot import IMAML, Batch, Conv4, EpisodeSampler, ProtoNet, Sinusoids, Tasks, TaskSource, evaluate
from metagrad.report import episodes as report


def bare(source: TaskSource) -> TaskSource:
    """Hide everything of a source but that it can be called."""
    return lambda num_tasks, /, *, generator: source(num_tasks, generator=generator)


def results(folder, wrap):
    with new_run(folder, meta_steps=4, val_every=2) as run:
        found = sources(run, toy())
        found = dataclasses.replace(found, **{name: wrap(getattr(found, name)) for name in ("train", "val", "test")})
        train_run(run, found)
        both = measure(run, found, split="val", tasks=8), measure(run, found, split="val", tasks=8, queries=1)
    every = json.loads((folder / "result.json").read_text()), *both
    return [(found["value"], found["ci95"], found["protocol"]) for found in every]


def test_training_and_measuring_ask_the_call_alone(tmp_path):
    expected = results(tmp_path / "whole", lambda source: source)
    found = results(tmp_path / "bare", bare)
    assert found == expected
    *_, protocol = found[2]
    assert protocol["split"].startswith("val (6 classes")
    assert protocol["queries"] == 1


def test_calibration_asks_the_call_alone(learned, monkeypatch):
    learner, drawn = Learner.of(learned), dataset()
    monkeypatch.setattr(calibration, "_ASKED", 40)
    expected = calibration.calibrate(learner, drawn, tasks=4)
    monkeypatch.setattr(calibration, "EpisodeSampler", lambda **options: bare(EpisodeSampler(**options)))
    assert calibration.calibrate(learner, drawn, tasks=4).sizes == expected.sizes


def test_the_report_asks_the_call_alone_and_names_the_classes_it_shows(learned, monkeypatch):
    whole, drawn = Episodes.sampler, dataset()
    monkeypatch.setattr(Episodes, "sampler", lambda *args, **options: bare(whole(*args, **options)))
    learner = Learner.of(learned)
    grids = report.judge_tasks(learner, learner.episodes.of(drawn), tasks=4, shown=3).grids
    names = [row.name for grid in grids for row in grid]
    assert len(names) == 9
    for row in (row for grid in grids for row in grid):
        first = int(drawn.val.first[drawn.val.names.index(row.name)])
        own = {(255 - image).numpy().tobytes() for image in drawn.val.images[first : first + 8, 0]}  # dark ink on white
        shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))) for uri in row.support]
        assert {image.tobytes() for image in shown} <= own
        assert len(shown) == 1


class Blobs:
    """Tasks of a user's own: clouds of points, as many sizes as one likes."""

    def __call__(self, number, *, generator):
        centres = torch.randn(number, 3, 1, 2, generator=generator) * 5

        def batch(each):
            x = centres + 0.1 * torch.randn(number, 3, each, 2, generator=generator)
            return Batch(x.flatten(1, 2), torch.arange(3).repeat_interleave(each).repeat(number, 1))

        return Tasks(batch(2), batch(5))


@pytest.mark.parametrize("method", [IMAML(), ProtoNet(head="2.*")], ids=lambda method: type(method).__name__)
def test_evaluation_takes_an_own_source_and_a_function(method):
    model, blobs = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)), Blobs()
    theta = method.init(model)
    one, other = (
        evaluate(method, model, theta, source, tasks=40, generator=torch.Generator().manual_seed(0))
        for source in (blobs, bare(blobs))
    )
    assert one == other
    assert one.tasks == 40
    assert one.accuracy > 0.5


def test_evaluation_of_a_sampler_asks_the_call_alone():
    sampler = EpisodeSampler(classes=toy().val, ways=3, shots=1, queries=2)
    model, method = Conv4(3, filters=2, image_size=8, generator=torch.Generator().manual_seed(0)), IMAML()
    theta = method.init(model)
    one, other = (
        evaluate(method, model, theta, source, tasks=40, generator=torch.Generator().manual_seed(0))
        for source in (sampler, bare(sampler))
    )
    assert one == other


def test_what_comes_along_is_a_source():
    sources: list[TaskSource] = [
        EpisodeSampler(classes=toy().val, ways=3, shots=1, queries=2), Sinusoids(shots=1, queries=2), Blobs(),
    ]  # fmt: skip
    for source in sources:
        assert len(bare(source)(4, generator=torch.Generator().manual_seed(0))) == 4
