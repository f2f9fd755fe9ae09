"""Peak memory and time of one meta-gradient against the number of inner steps, each point in a fresh process.

    python benchmarks/memory.py                     # iMAML and MAML at 1, 10, 100 inner steps
    python benchmarks/memory.py --filters 32 --steps 1 100

Peak is the process's high-water mark (``VmHWM``) over one meta-gradient of 8 synthetic 5-way 1-shot tasks, less what
the process held before it. It varies by 10 % from process to process (where malloc happens to put things), hence the
median of several. The last line compares 100 steps with 1; the target for iMAML is at most 1.05.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import torch

from metagrad import GradientDescent
from metagrad.allocator import keep_memory
from metagrad.fewshot import IMAML, MAML, Batch, Conv4, Tasks, meta_gradient


def measure(method: str, steps: int, filters: int, tasks: int) -> None:
    """Print ``peak_mb total_mb seconds`` of one meta-gradient."""
    generator = torch.Generator().manual_seed(0)
    model = Conv4(5, filters=filters, generator=generator)

    def batch(per_class: int) -> Batch:
        x = torch.rand(tasks, 5 * per_class, 1, 28, 28, generator=generator)
        return Batch(x, torch.arange(5).repeat_interleave(per_class).expand(tasks, -1))

    drawn = Tasks(batch(1), batch(15))
    imaml = IMAML(solver=GradientDescent(lr=0.1, max_steps=steps))
    algorithm = MAML(inner_lr=0.1, inner_steps=steps) if method == "maml" else imaml
    theta = algorithm.init(model)
    before = _status("VmRSS")
    began = time.perf_counter()
    meta_gradient(algorithm, model, theta, drawn, chunk=tasks)
    print(_status("VmHWM") - before, _status("VmHWM"), time.perf_counter() - began)


def _status(field: str) -> float:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Sweep in fresh processes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["imaml", "maml"], choices=["imaml", "maml"])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 10, 100], help="inner steps of each point")
    parser.add_argument("--filters", type=int, default=64, help="width of the network (default 64)")
    parser.add_argument("--tasks", type=int, default=8, help="tasks at once (default 8)")
    parser.add_argument("--repeat", type=int, default=5, help="processes a point; the median is printed (default 5)")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        keep_memory()
        torch.set_num_threads(1)
        measure(options.point[0], int(options.point[1]), options.filters, options.tasks)
        return
    print(f"torch {torch.__version__}, {options.filters} filters, {options.tasks} tasks at once, 75 queries, 1 thread")
    print(f"{'method':8}{'steps':>6}{'peak MB':>10}{'process MB':>12}{'seconds':>9}")
    for method in options.methods:
        peaks = []
        for steps in options.steps:
            command = [sys.executable, __file__, "--point", method, str(steps)]
            command += ["--filters", str(options.filters), "--tasks", str(options.tasks)]
            runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(options.repeat)]
            columns = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
            peak, total, seconds = (statistics.median(column) for column in columns)
            peaks.append(peak)
            print(f"{method:8}{steps:6}{peak:10.0f}{total:12.0f}{seconds:9.2f}", flush=True)
        print(f"{method}: {options.steps[-1]} steps / {options.steps[0]} = {peaks[-1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
