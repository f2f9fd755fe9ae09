"""From run directories to a page about them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from metagrad.classifier.calibration import Calibration
from metagrad.classifier.learner import Learner
from metagrad.errors import MetagradError, MetagradWarning, in_short
from metagrad.experiment.experiment import described
from metagrad.experiment.run import Run
from metagrad.experiment.sources import Sources
from metagrad.files import write_text
from metagrad.report.episodes import judge_tasks
from metagrad.report.page import RunView, page
from metagrad.strict_json import is_number

Busy = Callable[[str], AbstractContextManager[Any]]


def _quietly(doing: str) -> AbstractContextManager[Any]:
    return contextlib.nullcontext()


def write(runs: Run | Sequence[Run], out: str | Path, *, data_dir: str | Path | None = None) -> Path:
    """Write one page about a run, or about several beside each other: results, curves, tasks, options.

    Parameters
    ----------
    out:
        a self-contained HTML file; an existing one is replaced.
    data_dir:
        folder with the data set's original files, for the pictures of tasks; without it the page has no pictures.

    Raises
    ------
    MetagradError
        for a file of a run that is damaged, or a page that cannot be written.

    Examples
    --------
    ::

        from metagrad import Run
        from metagrad import report

        report.write(Run.open("runs/first"), "first.html")
    """
    several = [runs] if isinstance(runs, Run) else list(runs)
    views = []
    for run in several:
        sources = None
        if run.dataset is not None and run.has("best"):
            with contextlib.suppress(MetagradError):
                sources = run.open_tasks(data_dir=data_dir, device="cpu")
        views.append(view_of(run, run.folder.resolve().name, sources))
    write_page(views, Path(out), follow=True)
    return Path(out)


def view_of(run: Run, label: str, sources: Sources | None, *, busy: Busy = _quietly) -> RunView:
    """Return what a page shows of a run; tasks as pictures if the data are available."""
    lines = _metrics(run)
    state = run.load("best") if run.has("best") else None
    best = None if state is None else state.digest
    judged = None
    # A bilevel problem gives no network that classifies pictures.
    classifies = hasattr(run.experiment.method, "weights") and run.has("best")
    if sources is not None and sources.pictures is not None and classifies:
        with busy("classifying validation tasks"):
            judged = judge_tasks(Learner.of(run), sources)
    calibration = Calibration.of_run(run, best)
    result, step = _result(run, best), None if state is None else state.facts["best_step"]
    return RunView(label, described(run.experiment), run.record, lines, result, calibration, judged, step)


def _metrics(run: Run) -> list[dict[str, Any]]:
    """Return a run's metrics, and warn if they do not match its checkpoint."""
    lines = run.metrics()
    if run.has("last") and (fault := run.metrics_fault(run.load("last"))) is not None:
        warnings.warn(fault, MetagradWarning, stacklevel=2)
    return lines


def write_page(runs: list[RunView], out: Path, *, follow: bool = False, busy: Busy = _quietly) -> None:
    """Write the page of these runs; a file that is there is replaced once the new one is whole.

    ``follow``: if ``out`` is a link, replace the file that it points to; for a path that the user gave.
    """

    def refused(error: OSError) -> MetagradError:
        return MetagradError(f"cannot write {out} ({error.strerror or error}): choose another --out")

    with busy("writing the page"):
        try:
            text = page(runs)
        except (LookupError, TypeError, ValueError, ArithmeticError, TemplateError) as error:
            which = ", ".join(run.label for run in runs)
            raise MetagradError(
                f"a file of {which} is damaged ({type(error).__name__}: {error}): restore it"
            ) from error
    write_text(out, text, refused=refused, follow=follow)


_GAIN = ("value", "ci95", "gain", "gain_ci95", "tasks")


def _result(run: Run, weights: str | None) -> dict[str, Any]:
    """Return the result of a finished run; an empty one of another run."""
    result = run.read_measured("result.json", weights)
    if result is None:
        return {}
    try:
        protocol = result["protocol"]
        numbers = [result["value"], result["ci95"], result.get("peak_memory_mb", 0)]
        numbers += [result[key][name] for key in ("class_mean",) if key in result for name in _GAIN]
        numbers += [protocol.get(name, 0) for name in ("ways", "shots", "queries")] + [protocol["tasks"]]
        texts = [protocol["dataset"], protocol["split"], result.get("metric", "")]
        if not all(is_number(number) for number in numbers) or not all(isinstance(text, str) for text in texts):
            raise ValueError("a number or a name has another type")
        result["protocol"]["transductive"] = bool(protocol["transductive"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MetagradError(
            f"{run.folder / 'result.json'} is damaged ({in_short(error)}): restore or remove it"
        ) from error
    return result
