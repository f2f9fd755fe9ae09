"""Live progress: a bar on a terminal, occasional lines in a log."""

from __future__ import annotations

import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from metagrad.report.quantities import metric_of, number, with_interval

if TYPE_CHECKING:
    from metagrad.experiment.loop import Event
    from metagrad.experiment.run import Run

_LOG_SECONDS = 15.0


class Screen(Console):
    """The console of all commands. A closed pipe (``| head``) silences it but does not stop the training."""

    def on_broken_pipe(self) -> None:
        """Write nothing from here on."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())

    def write_line(self, text: str) -> None:
        """Print a text as it is, without colours, markup and line breaks of rich's."""
        self.print(text, highlight=False, markup=False, soft_wrap=True)


def data_progress(screen: Screen) -> Any:
    """Return a callback (done, total, what) that shows the preparation of a data set, if it takes a while."""
    last = [time.monotonic()]

    def show(done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if now - last[0] > 2.0 or (done == total and now - last[0] > 0.5):
            last[0] = now
            screen.write_line(f"{what}: {done}/{total}")

    return show


class WorkProgress(Progress):
    """Shows the fraction of a computation that is done and the time left; called with (done, total)."""

    def __init__(self, screen: Screen, what: str) -> None:
        self.screen, self.what = screen, what
        self.began = self.printed = time.monotonic()
        self.first = 0.0
        super().__init__(
            TextColumn(what),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:.0f} %"),
            TimeRemainingColumn(),
            console=screen,
            disable=not screen.is_terminal or screen.quiet,
            transient=True,
            redirect_stdout=False,  # it may be a file, while the bar is on a terminal
        )
        self.task = self.add_task(what, total=None)

    def begin_at(self, done: float) -> None:
        """Set how much was done in an earlier session, which is left out when the time left is computed."""
        self.first, self.began = done, time.monotonic()

    def __call__(self, done: float, total: float) -> None:
        """Show that ``done`` of ``total`` is done."""
        self.update(self.task, completed=done, total=total)
        now = time.monotonic()
        if not self.screen.is_terminal and now - self.printed > _LOG_SECONDS:
            self.printed = now
            left = ""
            if done > self.first:  # before the first step nothing tells how long one takes
                left = f", {_clock((now - self.began) * (total - done) / (done - self.first))} left"
            self.screen.write_line(f"{self.what}: {100 * done / total:.0f} % done{left}")
            self.screen.file.flush()


class QueueProgress:
    """Shows which of several runs is trained or tested, and prints its validations."""

    def __init__(self, screen: Screen) -> None:
        self._screen, self._name = screen, ""
        self._bar: WorkProgress | None = None

    def __enter__(self) -> QueueProgress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)

    def __call__(self, name: str, event: Event) -> None:
        """Show an event of the run of this name."""
        if "tested" in event.line:
            self._show(f"{name}, test", event.line["tested"], event.line["of"])
            return
        self._show(name, event.step, event.meta_steps)
        if "val_accuracy" in event.line:
            line = f"{name}, meta-step {event.step}: validation {event.line['val_accuracy']:.1%}"
            self._screen.write_line(f"{line} ± {event.line['val_ci95']:.1%}")
        elif "seconds_left" in event.line:
            from metagrad.experiment.estimate import in_words  # which loads torch

            self._screen.write_line(f"{name}, {in_words(event.line, event.meta_steps)}")

    def _show(self, what: str, done: float, total: float) -> None:
        if what != self._name:
            self.__exit__()
            self._name, self._bar = what, WorkProgress(self._screen, what).__enter__()
            self._bar.begin_at(done)
        assert self._bar is not None
        self._bar(done, total)


class TrainProgress(Progress):
    """Shows meta-steps, rate, time left, and the metric on training and validation tasks.

    Parameters
    ----------
    first_step:
        meta-steps done in earlier sessions.
    chance:
        accuracy of guessing, to compare with the first validation; ``None`` where it is not known.
    minutes:
        time limit of the training, over all sessions; ``None``: none.
    verbose:
        also show diagnostics of the inner solve and of the linear solve.
    """

    def __init__(
        self,
        screen: Screen,
        *,
        first_step: int,
        meta_steps: int,
        chance: float | None = None,
        minutes: float | None = None,
        verbose: bool = False,
    ) -> None:
        self.screen, self.meta_steps, self.chance, self.verbose = screen, meta_steps, chance, verbose
        self.limit = math.inf if minutes is None else 60 * minutes
        self.began, self.first_step, self.printed = time.monotonic(), first_step, 0.0
        self.validation = ""
        digits = len(str(meta_steps))
        # On a narrow terminal the text at the end is cut, not the count, the rate and the time left.
        cut = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        super().__init__(
            TextColumn("[bold]{task.completed:.0f}[/]/{task.total:.0f}", table_column=_whole(2 * digits + 1)),
            BarColumn(bar_width=20 if screen.width >= 110 else 6),
            TextColumn("{task.fields[rate]:.1f}/s", table_column=_whole(5)),
            TextColumn("{task.fields[left]}", table_column=_whole(7)),
            TextColumn("{task.fields[text]}", markup=False, table_column=cut),
            console=screen,
            disable=not screen.is_terminal or screen.quiet,
        )
        self.task = self.add_task("train", total=meta_steps, completed=first_step, rate=0.0, left="-:--:--", text="")

    @classmethod
    def of(cls, run: Run, screen: Screen, *, first_step: int, verbose: bool) -> TrainProgress:
        """Return the progress of a run, with its chance and its limits."""
        steps, minutes, episodes = run.experiment.meta_steps, run.experiment.budget.minutes, run.episodes
        chance = None if episodes is None else 1 / episodes.ways
        return cls(screen, first_step=first_step, meta_steps=steps, chance=chance, minutes=minutes, verbose=verbose)

    def __call__(self, event: Event) -> None:
        """Show one logged line."""
        line = event.line
        if "tested" in line:
            self.update(self.task, text=f"testing: {line['tested']} of {line['of']} tasks")
        elif "seconds_left" in line:
            from metagrad.experiment.estimate import in_words  # which loads torch

            self._log(in_words(line, event.meta_steps))
        elif "init" in line:
            self.screen.write_line("\n".join(line["init"]))
        elif "val_ci95" in line:
            metric = metric_of(line)
            score = with_interval(metric, line[f"val_{metric}"], line["val_ci95"])
            compared = f" (chance {100 * self.chance:.3g} %)" if self.chance and metric == "accuracy" else ""
            shown = f"validation {metric.replace('_', ' ')} {score}"
            self._log(f"step {event.step}/{self.meta_steps}: {shown}{'' if self.validation else compared}")
            self.validation = f"  {shown}"
        else:
            self._show_step(event.step, describe(line, verbose=self.verbose), line.get("seconds", 0.0))

    def _show_step(self, step: int, text: str, spent: float) -> None:
        now = time.monotonic()
        rate = (step - self.first_step) / (now - self.began) if now > self.began else 0.0
        left = _clock(max(0.0, min((self.meta_steps - step) / max(rate, 1e-9), self.limit - spent)))
        self.update(self.task, completed=step, rate=rate, left=left, text=f"{text}{self.validation}")
        if not self.screen.is_terminal and now - self.printed > _LOG_SECONDS:
            self.printed = now
            self._log(f"step {step}/{self.meta_steps}: {text}  ({rate:.1f} steps/s, {left} left)")

    def _log(self, text: str) -> None:
        self.screen.write_line(text)
        sys.stdout.flush()


def _whole(width: int) -> Column:
    return Column(no_wrap=True, min_width=width)


def describe(line: dict[str, Any], *, verbose: bool = False) -> str:
    """Return a line of metrics in words: the metric on training tasks.

    ``verbose`` adds how accurately the inner problems and the linear systems were solved, and what else is learned.
    """
    metric = metric_of(line)
    text = f"training {metric.replace('_', ' ')} {number(metric, line[metric])}"
    if not verbose:
        return text
    text += f"  inner gradient norm {line['grad_norm']:.2g}"
    for name, called in (("residual", "linear residual"), ("min_curvature", "smallest curvature")):
        if name in line:
            text += f"  {called} {line[name]:.2g}"
    if line.get("stopped"):
        text += f"  stopped at negative curvature {100 * line['stopped']:.0f} %"
    for name in ("lam", "lr"):
        if name in line:
            text += f"  {name} {line[name]:.3g}"
        if f"{name}_min" in line:
            text += f" ({line[f'{name}_min']:.2g} to {line[f'{name}_max']:.2g})"
    return text


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
