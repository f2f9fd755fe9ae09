"""Tests run in as many processes as there are cores: each, and what it starts, keeps to one thread."""

import os
import signal

import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell sets it for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def learned(tmp_path_factory):
    """Give a run on drawings that was trained for a moment and calibrated."""
    from strokes import dataset

    from metagrad import data
    from metagrad.cli.main import main

    folder = tmp_path_factory.mktemp("learned") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda *args, **options: dataset())
        # All tasks of the calibration, however slow the machine is: with fewer, thresholds differ.
        patch.setattr("metagrad.classifier.calibrate.affordable", lambda *args, **options: (1.0, 0.0))
        words = ["--ways", "3", "--queries", "2", "--tasks", "2", "--filters", "8", "--meta-steps", "20",
                 "--val-tasks", "20", "--test-tasks", "4"]  # fmt: skip
        assert main(["train", "omniglot", *words, "--run", str(folder)]) == 0
    return folder


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Lay out four new kinds of drawings, two of each to learn from and four to label; go there."""
    from PIL import Image
    from strokes import drawings

    monkeypatch.chdir(tmp_path)
    for kind, some in enumerate(drawings(4, 6, 7)):
        for number, one in enumerate(some):
            folder = tmp_path / ("known" if number < 2 else "new") / f"kind {kind} ё"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(one).save(folder / f"{number}.png")
    return tmp_path
