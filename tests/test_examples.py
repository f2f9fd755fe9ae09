"""The examples run as commands, and what each says of itself is so, with fewer steps than it takes by itself."""

import signal
import sys
import time
from pathlib import Path

import forked
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import noisy_labels
import ridge_strengths
import sequences
import sinusoid

from metagrad.cli.describe import call
from metagrad.cli.main import main


def run(main, *args):
    return call(main, args)


def test_learned_ridge_strengths_beat_the_grid(capsys):
    result = run(ridge_strengths.main, "--splits", "4", "--steps", "15", "--inner-steps", "40")
    (single, learned), (test_single, test_learned) = result.validation, result.test
    assert (learned < single - 0.02).all()
    assert test_learned.mean() < test_single.mean()
    measurements, random = result.log_lam[:, :10], result.log_lam[:, 10:]
    assert random.median() - measurements.median() > 2
    assert result.slopes[0] == pytest.approx(result.slopes[1], rel=1e-6)
    assert "better on the test patients of 3 splits" in capsys.readouterr().out


def test_learned_weights_tell_wrong_labels_from_right_ones(capsys):
    result = run(noisy_labels.main, "--steps", "12", "--seed", "1")
    assert result.auc > 0.9
    assert result.reweighted > result.noisy + 0.15
    assert result.reweighted > result.noisy_and_clean + 0.05
    assert result.reweighted > result.clean
    assert f"{result.auc:.1%} of pairs" in capsys.readouterr().out


def test_adaptation_fits_new_sinusoids(tmp_path, capsys):
    picture = tmp_path / "curves.png"
    result = run(sinusoid.main, "--meta-steps", "80", "--test-steps", "50", "--out", str(picture))
    assert result.after < result.before / 4
    assert result.after < result.untrained / 4
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"{result.after:.2f} adapted to ten points" in capsys.readouterr().out


def test_sources_are_told_apart_by_their_texts(capsys):
    result = run(sequences.main, "--meta-steps", "60", "--tasks", "4")
    assert result.after > result.before + 0.2
    assert result.after > 2 * result.chance
    assert "new sources, 3 texts each" in capsys.readouterr().out


PROGRAM = Path(__file__).parents[1] / "examples" / "rhythms.py"


def test_an_own_network_loss_and_tasks_are_killed_resumed_and_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun = forked.program(PROGRAM, ["run", "12"], Path("begun"))
    while not Path("run/best.safetensors").exists() and begun.process.is_alive():
        time.sleep(0.05)
    begun.process.kill()
    assert begun.ended()[0] == -signal.SIGKILL
    said = []
    for name in ("run", "whole"):
        code, text = forked.program(PROGRAM, [name, "12"], Path("said")).ended()
        assert code == 0, text
        said.append(text)
    last, other = ([line for line in text.splitlines()[-3:] if "page" not in line] for text in said)
    assert last == other, "killed and resumed is bit for bit the same"
    assert (tmp_path / "run" / "report.html").exists()
    assert last[0].startswith("test_accuracy 0.")
    assert float(last[1].split()[-1]) < 1e-3


def test_the_same_from_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[1] / "examples")
    own = ["rhythms:rhythms", "--network", "rhythms:Hearing", "--loss", "rhythms:smooth", "--metric",
           "metagrad.fewshot:accuracy"]  # fmt: skip
    small = ["--method", "memory-reduced", "--l2", "0.1", "--meta-steps", "6", "--tasks-per-step", "2",
             "--val-tasks", "4", "--test-tasks", "4"]  # fmt: skip
    assert main(["train", *own, *small, "--run", str(tmp_path / "run")]) == 0
    assert "test accuracy" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").exists()
    assert main(["check", str(tmp_path / "run")]) == 2
    named = [word for path in ("rhythms:rhythms", "rhythms:Hearing", "rhythms:smooth") for word in ("--code", path)]
    assert main(["check", str(tmp_path / "run"), "--tasks", "1", *named]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--tasks", "4", *named]) == 0
