"""``metagrad reproduce memory-compute``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metagrad.cli import allocator
from metagrad.cli.arguments import arg
from metagrad.cli.figures import make_folder, say, table, write_figure
from metagrad.errors import MetagradError
from metagrad.recipes.protocols import MemoryProtocol

if TYPE_CHECKING:
    from rich.table import Table

    from metagrad.recipes.memory_compute import MemoryRow


@dataclass(frozen=True)
class MemoryCompute:
    """Measure peak memory and time of one meta-gradient against inner steps, for every method.

    On the networks of 20-way 5-shot Omniglot and of 5-way 5-shot photographs of 84x84 pixels.
    """

    out: Path = arg(Path("figures"), metavar="DIR")
    """Folder for the files; of the same names, older ones are replaced."""
    steps: tuple[int, ...] = MemoryProtocol.steps
    """Inner steps to measure at, three numbers or more."""
    queries: int = MemoryProtocol.queries
    """Query images a class."""
    most_megabytes: float = MemoryProtocol.most_megabytes
    """Points that would take more memory are left out, in MB."""
    most_seconds: float = MemoryProtocol.most_seconds
    """Points that would take longer a meta-gradient are left out, in seconds."""
    device: str = MemoryProtocol.device
    """Where to compute: cpu, cuda."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        if len(set(self.steps)) < 3 or min(self.steps) < 1:
            raise MetagradError("--steps needs three different numbers or more, at least 1, for a slope")
        if self.queries < 1:
            raise MetagradError(f"--queries must be at least 1, got {self.queries}")
        make_folder(self.out)
        allocator.keep_memory()
        from metagrad.cli.progress import WorkProgress, console
        from metagrad.experiment.setup import choose_device
        from metagrad.recipes.figures import draw_memory
        from metagrad.recipes.memory_compute import measure

        screen = console()
        protocol = MemoryProtocol(
            steps=tuple(sorted(set(self.steps))),
            queries=self.queries,
            most_megabytes=self.most_megabytes,
            most_seconds=self.most_seconds,
            device=str(choose_device(self.device)),
        )
        says = (
            f"one task, 5 support and {protocol.queries} query images a class; 64 filters (28×28), 32 with pooling "
            f"(84×84); float32, {protocol.device}"
        )
        say(screen, f"Memory and time of one meta-gradient: {says}.")
        with WorkProgress(screen, "meta-gradients") as progress:
            rows = measure(protocol, progress)
        say(
            screen,
            "In MB: at one step, at the most steps, these, growth a step; exponent of the steps; most / one step.",
        )
        for network in dict.fromkeys(row.network for row in rows):
            screen.print(_memory_table(rows, network))
        write_figure(screen, self.out, "memory-compute", draw_memory(rows, says), rows, protocol)
        return 0


def _memory_table(rows: Sequence[MemoryRow], network: str) -> Table:
    from metagrad.recipes.memory_compute import slopes

    found = slopes(list(rows))
    shown = table(network, "1 step", "most", "steps", "a step", "exponent", "ratio")
    for method in dict.fromkeys(row.method for row in rows if row.network == network):
        mine = [row for row in rows if (row.network, row.method) == (network, method)]
        fit = found.get((network, method))
        said = [f"{fit.per_step:.2f}", f"{fit.exponent:.2f}", f"{fit.ratio:.3f}"] if fit else ["–"] * 3
        ends = f"{mine[0].megabytes:.1f}", f"{mine[-1].megabytes:.1f}", f"{mine[-1].inner_steps}"
        shown.add_row(method, *ends, *said)
    return shown
