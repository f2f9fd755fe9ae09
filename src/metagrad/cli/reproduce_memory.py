"""``metagrad reproduce memory-compute``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metagrad import allocator
from metagrad.cli.arguments import arg
from metagrad.cli.figures import make_folder, table, write_figure
from metagrad.errors import MetagradError
from metagrad.recipes.protocols import MemoryProtocol

if TYPE_CHECKING:
    from rich.table import Table

    from metagrad.recipes.memory_compute import MemoryRow


@dataclass(frozen=True)
class MemoryCompute:
    """Measure peak memory and time of one meta-gradient against inner steps, for every method.

    It takes the networks of 20-way 5-shot Omniglot and of 5-way 5-shot photographs of 84x84 pixels.
    """

    out: Path = arg(Path("figures"), metavar="DIR")
    """Folder for the figures and their numbers; they replace older ones of the same names."""
    steps: tuple[int, ...] = arg(MemoryProtocol.steps, least=1)
    """Three or more numbers of inner steps to measure at."""
    queries: int = arg(MemoryProtocol.queries, least=1)
    """Query images of each class."""
    most_megabytes: float = MemoryProtocol.most_megabytes
    """Leave out points that would take more memory than this, in MB."""
    most_seconds: float = MemoryProtocol.most_seconds
    """Leave out points whose meta-gradient would take longer than this, in seconds."""
    device: str = MemoryProtocol.device
    """Where to compute: cpu, cuda."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        if len(set(self.steps)) < 3:
            raise MetagradError("--steps needs three different numbers or more, for a slope")
        make_folder(self.out)
        allocator.keep_memory()
        from metagrad.cli.progress import Screen, WorkProgress
        from metagrad.experiment.setup import choose_device
        from metagrad.recipes.figures import draw_memory
        from metagrad.recipes.memory_compute import measure

        screen = Screen()
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
        screen.write_line(f"Memory and time of one meta-gradient: {says}.")
        with WorkProgress(screen, "meta-gradients") as progress:
            rows = measure(protocol, progress)
        screen.write_line(
            "In MB: at one step, at the most steps, these, growth a step; exponent of the steps; most / one step.",
        )
        for network in dict.fromkeys(row.network for row in rows):
            screen.print(_memory_table(rows, network))
        write_figure(screen, self.out, "memory-compute", draw_memory(rows, says), rows, protocol)
        return 0


def _memory_table(rows: Sequence[MemoryRow], network: str) -> Table:
    from metagrad.recipes.memory_compute import growth

    fits = growth(rows)
    lines = table(network, "1 step", "most", "steps", "a step", "exponent", "ratio")
    for method in dict.fromkeys(row.method for row in rows if row.network == network):
        mine = [row for row in rows if (row.network, row.method) == (network, method)]
        fit = fits.get((network, method))
        numbers = [f"{fit.per_step:.2f}", f"{fit.exponent:.2f}", f"{fit.ratio:.3f}"] if fit else ["–"] * 3
        ends = f"{mine[0].megabytes:.1f}", f"{mine[-1].megabytes:.1f}", f"{mine[-1].inner_steps}"
        lines.add_row(method, *ends, *numbers)
    return lines
