"""Code of one's own on the command line: tasks, networks, losses and methods that metagrad imports by name."""

import sys

import pytest
from commands import complaint, experiment, flags_in, help_of
from toyruns import toy

from metagrad import data
from metagrad.cli.main import main

OWN = """
from dataclasses import dataclass

import torch
from torch import nn

from metagrad.fewshot import Batch, FOMAML, Sinusoids, Tasks


def network():
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))


def no_network():
    return 3


def loss(outputs, targets):
    return (outputs - targets).abs().mean()


def worst(outputs, targets):
    return (outputs - targets).abs().max()


def waves():
    return Sinusoids(shots=5, queries=5)


@dataclass(frozen=True, kw_only=True)
class Noisy:
    '''Waves with a strength.

    Parameters
    ----------
    strength:
        of the noise, such as 10 %.
    '''

    strength: float
    filters: int = 2

    def __call__(self, num_tasks, *, generator):
        return Sinusoids(shots=5, queries=5, noise=self.strength)(num_tasks, generator=generator)


@dataclass(frozen=True, kw_only=True)
class Slow(FOMAML):
    '''One of one's own.'''

    patience: int = 4
    filters: int = 1


number = 3
"""
CODE = [word for name in ("waves", "network", "loss", "worst") for word in ("--code", f"my_code:{name}")]
SHORT = "--inner-lr 0.01 --meta-steps 4 --tasks-per-step 2 --val-tasks 4 --test-tasks 4"


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_code.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_code", None)


def test_code_of_ones_own_is_trained_and_named_again(own, capsys):
    words = f"train my_code:waves --network my_code:network --loss my_code:loss --metric my_code:worst {SHORT}"
    assert main([*words.split(), "--run", "r"]) == 0
    assert "test worst" in capsys.readouterr().out
    assert " ".join(CODE) in complaint(capsys, "train --resume r --meta-steps 6"), "all of it at once, to paste"
    some = complaint(capsys, "evaluate r --code my_code:network --code my_code:loss")
    assert "my_code:waves, my_code:worst are code outside" in some
    assert all(f"--code my_code:{name}" in some for name in ("waves", "network", "loss", "worst"))
    assert main(["train", "--resume", "r", "--meta-steps", "6", *CODE]) == 0
    assert main(["evaluate", "r", "--tasks", "3", *CODE]) == 0
    assert main(["check", "r", "--tasks", "2", *CODE]) == 0
    assert main(["report", "r", "--out", "page.html", *CODE]) == 0
    for command in ("evaluate r", "check r", "report r"):
        assert "--code my_code:" in complaint(capsys, command)


def test_a_network_of_ones_own_on_a_data_set(own, monkeypatch, capsys):
    (own / "flat.py").write_text(
        "from torch import nn\ndef network():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    monkeypatch.setattr(data, "load", lambda name, **_: toy())
    words = "train omniglot --ways 3 --queries 2 --network flat:network --run r --meta-steps 4 --tasks 2 --val-tasks 4"
    assert main([*words.split(), "--test-tasks", "4"]) == 0, "reported without naming it again"
    said = capsys.readouterr()
    assert "report.html" in said.out
    assert not said.err
    assert "<img" in (own / "r" / "report.html").read_text()


def test_dataclasses_of_ones_own_have_options(own, capsys):
    text = help_of(capsys, "train my_code:Noisy --method my_code:Slow --network conv4")
    assert {"--strength", "--patience", "--filters", "--method-filters", "--network-filters"} <= flags_in(text)
    assert "10 %" in " ".join(text.split())
    found = experiment("my_code:Noisy --strength 0.5 --method my_code:Slow --patience 9 --network mlp")
    assert (found.tasks.strength, found.method.patience, found.method.inner_steps) == (0.5, 9, 1)
    assert "needs --strength FLOAT" in complaint(capsys, "train my_code:Noisy --network mlp")
    assert experiment("metagrad.fewshot:Sinusoids --shots 3 --queries 2 --network mlp").tasks.shots == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("glyphs --network nowhere.to_be:found", "there is no module nowhere"),
        ("glyphs --network my_code:missing", "my_code has no missing"),
        ("glyphs --network my_code:number", "--network my_code:number is a int, which cannot be called"),
        ("glyphs --network my_code:no_network", "my_code:no_network returned int: it must return an nn.Module"),
        ("glyphs --network my_code:", "is no import path"),
        ("glyphs --loss my_code:number", "which cannot be called"),
        ("glyphs --method my_code:loss", "outputs"),
        ("glyphs --metric my_code:missing", "my_code has no missing"),
        ("glyphs --method my_code:number", "which cannot be called"),
        ("my_code:waves", "these tasks have no default network: give --network mlp, or --network package.module:name"),
        ("my_code:waves --network mlp --ways 3", "--ways is for data sets, not my_code:waves"),
        ("my_code:loss --network mlp", "my_code:loss"),
    ],
)
def test_code_that_is_not_what_it_should_be(own, capsys, words, says):
    assert says in complaint(capsys, f"train {words}")
    assert not (own / "runs").exists()


def test_a_training_begins_at_the_weights_of_another(own, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda name, **_: toy())
    words = "train omniglot --ways 3 --queries 2 --filters 2 --meta-steps 4 --tasks 2 --val-tasks 4 --test-tasks 4"
    assert main([*words.split(), "--run", "a"]) == 0
    assert main([*words.split(), "--run", "b", "--init", "a", "--method", "protonet", "--ways", "2"]) == 0
    assert "tensors from a (" in capsys.readouterr().out
    assert "leave out --init" in complaint(capsys, "train --resume b --init a")
    assert "nowhere" in complaint(capsys, f"{words} --init nowhere --run c")
    assert not (own / "c").exists()
