"""``metagrad reproduce convergence``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metagrad.cli.arguments import arg
from metagrad.cli.figures import make_folder, say, write_figure
from metagrad.errors import MetagradError
from metagrad.recipes.protocols import ConvergenceProtocol


@dataclass(frozen=True)
class Convergence:
    """Show how memory-reduced meta-learning converges, on quadratics with a known solution.

    With all tasks at every step and warm starts, exactly; with sampled tasks, as 1 / meta-steps and 1 / batch.
    """

    out: Path = arg(Path("figures"), metavar="DIR")
    """Folder for the files; of the same names, older ones are replaced."""
    iterations: int = ConvergenceProtocol.iterations
    """Meta-steps, 100 or more."""
    inner_steps: int = ConvergenceProtocol.inner_steps
    """Inner steps a meta-step, where all tasks are taken."""
    products: int = ConvergenceProtocol.products
    """Steps of conjugate gradients a meta-step, where all tasks are taken."""
    seed: int = 0
    """Seed of the tasks."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        for name, least, most in (("iterations", 100, 10**5), ("inner_steps", 1, 1000), ("products", 1, 1000),
                                  ("seed", 0, 2**61)):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                option = f"--{name.replace('_', '-')}"
                raise MetagradError(f"{option} must be from {least} to {most}, got {getattr(self, name)}")
        make_folder(self.out)
        from metagrad.cli.progress import WorkProgress, console
        from metagrad.recipes.convergence import COLD, WARM, measure, rates
        from metagrad.recipes.figures import draw_convergence

        screen = console()
        protocol = ConvergenceProtocol(
            iterations=self.iterations, inner_steps=self.inner_steps, products=self.products, seed=self.seed
        )
        says = (
            f"inner problems of {protocol.dims} weights and condition number {protocol.kappa:g}; float64, seed "
            f"{protocol.seed}\nall tasks: {protocol.few}, {protocol.inner_steps} inner steps and {protocol.products} "
            f"products; sampled: from {protocol.many}, mean of {protocol.repeats}"
        )
        say(screen, f"Convergence: {says}.")
        with WorkProgress(screen, "meta-steps") as progress:
            rows = measure(protocol, progress)
        for form in (WARM, COLD):
            error = [row for row in rows if row.form == form][-1].error
            say(screen, f"{form}: squared error {error:.1e} after {protocol.iterations} meta-steps")
        found = rates(rows)
        say(screen, f"sampled: squared error as meta-steps^{found.iteration:.2f} and as batch^{found.batch:.2f}")
        write_figure(screen, self.out, "convergence", draw_convergence(rows, says), rows, protocol)
        return 0
