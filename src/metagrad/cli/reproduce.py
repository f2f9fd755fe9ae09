"""``metagrad reproduce meta-gradient-error``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metagrad.cli.arguments import arg
from metagrad.cli.figures import make_folder, table, write_figure
from metagrad.errors import MetagradError
from metagrad.recipes.protocols import ErrorProtocol, NetworkProtocol, RateProtocol

if TYPE_CHECKING:
    from rich.table import Table

    from metagrad.cli.progress import Screen
    from metagrad.recipes.meta_gradient_error import ErrorRow
    from metagrad.recipes.network_error import NetworkRow
    from metagrad.recipes.rates import RateRow

# Larger ones take hours, and rounding dominates.
_MOST_KAPPA = 1e6


@dataclass(frozen=True)
class MetaGradientError:
    """Measure the error of the meta-gradients of iMAML and MAML, where the exact one is known.

    One figure shows the error against inner steps and CG steps, the other the number of gradient evaluations of an
    accurate meta-gradient against the condition number.
    """

    out: Path = arg(Path("figures"), metavar="DIR")
    """Folder for the figures and their numbers; they replace older ones of the same names."""
    seed: int = arg(0, least=0, most=2**62)
    """Seed of the tasks."""
    kappa: float = ErrorProtocol.kappa
    """Condition number at which the error is measured."""
    tasks: int = arg(ErrorProtocol.tasks, least=1, most=10**4)
    """Number of tasks over which the error is measured."""
    inner_steps: int = arg(ErrorProtocol.inner_steps, least=1, most=10**5)
    """Largest number of inner steps."""
    kappas: tuple[float, ...] = RateProtocol.kappas
    """Three or more condition numbers at which gradient evaluations are counted."""
    run: Path | None = arg(None, metavar="DIR")
    """Directory of an iMAML run: draw the error on its trained network instead of the two figures (takes minutes)."""
    data_dir: Path | None = arg(None, metavar="DIR")
    """With --run: folder with the data set's original files. Default: METAGRAD_DATA, else they are downloaded."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        self._check()
        make_folder(self.out)
        from metagrad.cli.progress import Screen

        screen = Screen()
        if self.run is not None:
            self._network(screen, self.run)
            return 0
        self._error(screen)
        self._rates(screen)
        return 0

    def _network(self, screen: Screen, folder: Path) -> None:
        from metagrad.cli.progress import WorkProgress, data_progress
        from metagrad.experiment.experiment import described
        from metagrad.experiment.run import Run
        from metagrad.experiment.setup import open_sources
        from metagrad.recipes.figures import draw_network
        from metagrad.recipes.network_error import measure

        run = Run.open(folder)
        sources = open_sources(run, data_dir=self.data_dir, device="cpu", progress=data_progress(screen))
        about = described(run.experiment)
        protocol = NetworkProtocol(seed=self.seed)
        says = (
            f"{run.dataset}, {about['ways']}-way {about['shots']}-shot, {protocol.tasks} training tasks, best "
            f"weights of a run with {about['filters']} filters; descent with a line search; float64, seed {self.seed}"
        )
        screen.write_line(f"Error of the meta-gradient on a trained network: {says}.")
        with WorkProgress(screen, "networks and strengths") as progress:
            rows = measure(run, sources, protocol, progress)
        screen.print(_network_table(rows))
        write_figure(screen, self.out, "network-error", draw_network(rows, says), rows, protocol)

    def _error(self, screen: Screen) -> None:
        from metagrad.cli.progress import WorkProgress
        from metagrad.recipes.figures import draw_errors
        from metagrad.recipes.meta_gradient_error import measure

        protocol = ErrorProtocol(kappa=self.kappa, tasks=self.tasks, inner_steps=self.inner_steps, seed=self.seed)
        says = (
            f"condition number {protocol.kappa:g}, {protocol.dims} weights, median of {protocol.tasks} tasks, "
            f"bands from the smallest to the largest; float64, seed {protocol.seed}"
        )
        screen.write_line(
            f"Error of the meta-gradient: {says}.\n"
            f"Eigenvalues, λ = 1: few: {protocol.dims - 4} at 1, four from {protocol.kappa**0.5:.3g} to "
            f"{protocol.kappa:g}; spread: {protocol.dims}, log-uniform from 1 to {protocol.kappa:g}.",
        )
        with WorkProgress(screen, "inner steps") as progress:
            rows = measure(protocol, progress)
        screen.print(_error_table(rows, protocol.inner_steps))
        write_figure(screen, self.out, "meta-gradient-error", draw_errors(rows, says), rows, protocol)

    def _rates(self, screen: Screen) -> None:
        from metagrad.cli.progress import WorkProgress
        from metagrad.recipes.figures import draw_rates
        from metagrad.recipes.rates import measure

        protocol = RateProtocol(kappas=tuple(sorted(set(self.kappas))), seed=self.seed)
        says = (
            f"relative error at most {protocol.target:g} in each of {protocol.tasks} tasks; "
            f"{protocol.dims} eigenvalues, log-uniform from 1 to κ; float64, seed {protocol.seed}"
        )
        screen.write_line(
            f"\nGradient evaluations (inner gradients and curvature products) for a meta-gradient: {says}."
        )
        with WorkProgress(screen, "gradient evaluations") as progress:
            rows = measure(protocol, progress)
        screen.print(_rate_table(rows))
        write_figure(screen, self.out, "rates", draw_rates(rows, says), rows, protocol)

    def _check(self) -> None:
        if self.run is not None:
            for name in ("kappa", "tasks", "inner_steps", "kappas"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    option = f"--{name.replace('_', '-')}"
                    raise MetagradError(
                        f"{option} has no effect with --run, which measures the run's network: leave it out"
                    )
        for option, kappa in (("--kappa", self.kappa), *(("--kappas", kappa) for kappa in self.kappas)):
            if not 1 < kappa <= _MOST_KAPPA:  # nan is refused too
                raise MetagradError(f"{option} must be above 1 and at most {_MOST_KAPPA:g}, got {kappa:g}")
        if len(set(self.kappas)) < 3:
            raise MetagradError("--kappas needs three different condition numbers or more: the rate is fitted to them")


def _error_table(rows: Sequence[ErrorRow], at: int) -> Table:
    lines = table(f"error at {at} inner steps", "2 CG steps", "5", "20", "solved exactly", "MAML")
    last = [row for row in rows if row.inner_steps == at]
    for spectrum, solver in dict.fromkeys((row.spectrum, row.solver) for row in last):
        errors = {row.cg: row.error for row in last if (row.spectrum, row.solver) == (spectrum, solver)}
        lines.add_row(f"{spectrum}, {solver}", *(f"{errors[cg]:.1e}" for cg in ("2", "5", "20", "solved", "")))
    return lines


def _network_table(rows: Sequence[NetworkRow]) -> Table:
    shown = [1, 5, 20, max(row.inner_steps for row in rows)]
    lines = table(
        "cosine with the accurate gradient after", *(f"{steps} steps" for steps in shown), "smallest curvature"
    )
    for activation, lam, method in dict.fromkeys((row.activation, row.lam, row.method) for row in rows):
        mine = {
            row.inner_steps: row for row in rows if (row.activation, row.lam, row.method) == (activation, lam, method)
        }
        least = f"{mine[shown[0]].reference_min_curvature:.2g}"
        lines.add_row(f"{activation}, λ={lam:g}, {method}", *(f"{mine[steps].cosine:.2f}" for steps in shown), least)
    return lines


def _rate_table(rows: Sequence[RateRow]) -> Table:
    from metagrad.recipes.rates import fits

    low, high = min(row.kappa for row in rows), max(row.kappa for row in rows)
    lines = table("", "exponent of κ", f"κ = {low:g}", f"κ = {high:g}", "iterates in memory")
    exponents = fits(rows)
    for method, solver in dict.fromkeys((row.method, row.solver) for row in rows):
        mine = {row.kappa: row for row in rows if (row.method, row.solver) == (method, solver)}
        fit = exponents.get((method, solver))
        counts = [f"{mine[kappa].evaluations}" if kappa in mine else "–" for kappa in (low, high)]
        held = sorted({mine[min(mine)].held, mine[max(mine)].held})
        lines.add_row(
            f"{method}, {solver}" + " + CG" * (method == "iMAML"),
            f"{fit.value:.3f} ± {fit.error:.3f}" if fit else "–",
            *counts,
            " to ".join(map(str, held)),
        )
    return lines
