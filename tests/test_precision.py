"""Fewer digits in products: what is rounded, what is left alone, and that a run keeps to it."""

import json
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from toyruns import new_run, tensors, toy, train

from metagrad.cli.main import main
from metagrad.data import Dataset
from metagrad.errors import MetagradError
from metagrad.experiment import Compute, diagnostics
from metagrad.experiment.precision import precision_context

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import precision
from inner import Scene
from metagrad.fewshot import FOMAML, IMAML, Conv4, EpisodeSampler

CPU = torch.device("cpu")


def state():
    return (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu"))


def test_it_ends_where_it_ends():
    before = state()
    with precision_context("tf32", torch.device("cuda")):
        assert state() == ("high", True, False)
    with precision_context("bf16", CPU):
        assert state() == ("highest", False, True)
    with pytest.raises(KeyError), precision_context("bf16", CPU):
        raise KeyError
    assert state() == before
    with precision_context("float32", CPU):
        assert state() == ("highest", False, False)


def test_bf16_rounds_float32_and_leaves_float64():
    x = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    with precision_context("bf16", CPU):
        assert torch.equal(x @ x, (x.bfloat16() @ x.bfloat16()))
        sharp = x.double() @ x.double()
    assert torch.equal(sharp, x.double() @ x.double())


@pytest.mark.parametrize("method", ["imaml", "memory-reduced"])
def test_a_run_in_bf16_goes_on_as_it_was(tmp_path, method):
    with new_run(tmp_path / "whole", precision="bf16", method=method, meta_steps=8) as run:
        result = train(run, toy()).result
    assert result["precision"] == "bf16"
    asked = iter(range(1, 100))
    with new_run(tmp_path / "parts", precision="bf16", method=method, meta_steps=8) as run:
        train(run, toy(), stop=lambda: next(asked) == 3)
        train(run, toy(), resume=True)
    with new_run(tmp_path / "exact", method=method, meta_steps=8) as run:
        train(run, toy())
    whole, parts, exact = (tensors(tmp_path / name) for name in ("whole", "parts", "exact"))
    assert all(leaf.dtype != torch.bfloat16 for leaf in whole.values())
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any(not torch.equal(whole[name], exact[name]) for name in whole)


def test_woodbury_takes_rounded_outputs(tmp_path):
    with new_run(tmp_path / "run", precision="bf16", linear_solver="woodbury", meta_steps=4) as run:
        train(run, toy())


def test_what_cannot_be_is_refused(tmp_path, capsys):
    with pytest.raises(MetagradError, match="tf32 is for GPUs"):
        Compute(precision="tf32")
    assert Compute(precision="tf32", device="cuda").precision == "tf32"
    assert main(["train", "glyphs", "--precision", "tf32", "--run", str(tmp_path / "r")]) == 2
    assert "--device" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_check_says_what_rounding_does(tmp_path, capsys, monkeypatch):
    from metagrad import data

    monkeypatch.setattr(data, "load", lambda *args, **options: toy())
    with new_run(tmp_path / "run", precision="bf16", meta_steps=2, method="memory-reduced") as run:
        train(run, toy())
    assert main(["check", str(tmp_path / "run"), "--tasks", "2"]) == 0
    assert re.search(r"rounding .*\(bf16\)", capsys.readouterr().out)
    line = json.loads((tmp_path / "run" / "checks.jsonl").read_text())
    assert line["precision"] == "bf16"
    assert line["arithmetic"] > 1e-4


def test_the_emulation_rounds_as_the_formats_do():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 1000)
    assert torch.equal(precision.Rounded(8)._round(x), x.bfloat16().float())
    short = precision.Rounded(11)._round(x)
    assert ((short - x).abs() <= x.abs() * 2**-11).all()
    assert ((short - x).abs() > x.abs() * 2**-13).any()
    assert torch.equal(precision.Rounded(11)._round(short), short)
    assert (short.view(torch.int32) & 0x1FFF == 0).all()


def test_fewer_digits_are_farther_off():
    dataset: Dataset = toy()
    sampler = EpisodeSampler(classes=dataset.train, ways=3, shots=1, queries=2)
    tasks = sampler(2, generator=torch.Generator().manual_seed(0))
    model = Conv4(3, image_size=8, filters=4, generator=torch.Generator().manual_seed(0))
    theta = {name: leaf.detach() for name, leaf in model.named_parameters()}
    methods = {"first order": FOMAML(inner_lr=0.1, inner_steps=1), "iMAML": IMAML(lam=1.0)}
    rows = precision.measure(Scene(model, theta, tasks, IMAML(lam=1.0)), methods)
    for name in methods:
        error = {row.precision: row.error for row in rows if row.method == name}
        assert error["float32"] < 1e-3 < error["TF32, emulated"] < error["bf16 factors, emulated"] < 1


def test_digits_that_spoil_the_first_gradient_are_said_before_the_run(tmp_path, monkeypatch):
    for most, digits, said in ((0.0, "bf16", 1), (1e9, "bf16", 0), (0.0, "float32", 0)):
        monkeypatch.setattr(diagnostics, "MOST_OFF", most)
        with warnings.catch_warnings(record=True) as found, new_run(tmp_path / f"{most}{digits}",
                                                                    precision=digits) as run:  # fmt: skip
            warnings.simplefilter("always")
            train(run, toy(), stop=lambda: True)
        assert sum("the first meta-gradient differs by" in str(one.message) for one in found) == said
