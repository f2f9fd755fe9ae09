"""Time of one meta-gradient: metagrad and the libraries that compute the same, and the arithmetic alone.

    pip install -c constraints.txt -e '.[bench]'              # the libraries; without them their rows are left out
    python benchmarks/speed.py                                # 32 tasks, 5-way 1-shot, 15 queries, 16 + 5 steps
    python benchmarks/speed.py --tasks 16 --filters 32 --queries 5 --inner-steps 5 --lam 0.1 --inner-lr 0.4
    python benchmarks/speed.py --only by_hand higher_maml     # of the peers, these

Same network, weights and episodes (synthetic images). Two forms are compared, each with metagrad's own row, because an
unrolled gradient timed against an implicit one says nothing about the library: iMAML (exact Hessian, equal numbers of
CG products, going on over negative curvature) and MAML (the steps unrolled, no proximal term). The peers are in
``benchmarks/peers``, one file each. Before anything is timed, every peer's gradient is compared with metagrad's in
float64 on two tasks.

Contestants take turns, so that a slow minute of the machine is everybody's: ``--repeats`` rounds after one that does
not count, which takes JAX's compilation too (half a minute, and as much again for the comparison). Shown are the least
time and the median, least and largest ratio of a round. torch takes the threads of ``OMP_NUM_THREADS``, JAX all the
cores that the process may use: ``taskset`` holds both to the same. The floor is the arithmetic of the convolutions and
the linear layer in iMAML, at this machine's own matrix-product rate. Rows are added to ``--csv``, with versions,
processor and caches; ``machines.py`` reads them.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import torch

import peers
from contestants import Contestant, exact_hessian, first_order, gauss_newton, maml
from metagrad.allocator import keep_memory
from metagrad.experiment.record import versions
from workload import Workload, add_options, chosen, gap, machine, matrix_rate, rounds

FAR = 1e-8  # float64 gradients farther apart than this are not the same quantity

# What a form's peers must agree with and are timed against, and our rows that compute something else in its place.
FORMS: dict[str, tuple[str, Contestant, dict[str, Contestant]]] = {
    "imaml": ("metagrad, exact Hessian", exact_hessian, {"metagrad, Gauss-Newton": gauss_newton}),
    "maml": ("metagrad, MAML", maml, {"metagrad, first-order MAML": first_order}),
}


def entered(names: list[str]) -> list[ModuleType]:
    """Return the peers of these names whose packages are installed; say which are not."""
    found = [peers.load(name) for name in names]
    for peer in found:
        if not peers.installed(peer):
            print(f"{peer.NAME}: not installed, left out; pip install -c constraints.txt -e '.[bench]'")
    return [peer for peer in found if peers.installed(peer)]


def compare(work: Workload, field: list[ModuleType]) -> None:
    """Refuse peers whose gradients are not metagrad's: their times would mean nothing."""
    for form, (name, reference, _) in FORMS.items():
        expected = reference(work, *work.draw(2, torch.float64))
        for peer in (peer for peer in field if form == peer.FORM):
            distance = gap(peer.gradient(work, *work.draw(2, torch.float64)), expected)
            print(f"gradient of {peer.NAME}: {distance:.1e} from that of {name} (float64, two tasks)")
            if not distance <= FAR:
                raise SystemExit(f"{peer.NAME} computes another gradient than {name}: its time would mean nothing")


def main() -> None:
    """Compare gradients, then times; print a table and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=peers.PEERS, default=peers.PEERS, help="peers to enter (all)")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    work, repeats, path = chosen(options), options.repeats, options.csv
    keep_memory()

    field = entered(options.only)
    compare(work, field)
    rate = matrix_rate()
    print(f"{torch.get_num_threads()} threads, {rate / 1e9:.0f} GFLOP/s in a matrix product, {work}")
    model, theta, tasks = work.draw(work.tasks, torch.float32)
    rows = []
    for form, (name, reference, variants) in FORMS.items():
        contestants = {(name, ""): reference} | {(variant, ""): fn for variant, fn in variants.items()}
        contestants |= {(peer.NAME, peers.version(peer)): peer.gradient for peer in field if form == peer.FORM}
        calls = {key: lambda fn=fn: fn(work, model, theta, tasks) for key, fn in contestants.items()}
        seconds = rounds(calls, repeats)
        if form == "imaml":
            seconds["arithmetic alone", ""] = [work.flop() / rate] * repeats
        base = seconds[name, ""]
        for (contestant, version), times in seconds.items():
            ratios = sorted(time / ours for time, ours in zip(times, base, strict=True))
            row = [min(times), ratios[0], statistics.median(ratios), ratios[-1]]
            rows.append([contestant, form, *(f"{value:.4f}" for value in row), version])
            spread = f"{row[2]:5.2f} times {name} ({row[1]:.2f} to {row[3]:.2f})"
            print(f"{contestant:28s} {row[0]:7.3f} s  {spread}  {version}", flush=True)
    if path:
        kept: list[dict[str, str]] = []
        if path.exists():
            with path.open() as file:
                kept = list(csv.DictReader(file))
        facts = {**machine(), "gflops": f"{rate / 1e9:.0f}", **asdict(work), **versions()}
        names = ["contestant", "form", "seconds", "ratio_least", "ratio", "ratio_most", "version"]
        new = [{**dict(zip(names, row, strict=True)), **facts} for row in rows]
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, [*new[0], *(key for row in kept[:1] for key in row if key not in new[0])])
            table.writeheader()
            table.writerows([*kept, *new])


if __name__ == "__main__":
    main()
