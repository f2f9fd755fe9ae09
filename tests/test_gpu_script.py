"""``benchmarks/gpu.sh`` and what it runs, on the CPU: everything small, with torch and numpy and no other package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu
import gpu_train
from gpu_measure import NO_GPU
from metagrad.data import Dataset, ImageClasses
from metagrad.errors import MetagradError
from pack_omniglot import SPLITS, pack, unpack

ROOT = Path(__file__).parents[1]
# What metagrad needs installed beside torch and numpy, and a lent machine may lack.
ABSENT = ("rich", "safetensors", "pooch", "platformdirs", "matplotlib", "fontTools", "PIL")


def dataset(grey=True):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256 if grey else 2, (90, 1, 28, 28), generator=g, dtype=torch.uint8)
    images = images if grey else images * 255
    parts = {
        name: ImageClasses(images[30 * k : 30 * k + 30], torch.full((5,), 6), tuple(f"{name}/ä{i}" for i in range(5)))
        for k, name in enumerate(SPLITS)
    }
    return Dataset(name="made", rotations=True, preprocessing="none", digest="abc", **parts)


@pytest.mark.parametrize("grey", [True, False])
def test_a_packed_data_set_comes_back_as_it_was(grey, tmp_path):
    made, path = dataset(grey), tmp_path / "new" / "made.npz"
    pack(made, path)
    found = unpack(path)
    assert (found.name, found.rotations, found.preprocessing, found.digest) == ("made", True, "none", "abc")
    for split in SPLITS:
        one, other = getattr(found, split), getattr(made, split)
        assert one.names == other.names
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.counts, other.counts)


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_all_parts_run_with_torch_and_numpy_alone(tmp_path):
    data, out = tmp_path / "made.npz", tmp_path / "out"
    pack(dataset(), data)
    # PYTHON of the script: one that starts by making the other packages impossible to import.
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path), "OUT": str(out)}
    blocked = subprocess.run([sys.executable, "-c", "import rich"], env=environment, capture_output=True, check=False)
    assert blocked.returncode
    asked = [ROOT / "benchmarks" / "gpu.sh", "--device", "cpu", "--tiny", "--data", data]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "gpu.json").read_text())
    assert list(found["parts"]) == list(gpu.BUDGETS)
    for part, rows in found["parts"].items():
        assert rows[-1]["what"] == "done", part
        assert {row.get("reason", NO_GPU) for row in rows} == {NO_GPU}, rows
    assert all(row["ok"] for row in found["parts"]["check"] if row["what"] != "done")
    assert "Gauss-Newton" in (out / "profile.txt").read_text()
    result = json.loads((out / "train.json").read_text())
    assert (result["metric"], result["step"], result["protocol"]["tasks"]) == ("test_accuracy", 6, 4)
    assert result["machine"]["device"] == "cpu"


def test_nothing_of_ours_imports_filelock():  # which torch itself may
    code = "import sys, torch\nsys.modules['filelock'] = None\nimport gpu, gpu_measure, gpu_train"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'benchmarks'}"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=100)


def asked(out, *more):
    return gpu.options(["--device", "cpu", "--tiny", "--out", str(out), *more])


def test_a_continued_training_is_the_uninterrupted_one(tmp_path):
    whole = gpu_train.Training(asked(tmp_path), dataset())
    for _ in range(6):
        whole.step()
    first = gpu_train.Training(asked(tmp_path), dataset())
    for _ in range(3):
        first.step()
    first.save(tmp_path / "train.pt")
    second = gpu_train.Training(asked(tmp_path), dataset())
    second.restore(tmp_path / "train.pt")
    for _ in range(3):
        second.step()
    assert second.facts["step"] == 6
    for name, leaf in whole.theta.items():
        assert torch.equal(leaf, second.theta[name])
    assert torch.equal(whole.generator.get_state(), second.generator.get_state())
    with pytest.raises(MetagradError, match="outer_lr"):
        gpu_train.Training(asked(tmp_path, "--outer-lr", "0.5"), dataset()).restore(tmp_path / "train.pt")


def test_out_of_time_it_validates_and_the_next_call_goes_on(tmp_path):
    pack(dataset(), tmp_path / "made.npz")
    given = asked(tmp_path, "--data", str(tmp_path / "made.npz"))
    gpu_train.train(given, gpu.Results(tmp_path), deadline=0.0)
    assert json.loads((tmp_path / "train.json").read_text())["metric"] == "val_accuracy"
    gpu_train.train(given, gpu.Results(tmp_path), deadline=float("inf"))
    result = json.loads((tmp_path / "train.json").read_text())
    assert result["metric"] == "test_accuracy"
    assert [line["step"] for line in result["curve"]] == [3, 6]
    assert any(row["what"] == "continued" for row in gpu.Results(tmp_path).read()["parts"]["train"])


def test_a_part_that_fails_leaves_the_others_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--tiny", "--out", str(tmp_path), "--data", "none"])
    monkeypatch.setattr(gpu, "BUDGETS", {"train": 0, "graph": 40})
    gpu.main()
    rows = gpu.Results(tmp_path).read()["parts"]
    assert "pack_omniglot" in rows["train"][0]["reason"]
    assert rows["graph"][0]["reason"] == NO_GPU
