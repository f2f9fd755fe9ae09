"""An experiment is a value: written down, read again, trained from its parts, whatever they are."""

import json
import math

import own_code
import pytest
import torch
from torch import nn

from metagrad import (
    CG,
    MINRES,
    Adam,
    FirstOrder,
    GradientDescent,
    HessianFree,
    Implicit,
    MetagradError,
    MetagradWarning,
    Nesterov,
    Unroll,
    Woodbury,
)
from metagrad.experiment import (
    Budget,
    Compute,
    Conv4Config,
    Episodes,
    Experiment,
    MLPConfig,
    Outer,
    ResNet12Config,
    Run,
    TaskSet,
    train,
)
from metagrad.experiment.experiment import described
from metagrad.experiment.values import from_json, to_json
from metagrad.fewshot import (
    ANIL,
    BOIL,
    FOMAML,
    IMAML,
    MAML,
    R2D2,
    BinaryCrossEntropy,
    CrossEntropy,
    ITDBiO,
    MemoryReduced,
    MetaSGD,
    ProtoNet,
    Reptile,
    Sinusoids,
    SquaredError,
)
from metagrad.named_code import imported

SHORT = Budget(meta_steps=12, tasks_per_step=2, val_every=4, val_tasks=4, test_tasks=6)
CURVES = Sinusoids(shots=4, queries=4)
STEPS = MAML(inner_lr=0.02, loss=SquaredError())
OWN = tuple(
    f"own_code:{name}"
    for name in ("Rhythm", "rhythms", "smooth", "margin", "Slow", "Curves", "curves", "columns", "misfit", "ridge",
                 "zero_strengths", "zero_weights")
)  # fmt: skip
# A new value joins by a line.
VALUES = [
    IMAML(lam=0.3, learn_lam="tensor", solver=Nesterov(lr=0.1, max_steps=3), adapts="head.*"),
    IMAML(solver=Adam(lr=0.01, max_steps=2), adjoint=Implicit(linear_solver=MINRES(max_steps=4), curvature="hessian")),
    IMAML(adjoint=FirstOrder(), loss=CrossEntropy(class_weight=(1, 2), label_smoothing=0.1)),
    IMAML(adjoint=Implicit(linear_solver=Woodbury(), curvature="gauss_newton"), metric=own_code.margin),
    MAML(truncate=2, inner_steps=3), MAML(checkpoint=2, inner_steps=4, loss=own_code.smooth), MetaSGD(), FOMAML(),
    Reptile(loss=SquaredError()), ANIL(features="recomputed"), BOIL(), ITDBiO(l2=0.5), ProtoNet(head="f.*"), R2D2(l2=1),
    MemoryReduced(solver=HessianFree(max_steps=2), adjoint=Implicit(linear_solver=CG(max_steps=3))),
    own_code.STRENGTHS,
    MemoryReduced(adjoint=Unroll(), loss=BinaryCrossEntropy(positive_weight=2.0)), own_code.Slow(patience=3),
    Conv4Config(filters=8, norm="group"), ResNet12Config(), MLPConfig(hidden=(3, 4)),
    Episodes("omniglot", ways=20), ProtoNet(scale=0.1),
    Episodes("drawings", train_ways=60, train_shots=2, train_queries=4, variation=0.5),
    Episodes("folder"), TaskSet(tasks=Episodes("glyphs"), count=7), CURVES,
    Outer(optimizer="adamw", clip_norm=1.0, average=0.99), SHORT, Compute(precision="bf16", chunk=2),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_written_and_read_again(value):
    text = json.dumps(to_json(value))
    assert from_json(json.loads(text), code=OWN) == value


def test_code_is_written_by_where_it_is_imported_from():
    found = to_json(IMAML(loss=own_code.smooth, metric=own_code.margin))
    assert found["class"] == "metagrad.fewshot:IMAML"
    assert found["loss"] == {"code": "own_code:smooth"}
    for cannot in (lambda outputs, targets: 0, nn.Linear(2, 2), torch.zeros(2)):
        with pytest.raises(MetagradError, match=r"cannot be (imported by name|written down)"):
            to_json(IMAML(loss=cannot))
    with pytest.raises(MetagradError, match="not finite"):
        to_json({"a": math.inf})


def test_code_outside_of_metagrad_runs_only_where_it_is_named_again():
    written = to_json(MAML(loss=own_code.smooth))
    with pytest.raises(MetagradError, match=r"own_code:smooth is code outside of metagrad.*--code own_code:smooth"):
        from_json(written)
    assert from_json(written, code=["own_code:smooth"]) == MAML(loss=own_code.smooth)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("own_cod:smooth", "there is no module own_cod here"),
        ("own_code:smoth", "own_code has no smoth"),
        ("own_code", "is no import path"),
        ("own_code:", "is no import path"),
        ("os:system", "os:system is code outside of metagrad"),
        ("metagrad.files:os.system", "is no function or class of metagrad"),
        ("metagrad.errors:__builtins__", "is no function or class of metagrad"),
        ("torch.nn:Nothing", "torch.nn has no Nothing"),
        ("torch.hub:load", "torch.hub:load is code outside of metagrad"),
        (3, "is no import path"),
    ],
)
def test_import_paths_that_lead_nowhere_are_named(path, says):
    with pytest.raises(MetagradError, match=says):
        imported(path, code=[path] if str(path).startswith("own") else [])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Outer(optimizer="adamm"), "torch.optim has no 'adamm'"),
        (lambda: Outer(optimizer="LBFGS"), "use Adam"),
        (lambda: Outer(lr=0.0), "outer lr must be positive"),
        (lambda: Outer(average=1.0), "average must be above 0 and below 1"),
        (lambda: Outer(clip_norm=-1.0), "clip_norm must be above 0"),
        (lambda: Outer(schedule="linear"), "schedule is one of"),
        (lambda: Budget(meta_steps=0), "meta_steps must be at least 1"),
        (lambda: Budget(tasks_per_step=1.5), "tasks_per_step must be a whole number"),
        (lambda: Budget(test_tasks=1), "test_tasks must be 0 or at least 2"),
        (lambda: Budget(minutes=0), "minutes must be positive"),
        (lambda: Compute(precision="tf32"), "is for GPUs"),
        (lambda: Compute(chunk=True), "chunk must be a whole number"),
        (lambda: Episodes("omniglott"), "no data set is called"),
        (lambda: Episodes("glyphs", ways=1), "ways must be at least 2"),
        (lambda: Episodes("glyphs", image_size=84), "image_size is for data sets of pictures"),
        (lambda: Episodes("glyphs", train_ways=1), "train_ways must be at least 2"),
        (lambda: Episodes("glyphs", train_shots=0), "train_shots must be at least 1"),
        (lambda: Episodes("glyphs", train_queries=1.5), "train_queries must be a whole number"),
        (lambda: Episodes("glyphs", variation=3.0), "variation must be a number from 0 to 2, got 3.0"),
        (lambda: Episodes("glyphs", variation=True), "variation must be a number from 0 to 2, got True"),
        (lambda: Episodes("cifar-fs", variation=1.0), "variation is for data sets of drawings, not cifar-fs"),
        (
            lambda: Experiment(tasks=Episodes("glyphs", train_ways=9), method=IMAML()),
            "train_ways must equal ways for imaml, got 9 and 5: its head has one learned row",
        ),
        (
            lambda: Experiment(tasks=TaskSet(tasks=Episodes("glyphs", train_ways=9), count=3), method=MemoryReduced()),
            "train_ways must equal ways for memory-reduced",
        ),
        (lambda: ProtoNet(scale=0.0), "scale must be a number, positive and finite"),
        (lambda: Conv4Config(filters=0), "filters must be"),
        (lambda: Conv4Config(norm="foo"), "norm is one of"),
        (lambda: TaskSet(tasks=CURVES, count=0), "a task set has at least 1"),
        (lambda: Experiment(tasks=CURVES, method=STEPS), "these tasks have no default network"),
        (lambda: Experiment(tasks=CURVES, method=CG(), network=MLPConfig()), "method must be one of"),
        (lambda: Experiment(tasks=CURVES, method=STEPS, network=MLPConfig(), seed=-1), "seed must be at least 0"),
    ],
)
def test_values_out_of_their_range_are_refused(make, says):
    with pytest.raises(MetagradError, match=says):
        make()


def rhythm(**options):
    method = MAML(inner_lr=0.5, loss=own_code.smooth)
    return Experiment(tasks=own_code.rhythms, network=own_code.Rhythm, method=method, **{"budget": SHORT, **options})


EXPERIMENTS = {
    "own network, loss and source": rhythm(),
    "by their names": Experiment(
        tasks="own_code:rhythms", network="own_code:Rhythm", method=own_code.Slow(inner_lr=0.5), budget=SHORT
    ),
    "a source with splits, averaged weights": Experiment(
        tasks="own_code:Curves", network=MLPConfig(hidden=(8,)), method=STEPS, budget=SHORT,
        outer=Outer(average=0.9, optimizer="AdamW", weight_decay=0.1, warmup=3, clip_norm=1.0),
    ),
    "a function that makes a source": Experiment(
        tasks=own_code.curves, network=MLPConfig(hidden=(8,)), method=STEPS, budget=SHORT
    ),
    "momentum, a constant step": Experiment(
        tasks=CURVES, network=MLPConfig(hidden=(8,)), method=STEPS, budget=SHORT,
        outer=Outer(optimizer="SGD", momentum=0.9, lr=1e-3, schedule="constant"),
    ),
    "an optimiser of whole matrices": Experiment(
        tasks=CURVES, network=MLPConfig(hidden=(8,)), method=STEPS, budget=SHORT, outer=Outer(optimizer="Adafactor")
    ),
    "a bilevel problem": Experiment(tasks=own_code.columns, method=own_code.STRENGTHS, budget=SHORT),
    "a bilevel problem of a finite set": Experiment(
        tasks=TaskSet(tasks=own_code.columns, count=3), method=own_code.STRENGTHS, budget=SHORT
    ),
    "a finite set": Experiment(
        tasks=TaskSet(tasks=own_code.rhythms, count=5), network=own_code.Rhythm, method=MemoryReduced(), budget=SHORT
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*one by one", "ignore:.*inner steps oscillate")
@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_stopped_and_resumed_is_bit_for_bit_the_same(tmp_path, experiment):
    whole = train(experiment, tmp_path / "whole")
    asked = iter(range(100))
    assert train(experiment, tmp_path / "parts", stop=lambda: next(asked) == 6).result is None
    parts = train(experiment, tmp_path / "parts", resume=True)
    assert parts.result["value"] == whole.result["value"]
    for name in ("last", "best"):
        one, other = (Run.open(tmp_path / which, code=OWN).load(name).tensors for which in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(leaf, other[key]) for key, leaf in one.items())


@pytest.mark.filterwarnings("ignore:.*one by one")
def test_a_run_is_opened_evaluated_checked_and_adapted(tmp_path):
    outcome = train(rhythm(), tmp_path / "run")
    with pytest.raises(MetagradError, match=r"own_code:rhythms, own_code:smooth, own_code:Rhythm are code outside"):
        Run.open(tmp_path / "run")
    run = Run.open(tmp_path / "run", code=OWN)
    assert run.experiment == rhythm()
    assert run.evaluate(tasks=6)["value"] == outcome.result["value"]
    assert run.check(tasks=2)["error"] < 1e-3
    task = own_code.rhythms(3, generator=torch.Generator().manual_seed(5))
    adapted = run.adapt(task.support)
    assert adapted.predict(task.query.x).shape == (3, 8, 2)
    assert Run.open(tmp_path / "run", experiment=rhythm()).experiment == rhythm()


@pytest.mark.parametrize(
    ("method", "name"), [(own_code.Slow, "slow"), (own_code.Quick, "the quick one"), (MAML, "maml")]
)
def test_a_method_of_ones_own_has_its_own_name(tmp_path, method, name):
    experiment = Experiment(tasks=CURVES, network=MLPConfig(hidden=(4,)), method=method(loss=SquaredError()),
                            budget=SHORT)  # fmt: skip
    assert train(experiment, tmp_path / "run").result["method"] == name
    run = Run.open(tmp_path / "run", experiment=experiment)
    assert run.method_name == run.check(tasks=1)["method"] == name
    assert described(experiment)["method"] == name


@pytest.mark.parametrize("method", [IMAML, MAML])
def test_a_plain_loss_on_float_targets_is_checked(tmp_path, method):
    """Inputs and targets, of support and query, follow the weights into float64: huber_loss mixes no dtypes."""
    experiment = Experiment(
        tasks=CURVES, network=MLPConfig(hidden=(8,)), method=method(loss=nn.functional.huber_loss), budget=SHORT
    )
    train(experiment, tmp_path / "run")
    found = Run.open(tmp_path / "run", experiment=experiment).check(tasks=2)
    assert found["error" if method is MAML else "arithmetic"] < 1e-3


def test_another_experiment_does_not_go_on_with_a_run_but_a_longer_one_does(tmp_path):
    one = Experiment(tasks=CURVES, network=MLPConfig(hidden=(8,)), method=STEPS, budget=SHORT)
    train(one, tmp_path / "run")
    other = Experiment(tasks=CURVES, network=MLPConfig(hidden=(9,)), method=STEPS, budget=SHORT)
    with pytest.raises(MetagradError, match=r"another experiment \(network.hidden is \[8\] there, \[9\] here\)"):
        train(other, tmp_path / "run", resume=True)
    longer = Experiment(tasks=CURVES, network=MLPConfig(hidden=(8,)), method=STEPS,
                        budget=Budget(meta_steps=16, tasks_per_step=2, val_every=8, val_tasks=5))  # fmt: skip
    assert train(longer, tmp_path / "run", resume=True).step == 16
    with pytest.raises(MetagradError, match=r"12 is below the run's 16"):
        train(one, tmp_path / "run", resume=True)
    with pytest.raises(MetagradError, match="exists already"):
        train(one, tmp_path / "run")


def test_a_module_gives_its_weights_and_is_handed_over_again(tmp_path):
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    before = [leaf.clone() for leaf in network.parameters()]
    experiment = Experiment(tasks=CURVES, network=network, method=STEPS, budget=SHORT)
    train(experiment, tmp_path / "run", stop=lambda: True)
    with pytest.raises(MetagradError, match=r"was given as a module of torch\.nn\.modules\.container:Sequential"):
        Run.open(tmp_path / "run")
    train(experiment, tmp_path / "run", resume=True)
    assert all(torch.equal(leaf, old) for leaf, old in zip(network.parameters(), before, strict=True))
    started = Run.open(tmp_path / "run", experiment=experiment).load("last").tensors["theta/0.weight"]
    assert not torch.equal(started, before[0])


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ("own_code:nothing", "returned NoneType: it must return an nn.Module"),
        ("own_code:takes", "cannot be called without arguments"),
        ("own_code:number", "cannot be called"),
        ("own_code:missing", "own_code has no missing"),
        (lambda: nn.Sequential(nn.Linear(3, 1)), "mat1 and mat2"),
        (lambda: nn.Sequential(nn.Linear(1, 2)), "targets must be of the outputs' shape"),
    ],
)
def test_a_network_that_cannot_be_is_refused_before_a_folder_is_made(tmp_path, network, says):
    experiment = Experiment(tasks=CURVES, network=network, method=STEPS, budget=SHORT)
    with pytest.raises(MetagradError, match=says):
        train(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_method_that_does_not_go_with_its_adjoint_is_refused_before_a_folder_is_made(tmp_path):
    def experiment(tasks=CURVES, method=own_code.Sparse, **options):
        return Experiment(tasks=tasks, network=MLPConfig(hidden=(4,)), method=method(loss=SquaredError(), **options),
                          budget=SHORT)  # fmt: skip

    for wrong, says in (
        (experiment(), "use curvature='hessian'"),
        (experiment(TaskSet(tasks=CURVES, count=2), MAML), "only if the method differentiates implicitly"),
    ):
        with pytest.raises(MetagradError, match=says):
            train(wrong, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    gentle = GradientDescent(lr=0.01, max_steps=3)
    train(experiment(adjoint=Implicit(curvature="hessian"), solver=gentle), tmp_path / "run")


def test_a_source_that_draws_other_tasks_than_before_is_said_to(tmp_path, monkeypatch, recwarn):
    from toyruns import rewritten

    experiment = Experiment(tasks=own_code.curves, network=MLPConfig(hidden=(4,)), method=STEPS, budget=SHORT)
    train(experiment, tmp_path / "run", stop=lambda: True)
    run = Run.open(tmp_path / "run", experiment=experiment)
    run.open_tasks()
    assert not [one for one in recwarn if "other tasks" in str(one.message)]
    monkeypatch.setattr(Sinusoids, "__call__", lambda self, num_tasks, **drawn: own_code.columns(num_tasks, **drawn))
    with pytest.warns(MetagradWarning, match="draws other tasks than when .* was started"):
        run.open_tasks()
    rewritten(tmp_path / "run" / "config.json", lambda config: config["data"].pop("drawn"))  # a run of before
    recwarn.clear()
    Run.open(tmp_path / "run", experiment=experiment).open_tasks()
    assert not recwarn.list


def test_a_training_begins_at_weights_of_another_method_and_other_ways(tmp_path):
    small = {"network": Conv4Config(filters=4), "budget": SHORT}
    train(Experiment(tasks=Episodes("glyphs", ways=7), method=ProtoNet(), **small), tmp_path / "many")
    experiment = Experiment(tasks=Episodes("glyphs"), method=IMAML(), **small)
    said = []
    train(experiment, tmp_path / "run", init=tmp_path / "many", report=said.append)
    first, second = said[0].line["init"]
    assert first.startswith("copied ")
    assert "12 of 14 tensors" in first
    assert second == "  randomly initialised: head.weight (missing there), head.bias (missing there)"
    lines = Run.open(tmp_path / "run").metrics()
    assert next(line for line in lines if "val_accuracy" in line)["step"] == 0, "nothing worse is kept"
    asked = iter(range(100))
    train(experiment, tmp_path / "parts", init=tmp_path / "many", stop=lambda: next(asked) == 0)
    train(experiment, tmp_path / "parts", resume=True)
    one, other = (Run.open(tmp_path / which).load("last").tensors for which in ("run", "parts"))
    assert all(torch.equal(leaf, other[key]) for key, leaf in one.items())
    scores = [Run.open(tmp_path / which).load("best").facts["best_score"] for which in ("run", "parts")]
    assert scores[0] == scores[1]
    wrong = Experiment(tasks=Episodes("glyphs"), method=IMAML(), network=MLPConfig(hidden=(5,)), budget=SHORT)
    with pytest.raises(MetagradError, match=r"no weight of .* fits this network"):
        train(wrong, tmp_path / "wrong", init=tmp_path / "many")
    assert not (tmp_path / "wrong").exists()


def test_a_training_begins_at_a_state_dict(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    save_file({**network.state_dict(), "more": torch.zeros(2)}, tmp_path / "weights.safetensors")
    anew = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    said = []
    experiment = Experiment(tasks=CURVES, network=anew, method=STEPS, budget=SHORT)
    train(experiment, tmp_path / "run", init=tmp_path / "weights.safetensors", stop=lambda: True, report=said.append)
    assert said[0].line["init"][-1] == "  not used: more"
    theta = Run.open(tmp_path / "run", experiment=experiment).load("last").theta
    assert all(torch.equal(theta[name], leaf) for name, leaf in network.state_dict().items())
    (tmp_path / "nothing").write_text("nothing")
    with pytest.raises(MetagradError, match="has no readable weights"):
        train(experiment, tmp_path / "other", init=tmp_path / "nothing")


def test_minutes_end_a_training(tmp_path):
    budget = Budget(meta_steps=10**6, minutes=0.01, tasks_per_step=2, val_every=10**5, val_tasks=4, test_tasks=4)
    experiment = Experiment(tasks=CURVES, network=MLPConfig(hidden=(4,)), method=STEPS, budget=budget)
    outcome = train(experiment, tmp_path / "run")
    assert outcome.result["meta_steps"] == outcome.step < 10**5
    lines = Run.open(tmp_path / "run").metrics()
    assert "val_squared_error" in lines[-1]
    assert outcome.result["val_loss"] == lines[-1]["val_loss"]
    assert "val_score" not in outcome.result


def test_a_bilevel_problem_is_trained_and_checked(tmp_path):
    """A ridge strength for each column: the columns that say nothing get the larger ones."""
    budget = Budget(meta_steps=40, tasks_per_step=4, val_every=20, val_tasks=10, test_tasks=10)
    experiment = Experiment(tasks=own_code.columns, method=own_code.STRENGTHS, budget=budget, outer=Outer(lr=0.1))
    outcome = train(experiment, tmp_path / "run")
    run = Run.open(tmp_path / "run", experiment=experiment)
    assert outcome.result["metric"] == "test_loss"
    first, *_, last = [line["val_loss"] for line in run.metrics() if "val_loss" in line]
    assert last < first
    told, silent = run.load("last").theta["log_lam"].split(2)
    assert silent.min() > told.max() + 1
    assert run.check(tasks=3)["error"] < 1e-3
    with pytest.raises(MetagradError, match="makes no predictions"):
        run.adapt(own_code.columns(1, generator=torch.Generator()).support).predict(torch.zeros(1, 1, 4))
