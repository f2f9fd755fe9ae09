"""An experiment is trained from its parts, whatever they are; its run is stopped, resumed, opened and refused."""

import own_code
import pytest
import torch
from torch import nn

from metagrad import (
    GradientDescent,
    Implicit,
    MetagradError,
    MetagradWarning,
)
from metagrad.experiment import (
    Budget,
    Conv4Config,
    Episodes,
    Experiment,
    MLPConfig,
    Outer,
    Run,
    TaskSet,
    train,
)
from metagrad.experiment.experiment import described
from metagrad.fewshot import (
    IMAML,
    MAML,
    MemoryReduced,
    ProtoNet,
    Sinusoids,
    SquaredError,
)

SHORT = Budget(meta_steps=12, tasks_per_step=2, val_every=4, val_tasks=4, test_tasks=6)
CURVES = Sinusoids(shots=4, queries=4)
STEPS = MAML(inner_lr=0.02, loss=SquaredError())
OWN = tuple(
    f"own_code:{name}"
    for name in ("Rhythm", "rhythms", "smooth", "margin", "Slow", "Curves", "curves", "columns", "misfit", "ridge",
                 "zero_strengths", "zero_weights")
)  # fmt: skip


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
    steps = [line["step"] for line in Run.open(tmp_path / "parts").metrics() if "val_accuracy" in line]
    assert steps.count(0) == 1, "the initial weights are validated once"
    wrong = Experiment(tasks=Episodes("glyphs"), method=IMAML(), network=MLPConfig(hidden=(5,)), budget=SHORT)
    with pytest.raises(MetagradError, match=r"no weight of .* fits this network"):
        train(wrong, tmp_path / "wrong", init=tmp_path / "many")
    assert not (tmp_path / "wrong").exists()


def test_a_run_killed_before_its_first_checkpoint_does_not_go_on_from_random_weights(tmp_path):
    small = {"network": Conv4Config(filters=4), "budget": SHORT}
    train(Experiment(tasks=Episodes("glyphs"), method=ProtoNet(), **small), tmp_path / "first")
    experiment = Experiment(tasks=Episodes("glyphs"), method=IMAML(), **small)
    train(experiment, tmp_path / "whole", init=tmp_path / "first")
    train(experiment, tmp_path / "killed", init=tmp_path / "first", stop=lambda: True)
    for name in ("last.safetensors", "best.safetensors", "metrics.jsonl"):
        (tmp_path / "killed" / name).unlink(missing_ok=True)
    with pytest.raises(MetagradError, match=r"begins at the weights in .*first, and has no checkpoint to resume from"):
        train(experiment, tmp_path / "killed", resume=True)
    train(experiment, tmp_path / "killed", resume=True, init=tmp_path / "first")
    one, other = (Run.open(tmp_path / which).load("last").tensors for which in ("whole", "killed"))
    assert all(torch.equal(leaf, other[key]) for key, leaf in one.items())


def test_best_weights_that_are_gone_are_not_promised_to_a_resumed_training(tmp_path):
    experiment = Experiment(tasks=CURVES, network=MLPConfig(hidden=(4,)), method=STEPS, budget=SHORT)
    train(experiment, tmp_path / "run", stop=lambda: True)
    with pytest.raises(MetagradError, match="has not come to its first validation: metagrad train --resume"):
        Run.open(tmp_path / "run", experiment=experiment).load("best")
    train(experiment, tmp_path / "run", resume=True)
    (tmp_path / "run" / "best.safetensors").unlink()
    with pytest.raises(MetagradError, match=r"best.safetensors is gone: restore it, or move .*run away"):
        Run.open(tmp_path / "run", experiment=experiment).load("best")


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
