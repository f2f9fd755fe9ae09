"""What metagrad does on a GPU, measured in the minutes that one is lent: is it right, how fast, and a training run.

    benchmarks/gpu.sh                    # sets the paths; see there
    benchmarks/gpu.sh --help             # all options

Parts, each with its own budget and, on a GPU, its own process, so that none can spoil another:

    check       meta-gradients on the device against the CPU, float64
    precision   float32, TF32 and bfloat16 against float64: error and time
    time        metagrad, the same by hand and as a loop over tasks; reads that make the host wait
    graph       the meta-gradient as a CUDA graph
    profile     operations by time, kernels a meta-gradient
    train       Omniglot from the packed file; continues from OUT/train.pt

Results: OUT/gpu.json (every row, as soon as it is known), OUT/profile.txt, OUT/train.pt, OUT/train.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Seconds; training gets what is left.
BUDGETS = {"check": 60, "precision": 60, "time": 120, "graph": 40, "profile": 30, "train": 0}
GRACE = 15  # seconds beyond its budget after which a part is stopped
TINY = {
    "tasks": 2, "ways": 3, "queries": 1, "filters": 4, "inner_steps": 2, "cg_steps": 2, "meta_steps": 6,
    "val_every": 3, "val_tasks": 4, "test_tasks": 4, "repeats": 1,
}  # fmt: skip


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-out"), help="folder for results (gpu-out)")
    parser.add_argument("--data", type=Path, default=Path("packed/omniglot.npz"), help="packed data set to train on")
    parser.add_argument("--parts", nargs="+", choices=BUDGETS, default=list(BUDGETS), help="what to do (all)")
    parser.add_argument("--seconds", type=float, default=570, help="for everything together (570)")
    parser.add_argument("--budget", type=float, help="seconds for each of --parts, in place of its own")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--tiny", action="store_true", help="sizes at which the CPU does everything in seconds")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # a part, in a process of its own
    for name, value in {
        "tasks": 32, "ways": 5, "shots": 1, "queries": 15, "filters": 64, "inner_steps": 16, "inner_lr": 0.1,
        "lam": 2.0, "cg_steps": 5, "repeats": 9,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    training = parser.add_argument_group("training")
    training.add_argument("--method", choices=("imaml", "maml", "fomaml"), default="imaml")
    training.add_argument("--curvature", choices=("gauss_newton", "hessian"), default="gauss_newton")
    for name, value in {
        "meta_steps": 6000, "outer_lr": 1e-3, "seed": 0, "val_every": 500, "val_tasks": 200, "test_tasks": 600,
        "checkpoint_seconds": 20.0,
    }.items():  # fmt: skip
        training.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    training.add_argument("--schedule", choices=("cosine", "constant"), default="cosine")
    training.add_argument("--rotations", action=argparse.BooleanOptionalAction, default=True, help="as classes (on)")
    training.add_argument("--matmul", choices=("highest", "high"), default="highest", help="high: TF32 in training")
    training.add_argument("--resume", type=Path, help="checkpoint to go on from where OUT has none")
    training.add_argument("--graph", action="store_true", help="train through a CUDA graph, should one be captured")
    found = parser.parse_args(arguments)
    if found.tiny:
        for name, value in TINY.items():
            if getattr(found, name) == parser.get_default(name):
                setattr(found, name, value)
    return found


class Results:
    """OUT/gpu.json: rows by part, rewritten whole at every row; and the same as lines of text."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "gpu.json"
        folder.mkdir(parents=True, exist_ok=True)

    def read(self) -> dict[str, Any]:
        """Return everything recorded."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {"parts": {}}

    def begin(self, part: str, machine: dict[str, Any]) -> None:
        """Forget a part's former rows and say on what it runs."""
        found = self.read()
        found["machine"] = found.get("machine", {}) | machine
        found["parts"][part] = []
        self._write(found)

    def row(self, part: str, what: str, **facts: Any) -> None:
        """Record and print one row."""
        found = self.read()
        found["parts"].setdefault(part, []).append({"what": what, **facts})
        self._write(found)
        print(f"{part:10s} {what:44s} {text(facts)}", flush=True)

    def _write(self, found: dict[str, Any]) -> None:
        beside = self.path.with_suffix(".json.new")
        beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        beside.replace(self.path)


def text(facts: dict[str, Any]) -> str:
    """Write a row's facts in one line."""
    words = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in facts.values())
    return "  ".join(f"{name} {word}" for name, word in zip(facts, words, strict=True))


def run(part: str, asked: argparse.Namespace, results: Results, deadline: float) -> None:
    """Do one part in this process; whatever goes wrong is its result."""
    import gpu_measure
    import gpu_train

    parts = {**gpu_measure.PARTS, "train": gpu_train.train}
    began = time.monotonic()
    try:
        results.begin(part, gpu_measure.machine(asked.device))
        parts[part](asked, results, deadline)
    except Exception as error:
        results.row(part, "failed", reason=gpu_measure.reason(error))
    results.row(part, "done", seconds=round(time.monotonic() - began, 1))


def apart(part: str, asked: argparse.Namespace, results: Results, budget: float) -> None:
    """Do one part in a process of its own and stop it if it does not end."""
    mine = [sys.executable, __file__, *sys.argv[1:], "--alone", "--parts", part, "--budget", str(budget)]
    child = subprocess.Popen(mine)
    try:
        code = child.wait(budget + GRACE)
        if code:
            results.row(part, "failed", reason=f"the process ended with {code}")
    except subprocess.TimeoutExpired:
        results.row(part, "failed", reason=f"stopped after {budget + GRACE:.0f} s")
    finally:
        child.kill()
        child.wait()


def main() -> None:
    """Do the parts, one after the other, within their budgets."""
    began, asked = time.monotonic(), options()
    results = Results(asked.out)
    for part in asked.parts:
        left = asked.seconds - (time.monotonic() - began)
        if asked.budget is None:  # starting python and the GPU takes a while too
            budget = min(BUDGETS[part] or left, left) - (GRACE if not BUDGETS[part] else 0)
        else:
            budget = min(asked.budget, left)
        if budget < 1:
            results.row(part, "left out", reason="no time left")
        elif asked.alone or asked.device == "cpu":
            run(part, asked, results, time.monotonic() + budget)
        else:
            apart(part, asked, results, budget)
    if not asked.alone:
        print(f"\n{results.path}")
        found = results.read()
        print(text(found.get("machine", {})))
        for part in asked.parts:
            for row in found["parts"].get(part, []):
                print(f"{part:10s} {row.pop('what'):44s} {text(row)}")


if __name__ == "__main__":
    main()
