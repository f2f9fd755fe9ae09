"""A linear layer on frozen features that begins at the whitening of the training classes."""

import pytest
import torch
from torch.nn import functional
from toyruns import toy

from metagrad import data
from metagrad.data import Classes
from metagrad.errors import MetagradError
from metagrad.experiment import Budget, Episodes, Experiment, Pretrained, Run, train
from metagrad.experiment.whitening import whitening
from metagrad.fewshot import IMAML, EpisodeSampler, ProtoNet

NETWORK = Pretrained("own_backbones:Stages", body="linear", layer="whitening")
SHORT = Budget(meta_steps=4, tasks_per_step=2, val_every=2, val_tasks=4, test_tasks=4, checkpoint_seconds=1e-9)


@pytest.fixture(autouse=True)
def _drawings(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "load", lambda name, **given: toy())


def features(classes=6, each=40, size=5):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(size, size, generator=generator)
    rows = (
        torch.randn(classes, 1, size, generator=generator) * 4
        + torch.randn(classes, each, size, generator=generator) @ mixing
    )
    return Classes.from_arrays(rows.flatten(0, 1), torch.arange(classes).repeat_interleave(each))


def test_it_makes_the_covariance_within_classes_the_identity():
    some = features()
    root = whitening(some).double()
    unit = functional.normalize(some.data.double(), dim=-1)
    within = torch.cat([part - part.mean(0) for part in unit.split(some.counts.tolist())])
    covariance = within.T @ within / len(within)
    ridge = covariance + covariance.diagonal().mean() * torch.eye(5)
    product = root @ ridge @ root
    torch.testing.assert_close(product / product.diagonal().mean(), torch.eye(5).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(root, root.T)
    assert float(root.diagonal().mean()) == pytest.approx(1, abs=1e-5)


def test_it_is_of_the_classes_of_a_split_alone_however_many_rows_are_taken_at_a_time(monkeypatch):
    some = features()
    part = some.subset(some.names[::-2])
    alone = Classes.from_arrays(
        torch.cat([some.data[f : f + 40] for f in part.first.tolist()]), torch.arange(3).repeat_interleave(40)
    )
    torch.testing.assert_close(whitening(part), whitening(alone), atol=1e-5, rtol=1e-4)
    monkeypatch.setattr("metagrad.experiment.whitening._ROWS", 1)
    torch.testing.assert_close(whitening(part), whitening(alone), atol=1e-5, rtol=1e-4)


def run(folder, **more):
    experiment = Experiment(
        tasks=Episodes("omniglot", ways=3, queries=2), method=ProtoNet(scale=1.0), network=NETWORK, budget=SHORT
    )
    return train(experiment, folder, report=lambda event: None, **more)


def test_a_run_begins_there_and_resumes_bit_for_bit(tmp_path):
    run(tmp_path / "stopped", stop=lambda: True)
    begun = Run.open(tmp_path / "stopped", code=[NETWORK.name])
    sources = begun.open_tasks()
    torch.testing.assert_close(begun.load("last").tensors["theta/layer.weight"], whitening(sources.dataset.train))
    run(tmp_path / "stopped", resume=True)
    run(tmp_path / "whole")
    one, other = (
        Run.open(tmp_path / which, code=[NETWORK.name]).load("last").tensors for which in ("stopped", "whole")
    )
    assert all(torch.equal(leaf, other[key]) for key, leaf in one.items())


def test_what_it_does_not_fit_is_refused(tmp_path):
    with pytest.raises(MetagradError, match="layer is one of identity, whitening"):
        Pretrained(NETWORK.name, body="linear", layer="whiten")
    with pytest.raises(MetagradError, match="layer whitening is for body linear, not diagonal"):
        Pretrained(NETWORK.name, body="diagonal", layer="whitening")
    sampler = EpisodeSampler(classes=features(size=12), ways=3, shots=1, queries=1)
    own = Experiment(tasks=sampler, method=IMAML(), network=NETWORK, budget=SHORT)
    with pytest.raises(MetagradError, match="layer whitening needs a data set"):
        train(own, tmp_path / "own")
    assert not (tmp_path / "own").exists()
