"""Live progress: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from metagrad.report.quantities import metric_of, number

if TYPE_CHECKING:
    from metagrad.experiment.loop import Event

_LOG_SECONDS = 15.0


class Screen(Console):
    """What commands print on. A closed pipe (``| head``) silences it but does not stop it: the training goes on."""

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
    """Shows how much of a computation is done and the time left; called with (done, total)."""

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
        """Say how much was done before: it tells nothing of the time left."""
        self.first, self.began = done, time.monotonic()

    def __call__(self, done: float, total: float) -> None:
        """Show that ``done`` of ``total`` is done."""
        self.update(self.task, completed=done, total=total)
        now = time.monotonic()
        if not self.screen.is_terminal and now - self.printed > _LOG_SECONDS:
            self.printed = now
            left = (now - self.began) * (total - done) / max(done - self.first, 1e-9)
            self.screen.write_line(f"{self.what}: {done / total:.0%}, {_clock(left)} left")
            self.screen.file.flush()


class TrainProgress(Progress):
    """Shows meta-steps, rate, time left and what the gradient is worth."""

    def __init__(self, screen: Screen, *, first_step: int, meta_steps: int) -> None:
        self.screen, self.meta_steps = screen, meta_steps
        self.began, self.first_step, self.printed = time.monotonic(), first_step, 0.0
        self.validation = ""
        digits = len(str(meta_steps))
        # On a narrow terminal the text at the end is cut, not the count, the rate and the time left.
        cut = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        super().__init__(
            TextColumn("[bold]{task.completed:.0f}[/]/{task.total:.0f}", table_column=_whole(2 * digits + 1)),
            BarColumn(bar_width=20 if screen.width >= 110 else 6),
            TextColumn("{task.fields[rate]:.1f}/s", table_column=_whole(5)),
            TimeRemainingColumn(table_column=_whole(7)),
            TextColumn("{task.fields[text]}", markup=False, table_column=cut),
            console=screen,
            disable=not screen.is_terminal or screen.quiet,
        )
        self.task = self.add_task("train", total=meta_steps, completed=first_step, rate=0.0, text="")

    def __call__(self, event: Event) -> None:
        """Show one logged line."""
        line = event.line
        if "tested" in line:
            self.update(self.task, text=f"testing: task {line['tested']} of {line['of']}")
        elif "seconds_left" in line:
            from metagrad.experiment.estimate import in_words  # which loads torch

            self._log(in_words(line, event.meta_steps))
        elif "init" in line:
            self.screen.write_line("\n".join(line["init"]))
        elif "val_ci95" in line:
            metric = metric_of(line)
            score = f"{number(metric, line[f'val_{metric}'])} ±{number(metric, line['val_ci95'], 2)}"
            self.validation = f"val {score}"
            prefix = "" if metric == "accuracy" else f"{metric.replace('_', ' ')} "
            self._log(f"step {event.step}: validation {prefix}{score}")
        else:
            self._show_step(event.step, describe(line))

    def _show_step(self, step: int, text: str) -> None:
        now = time.monotonic()
        rate = (step - self.first_step) / (now - self.began) if now > self.began else 0.0
        self.update(self.task, completed=step, rate=rate, text=f"{text} {self.validation}")
        if not self.screen.is_terminal and now - self.printed > _LOG_SECONDS:
            self.printed = now
            left = (self.meta_steps - step) / max(rate, 1e-9)
            self._log(f"step {step}/{self.meta_steps} {rate:.1f}/s {_clock(left)} left  {text}")

    def _log(self, text: str) -> None:
        self.screen.write_line(text)
        sys.stdout.flush()


def _whole(width: int) -> Column:
    return Column(no_wrap=True, min_width=width)


def describe(line: dict[str, Any]) -> str:
    """Say in a few words what a metrics line says: the metric, and how well both systems were solved."""
    metric = metric_of(line)
    called = "acc" if metric == "accuracy" else metric.replace("_", " ")
    text = f"query {called} {number(metric, line[metric])}  inner grad {line['grad_norm']:.2g}"
    for name, said in (("residual", "residual"), ("min_curvature", "curvature seen")):
        if name in line:
            text += f"  {said} {line[name]:.2g}"
    if line.get("stopped"):
        text += f"  stopped early {line['stopped']:.0%}"
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
