"""``benchmarks/solvers.py`` and ``benchmarks/accurate.py`` count right, on problems that take seconds."""

import argparse
import csv
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from toyruns import toy

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import accurate
import inner
import solvers
from inner import Scene
from metagrad import CG, tree
from metagrad.data import Dataset, ImageClasses
from metagrad.experiment.check import query_loss
from metagrad.fewshot import IMAML, EpisodeSampler, admit
from metagrad.implicit import LBFGS, GradientDescent, HessianFree, check_meta_gradient
from workload import gap


@pytest.fixture
def scene():
    """Give a network that is linear up to its activation: problems with one minimum, solved in milliseconds."""
    sampler = EpisodeSampler(classes=toy().train, ways=3, shots=1, queries=2)
    tasks = sampler(2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = admit(nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU()), tasks.support.x[0])
    theta = {name: leaf.detach() for name, leaf in model.named_parameters()}
    return Scene(model, theta, tasks, IMAML(lam=1.0))


def few():
    return {
        solvers.PLAIN: {f"lr {lr}": GradientDescent(lr=lr, max_steps=1) for lr in (0.05, 0.1)},
        "Hessian-free": {"": HessianFree(cg_steps=10, curvature="hessian", max_steps=1)},
        "L-BFGS": {"": LBFGS(max_steps=1)},
    }


def two():
    return {
        "descent + CG": {"lr 0.1": GradientDescent(lr=0.1, max_steps=1)},
        "Hessian-free + CG": {"": HessianFree(cg_steps=10, curvature="hessian", max_steps=1)},
    }


def test_least_steps():
    for first in (1, 2, 3, 7, 8, 9, 30):
        asked = []
        assert solvers.least_steps(lambda k, first=first, asked=asked: asked.append(k) or k >= first, 30) == first
        assert max(asked, default=1) <= 30


def test_steps_to_the_gap_are_the_first_that_reach_it(scene, monkeypatch):
    monkeypatch.setattr(solvers, "field", few)
    at = scene.cast("softplus", torch.float64)  # where all find one minimum
    rows = {row.solver: row for row in solvers.to_gap(at, solvers.field(), 40, 1)}
    assert rows.keys() == few().keys()
    problem, init = at.problem(), at.inner().init
    with torch.no_grad():
        best = problem.value(HessianFree(cg_steps=50, max_steps=12)(problem, init).value)
        target = best + solvers.GAP * (problem.value(init) - best)
        for name, row in rows.items():
            solver = few()[name][row.setting]
            there = [(problem.value(solvers.solve(problem, init, solver, k).value) <= target + 1e-9).sum().item()
                     for k in (row.steps, row.steps - 1) if k]  # fmt: skip
            assert there[0] >= 1
            assert len(there) == 1 or there[1] < 1
    assert rows[solvers.PLAIN].ratio == 1


def test_every_task_comes_to_the_norm(scene, monkeypatch):
    monkeypatch.setattr(solvers, "field", few)
    at = scene.cast("softplus", torch.float64)
    rows = solvers.to_norm(at, solvers.field(), 500, 1)
    assert {row.solver for row in rows} == few().keys()
    assert {row.solver: row.steps for row in rows}["Hessian-free"] < 10


def test_relu_with_too_few_steps_says_so(scene, monkeypatch, capsys):
    monkeypatch.setattr(solvers, "field", few)
    with pytest.raises(SystemExit, match="raise --most"):
        solvers.to_norm(scene.cast("ReLU", torch.float64), solvers.field(), 2, 1)
    assert "after 2 steps" in capsys.readouterr().out
    solvers.show_path(scene.cast("ReLU", torch.float32), 0.1)
    assert "stable below" in capsys.readouterr().out


def test_the_wanted_gradient_and_what_is_accurate(scene, monkeypatch):
    sharp = scene.cast("softplus", torch.float64)
    target = accurate.wanted(sharp)
    found = check_meta_gradient(
        sharp.inner().objective,
        lambda theta: tree.expand(theta, 2),
        sharp.theta,
        sharp.tasks.support,
        outer=query_loss(sharp.method, sharp.model, sharp.tasks),
        solver=sharp.method.solver,
        adjoint=sharp.method.adjoint,
    )
    flat = torch.cat([leaf.flatten() for leaf in target.values()])
    assert (found.reference - flat).norm() < 1e-6 * flat.norm()

    monkeypatch.setattr(accurate, "field", two)
    at = scene.cast("softplus", torch.float32)
    single = {name: leaf.float() for name, leaf in target.items()}
    chosen = accurate.entered(at, single)
    assert chosen.keys() == {accurate.LOOP, "descent + CG", "Hessian-free + CG"}
    for one in chosen.values():
        assert gap(one.call(), {name: leaf.float() for name, leaf in target.items()}) == pytest.approx(
            one.error, rel=0.01
        )
        assert one.error <= accurate.ERROR
    twin = chosen["descent + CG"]
    ours = accurate.ours(at, GradientDescent(lr=0.1, max_steps=twin.steps),
                         CG(max_steps=twin.products, on_negative="continue"))  # fmt: skip
    assert gap(accurate.loop(at, 0.1, twin.steps, twin.products), ours) < 1e-4
    assert {row.contestant for row in accurate.compared(chosen, 1)} == chosen.keys()


@pytest.mark.parametrize("script", [solvers, accurate])
def test_the_whole_script(scene, script, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "scene", lambda options: scene)
    monkeypatch.setattr(script, "field", few if script is solvers else two)
    if script is solvers:
        monkeypatch.setattr(script, "NORM", 1e-3)
    out = tmp_path / "rows.csv"
    script_options = ["--repeats", "1", "--csv", str(out)] + (
        ["--most", "100", "--most-norm", "3000"] * (script is solvers)
    )
    monkeypatch.setattr(sys, "argv", ["script", *script_options])
    script.main()
    rows = list(csv.DictReader(out.open()))
    assert len(rows) >= 3
    assert {"torch", "seconds", "ratio", "lam", "weights"} <= rows[0].keys()


def test_a_scene_is_drawn_as_the_options_say():
    parser = argparse.ArgumentParser()
    inner.add_options(parser)
    generator = torch.Generator().manual_seed(0)

    def classes(names):
        images = torch.randint(0, 256, (6 * 16, 1, 28, 28), generator=generator).to(torch.uint8)
        return ImageClasses(images, torch.full((6,), 16), tuple(names))

    dataset = Dataset("omniglot", classes("abcdef"), classes("ghijkl"), classes("mnopqr"), True, "toy", "digest")
    found = inner.scene(parser.parse_args(["--tasks", "3", "--filters", "2", "--lam", "0.5"]), dataset)
    assert (len(found.tasks), found.filters, found.method.lam) == (3, 2, 0.5)
    assert found.tasks.query.y.shape == (3, 75)
    smooth = found.cast("softplus", torch.float64)
    assert smooth.problem().value(smooth.inner().init).dtype == torch.float64
