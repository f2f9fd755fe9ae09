"""One meta-step over 1, 2 and 4 processes, and what that says about 8 to 1,024 GPUs.

    python benchmarks/scaling.py --csv benchmarks/results/scaling-2cores.csv
    python benchmarks/scaling.py --model 0.02 --latency 1e-5 --bandwidth 2e11   # a step of 20 ms on one GPU, measured

Each process computes its share of the tasks with one thread and one all-reduce makes the gradients whole, as in
``torchrun --nproc-per-node N -m metagrad train``. Reported: seconds a meta-step (least of ``--repeats``), and the
all-reduce alone on the same buffer. The model: a step on N devices takes its share of the compute and one all-reduce,
by a ring or by a tree, whichever is faster:

    ring: 2 (N - 1) latency + 2 (N - 1) / N · bytes / bandwidth
    tree: 2 log2(N) (latency + bytes / bandwidth)

Its table has the same tasks shared by all devices (strong scaling) and the same tasks on each (weak scaling).
"""

from __future__ import annotations

import argparse
import csv
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from metagrad.allocator import keep_memory
from metagrad.distributed import joined
from metagrad.experiment.record import versions
from metagrad.fewshot import meta_gradient
from workload import Workload, add_options, chosen, least, taken

RANKS = (1, 2, 4)


def rank(work: Workload, repeats: int) -> None:
    """Time this process's part of a step, then the sum alone; the first rank prints both and the message's bytes."""
    torch.set_num_threads(1)
    keep_memory()
    model, _, tasks = work.draw(work.tasks, torch.float32)
    algorithm = work.imaml()
    theta = algorithm.init(model)
    with joined() as ranks:
        mine = tasks.part(*ranks.mine(work.tasks))
        numbers = torch.zeros(6)

        def step() -> None:
            meta_gradient(algorithm, model, theta, mine)
            ranks.sum_gradients(theta, len(mine) / work.tasks, numbers)
            taken(theta)

        seconds = least(step, repeats)
        message = torch.zeros(sum(leaf.numel() for leaf in theta.values()) + len(numbers))
        alone = least(lambda: ranks.sum(message), 20)
        if ranks.first:
            print(seconds, alone, message.numel() * message.element_size())


def measure(work: Workload, repeats: int) -> list[dict[str, float]]:
    """Run 1, 2 and 4 processes."""
    rows = []
    for count in RANKS:
        settings = [word for name, v in asdict(work).items() for word in (f"--{name.replace('_', '-')}", str(v))]
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
        command = [sys.executable, *launch, __file__, "--rank", "--repeats", str(repeats), *settings]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        seconds, alone, size = map(float, said[-3:])
        first = rows[0]["seconds"] if rows else seconds
        rows.append({"processes": count, "seconds": seconds, "all_reduce": alone, "bytes": size})
        print(f"{count} processes {seconds:8.4f} s, {first / seconds:5.2f} times one; all-reduce {alone * 1e3:.2f} ms")
    return rows


def model(compute: float, latency: float, bandwidth: float, size: float) -> None:
    """Print what the model says for 1 to 1,024 devices."""
    print(
        f"{compute * 1e3:.1f} ms on one device, {size / 1e6:.2f} MB, {latency * 1e6:.0f} µs, {bandwidth / 1e9:.0f} GB/s"
    )
    print(f"{'devices':>8} {'same tasks: ms':>15} {'times one':>10} {'same tasks a device: ms':>24} {'efficiency':>11}")
    for devices in (1, *(2**k for k in range(3, 11))):
        ring = 2 * (devices - 1) * latency + 2 * (devices - 1) / devices * size / bandwidth
        talk = min(ring, 2 * math.log2(devices) * (latency + size / bandwidth))
        strong, weak = compute / devices + talk, compute + talk
        print(f"{devices:8d} {strong * 1e3:15.2f} {compute / strong:10.1f} {weak * 1e3:24.2f} {compute / weak:11.1%}")


def main() -> None:
    """Measure and write the CSV, or print the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--repeats", type=int, default=3, help="steps; the least time counts (3)")
    parser.add_argument("--csv", type=Path, help="file to write")
    parser.add_argument("--model", type=float, metavar="SECONDS", help="one device's step; prints the model")
    parser.add_argument("--latency", type=float, default=1e-5, help="seconds a message (1e-5)")
    parser.add_argument("--bandwidth", type=float, default=1e11, help="bytes a second between two devices (1e11)")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = chosen(options)
    if options.rank:
        rank(work, options.repeats)
    elif options.model:
        size = 4.0 * sum(leaf.numel() for leaf in work.draw(1, torch.float32)[1].values())
        model(options.model, options.latency, options.bandwidth, size)
    else:
        rows = measure(work, options.repeats)
        if options.csv:
            found = {**asdict(work), **versions()}
            with options.csv.open("w", newline="") as file:
                table = csv.DictWriter(file, [*rows[0], *found])
                table.writeheader()
                table.writerows(row | found for row in rows)


if __name__ == "__main__":
    main()
