"""``metagrad check``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metagrad.cli import allocator
from metagrad.cli.arguments import arg


@dataclass(frozen=True)
class Check:
    """Say how far a run's meta-gradient is from an accurate one, and where the error comes from."""

    run: Path = arg(positional=True, metavar="RUN")
    """Directory of the run, whose last checkpoint is checked."""
    tasks: int = arg(4, least=1)
    """Training tasks to average the gradient over; time and memory grow with them."""
    seed: int = arg(0, least=0, most=2**62 - 1)
    """Seed of the tasks."""
    device: str | None = None
    """Where to compute. Default: as in training."""
    data_dir: Path | None = arg(None, metavar="DIR")
    """Folder with the data set's original files. Default: METAGRAD_DATA, else they are downloaded."""
    code: tuple[str, ...] = arg((), metavar="CODE", repeated=True)
    """Your own code that the run names, as package.module:name: allow its import. Give it once for each name."""

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
    """Say in a few lines what a check found."""
    lines = [
        f"meta-gradient of {result['tasks']} tasks at meta-step {result['step']}, beside {result['against']}:",
        f"  cosine {result['cosine']:.4f}, relative error {result['error']:.2g}, length {result['length']:.2g} of its",
    ]
    if result.get("inner") is not None:
        lines += [
            f"  {result['inner']:.2g} from the inner problem, left at gradient norm {result['grad_norm']:.2g}",
            f"  {result['linear']:.2g} from the linear system, left at residual {result['residual']:.2g}",
            f"  {result['curvature']:.2g} from taking {result['matrix']} as the curvature",
            f"  {result['arithmetic']:.2g} from computing in {result['precision']}",
        ]
    stable = result.get("stable_inner_lr")
    if stable is not None and result["inner_lr"] > stable:
        lines.append(
            f"  the inner step size {result['inner_lr']:g} is beyond the largest stable one where the steps end, about "
            f"{stable:.2g}: they go back and forth; lower --inner-lr, or --inner-solver hessian-free finds its own"
        )
    left = result.get("reference_grad_norm", 0.0)
    if left > 0.5 * result.get("grad_norm", 0.0) > 0:
        lines.append(
            f"  no usable reference: solved on, an inner problem is still at gradient norm {left:.2g}; what is said "
            "above compares two guesses"
        )
    elif left > 1e-6:
        lines.append(
            f"  the best solution's own inner gradient norm is {left:.2g}: with ReLU it does not go to zero, as "
            "minimisers sit on kinks"
        )
    if result.get("reference_min_curvature", 1.0) <= 0:
        lines.append(
            f"  the curvature there goes down to {result['reference_min_curvature']:.2g}: no minimum, so the accurate "
            "gradient is that of a stationary point, and no better a direction to follow"
        )
    return lines
