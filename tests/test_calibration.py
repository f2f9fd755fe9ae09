"""How sure a classifier is, and whether it is right to be: at the size of training and at others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from strokes import dataset

from metagrad.classifier.calibrate import auroc, calibrate, ece, fitted
from metagrad.classifier.calibration import Calibration, farthest_statistic, pixels
from metagrad.classifier.learner import Learner
from metagrad.data import ImageClasses
from metagrad.errors import MetagradError
from metagrad.fewshot import EpisodeSampler


def test_what_is_expected_follows_the_number_of_classes_and_pictures(learned, tmp_path):
    """Strangeness is a ratio of distances: of more classes, or pictures of each, another number is a lot."""
    found = Learner.of(learned).calibration
    assert {(size.ways, size.shots) for size in found.sizes} == {(w, s) for w in (2, 3, 7) for s in (1, 5)}, (
        "8 validate"
    )
    assert found.own == found.sizes[0] == found.at(3, 1)
    for size in found.sizes:
        assert found.at(size.ways, size.shots).ood_threshold == pytest.approx(size.ood_threshold)
    assert found.at(100, 9) == found.at(7, 5), "beyond the largest nothing is claimed"
    one, two, five = (found.at(3, shots).ood_threshold for shots in (1, 2, 5))
    assert min(one, five) < two < max(one, five)
    assert Calibration.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_a_threshold_keeps_what_is_known_at_every_size(learned):
    """Measured on classes that it was not chosen on: about one in twenty of the known is lost, whatever the size."""
    learner, drawn = Learner.of(learned), dataset()
    for ways, shots in ((2, 5), (5, 1)):
        lost, asked = 0, 0
        for seed in range(12):
            few = EpisodeSampler(classes=drawn.test, ways=ways, shots=shots, queries=8 - shots)
            task = few(1, generator=torch.Generator().manual_seed(seed))
            support = (task.support.x[0] * 255).round().to(torch.uint8)
            classifier = learner.adapt(support, [f"{label:02}" for label in task.support.y[0].tolist()])
            strange = classifier.classify((task.query.x[0] * 255).round().to(torch.uint8))[1]
            lost, asked = lost + int((strange > classifier.ood_threshold).sum()), asked + len(strange)
        assert lost / asked < 0.12


def test_without_unknown_classes_there_is_a_threshold_still(learned):
    learner, drawn = Learner.of(learned), dataset()
    few = replace(drawn, val=drawn.val.with_at_least(1))
    few = replace(few, val=ImageClasses(few.val.images, few.val.counts[:3], few.val.names[:3], few.val.first[:3]))
    found = calibrate(learner, few, tasks=8, share=0.1)
    assert found.own.ood_threshold > 0
    assert found.own.unknown_rejected is None
    assert "other classes" not in found.own.about_reject()
    assert found.at(2, 3).auroc is None, "unknown at one size of those it lies between"


def test_temperature_error_and_ranks():
    g = torch.Generator().manual_seed(0)
    honest = torch.randn(4000, 3, generator=g)
    y = torch.multinomial(honest.softmax(-1), 1, generator=g)[:, 0]
    assert fitted(3 * honest, y) == pytest.approx(3, rel=0.1)
    assert ece(honest.softmax(-1), y) < 0.03 < ece((3 * honest).softmax(-1), y)
    sure = torch.tensor([[0.9, 0.1], [0.7, 0.3]])
    assert ece(sure, torch.tensor([0, 1])) == pytest.approx((0.1 + 0.7) / 2)
    assert auroc(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0])) == pytest.approx(3.5 / 4)
    with pytest.raises(MetagradError, match="at least two"):
        Learner(None, None, {}, (1, 4, 4)).adapt_inputs(torch.zeros(1, 1, 4, 4), ["a"])
    dark, light = (torch.full((5, 1, 4, 4), v, dtype=torch.uint8) for v in (10, 200))
    noisy = dark + torch.randint(0, 9, dark.shape, generator=g, dtype=torch.uint8)
    assert farthest_statistic(light, pixels(noisy))[0] > 10
    assert farthest_statistic(noisy, pixels(noisy))[0] < 2


def test_the_model_that_comes_along_says_what_it_is_worth_on_handwriting():
    learner = Learner.of(Path("glyphs"))
    assert learner.calibration.of == "validation classes of omniglot"
    assert learner.calibration.at(5, 1).accuracy > 0.93
    assert learner.calibration.at(5, 5).accuracy > 0.98
    assert learner.facts["dataset"] == "drawings"
    assert learner.calibration.at(300, 50) == learner.calibration.at(20, 5), "more was not measured"
