"""``metagrad reproduce convergence``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metagrad.cli.arguments import arg
from metagrad.cli.figures import make_folder, write_figure
from metagrad.recipes.protocols import ConvergenceProtocol


@dataclass(frozen=True)
class Convergence:
    """Show how memory-reduced meta-learning converges, on quadratics with a known solution.

    With all tasks at every step and warm starts the error goes to zero. With sampled tasks it falls as 1 / meta-steps
    and 1 / batch.
    """

    out: Path = arg(Path("figures"), metavar="DIR")
    """Folder for the figures and their numbers; they replace older ones of the same names."""
    iterations: int = arg(ConvergenceProtocol.iterations, least=100, most=10**5)
    """Number of meta-steps, at least 100."""
    inner_steps: int = arg(ConvergenceProtocol.inner_steps, least=1, most=1000)
    """Inner steps in each meta-step of the form with all tasks."""
    products: int = arg(ConvergenceProtocol.products, least=1, most=1000)
    """Conjugate gradient steps in each meta-step of the form with all tasks."""
    seed: int = arg(0, least=0, most=2**61)
    """Seed of the tasks."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        make_folder(self.out)
        from metagrad.cli.progress import Screen, WorkProgress
        from metagrad.recipes.convergence import COLD, WARM, measure, rates
        from metagrad.recipes.figures import draw_convergence

        screen = Screen()
        protocol = ConvergenceProtocol(
            iterations=self.iterations, inner_steps=self.inner_steps, products=self.products, seed=self.seed
        )
        says = (
            f"inner problems of {protocol.dims} weights and condition number {protocol.kappa:g}; float64, seed "
            f"{protocol.seed}\nall tasks: {protocol.few}, {protocol.inner_steps} inner steps and {protocol.products} "
            f"products; sampled: from {protocol.many}, mean of {protocol.repeats}"
        )
        screen.write_line(f"Convergence: {says}.")
        with WorkProgress(screen, "meta-steps") as progress:
            rows = measure(protocol, progress)
        for form in (WARM, COLD):
            error = [row for row in rows if row.form == form][-1].error
            screen.write_line(f"{form}: squared error {error:.1e} after {protocol.iterations} meta-steps")
        rate = rates(rows)
        screen.write_line(f"sampled: squared error as meta-steps^{rate.iteration:.2f} and as batch^{rate.batch:.2f}")
        write_figure(screen, self.out, "convergence", draw_convergence(rows, says), rows, protocol)
        return 0
