"""Training on the features of a pretrained network: every method, resumed, judged, compared, from the command line."""

import json
import statistics

import own_backbones
import pytest
import torch
from commands import complaint, experiment, flags_in, help_of
from small_pictures import fill
from torch import nn
from toyruns import toy

from metagrad import data
from metagrad.cli.main import main
from metagrad.data import feature_folders
from metagrad.errors import MetagradError
from metagrad.experiment import (
    Budget,
    Episodes,
    Experiment,
    Outer,
    Pretrained,
    Run,
    TaskSet,
    extend_budget,
    pretrained,
    train,
)
from metagrad.experiment.class_mean import class_mean, gained
from metagrad.experiment.estimate import expected, in_words
from metagrad.experiment.measure import generator_of
from metagrad.fewshot import ANIL, IMAML, MAML, R2D2, Evaluation, ITDBiO, MemoryReduced, ProtoNet, batched_forward
from metagrad.fewshot.norms import Diagonal, UnitLength

TASKS = Episodes("omniglot", ways=3, queries=2)
LINEAR = Pretrained("own_backbones:Stages", body="linear")
SHORT = Budget(meta_steps=6, tasks_per_step=2, val_every=3, val_tasks=4, test_tasks=6, checkpoint_seconds=1e-9)
METHODS = [
    ProtoNet(scale=1.0), R2D2(), MemoryReduced(), ANIL(), ITDBiO(), IMAML(), MAML(inner_steps=2),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _drawings(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load = data.load
    monkeypatch.setattr(
        data, "load", lambda name, **given: toy() if name == "omniglot" else load(name, **given)
    )  # fmt: skip


def asked(method, network=LINEAR, **more):
    return Experiment(tasks=TASKS, method=method, network=network, **{"budget": SHORT, **more})


def quiet(event):
    """Say nothing."""


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_trains_on_features_and_resumes_bit_for_bit(tmp_path, method):
    result = train(asked(method), tmp_path / "whole", report=quiet).result
    calls = iter(range(100))
    assert train(asked(method), tmp_path / "parts", report=quiet, stop=lambda: next(calls) == 2).result is None
    train(asked(method), tmp_path / "parts", resume=True, report=quiet)
    for name in ("best", "last"):
        whole, parts = (Run.open(tmp_path / one, code=[LINEAR.name]).load(name).tensors for one in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert "theta/layer.weight" in whole
    assert not torch.equal(whole["theta/layer.weight"], torch.eye(12)), "it has not moved"
    assert not any("trunk" in key for key in whole), "a run holds what trains alone"
    run = Run.open(tmp_path / "whole", code=[LINEAR.name])
    again = run.evaluate(tasks=6, seed=run.test_seed)
    assert (again["value"], again["protocol"]) == (result["value"], result["protocol"])
    assert f"own_backbones:Stages {pretrained.trunk_digest(LINEAR)[:12]}, body linear" in again["protocol"]["backbone"]


def test_a_run_on_features_can_be_checked(tmp_path):
    train(asked(MemoryReduced()), tmp_path / "run", report=quiet)
    assert Run.open(tmp_path / "run", code=[LINEAR.name]).check(tasks=2)["cosine"] > 0.99


@pytest.mark.parametrize("body", ["diagonal", "last-block"])
def test_other_bodies_train(tmp_path, body):
    network = Pretrained("own_backbones:Nested", body=body)
    assert "class_mean" in train(asked(ProtoNet(), network), tmp_path / "run", report=quiet).result
    tensors = Run.open(tmp_path / "run", code=[network.name]).load("last").tensors
    assert any(key.startswith("theta/layer.") for key in tensors)


NOTHING = Pretrained("own_backbones:Stages")


@pytest.mark.parametrize("method", [MemoryReduced(), ITDBiO(), ProtoNet()], ids=lambda method: method.name)
def test_a_method_that_would_learn_nothing_is_refused_before_anything_is_computed(tmp_path, monkeypatch, method):
    monkeypatch.setattr(data, "load", None)
    with pytest.raises(MetagradError, match=rf"^{method.name} has nothing to learn .*\(--body linear\)"):
        train(asked(method, NOTHING), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", [ANIL(), ProtoNet(scale=1.0), R2D2()], ids=lambda method: method.name)
def test_a_method_with_something_of_its_own_to_learn_is_trained(tmp_path, method):
    train(asked(method, NOTHING), tmp_path / "run", report=quiet)
    names = {key for key in Run.open(tmp_path / "run", code=[NOTHING.name]).load("last").tensors if "theta/" in key}
    assert names
    assert not any("layer" in name for name in names)


def test_weights_of_a_run_with_another_method_are_where_a_run_begins(tmp_path):
    train(asked(MemoryReduced()), tmp_path / "one", report=quiet)
    said = []
    again = asked(ProtoNet(scale=1.0), outer=Outer(lr=1e-9))
    begin = Run.open(tmp_path / "one", code=[LINEAR.name])
    # A run names its backbone's code: in Python its weights are given as a file.
    file = tmp_path / "weights.safetensors"
    from safetensors.torch import save_file

    save_file(dict(begin.load("best").theta), file)
    train(again, tmp_path / "two", init=file, report=lambda event: said.append(event.line))
    assert "1 of 2 tensors" in said[0]["init"][0]
    layers = [Run.open(tmp_path / one, code=[LINEAR.name]).load("best").theta["layer.weight"] for one in ("one", "two")]
    torch.testing.assert_close(*layers, atol=1e-6, rtol=0)


def test_another_backbone_than_the_run_began_with_is_refused(tmp_path, monkeypatch):
    train(asked(ProtoNet(scale=1.0)), tmp_path / "run", report=quiet)
    run = Run.open(tmp_path / "run", code=[LINEAR.name])
    monkeypatch.setattr(own_backbones.Stages, "std", (0.5, 0.5, 0.5))
    pretrained._opened.cache_clear()
    try:
        for doing in (run.evaluate, run.open_tasks, lambda: train(run.experiment, run.folder, resume=True)):
            with pytest.raises(
                MetagradError, match=r"own_backbones:Stages differs from the network that .*/run was started with"
            ):
                doing()
    finally:
        pretrained._opened.cache_clear()


def test_the_class_mean_is_that_of_the_frozen_features(tmp_path):
    result = train(asked(ProtoNet(scale=1.0), outer=Outer(lr=0.1)), tmp_path / "run", report=quiet).result
    run = Run.open(tmp_path / "run", code=[LINEAR.name])
    sources = run.open_tasks()
    drawn = sources.test(6, generator=generator_of(run, run.test_seed, sources.draws_on))
    support, query = (nn.functional.normalize(batch.x, dim=-1) for batch in (drawn.support, drawn.query))
    means = torch.stack([support[t][drawn.support.y[t].argsort()] for t in range(6)])  # one shot a class
    by_hand = (torch.cdist(query, means).argmin(-1) == drawn.query.y).double().mean(1)
    generator = generator_of(run, run.test_seed, sources.draws_on)
    found = class_mean(LINEAR, sources, sources.test, tasks=6, generator=generator)
    torch.testing.assert_close(found.per_task, by_hand, rtol=0, atol=1e-6)  # shares of six in float32
    assert result["class_mean"]["value"] == found.score
    assert result["class_mean"]["gain"] == pytest.approx(result["value"] - found.score, abs=1e-12)


def test_a_gain_is_paired_by_task():
    def scores(*each):
        return Evaluation(sum(each) / len(each), 0.5, 1.0, len(each), False, per_task=torch.tensor(each))

    found = gained(scores(0.9, 0.5, 0.7), scores(0.8, 0.4, 0.4))
    assert found["gain"] == pytest.approx(1 / 6, abs=1e-6)
    assert found["gain_ci95"] == pytest.approx(1.96 * statistics.stdev([0.1, 0.1, 0.3]) / 3**0.5, abs=1e-6)
    with pytest.raises(ValueError, match="not the same tasks"):
        gained(scores(0.9, 0.5), scores(0.9, 0.5, 0.1))


def test_a_network_suggests_its_budget():
    usual = Experiment(tasks=Episodes("folder"), method=ProtoNet())
    assert (usual.meta_steps, usual.budget.minutes, usual.tasks_per_step, usual.outer.lr) == (10_000, 60.0, 16, 0.01)
    assert Experiment(tasks=Episodes("folder"), method=ProtoNet(), budget=Budget(meta_steps=10)).budget.minutes is None
    assert Experiment(tasks=TaskSet(tasks=Episodes("folder"), count=3), method=IMAML()).budget.minutes == 60.0
    on_features = Experiment(tasks=Episodes("folder"), method=ProtoNet(), network=LINEAR)
    assert on_features.budget.minutes is None
    assert on_features.meta_steps == LINEAR.meta_steps
    assert (on_features.outer.lr, on_features.tasks_per_step) == (LINEAR.outer_lr, LINEAR.tasks_per_step)
    whole = Experiment(tasks=Episodes("folder"), method=ProtoNet(), network=Pretrained("x:y", body="all"))
    assert (whole.meta_steps, whole.budget.minutes) == (10_000, 60.0)
    assert Experiment(tasks=TASKS, method=ProtoNet(), network=LINEAR, outer=Outer(lr=0.5)).outer.lr == 0.5


@pytest.mark.parametrize("layer", [Diagonal(5), UnitLength(4.0)])
def test_layers_on_features_take_the_task_axis(layer):
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    weights = {f"0.{name}": torch.randn(3, *leaf.shape) for name, leaf in layer.named_parameters()}
    model = nn.Sequential(layer)
    assert batched_forward.layered(model)
    expected_ = [torch.func.functional_call(model, {n: w[t] for n, w in weights.items()}, (x[t],)) for t in range(3)]
    torch.testing.assert_close(batched_forward.outputs(model, weights, x), torch.stack(expected_))


# --- the command line ---------------------------------------------------------------------------------------


def test_a_backbone_is_named_like_a_network(capsys):
    found = experiment("folder --network efficientnet-lite1 --body diagonal --feature-length 2 --weights w.safetensors")
    assert found.network == Pretrained("efficientnet-lite1", body="diagonal", scale=2.0, weights="w.safetensors")
    assert found.method.name == "protonet"
    assert found.method.scale is not None
    found = experiment("folder --network timm:resnet18 --method r2d2 --scale 3")
    assert (found.network, found.method.scale) == (Pretrained("timm:resnet18", body="linear"), 3.0)
    assert experiment("glyphs --network own_backbones:random").network == "own_backbones:random"
    assert experiment("glyphs --network own_backbones:random --body nothing --scale 1").network == NOTHING_RANDOM
    shown = flags_in(help_of(capsys, "train --network hf:some/model --method protonet"))
    assert {"--body", "--feature-length", "--weights", "--scale"} <= shown
    assert "--filters" not in shown
    assert "--body is for --network efficientnet-lite0" in complaint(capsys, "train glyphs --body linear")
    said = complaint(capsys, "train glyphs --network own_backbones:random --weights w")
    assert "not own_backbones:random (your own network; --body makes it a backbone)" in said


NOTHING_RANDOM = Pretrained("own_backbones:random")


def test_from_a_folder_to_its_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "pictures", classes=20, each=3)
    words = ["--network", "own_backbones:Stages", "--body", "linear", "--ways", "2", "--queries", "1",
             "--meta-steps", "4", "--val-tasks", "4", "--test-tasks", "6"]  # fmt: skip
    assert main(["train", "folder", "--data-dir", "pictures", *words, "--no-calibrate", "--run", "run"]) == 0
    said = capsys.readouterr().out
    assert "4 meta-steps, validation and test take about" in said
    assert "nearest class mean of the frozen features: " in said
    assert "(same 6 tasks)" in said
    assert not (tmp_path / "run" / "calibration.json").exists()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["class_mean"]["tasks"] == 6
    page = (tmp_path / "run" / "report.html").read_text()
    assert "nearest class mean of the frozen features" in page
    assert "points on the same tasks" in page
    assert main(["train", "--resume", "run", "--meta-steps", "6", "--code", "own_backbones:Stages"]) == 0
    said = capsys.readouterr().out
    assert "calibration error" in said
    assert (tmp_path / "run" / "calibration.json").exists()
    assert "--code own_backbones:Stages" in complaint(capsys, "evaluate run")

    assert main(["data", "features"]) == 0
    said = capsys.readouterr().out
    assert "own_backbones:Stages" in said
    assert "in all; --clean removes them" in said
    assert main(["data", "features", "--clean"]) == 0
    assert feature_folders.stores() == []
    assert "--clean is for metagrad data features" in complaint(capsys, "data list --clean")


# --- time ---------------------------------------------------------------------------------------------------


def test_the_time_that_is_left_is_that_of_steps_validations_and_the_test():
    budget = Budget(meta_steps=100, val_every=50, val_tasks=10, test_tasks=20, tasks_per_step=2)
    line = expected(asked(ProtoNet(), budget=budget), 3, 2.0, 0.5, 6.0)
    assert line["seconds_left"] == 97 * 2.0 + 2 * 10 * 0.5 + 20 * 0.5
    assert in_words(line, 100) == "97 more meta-steps, validation and test take about 3.6 minutes"
    whole = {**line, "steps_left": 100}  # with the steps that were timed
    assert in_words({**whole, "steps_left": 1}, 1).startswith("1 meta-step, validation and test take about")
    assert in_words(whole, 100) == "100 meta-steps, validation and test take about 3.6 minutes"
    limited = Budget(meta_steps=100, minutes=1, val_every=50, val_tasks=10, test_tasks=20, tasks_per_step=2)
    line = expected(asked(ProtoNet(), budget=limited), 3, 2.0, 0.5, 6.0)
    assert line["seconds_left"] == 54 + 20 * 0.5
    assert (
        in_words(line, 100)
        == "training stops after 1 minute (--minutes); all 100 meta-steps would take about 3.6 minutes"
    )


def test_a_run_gets_more_time_but_not_less(tmp_path):
    found = asked(ProtoNet(scale=1.0), budget=Budget(meta_steps=6, minutes=1, tasks_per_step=2, val_tasks=4))
    run = Run.create(tmp_path / "run", found, TASKS.of(toy()))
    with run:
        extend_budget.raise_minutes(run, 2)
    assert Run.open(tmp_path / "run", experiment=run.experiment).record["experiment"]["budget"]["minutes"] == 2
    with pytest.raises(MetagradError, match="--minutes 1 is below the run's 2"):
        extend_budget.raise_minutes(run, 1)


def test_features_are_centred_for_one_network_as_it_is():
    with pytest.raises(MetagradError, match="centred is for efficientnet-lite0 as it is"):
        Pretrained("efficientnet-lite0", body="linear", centred=True)
    with pytest.raises(MetagradError, match="centred is for efficientnet-lite0 as it is"):
        Pretrained("timm:resnet18", centred=True)
    unit = Pretrained("efficientnet-lite0", centred=True).build((1280,), 5).get_submodule("unit")
    features = torch.rand(4, 1280, generator=torch.Generator().manual_seed(0))
    assert unit(features).norm(dim=1).allclose(torch.tensor(4.0))
    assert not unit(features).allclose(4 * torch.nn.functional.normalize(features, dim=1), atol=1e-2)
