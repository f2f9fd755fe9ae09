"""``metagrad check``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metagrad import allocator
from metagrad.cli.arguments import arg


@dataclass(frozen=True)
class Check:
    """Compare a run's meta-gradient with an accurate one, print where the error comes from, and whether it matters."""

    run: Path = arg(positional=True, metavar="RUN")
    """Directory of the run; its last checkpoint is checked, or its best weights where there is no other."""
    tasks: int = arg(4, least=1)
    """Training tasks that the gradient is averaged over; time and memory grow with their number."""
    seed: int = arg(0, least=0, most=2**62 - 1)
    """Seed of the tasks."""
    device: str | None = None
    """Where to compute. Default: as in training."""
    data_dir: Path | None = arg(None, metavar="DIR")
    """Folder with the data set's original files. Default: METAGRAD_DATA, else they are downloaded."""
    code: tuple[str, ...] = arg((), metavar="CODE", repeated=True)
    """Allow the import of your own code that the run names, as package.module:name. Give it once for each name."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        allocator.keep_memory()
        from metagrad.cli.progress import Screen, data_progress
        from metagrad.experiment.check import check_run
        from metagrad.experiment.run import Run
        from metagrad.experiment.setup import open_sources

        screen = Screen()
        run = Run.open(self.run, code=self.code)
        sources = open_sources(run, data_dir=self.data_dir, device=self.device, progress=data_progress(screen))
        with screen.status("drawing tasks") as status:

            def report(text: str) -> None:
                if screen.is_terminal:
                    status.update(text)
                else:
                    screen.write_line(text)

            result = check_run(run, sources, tasks=self.tasks, seed=self.seed, report=report)
        for line in describe(result):
            screen.write_line(line)
        run.append("checks.jsonl", {**result, "command": ["metagrad", *words]})
        return 0


def describe(result: dict[str, Any]) -> list[str]:
    """Return a check in a few lines; the last one says whether to worry."""
    lines = [
        f"meta-gradient of {result['tasks']} tasks at meta-step {result['step']}, compared with {result['against']}:",
        f"  cosine {result['cosine']:.4f}, relative error {result['error']:.2g}, norm ratio {result['length']:.2g}",
    ]
    if result.get("inner") is not None:
        lines += [
            "  contributions to the relative error:",
            f"    inner solve   {result['inner']:<8.2g} (inner gradient norm {result['grad_norm']:.2g})",
            f"    linear solve  {result['linear']:<8.2g} (relative residual {result['residual']:.2g})",
            f"    curvature     {result['curvature']:<8.2g} ({_CURVATURES[result['matrix']]})",
            f"    rounding      {result['arithmetic']:<8.2g} ({result['precision']})",
        ]
    left, curvature = result.get("reference_grad_norm", 0.0), result.get("reference_min_curvature", 1.0)
    if left > 1e-6:
        lines.append(
            f"  the reference has inner gradient norm {left:.2g}, not 0"
            + ("" if _is_unsolved(result) else ": with ReLU, minimisers lie on kinks, where it does not reach 0")
        )
    if curvature <= 0:
        lines.append(
            f"  the reference has negative curvature ({curvature:.2g}): it is a stationary point, not a minimum"
        )
    return [*lines, verdict(result)]


_CURVATURES = {"gauss_newton": "gauss_newton in place of the exact Hessian", "hessian": "the exact Hessian"}
_ACCURATE = 0.1  # relative error up to which nothing is left to improve


def _is_unsolved(result: dict[str, Any]) -> bool:
    """Whether the reference's inner problem is hardly better solved than the run's own: then nothing is attributed."""
    return "reference_grad_norm" in result and result["inner"] is None


def verdict(result: dict[str, Any]) -> str:
    """Return one sentence: whether the error of a meta-gradient is a reason to worry, and why.

    What needs no reference comes first: a linear solve that fails and inner steps that oscillate. An unreliable
    reference leaves the question open. Otherwise only a gradient that points the wrong way is a reason: with a more
    accurate one a run seldom trains better (RESULTS.md, "Error of the meta-gradient").
    """
    stable, cosine = result.get("stable_inner_lr"), result["cosine"]
    if (result.get("residual") or 0.0) > 1:
        matrix = "" if result.get("matrix") == "gauss_newton" else "--curvature gauss_newton, "
        so = (
            "so the meta-gradient is mostly noise"
            if not cosine > 0.5
            else f"though its direction is usable (cosine {cosine:.2g})"
        )
        return (
            f"Worry: the linear solve fails (relative residual {result['residual']:.2g}, should be below 1), {so}; use "
            f"{matrix}a larger --lam or more --cg-steps."
        )
    if stable is not None and result["inner_lr"] > stable:
        return (
            f"Worry: inner steps oscillate, because --inner-lr {result['inner_lr']:g} is above the largest stable step "
            f"size, about {stable:.2g}; lower it, or use --inner-solver hessian-free, which chooses its own."
        )
    if _is_unsolved(result):
        return (
            "Undecided: there is no usable reference, since its inner problem is not solved either; judge the run by "
            "its validation accuracy."
        )
    if result.get("reference_min_curvature", 1.0) <= 0:
        return (
            "Undecided: the reference is no minimum, so its gradient is no better than the run's; judge the run by its "
            "validation accuracy."
        )
    if result["error"] <= _ACCURATE:
        return f"Good: the meta-gradient is accurate, its relative error is {result['error']:.2g}."
    if not cosine > 0:  # also where it is NaN
        return (
            f"Worry: the meta-gradient does not point in the accurate one's direction (cosine {cosine:.2g}), so a step "
            f"may make training worse; {_largest_part(result)}."
        )
    return f"Usual: training does not need an accurate gradient (here cosine {cosine:.2g}); {_largest_part(result)}."


def _largest_part(result: dict[str, Any]) -> str:
    """Return the largest contribution to the error, and the option that reduces it."""
    if result.get("inner") is None:
        return "the method leaves out part of the derivative by design"
    advice = {
        "inner": "the inner solve, which more --inner-steps reduce",
        "linear": "the linear solve, which more steps of the linear solver (--cg-steps) reduce",
        "curvature": "the approximate curvature, which --curvature hessian avoids at the risk of negative curvature",
        "arithmetic": "rounding" + ", which --precision float32 reduces" * (result["precision"] != "float32"),
    }
    return f"the largest part of the error is {advice[max(advice, key=lambda name: result[name])]}"
