"""Seconds of a meta-gradient without and with ``metagrad.keep_memory()``, each in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/keep_memory.py

Conv4 with pooling, 64 filters, random images: one task of 60-way 1-shot ProtoNet with 4 queries (28×28), and with
``--pictures`` four tasks of 5-way 5-shot iMAML with 5 queries (84×84, minutes). The first step is not counted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch

import metagrad
from metagrad.experiment import Conv4Config
from metagrad.fewshot import IMAML, Batch, Method, ProtoNet, Tasks, meta_gradient


def seconds(method: Method, tasks: int, ways: int, shots: int, queries: int, shape: tuple[int, ...]) -> list[float]:
    """Return the time of each of three meta-gradients."""
    g = torch.Generator().manual_seed(0)
    support, query = (
        Batch(
            torch.rand(tasks, ways * k, *shape, generator=g), torch.arange(ways).repeat_interleave(k).repeat(tasks, 1)
        )
        for k in (shots, queries)
    )
    model = Conv4Config(filters=64, pooling=True).build(shape, ways, generator=g)
    theta, times = method.init(model), []
    for _ in range(4):
        began = time.perf_counter()
        meta_gradient(method, model, theta, Tasks(support, query))
        times.append(time.perf_counter() - began)
    return times[1:]


def main() -> None:
    """Time both, in a process of its own each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--one", choices=["default", "kept"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is None:
        for one in ("default", "kept") * 2:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", one], check=True)
        return
    if options.one == "kept":
        metagrad.keep_memory()
    method, size = (
        (IMAML(), (4, 5, 5, 5, (3, 84, 84))) if options.pictures else (ProtoNet(), (1, 60, 1, 4, (1, 28, 28)))
    )
    print(f"{options.one:8}", *(f"{one:.2f}" for one in seconds(method, *size)), flush=True)


if __name__ == "__main__":
    main()
