"""Who is timed in ``benchmarks/speed.py`` computes metagrad's gradient: by hand always, libraries where installed."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import peers
import speed
import without_metagrad
from metagrad.fewshot import IMAML, Batch, Conv4
from metagrad.implicit import GradientDescent
from workload import Workload, gap

WORK = Workload(tasks=2, ways=3, shots=1, queries=2, filters=4, inner_steps=2, inner_lr=0.1, lam=2.0, cg_steps=3)


@pytest.mark.filterwarnings("ignore:.*functorch:FutureWarning")  # TorchOpt's own
@pytest.mark.parametrize("name", peers.PEERS)
def test_same_gradient(name, monkeypatch):
    peer = peers.load(name)
    # XLA would optimise for 20 seconds what runs for milliseconds; read when jax first compiles.
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0")
    if peer.NEEDS is not None:
        pytest.importorskip(peer.NEEDS)
    _, reference, _ = speed.FORMS[peer.FORM]
    expected = reference(WORK, *WORK.draw(2, torch.float64))
    found = peer.gradient(WORK, *WORK.draw(2, torch.float64))
    assert found.keys() == expected.keys()
    assert gap(found, expected) < 1e-12


def test_another_gradient_is_refused(monkeypatch):
    peer = peers.load("by_hand")
    right = peer.gradient
    monkeypatch.setattr(peer, "gradient", lambda *given: {k: 1.001 * leaf for k, leaf in right(*given).items()})
    with pytest.raises(SystemExit, match="another gradient"):
        speed.compare(WORK, [peer])


def test_missing_package_is_left_out_with_a_line(monkeypatch, capsys):
    peer = peers.load("higher_maml")
    monkeypatch.setattr(peer, "NEEDS", "no_such_package")
    assert speed.entered(["by_hand", "higher_maml"]) == [peers.load("by_hand")]
    assert "pip install" in capsys.readouterr().out


def test_the_program_without_metagrad_adapts_as_metagrad_does():
    method = IMAML(lam=0.5, solver=GradientDescent(lr=0.1, max_steps=4), start="shared")
    generator = torch.Generator().manual_seed(0)
    model = Conv4(3, image_size=16, filters=4, pooling=True, generator=generator).double()
    theta = method.init(model)
    support, query = torch.rand(2, 1, 6, 1, 16, 16, generator=generator, dtype=torch.float64)
    labels = torch.arange(3).repeat_interleave(2)
    with torch.no_grad():
        solution = method.adapt(model, theta, Batch(support, labels[None]))
        logits = method.predict(model, theta, solution, query)[0]
    plain = {name: leaf.detach() for name, leaf in theta.items()}
    step = {"lr": 0.1, "steps": 4, "lam": 0.5}
    torch.testing.assert_close(without_metagrad.logits(plain, step, support[0], labels, query[0]), logits)
