"""Seconds to adapt to one new 5-way 1-shot task and classify 75 images, after the import: what a person waits for.

python benchmarks/one_task.py                  # iMAML as published, Conv4 with 64 filters
"""

from __future__ import annotations

import argparse
import time

import torch

from metagrad.fewshot import IMAML
from workload import Workload


def main() -> None:
    """Print the first time and the median of twenty."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filters", type=int, default=64, help="width of the network (64)")
    options = parser.parse_args()
    model, _, tasks = Workload(filters=options.filters).draw(1, torch.float32)
    algorithm, times = IMAML.published(), []
    theta = algorithm.init(model)
    with torch.no_grad():
        for _ in range(21):
            began = time.perf_counter()
            solution = algorithm.adapt(model, theta, tasks.support)
            algorithm.predict(model, theta, solution, tasks.query.x).argmax(-1)
            times.append(time.perf_counter() - began)
    first, rest = times[0], sorted(times[1:])
    print(f"{options.filters} filters, {torch.get_num_threads()} threads: first {first:.3f} s, median {rest[10]:.3f} s")


if __name__ == "__main__":
    main()
