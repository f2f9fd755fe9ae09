"""Parts of an experiment are values: written down, read again, refused out of their range."""

import json
import math

import own_code
import pytest
import torch
from test_experiment import CURVES, OWN, SHORT, STEPS
from torch import nn

from metagrad import (
    CG,
    MINRES,
    Adam,
    FirstOrder,
    HessianFree,
    Implicit,
    MetagradError,
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
    TaskSet,
)
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
    SquaredError,
)
from metagrad.named_code import imported

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
        (lambda: Conv4Config(pooling=True, pools=5), "pools must be at most 4, the number of blocks, got 5"),
        (lambda: Conv4Config(pooling=True, pools=-1), "pools must be at least 0, got -1"),
        (
            lambda: Conv4Config(pools=3),
            "pools=3 counts blocks that pool, but pooling is off: turn it on, as conv4-pool does",
        ),
        (lambda: TaskSet(tasks=CURVES, count=0), "a task set has at least 1"),
        (lambda: Experiment(tasks=CURVES, method=STEPS), "these tasks have no default network"),
        (lambda: Experiment(tasks=CURVES, method=CG(), network=MLPConfig()), "method must be one of"),
        (lambda: Experiment(tasks=CURVES, method=STEPS, network=MLPConfig(), seed=-1), "seed must be at least 0"),
    ],
)
def test_values_out_of_their_range_are_refused(make, says):
    with pytest.raises(MetagradError, match=says):
        make()
