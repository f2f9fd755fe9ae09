"""How long a training will take, from its first meta-steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from metagrad.experiment.experiment import Experiment

_STEPS, _SECONDS = 3, 2.0  # the first meta-steps are slower, so the third is timed; one of two seconds is enough
_TASKS = 8  # of a validation, to see how long one takes


class FirstSteps:
    """Times the first meta-steps and estimates once how long the training takes.

    Parameters
    ----------
    step:
        meta-steps done in earlier sessions.
    judge:
        evaluates the given number of validation tasks; timed too.
    """

    def __init__(self, experiment: Experiment, step: int, judge: Callable[[int], object]) -> None:
        self._experiment, self._first, self._judge = experiment, step, judge
        self._began = self._last = time.monotonic()
        self._said = False

    def after(self, step: int, spent: float) -> dict[str, Any] | None:
        """Return the estimate after the meta-step that is timed for it, and ``None`` after all others.

        Parameters
        ----------
        spent:
            seconds of training, earlier sessions included.
        """
        if self._said:
            return None
        now = time.monotonic()
        each, self._last = now - self._last, now
        steps = self._experiment.meta_steps
        if step - self._first < _STEPS and now - self._began < _SECONDS and step < steps:
            return None
        self._said = True
        tasks = min(_TASKS, self._experiment.budget.val_tasks)
        self._judge(tasks)
        line = expected(self._experiment, step, each, (time.monotonic() - now) / tasks, spent)
        line["steps_left"] = steps - self._first  # with the steps that were timed
        self._last = time.monotonic()
        return line


def expected(experiment: Experiment, step: int, each: float, judging: float, spent: float) -> dict[str, Any]:
    """Estimate the work that is left after a meta-step.

    Parameters
    ----------
    each, judging:
        seconds of a meta-step, and of evaluating one task.
    spent:
        seconds of training so far.

    Returns
    -------
    dict
        ``steps_left``; ``seconds_left``, with validations and the test; ``minutes``, the limit by the clock if that
        ends the training, otherwise ``None``; ``seconds_of_steps``, what all the meta-steps would take.
    """
    budget, left = experiment.budget, experiment.meta_steps - step
    validations = experiment.meta_steps // experiment.val_every - step // experiment.val_every
    training = left * each + max(1, validations) * budget.val_tasks * judging
    test = (budget.test_tasks or 600) * judging
    limit = None if budget.minutes is None else 60 * budget.minutes - spent
    cut = limit is not None and training > limit
    return {
        "steps_left": left,
        "seconds_left": (max(0.0, limit) if limit is not None and cut else training) + test,
        "minutes": budget.minutes if cut else None,
        "seconds_of_steps": training + test,
    }


def in_words(line: dict[str, Any], meta_steps: int) -> str:
    """Return an estimate of :func:`expected` as a sentence.

    Examples
    --------
    >>> in_words({"steps_left": 500, "seconds_left": 170.0, "minutes": None, "seconds_of_steps": 170.0}, 500)
    '500 meta-steps, validation and test take about 2.8 minutes'
    >>> in_words({"steps_left": 9997, "seconds_left": 3610.0, "minutes": 60.0, "seconds_of_steps": 79000.0}, 10_000)
    'training stops after 60 minutes (--minutes); all 10,000 meta-steps would take about 22 hours'
    """
    if line["minutes"] is not None:
        limit = f"{line['minutes']:g} minute{'s' * (line['minutes'] != 1)}"
        every = f"all {meta_steps:,} meta-steps would take {duration(line['seconds_of_steps'])}"
        return f"training stops after {limit} (--minutes); {every}"
    some = f"{meta_steps:,}" if line["steps_left"] == meta_steps else f"{line['steps_left']:,} more"
    steps = f"meta-step{'s' * (line['steps_left'] != 1)}"
    return f"{some} {steps}, validation and test take {duration(line['seconds_left'])}"


def duration(seconds: float) -> str:
    """Return a duration in words, rounded.

    Examples
    --------
    >>> duration(0.4), duration(47), duration(170), duration(5400), duration(200_000)
    ('about 1 second', 'about 50 seconds', 'about 2.8 minutes', 'about 1.5 hours', 'about 56 hours')
    """
    unit, size = next(pair for pair in _UNITS if seconds < pair[1] * _MOST or pair is _UNITS[-1])
    number = seconds / size
    rough = max(1.0, float(f"{number:.1g}" if unit == "second" else f"{number:.2g}"))
    return f"about {rough:g} {unit}{'s' * (rough != 1)}"


_UNITS = (("second", 1), ("minute", 60), ("hour", 3600), ("day", 86400))
_MOST = 60  # of a unit; above it the next larger unit is used
