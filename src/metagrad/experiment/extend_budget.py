"""Raise the budget of an existing run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from metagrad.errors import MetagradError

if TYPE_CHECKING:
    from metagrad.experiment.run import Run


def raise_meta_steps(run: Run, steps: int) -> None:
    """Give a run more meta-steps.

    Raises
    ------
    MetagradError
        for fewer steps than it has.
    """
    planned = run.experiment.meta_steps
    if steps < planned:
        raise MetagradError(f"--meta-steps {steps} is below the run's {planned}: it can only be raised")
    if steps != planned:
        _write(run, "meta_steps", steps)


def raise_minutes(run: Run, minutes: float) -> None:
    """Give a run more time by the clock.

    Raises
    ------
    MetagradError
        for less than it has.
    """
    planned = run.experiment.budget.minutes
    if planned is None or minutes < planned:
        limit = "no limit" if planned is None else f"{planned:g}"
        raise MetagradError(f"--minutes {minutes:g} is below the run's {limit}: it can only be raised")
    if minutes != planned:
        _write(run, "minutes", minutes)


def _write(run: Run, name: str, value: Any) -> None:
    """Change a field of the run's budget, and write it down."""
    run.experiment = replace(run.experiment, budget=replace(run.experiment.budget, **{name: value}))
    flat = run.record["format"] == 1
    written = run.record["config"] if flat else run.record["experiment"]["budget"]
    written[name] = value
    run.write_json("config.json", run.record)
