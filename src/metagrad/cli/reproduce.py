"""``metagrad reproduce``."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from metagrad.errors import MetagradError
from metagrad.files import write_atomically
from metagrad.recipes.protocols import ErrorProtocol, NetworkProtocol, RateProtocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

    from metagrad.recipes.meta_gradient_error import ErrorRow
    from metagrad.recipes.network_error import NetworkRow
    from metagrad.recipes.rates import RateRow

    Rows = Sequence[ErrorRow] | Sequence[RateRow] | Sequence[NetworkRow]

Protocol = ErrorProtocol | RateProtocol | NetworkProtocol
# Beyond, rounding and hours stand in the way.
_MOST_KAPPA = 1e6


@dataclass(frozen=True)
class Reproduce:
    """Compute a published figure anew: the picture (PNG and SVG) and its numbers (CSV)."""

    figure: tyro.conf.Positional[Annotated[Literal["meta-gradient-error"], tyro.conf.arg(metavar="FIGURE")]]
    """meta-gradient-error: how far the meta-gradients of iMAML and MAML are from the exact one, over inner steps and CG
    steps; and how many gradient evaluations an accurate one takes, over the condition number."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("figures")
    """Folder for the files; of the same names, older ones are replaced."""
    seed: int = 0
    """Seed of the tasks."""
    kappa: float = ErrorProtocol.kappa
    """Condition number at which the error is measured."""
    tasks: int = ErrorProtocol.tasks
    """Tasks over which the error is measured."""
    inner_steps: int = ErrorProtocol.inner_steps
    """Most inner steps."""
    kappas: tuple[float, ...] = RateProtocol.kappas
    """Condition numbers at which gradient evaluations are counted, three or more."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Directory of an iMAML run: measure the error on its trained network in place of the two figures (minutes)."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """With --run: folder with the data set's original files. Default: METAGRAD_DATA, else they are downloaded."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        self._check()
        _make(self.out)
        from metagrad.cli.progress import console

        screen = console()
        if self.run is not None:
            self._network(screen, self.run)
            return 0
        self._error(screen)
        self._rates(screen)
        return 0

    def _network(self, screen: Console, folder: Path) -> None:
        from metagrad import data
        from metagrad.cli.progress import WorkProgress, data_progress
        from metagrad.recipes.figures import draw_network
        from metagrad.recipes.network_error import measure
        from metagrad.training.run import Run

        run = Run.open(folder)
        dataset = data.load(run.dataset, data_dir=self.data_dir, progress=data_progress(screen))
        protocol = NetworkProtocol(seed=self.seed)
        says = (
            f"{run.dataset}, {run.config.ways}-way {run.config.shots}-shot, {protocol.tasks} training tasks, best "
            f"weights of a run with {run.config.filters} filters; descent with a line search; float64, seed {self.seed}"
        )
        _say(screen, f"Error of the meta-gradient on a trained network: {says}.")
        with WorkProgress(screen, "networks and strengths") as progress:
            rows = measure(run, dataset, protocol, progress)
        screen.print(_network_table(rows))
        self._write(screen, "network-error", draw_network(rows, says), rows, protocol)

    def _error(self, screen: Console) -> None:
        from metagrad.cli.progress import WorkProgress
        from metagrad.recipes.figures import draw_errors
        from metagrad.recipes.meta_gradient_error import measure

        protocol = ErrorProtocol(kappa=self.kappa, tasks=self.tasks, inner_steps=self.inner_steps, seed=self.seed)
        says = (
            f"condition number {protocol.kappa:g}, {protocol.dims} weights, median of {protocol.tasks} tasks, "
            f"bands from the smallest to the largest; float64, seed {protocol.seed}"
        )
        _say(
            screen,
            f"Error of the meta-gradient: {says}.\n"
            f"Eigenvalues, λ = 1: few: {protocol.dims - 4} at 1, four from {protocol.kappa**0.5:.3g} to "
            f"{protocol.kappa:g}; spread: {protocol.dims}, log-uniform from 1 to {protocol.kappa:g}.",
        )
        with WorkProgress(screen, "inner steps") as progress:
            rows = measure(protocol, progress)
        screen.print(_error_table(rows, protocol.inner_steps))
        self._write(screen, "meta-gradient-error", draw_errors(rows, says), rows, protocol)

    def _rates(self, screen: Console) -> None:
        from metagrad.cli.progress import WorkProgress
        from metagrad.recipes.figures import draw_rates
        from metagrad.recipes.rates import measure

        protocol = RateProtocol(kappas=tuple(sorted(set(self.kappas))), seed=self.seed)
        says = (
            f"relative error at most {protocol.target:g} in each of {protocol.tasks} tasks; "
            f"{protocol.dims} eigenvalues, log-uniform from 1 to κ; float64, seed {protocol.seed}"
        )
        _say(screen, f"\nGradient evaluations (inner gradients and curvature products) for a meta-gradient: {says}.")
        with WorkProgress(screen, "gradient evaluations") as progress:
            rows = measure(protocol, progress)
        screen.print(_rate_table(rows))
        self._write(screen, "rates", draw_rates(rows, says), rows, protocol)

    def _write(
        self,
        screen: Console,
        name: str,
        figure: Figure,
        rows: Rows,
        protocol: Protocol,
    ) -> None:
        from metagrad.recipes.figures import save

        for ending in ("png", "svg", "csv"):
            path = self.out / f"{name}.{ending}"
            write_atomically(
                path,
                lambda part: _save_rows(rows, protocol, part) if part.suffix == ".csv" else save(figure, part),
                refused=lambda error, path=path: _refused(path, error),  # type: ignore[misc]
            )
            _say(screen, str(path))

    def _check(self) -> None:
        for name, least, most in (("seed", 0, 2**62), ("tasks", 1, 10**4), ("inner_steps", 1, 10**5)):
            if not least <= getattr(self, name) <= most:
                option = f"--{name.replace('_', '-')}"
                raise MetagradError(f"{option} must be from {least} to {most}, got {getattr(self, name)}")
        for option, kappa in (("--kappa", self.kappa), *(("--kappas", kappa) for kappa in self.kappas)):
            if not 1 < kappa <= _MOST_KAPPA:  # nan is refused too
                raise MetagradError(f"{option} must be above 1 and at most {_MOST_KAPPA:g}, got {kappa:g}")
        if len(set(self.kappas)) < 3:
            raise MetagradError("--kappas needs three different condition numbers or more: the rate is fitted to them")


def _make(folder: Path) -> None:
    """Make the folder, and find out before the work whether files can be made there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MetagradError(f"cannot write into {folder}: choose another folder with --out")


def _refused(path: Path, error: OSError) -> MetagradError:
    return MetagradError(f"cannot write {path} ({error.strerror or error}): choose another folder with --out")


def _save_rows(rows: Rows, protocol: Protocol, path: Path) -> None:
    """Write rows as CSV; what they all share is repeated in each, so that a row stands for itself."""
    shared = {name: value for name, value in dataclasses.asdict(protocol).items() if name not in _PER_ROW}
    lines: list[dict[str, Any]] = [{**dataclasses.asdict(row), **shared} for row in rows]
    for line in lines:
        line.update({name: f"{value:.6g}" for name, value in line.items() if isinstance(value, float)})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


# Of a protocol, what its rows have their own value of, or none.
_PER_ROW = ("inner_steps", "kappas", "unrolled", "lams", "steps")


def _error_table(rows: Sequence[ErrorRow], at: int) -> Table:
    table = _table(f"error at {at} inner steps", "2 CG steps", "5", "20", "solved", "MAML")
    last = [row for row in rows if row.inner_steps == at]
    for spectrum, solver in dict.fromkeys((row.spectrum, row.solver) for row in last):
        errors = {row.cg: row.error for row in last if (row.spectrum, row.solver) == (spectrum, solver)}
        table.add_row(f"{spectrum}, {solver}", *(f"{errors[cg]:.1e}" for cg in ("2", "5", "20", "solved", "")))
    return table


def _network_table(rows: Sequence[NetworkRow]) -> Table:
    shown = [1, 5, 20, max(row.inner_steps for row in rows)]
    table = _table("cosine with the accurate one, after", *(f"{steps} steps" for steps in shown), "least curvature")
    for activation, lam, method in dict.fromkeys((row.activation, row.lam, row.method) for row in rows):
        mine = {
            row.inner_steps: row for row in rows if (row.activation, row.lam, row.method) == (activation, lam, method)
        }
        least = f"{mine[shown[0]].reference_min_curvature:.2g}"
        table.add_row(f"{activation}, λ={lam:g}, {method}", *(f"{mine[steps].cosine:.2f}" for steps in shown), least)
    return table


def _rate_table(rows: Sequence[RateRow]) -> Table:
    from metagrad.recipes.rates import fits

    low, high = min(row.kappa for row in rows), max(row.kappa for row in rows)
    table = _table("", "exponent of κ", f"κ = {low:g}", f"κ = {high:g}", "iterates held")
    exponents = fits(rows)
    for method, solver in dict.fromkeys((row.method, row.solver) for row in rows):
        mine = {row.kappa: row for row in rows if (row.method, row.solver) == (method, solver)}
        fit = exponents.get((method, solver))
        counts = [f"{mine[kappa].evaluations}" if kappa in mine else "–" for kappa in (low, high)]
        held = sorted({mine[min(mine)].held, mine[max(mine)].held})
        table.add_row(
            f"{method}, {solver}" + " + CG" * (method == "iMAML"),
            f"{fit.value:.3f} ± {fit.error:.3f}" if fit else "–",
            *counts,
            " to ".join(map(str, held)),
        )
    return table


def _table(first: str, *rest: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column(first)
    for name in rest:
        table.add_column(name, justify="right")
    return table


def _say(screen: Console, text: str) -> None:
    screen.print(text, highlight=False, soft_wrap=True)
