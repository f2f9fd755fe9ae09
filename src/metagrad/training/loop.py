"""Meta-training from top to bottom."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metagrad.data import Dataset
from metagrad.errors import MetagradError
from metagrad.fewshot import (
    Algorithm,
    Evaluation,
    Tasks,
    TaskSource,
    Warm,
    evaluate,
    meta_gradient,
    warm_meta_gradient,
)
from metagrad.fewshot.algorithms import AdaptsWeights, summary
from metagrad.fewshot.meta import Chunks, Metrics
from metagrad.implicit import Implicit
from metagrad.ranks import ALONE, Ranks
from metagrad.seeds import Seeds
from metagrad.torch_modes import default_modes
from metagrad.training.arithmetic import arithmetic
from metagrad.training.checkpoint import State
from metagrad.training.config import TrainConfig
from metagrad.training.health import failed, require_finite, warn_dead, warn_digits, warn_noise
from metagrad.training.measure import measure
from metagrad.training.metrics_file import size_of
from metagrad.training.run import Run
from metagrad.training.setup import build, choose_device, learned, samplers
from metagrad.tree import Params

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
def train(
    run: Run,
    dataset: Dataset,
    *,
    resume: bool = False,
    report: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Meta-train as ``run.config`` says; write metrics, checkpoints and the result into the run directory.

    Parameters
    ----------
    resume:
        continue from the run's last checkpoint, bit for bit what an uninterrupted run would have done.
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
    config = run.config
    assert config.meta_steps is not None
    assert config.val_every is not None
    if ranks.world > 1 and config.task_set is not None:
        raise MetagradError("--task-set is for one process: its tasks' solutions are not shared among ranks")
    if ranks.world > config.tasks:
        raise MetagradError(f"{ranks.world} ranks cannot share --tasks {config.tasks}: start fewer, or raise --tasks")
    device = choose_device(config.device)
    train_tasks, val_tasks = samplers(config, dataset, device)
    state: State | None = None
    if resume and ranks.from_first(run.has("last")):  # all that may be wrong with it is found before anything changes
        channels, *_, size = dataset.train.images.shape[1:]
        state = learned(run, "last", channels=channels, size=size, ranks=ranks)
    seeds = run.seeds
    algorithm, model = build(config, dataset, device, seeds)
    unmeasured = _unmeasured(algorithm)
    theta = algorithm.init(model)
    optimizer = torch.optim.Adam(theta.values(), lr=config.outer_lr)
    generator = seeds.generator("tasks", device)
    # The steps since the last logged line are part of the state: a resumed run logs the same averages.
    window: list[dict[str, float]] = []
    progress: dict[str, Any] = {
        "step": 0, "best_accuracy": -1.0, "best_step": 0, "seconds": 0.0, "cpu_seconds": 0.0, "window": window,
    }  # fmt: skip
    if state is not None:
        _restore(state, theta, optimizer, generator, seeds)
        progress = state.facts
        window = progress["window"]
    if resume:
        run.rewind(state)

    if state is None:
        some = train_tasks(min(2, config.tasks), generator=seeds.generator("tasks", device))
        warn_digits(config, algorithm, model, theta, some, ranks)
    fixed: Tasks | None = None
    if config.task_set is not None:  # the same whenever the run is opened
        fixed = train_tasks(config.task_set, generator=seeds.generator("task set", device))
    warm: Warm | None = _warm_of(state, device) if state is not None and fixed is not None else None

    def now(draws: Tensor) -> State:
        ends = {} if warm is None else {f"warm/{part}/{key}": leaf for part in ("phi", "u")
                                        for key, leaf in getattr(warm, part).items()}  # fmt: skip
        return State(_pack(theta, optimizer) | {"generator": draws} | ends, progress)

    good: tuple[State, int] | None = None  # and the size that metrics.jsonl had
    chunk: Chunks | int | Literal["auto"] = config.chunk or "auto"
    began, saved = time.monotonic() - progress["seconds"], time.monotonic()
    worked = time.process_time() - progress.get("cpu_seconds", progress["seconds"])
    while progress["step"] < config.meta_steps:
        draws = generator.get_state()
        tasks = fixed or train_tasks(config.tasks, generator=generator).part(*ranks.mine(config.tasks))
        ended = warm  # a checkpoint of this step begins where this step did
        try:
            with arithmetic(config.precision, device):
                if fixed is None:
                    logged = (progress["step"] + 1) % LOG_EVERY == 0 or progress["step"] + 1 == config.meta_steps
                    metrics = meta_gradient(algorithm if logged else unmeasured, model, theta, tasks, chunk=chunk)
                else:
                    assert isinstance(algorithm, AdaptsWeights)
                    metrics, ended = warm_meta_gradient(algorithm, model, theta, tasks, warm, chunk=config.chunk)
            chunk = metrics.chunks  # what fits into memory, should the first choice not have
            share = 1.0 if fixed is not None else len(tasks) / config.tasks
            numbers, asked = _over_ranks(ranks, theta, share, _numbers(metrics), stop())
            require_finite(numbers, theta)
        except (MetagradError, torch.linalg.LinAlgError) as error:
            raise _failed(run, progress["step"] + 1, error, good) from error
        # Saved before the update: these weights have just given a finite gradient, the updated ones may not.
        if asked or time.monotonic() - saved > config.checkpoint_seconds:
            run.save("last", now(draws))
            saved = time.monotonic()
        if asked:
            return Outcome(progress["step"], None)
        good = now(draws).copied(), size_of(run.metrics_path)  # to fall back to, should the update lead nowhere

        step, warm = progress["step"] + 1, ended
        for group in optimizer.param_groups:
            group["lr"] = _outer_lr(config, step)
        optimizer.step()
        optimizer.zero_grad()
        window.append(numbers)
        progress.update(step=step, seconds=time.monotonic() - began, cpu_seconds=time.process_time() - worked)

        if step % LOG_EVERY == 0 or step == config.meta_steps:
            times = {name: round(progress[name], 2) for name in ("seconds", "cpu_seconds")}
            line = {"step": step, **_mean(window), **summary(theta), **times}
            warn_noise(config, progress, line, ranks)
            run.append("metrics.jsonl", line)
            report(Event(step, config.meta_steps, line))
            window.clear()
        if step % config.val_every == 0 or step == config.meta_steps:
            try:
                found = _validate(algorithm, model, theta, val_tasks, run, ranks)
            except (MetagradError, torch.linalg.LinAlgError) as error:
                raise _failed(run, step, error, good) from error
            line = {"step": step, "val_accuracy": found.accuracy, "val_ci95": found.ci95, "val_loss": found.loss}
            run.append("metrics.jsonl", line)
            report(Event(step, config.meta_steps, line, theta))
            warn_dead(config, progress, found, ranks)
            if found.accuracy > progress["best_accuracy"]:
                progress.update(best_accuracy=found.accuracy, best_step=step)
                run.save("best", State({f"theta/{key}": leaf for key, leaf in theta.items()}, progress))
    run.save("last", now(generator.get_state()))
    return Outcome(config.meta_steps, _finish(run, dataset, progress, report, stop, ranks))


class _StoppedError(Exception):
    """The final test was asked to stop; the training is complete and saved."""


def _warm_of(state: State, device: torch.device) -> Warm | None:
    """Return where the tasks of a set ended, if the checkpoint knows."""
    parts: dict[str, Params] = {"phi": {}, "u": {}}
    for name, leaf in state.tensors.items():
        if name.startswith("warm/"):
            _, part, key = name.split("/", 2)
            parts[part][key] = leaf.to(device)
    return Warm(parts["phi"], parts["u"]) if parts["phi"] else None


def _unmeasured(algorithm: Algorithm) -> Algorithm:
    """Return the method without the product that measures its linear solve: one step in ten says how good that is."""
    adjoint = getattr(algorithm, "adjoint", None)
    if not isinstance(adjoint, Implicit):
        return algorithm
    kept: Any = algorithm  # a frozen dataclass, as every method with an adjoint is
    return replace(kept, adjoint=replace(adjoint, measure=False))


def _outer_lr(config: TrainConfig, step: int) -> float:
    if config.schedule == "constant":
        return config.outer_lr
    assert config.meta_steps is not None
    return config.outer_lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - 1) / config.meta_steps)))


def _numbers(metrics: Metrics) -> dict[str, float]:
    """Bring a meta-step's means (of the curvature, the minimum) to the host, in one transfer."""
    numbers = {"loss": metrics.loss, "accuracy": metrics.accuracy.mean(), "grad_norm": metrics.grad_norm.mean()}
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
    method: Algorithm,
    model: nn.Module,
    theta: Params,
    source: TaskSource,
    run: Run,
    ranks: Ranks,
) -> Evaluation:
    # The same tasks every time, and none of the training generator's numbers used up.
    device = next(iter(theta.values())).device
    generator, config = run.seeds.generator("validation", device), run.config
    with arithmetic(config.precision, device):
        return evaluate(method, model, theta, source, tasks=config.val_tasks, generator=generator, ranks=ranks)


def _pack(theta: Params, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {f"theta/{name}": leaf for name, leaf in theta.items()}
    moments = optimizer.state_dict()["state"]
    for index, name in enumerate(theta):
        tensors |= {f"adam/{name}/{key}": value for key, value in moments.get(index, {}).items()}
    return tensors


def _failed(run: Run, step: int, error: Exception, good: tuple[State, int] | None) -> MetagradError:
    """Keep the last state that gave a finite gradient, if there is one; return what to say."""
    if good is not None:
        run.save("last", good[0], logged=good[1])
    return MetagradError(failed(run, step, error))


def _restore(
    state: State, theta: Params, optimizer: torch.optim.Optimizer, generator: torch.Generator, seeds: Seeds
) -> None:
    """Put weights, moments and random state back to where they were."""
    with torch.no_grad():
        for name, leaf in theta.items():
            leaf.copy_(state.tensors[f"theta/{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for index, name in enumerate(theta):
        prefix = f"adam/{name}/"
        moments[index] = {
            key.removeprefix(prefix): value for key, value in state.tensors.items() if key.startswith(prefix)
        }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    draws = state.tensors["generator"]
    if draws.shape == generator.get_state().shape:
        generator.set_state(draws)
    else:  # the run began on another kind of device
        generator.manual_seed(seeds.of("moved", state.facts["step"]))


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
    dataset: Dataset,
    progress: dict[str, Any],
    report: Callable[[Event], None],
    stop: Callable[[], bool],
    ranks: Ranks,
) -> dict[str, Any] | None:
    """Look at the test classes once, with the weights that validation chose; ``None`` if asked to stop."""
    config = run.config
    split, tasks = ("test", config.test_tasks) if config.test_tasks else ("val", 600)

    def tell(done: int, total: int) -> None:
        report(Event(progress["step"], progress["step"], {"tested": done, "of": total}))
        asked = torch.tensor(float(stop()))
        if ranks.sum(asked) > 0:
            raise _StoppedError

    try:
        result = measure(run, dataset, split=split, tasks=tasks, seed=run.test_seed, progress=tell, ranks=ranks)
    except _StoppedError:
        return None
    result |= {
        "meta_steps": config.meta_steps,
        "train_seconds": round(progress["seconds"], 1),
        "peak_memory_mb": round(_peak_bytes() / 2**20),
    }
    run.write_measured("result.json", result, result["weights"])
    return result
