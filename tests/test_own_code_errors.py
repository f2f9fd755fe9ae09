"""Mistakes in a user's own network, tasks and data: each is one line that names the place."""

from __future__ import annotations

import sys
import textwrap

import forked
import pytest
import torch
from torch import nn

from metagrad import MetagradError
from metagrad.cli.main import main
from metagrad.experiment import Run
from metagrad.fewshot import IMAML, MAML, Batch, ProtoNet, Tasks, check_network, evaluate, meta_gradient
from metagrad.named_code import digests

CODE = """
import torch
from torch import nn
from metagrad.fewshot import Batch, Tasks

def clouds(num_tasks, *, generator):
    centres = 3 * torch.randn(num_tasks, 3, 1, 4, generator=generator)
    def some(shots):
        x = centres + torch.randn(num_tasks, 3, shots, 4, generator=generator)
        return Batch(x.flatten(1, 2), torch.arange(3).repeat_interleave(shots).repeat(num_tasks, 1))
    return Tasks(some(2), some(4))

class family:
    train, val, test = clouds, clouds, clouds

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

instance = Net()

def lazy():
    return nn.LazyLinear(3)
"""
SMALL = "--method maml --meta-steps 2 --val-every 1 --val-tasks 4 --test-tasks 4 --tasks-per-step 2 --no-calibrate"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return the path of a module of the user's, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "brought", raising=False)
    (tmp_path / "brought.py").write_text(textwrap.dedent(CODE))
    yield tmp_path / "brought.py"
    sys.modules.pop("brought", None)


@pytest.mark.parametrize("network", ["Net", "instance"])
@pytest.mark.parametrize("tasks", ["family", "clouds"])
def test_a_class_of_functions_and_a_network_that_is_made_already_will_do(own, tasks, network):
    assert main(f"train brought:{tasks} --network brought:{network} {SMALL} --run runs/one".split()) == 0


def test_a_lazy_layer_is_named(own, capsys):
    assert main(f"train brought:clouds --network brought:lazy {SMALL} --run runs/one".split()) == 2
    assert "brought:lazy has a lazy layer, whose size is not known yet" in capsys.readouterr().err


def test_code_that_changed_since_a_run_began_is_said(own, capsys):
    assert main(f"train brought:clouds --network brought:Net {SMALL} --run runs/one".split()) == 0
    again = ["evaluate", "runs/one", "--tasks", "4", "--code", "brought:clouds", "--code", "brought:Net"]
    own.write_text("# a comment\n\n" + own.read_text())
    sys.modules.pop("brought")
    capsys.readouterr()
    assert main(again) == 0
    assert "has changed" not in capsys.readouterr().err
    own.write_text(own.read_text().replace("nn.Tanh", "nn.ReLU"))
    sys.modules.pop("brought")
    assert main(again) == 0
    assert "the code of brought has changed since runs/one was started" in capsys.readouterr().err


def test_the_command_that_continues_a_run_names_its_code(own, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("metagrad.cli.train.Interrupt.__enter__", lambda self: lambda: True)
        assert main(f"train brought:clouds --network brought:Net {SMALL} --run runs/one".split()) == 130
    line = capsys.readouterr().out.splitlines()[-1].strip()
    assert line == "metagrad train --resume runs/one --code brought:clouds --code brought:Net"
    assert main(line.split()[1:]) == 0
    assert Run.open("runs/one", code=["brought:clouds", "brought:Net"]).has("best")


def drawn(spoil=()):
    """Two tasks of three classes; ``spoil``: what of the second becomes NaN."""
    generator = torch.Generator().manual_seed(0)
    batches = {}
    for which, shots in (("support", 2), ("query", 3)):
        x = torch.randn(2, 3 * shots, 4, generator=generator)
        if which in spoil:
            x[1, 0, 0] = float("nan")
        batches[which] = Batch(x, torch.arange(3).repeat(shots).repeat(2, 1))
    return Tasks(**batches)


@pytest.mark.parametrize("method", [MAML(), ProtoNet(head="2.*")], ids=["maml", "protonet"])
@pytest.mark.parametrize("which", ["support", "query"])
def test_numbers_that_are_not_finite_in_the_data_are_found_before_they_spoil_a_loss(method, which):
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    theta, said = method.init(network), f"the {which} examples of task 1 hold a number that is not finite"
    with pytest.raises(MetagradError, match=said):
        meta_gradient(method, network, theta, drawn([which]))
    with pytest.raises(MetagradError, match=said):
        evaluate(method, network, theta, lambda n, generator: drawn([which]), tasks=2, generator=torch.Generator())
    assert evaluate(method, network, theta, lambda n, generator: drawn(), tasks=2, generator=torch.Generator()).score


def test_tasks_in_place_of_a_source_are_refused():
    network = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"source must draw tasks.*got Tasks"):
        evaluate(MAML(), network, MAML().init(network), drawn(), tasks=2, generator=torch.Generator())


class Hidden(nn.Module):
    """Layers that PyTorch does not see."""

    def __init__(self, held):
        super().__init__()
        self.held, self.out = held(nn.Linear(4, 8)), nn.Linear(8, 3)

    def forward(self, x):
        (layer,) = self.held.values() if isinstance(self.held, dict) else self.held
        return self.out(layer(x))


@pytest.mark.parametrize("held", [lambda layer: [layer], lambda layer: {"first": layer}], ids=["list", "dict"])
def test_layers_that_torch_does_not_see_are_named(held):
    network = Hidden(held)
    with pytest.raises(MetagradError, match=r"Hidden\.held holds layers in a plain (list|dict).*nn\.ModuleList"):
        check_network(network, torch.rand(4, 4))
    with pytest.raises(ValueError, match=r"nn\.ModuleList"):
        meta_gradient(IMAML(), network, IMAML().init(network), drawn())
    network.layer = next(iter(network.held.values() if isinstance(network.held, dict) else network.held))
    assert check_network(network, torch.rand(4, 4)).learned == 4 * 8 + 8 + 8 * 3 + 3  # registered elsewhere too


def test_a_script_that_trains_is_not_run_a_second_time(own):
    """A run finds the source of its code without an import, which would run the script again."""
    script = own.with_name("hearing.py")
    script.write_text(
        CODE + "from metagrad import Budget, Experiment, train\nfrom metagrad.fewshot import MAML\n"
        "budget = Budget(meta_steps=2, tasks_per_step=2, val_tasks=2, test_tasks=2)\n"
        "experiment = Experiment(tasks=clouds, network=Net, method=MAML(), budget=budget)\n"
        "print('value', train(experiment, 'runs/own', resume=True).result['value'])\n"
    )
    for _ in range(2):
        code, said = forked.program(script, [], own.with_name("said")).ended()
        assert code == 0, said
        assert said.count("value") == 1
    assert list(Run.open("runs/own", code=["hearing:clouds", "hearing:Net"]).record["code"]) == ["hearing"]


def test_the_source_of_a_module_in_a_package_is_found_without_an_import(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "inner").mkdir(parents=True)
    for name in ("mine/__init__.py", "mine/inner/__init__.py"):
        (tmp_path / name).write_text("raise SystemError('imported')\n")
    (tmp_path / "mine" / "inner" / "net.py").write_text("x = 1\n# a comment\n")
    first = digests(["mine.inner.net:x"])
    (tmp_path / "mine" / "inner" / "net.py").write_text("\n# another\nx = 1\n")
    assert digests(["mine.inner.net:y"]) == first
    assert list(first) == ["mine.inner.net"]
    assert digests(["mine.nowhere:x", "nowhere.at.all:x", "builtins:int", "torch.optim.adam:Adam"]) == {}
