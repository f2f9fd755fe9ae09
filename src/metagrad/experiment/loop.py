"""Meta-training from top to bottom."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from metagrad.distributed import ALONE, Ranks
from metagrad.errors import MetagradError
from metagrad.experiment.checkpoint import State
from metagrad.experiment.diagnostics import failed, require_finite, warn_dead, warn_digits, warn_noise
from metagrad.experiment.init import Weights, begin_at
from metagrad.experiment.measure import measure
from metagrad.experiment.metrics_file import size_of
from metagrad.experiment.outer import OuterState, lr_at
from metagrad.experiment.precision import arithmetic
from metagrad.experiment.setup import build_for, learned
from metagrad.experiment.sources import Sources
from metagrad.fewshot import Algorithm, Evaluation, evaluate, meta_gradient
from metagrad.fewshot.algorithms import summary
from metagrad.fewshot.chunks import Chunks
from metagrad.fewshot.meta import Metrics
from metagrad.fewshot.task_set import Warm
from metagrad.implicit import Implicit
from metagrad.torch_modes import default_modes
from metagrad.tree import Params

if TYPE_CHECKING:
    from metagrad.experiment.run import Run

LOG_EVERY = 10  # meta-steps averaged into one line of metrics.jsonl


@dataclass(frozen=True)
class Event:
    """What the loop tells whoever watches, after ``step`` of ``meta_steps``.

    ``line`` is a line of ``metrics.jsonl`` (averages over steps, or a validation), or ``tested`` ``of`` so many tasks.
    With a validation comes ``theta``, the weights that were validated.
    """

    step: int
    meta_steps: int
    line: dict[str, Any]
    theta: Params | None = None


@dataclass(frozen=True)
class Outcome:
    """How training ended: the result written to ``result.json``, or ``None`` where it was asked to stop."""

    step: int
    result: dict[str, Any] | None


@default_modes()
def train_run(
    run: Run,
    sources: Sources,
    *,
    resume: bool = False,
    init: Weights | None = None,
    report: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Meta-train as ``run.experiment`` says; write metrics, checkpoints and the result into the run directory.

    Parameters
    ----------
    sources:
        the experiment's tasks, opened.
    resume:
        continue from the run's last checkpoint, bit for bit what an uninterrupted run would have done.
    init:
        weights to begin at; a checkpoint goes before them.
    report:
        called with every logged line.
    stop:
        asked after every meta-step; if it says yes (on any rank), the state is saved and training returns.
    ranks:
        the processes that share each meta-step's tasks; the same tasks and the same sums whatever their number.

    Raises
    ------
    MetagradError
        for a loss that is not finite or beyond all measure, a full disk, more ranks than tasks, or a rank that is gone;
        the state before the step that failed is saved then.
    """
    experiment, fixed, count = run.experiment, sources.fixed, run.experiment.budget.tasks_per_step
    _require_ranks(ranks, sources, count)
    saved_state: State | None = None
    if resume and ranks.from_first(run.has("last")):  # all that may be wrong with it is found before anything changes
        saved_state = learned(run, "last", inputs=sources.inputs, outputs=sources.outputs, ranks=ranks)
    method, model = build_for(run, sources)
    unmeasured = _unmeasured(method)
    state = OuterState(experiment, method.init(model), run.seeds.generator("tasks", sources.draws_on), fixed)
    if saved_state is not None:
        state.restore(saved_state, run.seeds.generator("moved", sources.draws_on, saved_state.facts["step"]))
    if resume:
        run.rewind(saved_state)
    theta, generator, progress = state.theta, state.generator, state.progress
    window: list[dict[str, float]] = progress["window"]
    if init is not None and saved_state is None:
        taken = begin_at(state.theta, init.weights, init.where)
        state.begin_average()
        report(Event(0, experiment.meta_steps, {"init": taken.told()}))
        run.save("last", state.now(generator.get_state()))  # whoever resumes need not have those weights
    if saved_state is None:
        some = sources.train(min(2, count), generator=run.seeds.generator("tasks", sources.draws_on))
        warn_digits(experiment, method, model, theta, some, ranks)

    good: tuple[State, int] | None = None  # and the size that metrics.jsonl had
    chunk: Chunks | int | Literal["auto"] = experiment.compute.chunk or "auto"
    began, saved = time.monotonic() - progress["seconds"], time.monotonic()
    worked = time.process_time() - progress.get("cpu_seconds", progress["seconds"])
    while state.step < experiment.meta_steps and not _is_over(experiment.budget.minutes, progress["seconds"]):
        draws = generator.get_state()
        logged = (state.step + 1) % LOG_EVERY == 0 or state.step + 1 == experiment.meta_steps
        ends: Warm | None = None
        try:
            with arithmetic(experiment.compute.precision, sources.device):
                if fixed is not None:
                    metrics, ends = fixed.gradient(method, model, theta, chunk=experiment.compute.chunk)
                    share = 1.0
                else:
                    tasks = sources.train(count, generator=generator)
                    tasks = tasks.part(*ranks.mine(count)) if ranks.world > 1 else tasks
                    metrics = meta_gradient(method if logged else unmeasured, model, theta, tasks, chunk=chunk)
                    share = len(metrics.score) / count
            chunk = metrics.chunks  # what fits into memory, should the first choice not have
            numbers, asked = _over_ranks(ranks, theta, share, _numbers(metrics), stop())
            require_finite(numbers, theta)
        except (MetagradError, torch.linalg.LinAlgError) as error:
            raise _failed(run, state.step + 1, error, good) from error
        # Saved before the update: these weights have just given a finite gradient, the updated ones may not.
        if asked or time.monotonic() - saved > experiment.budget.checkpoint_seconds:
            run.save("last", state.now(draws))
            saved = time.monotonic()
        if asked:
            return Outcome(state.step, None)
        good = state.now(draws).copied(), size_of(run.metrics_path)  # to fall back to, should the update lead nowhere

        step = state.step + 1
        state.update(lr_at(experiment, step, progress["seconds"]))
        if fixed is not None:
            fixed.warm = ends
        window.append(numbers)
        progress.update(step=step, seconds=time.monotonic() - began, cpu_seconds=time.process_time() - worked)
        over = step == experiment.meta_steps or _is_over(experiment.budget.minutes, progress["seconds"])

        if step % LOG_EVERY == 0 or over:
            times = {name: round(progress[name], 2) for name in ("seconds", "cpu_seconds")}
            line = {"step": step, **_mean(window), **summary(theta), **times}
            warn_noise(experiment, progress, line, ranks)
            run.append("metrics.jsonl", line)
            report(Event(step, experiment.meta_steps, line))
            window.clear()
        if step % experiment.val_every == 0 or over:
            try:
                found = _validate(method, model, state.judged, sources, run, ranks)
            except (MetagradError, torch.linalg.LinAlgError) as error:
                raise _failed(run, step, error, good) from error
            name = f"val_{found.metric.replace(' ', '_')}"
            line = {"step": step, name: found.score, "val_ci95": found.ci95, "val_loss": found.loss}
            run.append("metrics.jsonl", line)
            report(Event(step, experiment.meta_steps, line, state.judged))
            warn_dead(sources.outputs, progress, found, ranks)
            better = found.score if found.metric == "accuracy" else -found.loss
            if progress["best_score"] is None or better > progress["best_score"]:
                progress.update(best_score=better, best_step=step)
                run.save("best", state.best())
    run.save("last", state.now(generator.get_state()))
    return Outcome(state.step, _finish(run, sources, progress, report, stop, ranks))


def _require_ranks(ranks: Ranks, sources: Sources, tasks: int) -> None:
    if ranks.world > 1 and sources.fixed is not None:
        raise MetagradError("--task-set is for one process: its tasks' solutions are not shared among ranks")
    if ranks.world > tasks:
        raise MetagradError(f"{ranks.world} ranks cannot share --tasks {tasks}: start fewer, or raise --tasks")


def _is_over(minutes: float | None, seconds: float) -> bool:
    return minutes is not None and seconds >= 60 * minutes


class _StoppedError(Exception):
    """The final test was asked to stop; the training is complete and saved."""


def _unmeasured(algorithm: Algorithm) -> Algorithm:
    """Return the method without the product that measures its linear solve: one step in ten says how good that is."""
    adjoint = getattr(algorithm, "adjoint", None)
    if not isinstance(adjoint, Implicit):
        return algorithm
    kept: Any = algorithm  # a frozen dataclass, as every method with an adjoint is
    return replace(kept, adjoint=replace(adjoint, measure=False))


def _numbers(metrics: Metrics) -> dict[str, float]:
    """Bring a meta-step's means (of the curvature, the minimum) to the host, in one transfer."""
    score = metrics.metric.replace(" ", "_")
    numbers = {"loss": metrics.loss, score: metrics.score.mean(), "grad_norm": metrics.grad_norm.mean()}
    numbers["inner_steps"] = metrics.steps.float().mean().to(metrics.loss.device)
    if metrics.residual is not None:
        numbers["residual"] = metrics.residual.mean()
    if metrics.min_curvature is not None:
        numbers["min_curvature"] = metrics.min_curvature.min()
    if metrics.max_curvature is not None:
        numbers["max_curvature"] = metrics.max_curvature.mean()
    if metrics.stopped is not None:
        numbers["stopped"] = metrics.stopped.float().mean()
    for name, bound in (("delta", metrics.delta), ("delta_prime", metrics.delta_prime)):
        if bound is not None:
            numbers[name if bound.certain else f"{name}_at_least"] = bound.value.mean()
    return dict(zip(numbers, torch.stack([value.float() for value in numbers.values()]).tolist(), strict=True))


def _over_ranks(
    ranks: Ranks, theta: Params, share: float, numbers: dict[str, float], asked: bool
) -> tuple[dict[str, float], bool]:
    """Average gradients and numbers over ranks, each weighted by its share of the tasks, in one message."""
    if ranks.world == 1:
        return numbers, asked
    lowest = numbers.get("min_curvature", 0.0)
    means = {name: value for name, value in numbers.items() if name != "min_curvature"}
    slots = [lowest if rank == ranks.rank else 0.0 for rank in range(ranks.world)]  # a minimum by way of a sum
    message = [*(value * share for value in means.values()), float(asked), *slots]
    device = next(iter(theta.values())).device
    summed = ranks.sum_gradients(theta, share, torch.tensor(message, device=device)).tolist()
    found = dict(zip(means, summed, strict=False))
    if "min_curvature" in numbers:
        found["min_curvature"] = min(summed[len(means) + 1 :])
    return found, summed[len(means)] > 0


def _mean(window: list[dict[str, float]]) -> dict[str, float]:
    """Average a window of steps, each number over those that have it; of the curvature, the smallest counts."""
    names = {name: None for entry in window for name in entry}
    several = {name: [entry[name] for entry in window if name in entry] for name in names}
    line = {name: sum(values) / len(values) for name, values in several.items()}
    if "min_curvature" in line:
        line["min_curvature"] = min(several["min_curvature"])
    # A mean that is infinite is that of bounds there are none of.
    return {name: float(f"{value:.6g}") for name, value in line.items() if math.isfinite(value)}


def _validate(
    method: Algorithm, model: nn.Module, theta: Params, sources: Sources, run: Run, ranks: Ranks
) -> Evaluation:
    # The same tasks every time, and none of the training generator's numbers used up.
    generator, experiment = run.seeds.generator("validation", sources.draws_on), run.experiment
    with arithmetic(experiment.compute.precision, sources.device):
        return evaluate(
            method, model, theta, sources.val, tasks=experiment.budget.val_tasks, generator=generator, ranks=ranks
        )


def _failed(run: Run, step: int, error: Exception, good: tuple[State, int] | None) -> MetagradError:
    """Keep the last state that gave a finite gradient, if there is one; return what to say."""
    if good is not None:
        run.save("last", good[0], logged=good[1])
    return MetagradError(failed(run, step, error))


def _peak_bytes() -> int:
    """Return the most memory that this process has had."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _finish(
    run: Run,
    sources: Sources,
    progress: dict[str, Any],
    report: Callable[[Event], None],
    stop: Callable[[], bool],
    ranks: Ranks,
) -> dict[str, Any] | None:
    """Look at the test classes once, with the weights that validation chose; ``None`` if asked to stop."""
    asked = run.experiment.budget.test_tasks
    split, tasks = ("test", asked) if asked else ("val", 600)

    def tell(done: int, total: int) -> None:
        report(Event(progress["step"], progress["step"], {"tested": done, "of": total}))
        asked = torch.tensor(float(stop()))
        if ranks.sum(asked) > 0:
            raise _StoppedError

    try:
        result = measure(run, sources, split=split, tasks=tasks, seed=run.test_seed, progress=tell, ranks=ranks)
    except _StoppedError:
        return None
    result |= {
        "meta_steps": progress["step"],
        "train_seconds": round(progress["seconds"], 1),
        "peak_memory_mb": round(_peak_bytes() / 2**20),
    }
    run.write_measured("result.json", result, result["weights"])
    return result
