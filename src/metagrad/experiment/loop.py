"""Meta-training from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from metagrad.distributed import ALONE, Ranks
from metagrad.errors import MetagradError
from metagrad.experiment.checkpoint import State
from metagrad.experiment.diagnostics import failure, require_finite, warn_dead, warn_noise, warn_precision
from metagrad.experiment.estimate import FirstSteps
from metagrad.experiment.final_test import final_test
from metagrad.experiment.init import Weights, copy_weights
from metagrad.experiment.metrics_file import size_of
from metagrad.experiment.outer import OuterState, lr_at
from metagrad.experiment.precision import precision_context
from metagrad.experiment.run import Run
from metagrad.experiment.setup import build_for, learned
from metagrad.experiment.sources import Sources
from metagrad.experiment.whitening import begin_layer
from metagrad.fewshot import Algorithm, Evaluation, evaluate, meta_gradient
from metagrad.fewshot.algorithms import summary
from metagrad.fewshot.chunks import Chunks
from metagrad.fewshot.meta import Metrics
from metagrad.fewshot.task_set import Warm
from metagrad.implicit import Implicit
from metagrad.torch_modes import default_modes
from metagrad.tree import Params

LOG_EVERY = 10  # meta-steps averaged into one line of metrics.jsonl


@dataclass(frozen=True)
class Event:
    """A report of the loop after ``step`` of ``meta_steps``.

    ``line`` is a line of ``metrics.jsonl`` (averages over steps, or a validation); once, after a few meta-steps, the
    time left as :func:`metagrad.experiment.estimate.expected` returns it; ``{"tested": ..., "of": ...}`` during the
    final test. A validation also has ``theta``, the weights that were validated.
    """

    step: int
    meta_steps: int
    line: dict[str, Any]
    theta: Params | None = None


@dataclass(frozen=True)
class Outcome:
    """How training ended: the result written to ``result.json``, or ``None`` if ``stop`` ended it."""

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
        initial weights; not used where there is a checkpoint.
    report:
        called with every logged line.
    stop:
        called after every meta-step; if it returns true (on any rank), training saves its state and returns.
    ranks:
        the processes that share each meta-step's tasks; the same tasks and the same sums whatever their number.

    Raises
    ------
    MetagradError
        for a loss that is not finite or far too large, a full disk, more ranks than tasks, or a rank that is gone; the
        run then keeps the state before the step that failed.
    """
    experiment, budget, fixed = run.experiment, run.experiment.budget, sources.fixed
    _require_ranks(ranks, sources, experiment.tasks_per_step)
    method, model, state = _begin(run, sources, resume, init, report, ranks)
    theta, generator, progress = state.theta, state.generator, state.progress
    unmeasured = _unmeasured(method)
    # The initial weights are validated, once, so that the best weights are no worse.
    begins = state.step == 0 and run.record.get("init") is not None
    if begins and not ranks.from_first(bool(resume and run.has("best") and run.metrics())):
        _keep_best(run, sources, state, _validate(method, model, state.judged, sources, run, ranks), report, ranks)
    # After that validation, which is no part of a meta-step.
    timed = FirstSteps(
        experiment, state.step, lambda count: _validate(method, model, state.judged, sources, run, ALONE, tasks=count)
    )
    good: tuple[State, int] | None = None  # the last state with a finite gradient, and the size of metrics.jsonl then
    chunk: Chunks | int | Literal["auto"] = experiment.compute.chunk or "auto"
    began, saved = time.monotonic() - progress["seconds"], time.monotonic()
    cpu_began = time.process_time() - progress.get("cpu_seconds", progress["seconds"])
    while state.step < experiment.meta_steps and not _is_over(budget.minutes, progress["seconds"]):
        draws, step = generator.get_state(), state.step + 1
        ends: Warm | None = None
        with _failing_at(step, run, good):
            with precision_context(experiment.compute.precision, sources.device):
                if fixed is not None:
                    metrics, ends = fixed.gradient(method, model, theta, chunk=experiment.compute.chunk)
                    share = 1.0
                else:
                    logged = step % LOG_EVERY == 0 or step == experiment.meta_steps
                    tasks, share = _own_tasks(sources, experiment.tasks_per_step, generator, ranks)
                    metrics = meta_gradient(method if logged else unmeasured, model, theta, tasks, chunk=chunk)
            chunk = metrics.chunks  # what fits into memory, if the first choice did not
            numbers, stopping = _over_ranks(ranks, theta, share, _numbers(metrics), stop())
            require_finite(numbers, theta)
        # Saved before the update: these weights have just given a finite gradient, the updated ones may not.
        if stopping or time.monotonic() - saved > budget.checkpoint_seconds:
            run.save("last", state.now(draws))
            saved = time.monotonic()
        if stopping:
            return Outcome(state.step, None)
        good = state.now(draws).copied(), size_of(run.metrics_path)

        state.update(lr_at(experiment, step, progress["seconds"]))
        if fixed is not None:
            fixed.warm = ends
        progress["window"].append(numbers)
        progress.update(step=step, seconds=time.monotonic() - began, cpu_seconds=time.process_time() - cpu_began)
        if ranks.first and (line := timed.after(step, progress["seconds"])) is not None:
            report(Event(step, experiment.meta_steps, line))
        over = step == experiment.meta_steps or _is_over(budget.minutes, progress["seconds"])

        if step % LOG_EVERY == 0 or over:
            _log(run, state, report, ranks)
        if step % experiment.val_every == 0 or over:
            with _failing_at(step, run, good):
                validation = _validate(method, model, state.judged, sources, run, ranks)
            _keep_best(run, sources, state, validation, report, ranks)
    run.save("last", state.now(generator.get_state()))
    at = state.step
    return Outcome(at, final_test(run, sources, progress, lambda line: report(Event(at, at, line)), stop, ranks))


def _require_ranks(ranks: Ranks, sources: Sources, tasks: int) -> None:
    if ranks.world > 1 and sources.fixed is not None:
        raise MetagradError("--task-set is for one process: its tasks' solutions are not shared among ranks")
    if ranks.world > tasks:
        raise MetagradError(f"{ranks.world} ranks cannot share --tasks {tasks}: start fewer, or raise --tasks")


def _begin(
    run: Run, sources: Sources, resume: bool, init: Weights | None, report: Callable[[Event], None], ranks: Ranks
) -> tuple[Algorithm, nn.Module, OuterState]:
    """Return the method, the network and the state to train on: the last checkpoint's, or that of meta-step 0."""
    experiment, checkpoint = run.experiment, None
    if resume and ranks.from_first(run.has("last")):  # refused, if at all, before anything changes
        checkpoint = learned(run, "last", inputs=sources.inputs, outputs=sources.outputs, ranks=ranks)
    if checkpoint is None and init is None and (origin := run.record.get("init")) is not None:
        raise MetagradError(
            f"{run.folder} begins at the weights in {origin}, and has no checkpoint to resume from: move it away, and "
            f"begin again with --init {origin}"
        )
    method, model = build_for(run, sources)
    generator = run.seeds.generator("tasks", sources.draws_on)
    theta = method.init(model)
    if checkpoint is None:
        begin_layer(experiment.network, sources, theta)
    state = OuterState(experiment, theta, generator, sources.fixed)
    if checkpoint is not None:
        state.restore(checkpoint, run.seeds.generator("moved", sources.draws_on, checkpoint.facts["step"]))
    if resume:
        run.rewind(checkpoint)
    if checkpoint is not None:
        return method, model, state
    if init is not None:
        copied = copy_weights(state.theta, init.weights, init.where)
        state.begin_average()
        report(Event(0, experiment.meta_steps, {"init": copied.lines()}))
        run.save("last", state.now(generator.get_state()))  # so that resuming does not need those weights
    few = sources.train(min(2, experiment.tasks_per_step), generator=run.seeds.generator("tasks", sources.draws_on))
    warn_precision(experiment, method, model, state.theta, few, ranks)
    return method, model, state


def _own_tasks(sources: Sources, count: int, generator: torch.Generator, ranks: Ranks) -> tuple[Any, float]:
    """Draw the tasks of a meta-step; return this rank's, and their share of all."""
    tasks = sources.train(count, generator=generator)
    first, end = ranks.mine(count)
    return tasks if ranks.world == 1 else tasks.part(first, end), (end - first) / count


@contextmanager
def _failing_at(step: int, run: Run, good: tuple[State, int] | None) -> Iterator[None]:
    """Add the meta-step and a remedy to an error; save the last state with a finite gradient, if there is one."""
    try:
        yield
    except (MetagradError, torch.linalg.LinAlgError) as error:
        if good is not None:
            run.save("last", good[0], logged=good[1])
        raise MetagradError(failure(run, step, error)) from error


def _log(run: Run, state: OuterState, report: Callable[[Event], None], ranks: Ranks) -> None:
    """Write the averages of the steps since the last such line."""
    progress = state.progress
    times = {name: round(progress[name], 2) for name in ("seconds", "cpu_seconds")}
    line = {"step": state.step, **_mean(progress["window"]), **summary(state.theta), **times}
    warn_noise(run.experiment, progress, line, ranks)
    run.append("metrics.jsonl", line)
    report(Event(state.step, run.experiment.meta_steps, line))
    progress["window"].clear()


def _keep_best(
    run: Run,
    sources: Sources,
    state: OuterState,
    validation: Evaluation,
    report: Callable[[Event], None],
    ranks: Ranks,
) -> None:
    """Log a validation; save its weights if they are the best so far."""
    name = f"val_{validation.metric.replace(' ', '_')}"
    line = {"step": state.step, name: validation.score, "val_ci95": validation.ci95, "val_loss": validation.loss}
    run.append("metrics.jsonl", line)
    report(Event(state.step, run.experiment.meta_steps, line, state.judged))
    if state.step:
        warn_dead(sources.outputs, state.progress, validation, ranks)
    best = state.progress["best_score"]
    score = validation.score if validation.metric == "accuracy" else -validation.loss
    if best is None or score > best:
        state.progress.update(best_score=score, best_step=state.step)
        run.save("best", state.best())


def _is_over(minutes: float | None, seconds: float) -> bool:
    return minutes is not None and seconds >= 60 * minutes


def _unmeasured(algorithm: Algorithm) -> Algorithm:
    """Return the method without the product that measures its linear solve: every tenth step measures it."""
    adjoint = getattr(algorithm, "adjoint", None)
    if not isinstance(adjoint, Implicit):
        return algorithm
    kept: Any = algorithm  # a frozen dataclass, as every method with an adjoint is
    return replace(kept, adjoint=replace(adjoint, measure=False))


def _numbers(metrics: Metrics) -> dict[str, float]:
    """Bring a meta-step's means, and the minimum of the curvature, to the host in one transfer."""
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
    ranks: Ranks, theta: Params, share: float, numbers: dict[str, float], stopping: bool
) -> tuple[dict[str, float], bool]:
    """Average gradients and numbers over ranks, each weighted by its share of the tasks, in one message."""
    if ranks.world == 1:
        return numbers, stopping
    lowest = numbers.get("min_curvature", 0.0)
    means = {name: value for name, value in numbers.items() if name != "min_curvature"}
    slots = [lowest if rank == ranks.rank else 0.0 for rank in range(ranks.world)]  # a minimum by way of a sum
    message = [*(value * share for value in means.values()), float(stopping), *slots]
    device = next(iter(theta.values())).device
    summed = ranks.sum_gradients(theta, share, torch.tensor(message, device=device)).tolist()
    averages = dict(zip(means, summed, strict=False))
    if "min_curvature" in numbers:
        averages["min_curvature"] = min(summed[len(means) + 1 :])
    return averages, summed[len(means)] > 0


def _mean(window: list[dict[str, float]]) -> dict[str, float]:
    """Average a window of steps, each number over the steps that have it; of the curvature, take the minimum."""
    # The latest entry first: those of a checkpoint are sorted by name, and the order says which one is the metric.
    names = {name: None for entry in reversed(window) for name in entry}
    several = {name: [entry[name] for entry in window if name in entry] for name in names}
    line = {name: sum(values) / len(values) for name, values in several.items()}
    if "min_curvature" in line:
        line["min_curvature"] = min(several["min_curvature"])
    # A bound is infinite where there is none.
    return {name: float(f"{value:.6g}") for name, value in line.items() if math.isfinite(value)}


def _validate(
    method: Algorithm,
    model: nn.Module,
    theta: Params,
    sources: Sources,
    run: Run,
    ranks: Ranks,
    *,
    tasks: int | None = None,
) -> Evaluation:
    # The same tasks every time; the training generator does not move.
    generator, experiment = run.seeds.generator("validation", sources.draws_on), run.experiment
    with precision_context(experiment.compute.precision, sources.device):
        count = experiment.budget.val_tasks if tasks is None else tasks
        return evaluate(method, model, theta, sources.val, tasks=count, generator=generator, ranks=ranks)
