"""``metagrad check``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metagrad.cli import allocator
from metagrad.cli.arguments import arg
from metagrad.errors import MetagradError


@dataclass(frozen=True)
class Check:
    """Say how far a run's meta-gradient is from an accurate one, and where the error comes from."""

    run: Path = arg(positional=True, metavar="RUN")
    """Directory of the run; its last checkpoint is looked at."""
    tasks: int = 4
    """Training tasks to average the gradient over; time and memory follow."""
    seed: int = 0
    """Seed of the tasks."""
    device: str | None = None
    """Where to compute. Default: as in training."""
    data_dir: Path | None = arg(None, metavar="DIR")
    """Folder with the data set's original files. Default: METAGRAD_DATA, else they are downloaded."""
    code: tuple[str, ...] = arg((), metavar="CODE", repeated=True)
    """package.module:name of your own code that the run names, to say that it may be imported. Once for each."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        if self.tasks < 1:
            raise MetagradError(f"--tasks must be at least 1, got {self.tasks}")
        if not 0 <= self.seed < 2**62:
            raise MetagradError(f"--seed must be at least 0 and below 2^62, got {self.seed}")
        allocator.keep_memory()
        from metagrad.cli.progress import console, data_progress
        from metagrad.experiment.check import check_run
        from metagrad.experiment.run import Run
        from metagrad.experiment.setup import open_sources

        screen = console()
        run = Run.open(self.run, code=self.code)
        sources = open_sources(run, data_dir=self.data_dir, device=self.device, progress=data_progress(screen))
        with screen.status("drawing tasks") as status:

            def report(text: str) -> None:
                if screen.is_terminal:
                    status.update(text)
                else:
                    screen.print(text, highlight=False, soft_wrap=True)

            found = check_run(run, sources, tasks=self.tasks, seed=self.seed, report=report)
        for line in describe(found):
            screen.print(line, highlight=False, soft_wrap=True)
        run.append("checks.jsonl", {**found, "command": ["metagrad", *words]})
        return 0


def describe(found: dict[str, Any]) -> list[str]:
    """Say in a few lines what a check found."""
    lines = [
        f"meta-gradient of {found['tasks']} tasks at meta-step {found['step']}, beside {found['against']}:",
        f"  cosine {found['cosine']:.4f}, relative error {found['error']:.2g}, length {found['length']:.2g} of its",
    ]
    if found.get("inner") is not None:
        lines += [
            f"  {found['inner']:.2g} from the inner problem, left at gradient norm {found['grad_norm']:.2g}",
            f"  {found['linear']:.2g} from the linear system, left at residual {found['residual']:.2g}",
            f"  {found['curvature']:.2g} from taking {found['matrix']} as the curvature",
            f"  {found['arithmetic']:.2g} from computing in {found['precision']}",
        ]
    stable = found.get("stable_inner_lr")
    if stable is not None and found["inner_lr"] > stable:
        lines.append(
            f"  the inner step size {found['inner_lr']:g} is beyond the largest stable one where the steps end, about "
            f"{stable:.2g}: they go back and forth; lower --inner-lr, or --inner-solver hessian-free finds its own"
        )
    left = found.get("reference_grad_norm", 0.0)
    if left > 0.5 * found.get("grad_norm", 0.0) > 0:
        lines.append(
            f"  no usable reference: solved on, an inner problem is still at gradient norm {left:.2g}; what is said "
            "above compares two guesses"
        )
    elif left > 1e-6:
        lines.append(
            f"  the best solution's own inner gradient norm is {left:.2g}: with ReLU it does not go to zero, as "
            "minimisers sit on kinks"
        )
    if found.get("reference_min_curvature", 1.0) <= 0:
        lines.append(
            f"  the curvature there goes down to {found['reference_min_curvature']:.2g}: no minimum, so the accurate "
            "gradient is that of a stationary point, and no better a direction to follow"
        )
    return lines
