"""What ``metagrad train`` does when training has ended: the result, calibration, the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from metagrad.cli.progress import Screen
    from metagrad.data import Dataset
    from metagrad.data.features import FeatureDataset
    from metagrad.experiment.run import Run
    from metagrad.experiment.sources import Sources

_WORTH_SAYING = 5.0  # seconds


def show_result(screen: Screen, result: dict[str, Any], name: str = "") -> None:
    """Print a result with its interval and protocol, in one line; and what training gained, where that is known."""
    from metagrad.report.quantities import gain_text, protocol_text

    metric, value, ci95 = result["metric"].replace("_", " "), result["value"], result["ci95"]
    figure = f"{value:.2%} ± {ci95:.2%}" if metric.endswith("accuracy") else f"{value:.4g} ± {ci95:.2g}"
    screen.write_line(f"{name}{metric} {figure}  ({protocol_text(result['protocol'])})")
    if "class_mean" in result:
        screen.write_line(gain_text(result["class_mean"]))


def calibrate(screen: Screen, run: Run, dataset: Dataset | FeatureDataset, *, seconds: float) -> None:
    """Find out how far the probabilities of classifiers that come of this run can be trusted, in so much time."""
    from metagrad.classifier.calibrate import affordable
    from metagrad.classifier.calibrate import calibrate as measure
    from metagrad.classifier.calibration import CALIBRATION
    from metagrad.classifier.learner import Learner
    from metagrad.cli.progress import WorkProgress
    from metagrad.experiment.estimate import duration

    with WorkProgress(screen, "calibrating probabilities") as progress:
        learner = Learner.of(run, calibrated=False)
        tasks = max(4, min(60, run.experiment.budget.val_tasks))
        share, takes = affordable(learner, dataset, tasks=tasks, seconds=seconds)
        if takes > _WORTH_SAYING:
            fewer = "" if share == 1 else f", with {share:.0%} of the usual tasks"
            screen.write_line(f"calibrating probabilities, {duration(takes)}{fewer} (--no-calibrate leaves it out)")
        calibration = measure(learner, dataset, tasks=tasks, share=share, progress=progress)
    run.write_measured(CALIBRATION, calibration.as_json(), learner.facts["digest"])
    own = calibration.own
    screen.write_line(
        f"each image by itself, validation: accuracy {own.accuracy:.1%}, probabilities off by {own.ece:.1%} "
        f"(uncalibrated {own.ece_before:.1%}); {own.told()}"
    )


def write_report(screen: Screen, run: Run, sources: Sources) -> Path:
    """Write the page of a finished run into its directory; return where it is."""
    from metagrad.report.runs import view_of, write_page

    out = run.folder / "report.html"
    write_page([view_of(run, run.folder.name, sources, busy=screen.status)], out, busy=screen.status)
    return out
