"""What ``metagrad train`` does when training has ended: the result, calibration, the report."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from metagrad.cli.progress import Screen
    from metagrad.data import Dataset
    from metagrad.data.features import FeatureDataset
    from metagrad.experiment.run import Run
    from metagrad.experiment.sources import Sources

_WORTH_SAYING = 5.0  # seconds from which on the time is announced


def show_result(screen: Screen, result: dict[str, Any], name: str = "") -> None:
    """Print a result with its interval, chance and protocol; and the gain over frozen features where it is known."""
    from metagrad.report.quantities import chance_of, gain_text, protocol_text, with_interval

    metric, protocol = result["metric"].replace("_", " "), result["protocol"]
    metric = re.sub("^val ", "validation ", metric)
    figure = with_interval(metric, result["value"], result["ci95"], places=2)
    chance = chance_of(metric, protocol)
    compared = "" if chance is None else f" (chance {100 * chance:.3g} %)"
    screen.write_line(f"{name}{metric} {figure}{compared} on {protocol_text(protocol)}")
    if "class_mean" in result:
        screen.write_line(gain_text(result["class_mean"]))


def calibrate(screen: Screen, run: Run, dataset: Dataset | FeatureDataset, *, seconds: float) -> None:
    """Calibrate the probabilities of classifiers adapted from this run, in about ``seconds``; print what it found."""
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
            fewer = "" if share == 1 else f" with {100 * share:.0f} % of the usual tasks"
            screen.write_line(f"calibrating probabilities{fewer} takes {duration(takes)} (--no-calibrate skips it)")
        calibration = measure(learner, dataset, tasks=tasks, share=share, progress=progress)
    run.write_measured(CALIBRATION, calibration.as_json(), learner.facts["digest"])
    own = calibration.own
    screen.write_line(
        f"on validation classes, each image classified by itself: accuracy {100 * own.accuracy:.1f} %, calibration "
        f"error {100 * own.ece:.1f} % ({100 * own.ece_before:.1f} % before temperature scaling)"
    )
    screen.write_line(own.about_reject())


def write_report(screen: Screen, run: Run, sources: Sources) -> Path:
    """Write the page of a finished run into its directory; return where it is."""
    from metagrad.report.runs import view_of, write_page

    out = run.folder / "report.html"
    write_page([view_of(run, run.folder.name, sources, busy=screen.status)], out, busy=screen.status)
    return out
