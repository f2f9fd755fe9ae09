"""Training tasks of other sizes than those that are judged, and varied: drawn so, stated, written down, resumed."""

import json

import pytest
import torch
from toyruns import toy

from metagrad.classifier.learner import Learner
from metagrad.cli.choices import Plan
from metagrad.errors import MetagradError
from metagrad.experiment import Budget, Conv4Config, Episodes, Experiment, Run
from metagrad.experiment.loop import train_run
from metagrad.fewshot import ANIL, IMAML, R2D2, MemoryReduced, ProtoNet, Variation
from metagrad.report.quantities import protocol_text

TASKS = Episodes("omniglot", ways=3, queries=2, train_ways=8, train_shots=1, train_queries=3, variation=0.5)


def test_each_split_has_its_sizes():
    found = TASKS.of(toy())
    drawn = {which: getattr(found, which)(2, generator=torch.Generator()) for which in ("train", "val", "test")}
    assert {which: (tasks.classes.shape[1], tasks.query.x.shape[1]) for which, tasks in drawn.items()} == {
        "train": (8, 24), "val": (3, 6), "test": (3, 6),
    }  # fmt: skip
    assert found.outputs == 3
    assert (found.train.variation, found.val.variation) == (
        Variation(shift=1, turn=5, shear=0.075, thickness=0.25),
        None,
    )
    same = Episodes("omniglot", ways=3, queries=2)
    for which in ("train", "val", "test"):
        assert same.sizes(which) == (3, 1, 2)
    assert "training" not in same.of(toy()).protocol
    assert same.of(toy()).train.variation is None


def test_more_ways_than_a_split_has_classes_are_named_by_their_option():
    for tasks, says in (
        (
            Episodes("omniglot", ways=3, queries=2, train_ways=10),
            r"10 ways .* 9 classes for training: lower --train-ways$",
        ),
        (Episodes("omniglot", ways=7, queries=2, train_ways=9), r"7 ways .* 6 classes for the test: lower --ways$"),
        (
            Episodes("omniglot", ways=3, queries=2, train_queries=4),
            r"0 classes for training, 9 more with fewer than 1 \+ 4 images: lower --ways, --shots or --train-queries$",
        ),
    ):
        with pytest.raises(MetagradError, match=says):
            tasks.of(toy())


def trained(folder, method, *, stop=lambda: False, resume=False):
    experiment = Experiment(
        tasks=TASKS,
        method=method,
        network=Conv4Config(filters=4),
        budget=Budget(meta_steps=12, tasks_per_step=2, val_every=4, val_tasks=4, test_tasks=4, checkpoint_seconds=1e-9),
    )
    sources = TASKS.of(toy())
    run = Run.open(folder) if resume else Run.create(folder, experiment, sources)
    with run:
        return train_run(run, sources, resume=resume, stop=stop)


@pytest.mark.parametrize(
    "method",
    [ProtoNet(scale=0.1), R2D2(l2=1.0), IMAML(start="shared"), ANIL(start="prototypes"), MemoryReduced(start="zero")],
    ids=lambda method: method.name,
)
def test_a_run_is_stated_written_down_and_resumed_bit_for_bit(tmp_path, method):
    result = trained(tmp_path / "whole", method).result
    assert protocol_text(result["protocol"]) == (
        "omniglot test (6 classes, none of them in training), 3-way 1-shot, 2 queries a class, "
        "trained on 8-way 1-shot, 3 queries a class, "
        "training images moved by up to 1 pixels, turned by 5 degrees, slanted by 0.075, thickness 0.25, "
        "4 tasks, transductive"
    )
    asked = iter(range(100))
    assert trained(tmp_path / "parts", method, stop=lambda: next(asked) == 5).result is None
    trained(tmp_path / "parts", method, resume=True)
    for name in ("best", "last"):
        whole, parts = (Run.open(tmp_path / which).load(name).tensors for which in ("whole", "parts"))
        assert all(torch.equal(leaf, parts[key]) for key, leaf in whole.items())
    assert Run.open(tmp_path / "whole").experiment.tasks == TASKS
    written = json.loads((tmp_path / "whole" / "config.json").read_text())["experiment"]["tasks"]
    assert (written["train_ways"], written["variation"]) == (8, 0.5)
    learned_scale = isinstance(method, ProtoNet | R2D2 | ANIL)
    assert any(line.get("scale", 0) > 0 for line in Run.open(tmp_path / "whole").metrics()) == learned_scale


def test_what_was_learned_adapts_to_any_number_of_classes(tmp_path):
    trained(tmp_path / "run", ProtoNet(scale=0.1))
    learner = Learner.of(tmp_path / "run")
    images, asked = toy().test.images[:16], toy().test.images[16:]
    made = learner.adapt(images, [name for name in "abcd" for _ in range(4)])
    assert made.facts["trained"] == "8-way 1-shot"
    scores = made.network(asked.float() / 255)
    features = made.network.body(asked.float() / 255)
    means = made.network.body(images.float() / 255).view(4, 4, -1).mean(1)
    near = -learner.theta[".log_scale"].exp() * torch.cdist(features, means).square()
    torch.testing.assert_close(scores.log_softmax(-1), near.log_softmax(-1), atol=1e-4, rtol=1e-4)


def test_a_head_with_a_row_for_each_class_is_refused_by_its_option():
    words = ["omniglot", "--train-ways", "8", "--method", "imaml"]
    plan = Plan.of(words)
    with pytest.raises(MetagradError, match=r"^--train-ways must equal ways for imaml, got 8 and 5"):
        plan.experiment({"tasks.train_ways": 8}, task_set=None, seed=0)
    with pytest.raises(MetagradError, match="train_ways must equal ways for own"):
        Experiment(tasks=TASKS, method=Own())
    Experiment(tasks=Episodes("omniglot", train_ways=5), method=IMAML())


class Own:
    """A method that says nothing of ways."""

    def meta_loss(self, model, theta, tasks, *, query_chunk=None):
        raise NotImplementedError
