"""One meta-gradient over many tasks, chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metagrad.errors import NotFiniteDataError, NotFiniteError, is_out_of_memory
from metagrad.fewshot import module_lock
from metagrad.fewshot.algorithms.base import Algorithm, MetaLoss
from metagrad.fewshot.chunks import Chunks, auto_chunks, halved, warn_smaller_chunk
from metagrad.fewshot.task_losses import HasMetric
from metagrad.fewshot.tasks import Tasks, groups_of
from metagrad.implicit import Bound, host
from metagrad.torch_modes import ordinary, recording
from metagrad.tree import Params


@dataclass(frozen=True)
class Metrics(HasMetric):
    """What a meta-step measured, one entry per task, detached; linear-solve entries ``None`` without a solve.

    Tasks are in the order in which they were given; those of several groups one group after the other.

    Attributes
    ----------
    loss:
        scalar, mean query loss.
    score, grad_norm, steps:
        ``(T,)``: metric of the query set (``accuracy``, a fraction, for classification); norm of the inner gradient
        where adaptation stopped; steps it took.
    residual, min_curvature, max_curvature, stopped:
        ``(T,)``: relative residual of the linear solve; smallest and largest curvature it met (the latter ``None`` from
        solvers that meet none); whether it was ended by one that is not positive.
    delta, delta_prime:
        how far the inner solutions, and the products with each task's own query gradient, may be from exact ones
        (:attr:`~metagrad.Solution.delta`).
    chunks:
        how many tasks ran at a time: fewer than given where memory ran out.
    metric:
        what ``score`` is.
    """

    loss: Tensor
    score: Tensor
    grad_norm: Tensor
    steps: Tensor
    residual: Tensor | None
    min_curvature: Tensor | None
    max_curvature: Tensor | None
    stopped: Tensor | None
    delta: Bound | None
    delta_prime: Bound | None
    chunks: Chunks
    metric: str = "accuracy"


@recording()
def meta_gradient(
    algorithm: Algorithm,
    model: nn.Module,
    theta: Params,
    tasks: Tasks | Sequence[Tasks] | tuple[Any, Any],
    *,
    chunk: int | Chunks | Literal["auto"] = "auto",
) -> Metrics:
    """Add the gradient of the mean meta-loss over ``tasks`` to ``theta[...].grad``.

    Each chunk's graph is freed before the next is built: memory follows ``chunk``, the result does not depend on
    it beyond rounding.

    Parameters
    ----------
    tasks:
        :class:`~metagrad.fewshot.Tasks`; a list of them, where tasks are of unequal size
        (:func:`~metagrad.fewshot.group_tasks`): the mean is over all tasks; or a pair of batches (support, query).
    chunk:
        :class:`Chunks`, a number of tasks for all phases, or ``"auto"`` (:func:`auto_chunks`); more than there are
        tasks means all of them. If memory runs out, chunks are halved, with one warning, until the work fits.

    Gradients are recorded also where the caller has switched them off. An autocast that is active reaches the network
    alone; sums, losses and what solvers add up keep theta's digits.

    Raises
    ------
    ValueError
        for a chunk below 1; for inputs of another dtype than the weights; for a theta made in inference mode.
    NotFiniteError
        for examples or a gradient that are not finite; names the task. What was in ``.grad`` stays.
    MetagradError
        if not even one task fits into memory.
    """
    _require_arguments(algorithm, model, theta)
    if theta and not any(leaf.requires_grad for leaf in theta.values()):  # read from a file: it is what is learned
        learned = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
        for name, leaf in learned.items():
            leaf.grad = theta[name].grad
        metrics = meta_gradient(algorithm, model, learned, tasks, chunk=chunk)
        for name, leaf in learned.items():
            theta[name].grad = leaf.grad
        return metrics
    if any(leaf.grad_fn is not None for leaf in theta.values()):
        raise ValueError(
            "theta was computed from other tensors, whose gradients this would not reach: give leaf tensors"
        )
    theta = ordinary(theta)
    groups = checked_groups(theta, tasks)
    total, before = sum(map(len, groups)), {name: leaf.grad for name, leaf in theta.items()}
    parts: list[Metrics] = []
    for group in groups:
        sizes = auto_chunks(group) if chunk == "auto" else chunk if isinstance(chunk, Chunks) else Chunks(chunk, chunk)
        parts.append(_group_gradient(algorithm, model, theta, group, total, sizes))
    metrics = join_metrics(parts, parts[-1].chunks)
    if not _finite(theta, metrics.loss):
        for name, leaf in theta.items():
            leaf.grad = before[name]
        raise NotFiniteError(_what_is_not_finite(algorithm, model, theta, groups))
    return metrics


def _group_gradient(
    algorithm: Algorithm, model: nn.Module, theta: Params, tasks: Tasks, total: int, sizes: Chunks
) -> Metrics:
    """Add the share of tasks of one shape in the gradient of the mean over ``total`` tasks, chunk by chunk."""
    parts: list[Metrics] = []
    first, too_many = 0, 0
    while first < len(tasks):
        part = tasks.part(first, min(first + sizes.tasks, len(tasks)))
        before = {name: leaf.grad for name, leaf in theta.items()}
        try:
            parts.append(add_chunk_gradient(algorithm.meta_loss, model, theta, part, total, sizes.query))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            first += len(part)
            if too_many:
                warn_smaller_chunk(too_many, sizes.tasks)
                too_many = 0
            continue
        # Outside the except clause: the error's traceback holds the tensors of what was tried.
        for name, leaf in theta.items():
            leaf.grad = before[name]
        too_many = too_many or len(part)
        sizes = halved(sizes, len(part))
    return join_metrics(parts, sizes)


def _require_arguments(algorithm: Algorithm, model: nn.Module, theta: Params) -> None:
    """Refuse what is no method, no network, or a theta of another network."""
    if isinstance(algorithm, type) or not hasattr(algorithm, "meta_loss"):
        got = f"the class {algorithm.__name__}" if isinstance(algorithm, type) else type(algorithm).__name__
        raise TypeError(f"the first argument is a method, such as IMAML(), got {got}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"the network must be an nn.Module, got {type(model).__name__}")
    if not isinstance(theta, Mapping):
        raise TypeError(f"theta is a dictionary of tensors, as method.init(model) makes, got {type(theta).__name__}")
    known = module_lock.weights(model)
    for name, leaf in theta.items():
        if name in known and leaf.shape != known[name].shape:
            raise ValueError(
                f"theta[{name!r}] is {tuple(leaf.shape)}, in the network it is {tuple(known[name].shape)}: begin with "
                "method.init(model)"
            )


def _finite(theta: Params, loss: Tensor) -> bool:
    """Whether loss and gradient are finite; where the host may not read them, a training loop checks when it does."""
    return not host.may_read(loss) or (math.isfinite(loss) and _all_finite(theta))


def _all_finite(theta: Params) -> bool:
    grads = [leaf.grad for leaf in theta.values() if leaf.grad is not None]
    # The sum takes one pass; where it is not finite, finite numbers may have overflowed.
    return all(math.isfinite(grad.sum()) or bool(grad.isfinite().all()) for grad in grads)


def _what_is_not_finite(algorithm: Algorithm, model: nn.Module, theta: Params, groups: list[Tasks]) -> str:
    """Say which task's loss or gradient is not finite, by taking each alone."""
    number = 0
    for group in groups:
        for task in range(len(group)):
            own = {name: leaf.detach().requires_grad_(leaf.requires_grad) for name, leaf in theta.items()}
            alone = add_chunk_gradient(algorithm.meta_loss, model, own, group.part(task, task + 1), 1, 1)
            if not math.isfinite(alone.loss):
                return f"the query loss of task {number} is {float(alone.loss)}: look at its numbers and its labels"
            if not _all_finite(own):
                return f"the meta-gradient of task {number} is not finite (its loss is {float(alone.loss):.3g})"
            number += 1
    return "the meta-gradient is not finite, though that of each task alone is: .grad held such numbers before"


def checked_groups(theta: Params, tasks: Any) -> list[Tasks]:
    """Return tasks as groups of one shape; refuse inputs of another floating dtype than the weights, as layers do."""
    groups = [Tasks(*ordinary((group.support, group.query, group.classes))) for group in groups_of(tasks)]
    dtype = next((leaf.dtype for leaf in theta.values() if leaf.is_floating_point()), None)
    for leaf in pytree.tree_leaves([group.support.x for group in groups]):
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or dtype is None or leaf.dtype == dtype:
            continue
        if not torch.is_autocast_enabled(leaf.device.type):
            raise ValueError(
                f"the inputs are {leaf.dtype}, the weights {dtype}: make the inputs .to({dtype}), or the model "
                f".to({leaf.dtype}) before init"
            )
    _require_finite_data(groups)
    return groups


def _require_finite_data(groups: list[Tasks]) -> None:
    """Refuse NaN and infinite numbers in the tasks: they would spoil a loss, and look like training that diverges."""
    first = 0
    for group in groups:
        for which, batch in (("support", group.support), ("query", group.query)):
            for leaf in pytree.tree_leaves((batch.x, batch.y)):
                if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or not host.may_read(leaf):
                    continue
                if math.isfinite(leaf.detach().sum()):
                    continue  # one pass; where it is not finite, finite numbers may have overflowed
                wrong = ~leaf.isfinite().flatten(1).all(1)
                if wrong.any():
                    task = first + int(wrong.nonzero()[0])
                    raise NotFiniteDataError(
                        f"the {which} examples of task {task} hold a number that is not finite (NaN or infinite): look "
                        "at the data"
                    )
        first += len(group)


_WHOLE = ("loss", "chunks", "metric")  # all others have one entry per task


def join_metrics(parts: list[Metrics], sizes: Chunks) -> Metrics:
    """Put the chunks' metrics together."""

    def column(name: str) -> Any:
        present = [value for part in parts if (value := getattr(part, name)) is not None]
        if present and isinstance(present[0], Bound):
            return Bound(torch.cat([bound.value for bound in present]), all(bound.certain for bound in present))
        return torch.cat(present) if present else None

    per_task = {field.name: column(field.name) for field in fields(Metrics) if field.name not in _WHOLE}
    return Metrics(torch.stack([part.loss for part in parts]).sum(), **per_task, chunks=sizes, metric=parts[0].metric)


def add_chunk_gradient(
    meta_loss: Callable[..., MetaLoss], model: nn.Module, theta: Params, part: Tasks, total: int, query: int
) -> Metrics:
    """Add one chunk's share of the gradient of the mean over ``total`` tasks."""
    try:
        meta = meta_loss(model, theta, part, query_chunk=query)
    except KeyError as error:
        if error.args and error.args[0] not in theta:
            raise ValueError(
                f"theta has no {error.args[0]!r}: begin with the init(model) of this very method"
            ) from error
        raise
    weight = len(part) / total
    learned = {name: leaf for name, leaf in theta.items() if leaf.requires_grad}
    # A frozen body may leave nothing to meta-learn.
    gradients = torch.autograd.grad(meta.loss * weight, [*learned.values()], allow_unused=True) if learned else ()
    unused = [name for name, gradient in zip(learned, gradients, strict=True) if gradient is None]
    known = module_lock.weights(model) if unused else {}
    if unknown := [name for name in unused if name not in known]:  # a user's method may add to theta what it uses
        raise ValueError(
            f"theta has {unknown[0]!r}, which neither the network nor the method makes use of: begin with its "
            "init(model)"
        )
    with module_lock.LOCK:  # other threads may add to the same theta
        for leaf, gradient in zip(learned.values(), gradients, strict=True):  # all or nothing, should memory run out
            if gradient is not None:
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
    solution, linear, bound = meta.solution, meta.solution.linear, meta.solution.delta_prime
    return Metrics(
        meta.loss.detach() * weight,
        meta.score,
        solution.grad_norm,
        solution.steps,
        None if linear is None else linear.residual,
        None if linear is None else linear.min_curvature,
        None if linear is None else linear.max_curvature,
        None if linear is None else linear.stopped,
        solution.delta,
        # Of a task's own query gradient; the linear system was solved for its share of the mean.
        None if bound is None else replace(bound, value=bound.value * total),
        Chunks(len(part), query),
        meta.metric,
    )
