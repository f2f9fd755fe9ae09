"""What ``benchmarks/loop_fallback.py`` times beside metagrad computes metagrad's gradient."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import loop_fallback


@pytest.mark.parametrize("name", loop_fallback.METHODS)
@pytest.mark.filterwarnings("ignore:.*one by one")
def test_same_gradient(name, monkeypatch):
    for key, value in {"TASKS": 2, "EXAMPLES": 5, "LENGTH": 4, "HIDDEN": 3}.items():
        monkeypatch.setattr(loop_fallback, key, value)
    [(_, _, gap)] = loop_fallback.compared(name, torch.float64, 1)
    assert gap < 1e-10
