"""Losses of a task's outputs, each with the metric that people read beside it.

A loss is any callable ``(outputs, targets) -> Tensor`` for ONE task: the mean, a scalar, or one value an example,
whose mean is taken. :class:`CrossEntropy`, :class:`SquaredError` and :class:`BinaryCrossEntropy` take all tasks at
once, check shapes before they compute, and count examples by their weights.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from metagrad.errors import MetagradError
from metagrad.implicit import host

Loss = Callable[[Tensor, Any], Tensor]
Metric = Callable[[Tensor, Any], Tensor | float]
_SUM_TOLERANCE = 0.02  # of probabilities in bfloat16, some hundred classes


class ExampleLoss(ABC):
    """A loss of examples, for T tasks at once: each example's loss, and how much it counts."""

    metric: ClassVar[str]  # the name of what `score` returns
    convex: ClassVar[bool] = True  # in the outputs

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one task's mean loss, a scalar, for outputs ``(N, ...)``."""
        return self.of_tasks(outputs.unsqueeze(0), targets.unsqueeze(0)).squeeze(0)

    def of_tasks(self, outputs: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return each task's mean loss, ``(T,)``, for outputs ``(T, N, ...)``; by ``weight``, ``(T, N)``."""
        values, counts = self.examples(outputs, targets)
        return mean_of_tasks(values, counts, weight)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each task's metric, ``(T,)``."""
        return mean_of_tasks(*self.scores(outputs, targets), None)

    @abstractmethod
    def require_targets(self, targets: Tensor, what: str) -> None:
        """Refuse targets that no outputs would fit, before anything is computed."""

    @abstractmethod
    def examples(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return each example's loss, ``(T, N, *)``, and how much it counts (``None``: all alike)."""

    @abstractmethod
    def scores(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the metric of each example, and how much it counts."""


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(ExampleLoss):
    """Cross-entropy of logits, nats. Its metric is the accuracy.

    Logits are ``(N, C)`` for a task of N examples, or ``(N, C, *)`` where an example has several labels, such as one
    a pixel. Targets are labels ``(N, *)``, int64 in 0 … C − 1, or probabilities of the logits' shape.

    Parameters
    ----------
    class_weight:
        how much each class counts, a positive number for each; ``None``: all alike.
    label_smoothing:
        share of the target, in [0, 1), that is spread evenly over the classes.
    ignore_index:
        label of examples that do not count at all.

    Raises
    ------
    MetagradError
        for a value outside its range.

    Examples
    --------
    >>> import torch
    >>> from metagrad.fewshot import IMAML, CrossEntropy
    >>> method = IMAML(loss=CrossEntropy(label_smoothing=0.1))
    >>> round(CrossEntropy()(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 3)  # log 4
    1.386
    """

    class_weight: Sequence[float] | None = None
    label_smoothing: float = 0.0
    ignore_index: int = -100
    metric: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        if self.class_weight is not None:
            weights = tuple(float(weight) for weight in self.class_weight)
            if not all(0 < weight < math.inf for weight in weights):
                raise MetagradError(f"class_weight must be positive numbers, got {weights}")
            object.__setattr__(self, "class_weight", weights)
        if not 0 <= self.label_smoothing < 1:
            raise MetagradError(f"label_smoothing must be in [0, 1), got {self.label_smoothing!r}")

    def require_targets(self, targets: Tensor, what: str) -> None:
        """Refuse numbers that are no probabilities, labels below zero, and a task without a label that counts.

        Of targets that the host may not read, only the shape is looked at.

        Raises
        ------
        ValueError
            naming the label, or the task; saying which loss is for numbers.
        """
        if targets.is_floating_point():
            _require_probabilities(targets, what)
            return
        if not host.may_read(targets):
            return
        counted = targets != self.ignore_index
        if (least := int(torch.where(counted, targets, 0).min())) < 0:
            raise ValueError(
                f"the {what} set has a label {least}: labels are 0, 1, …, or {self.ignore_index} to ignore"
            )
        if not (has_label := counted.flatten(1).any(1)).all():
            task = int((~has_label).nonzero()[0])
            raise ValueError(f"the {what} set of task {task} has no label that counts: all are {self.ignore_index}")

    def examples(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return each example's cross-entropy, and whether its label counts (by its class's weight)."""
        soft = self._require_fit(outputs, targets)
        weight = self._weight(outputs)
        if soft:
            return self._cross_entropy(outputs, targets.movedim(2, 1).to(outputs.dtype), weight), None
        counts = (targets != self.ignore_index).to(outputs.dtype)
        if weight is not None:
            counts = counts * weight[targets.clamp(min=0)]
        return self._cross_entropy(outputs, targets, weight), counts

    def _cross_entropy(self, outputs: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
        """Return torch's cross-entropy of each example; it takes the classes on the second axis."""
        try:
            return F.cross_entropy(
                outputs.movedim(2, 1), targets, weight=weight, reduction="none", ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing,
            )  # fmt: skip
        except IndexError as error:
            raise ValueError(
                f"a label is {int(targets.max())}, but the network has {outputs.shape[2]} outputs, for labels 0 to "
                f"{outputs.shape[2] - 1}"
            ) from error

    def scores(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return whether each example's largest logit is its label's."""
        predicted = outputs.argmax(2)
        if targets.is_floating_point():
            return (predicted == targets.argmax(2)).float(), None
        return (predicted == targets).float(), (targets != self.ignore_index).float()

    def _weight(self, outputs: Tensor) -> Tensor | None:
        if self.class_weight is None:
            return None
        if len(self.class_weight) != outputs.shape[2]:
            raise ValueError(f"class_weight has {len(self.class_weight)} numbers for {outputs.shape[2]} logits")
        return torch.tensor(self.class_weight, dtype=outputs.dtype, device=outputs.device)

    def _require_fit(self, outputs: Tensor, targets: Tensor) -> bool:
        """Refuse shapes that do not fit; return whether targets are probabilities."""
        shape = outputs.shape[1:]
        if len(shape) < 2:
            raise ValueError(f"cross-entropy needs logits (N, C) for each task, got {tuple(shape)}")
        if targets.is_floating_point():
            expected, kind = tuple(outputs.shape), "probabilities"
        else:
            expected, kind = (*outputs.shape[:2], *outputs.shape[3:]), "labels"
        if targets.shape != torch.Size(expected) or targets.dtype == torch.bool:
            of = f" of {targets.dtype}" if targets.dtype == torch.bool else ""
            raise ValueError(
                f"{kind} for logits {tuple(shape)} must be {tuple(expected[1:])} a task, got {tuple(targets.shape[1:])}"
                f"{of}"
            )
        return targets.is_floating_point()


CROSS_ENTROPY = CrossEntropy()


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return how many of one task's labels are the largest logit's, a fraction: a metric for a loss of your own.

    Examples
    --------
    >>> import torch
    >>> from metagrad.fewshot import MAML, accuracy
    >>> method = MAML(loss=torch.nn.functional.cross_entropy, metric=accuracy)
    >>> accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])).item()
    0.75
    """
    return CROSS_ENTROPY.score(outputs.unsqueeze(0), targets.unsqueeze(0)).squeeze(0)


@dataclass(frozen=True, kw_only=True)
class SquaredError(ExampleLoss):
    """Mean squared difference of outputs and targets of the same shape, ``(N, ...)``; its metric is the same number.

    Examples
    --------
    >>> import torch
    >>> from metagrad.fewshot import MAML, SquaredError
    >>> method = MAML(inner_lr=0.01, loss=SquaredError())
    >>> SquaredError()(torch.zeros(2, 1), torch.tensor([[1.0], [3.0]])).item()
    5.0
    """

    metric: ClassVar[str] = "squared error"

    def require_targets(self, targets: Tensor, what: str) -> None:
        """Accept any; :meth:`examples` compares them with the outputs."""

    def examples(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return each example's mean over its outputs."""
        _require_same_shape("targets", outputs, targets)
        return _over_outputs((outputs - targets.to(outputs.dtype)).square()), None

    def scores(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the same."""
        return self.examples(outputs, targets)


@dataclass(frozen=True, kw_only=True)
class BinaryCrossEntropy(ExampleLoss):
    """Mean cross-entropy of several yes-or-no labels, nats; its metric is the share of labels that are right.

    Logits and targets are ``(N, L)`` (or any one shape); targets are 0 or 1, or probabilities.

    Parameters
    ----------
    positive_weight:
        how much a label that is 1 counts in comparison with one that is 0.

    Raises
    ------
    MetagradError
        for a weight that is not positive and finite.
    """

    positive_weight: float = 1.0
    metric: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        if not 0 < self.positive_weight < math.inf:
            raise MetagradError(f"positive_weight must be positive and finite, got {self.positive_weight!r}")

    def require_targets(self, targets: Tensor, what: str) -> None:
        """Refuse targets outside [0, 1]; targets that the host may not read pass.

        Raises
        ------
        ValueError
            naming the set.
        """
        if host.may_read(targets) and not ((targets >= 0) & (targets <= 1)).all():
            raise ValueError(f"the {what} set has targets outside of 0 … 1: yes-or-no labels are 0 or 1")

    def examples(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return each example's mean over its labels."""
        _require_same_shape("yes-or-no labels", outputs, targets)
        weight = outputs.new_tensor(self.positive_weight) if self.positive_weight != 1 else None
        losses = F.binary_cross_entropy_with_logits(
            outputs, targets.to(outputs.dtype), pos_weight=weight, reduction="none"
        )
        return _over_outputs(losses), None

    def scores(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the share of each example's labels that are right."""
        return _over_outputs(((outputs > 0) == (targets > 0.5)).float()), None


def mean_of_tasks(values: Tensor, counts: Tensor | None, weight: Tensor | None) -> Tensor:
    """Return each task's mean of ``(T, N, *)``, by how much each value counts."""
    if weight is not None:
        weight = weight.to(values.dtype).view(*weight.shape, *[1] * (values.dim() - 2))
        counts = weight.expand_as(values) if counts is None else counts * weight
        values = values * weight
    total = values.flatten(1).sum(1)
    return total / (values[0].numel() if counts is None else counts.flatten(1).sum(1))


def _require_probabilities(targets: Tensor, what: str) -> None:
    """Refuse float targets whose classes, the third axis, are fewer than two or do not sum to 1.

    With one output their cross-entropy is 0 whatever the network says.
    """
    fit = targets.dim() > 2 and targets.shape[2] > 1
    if fit and host.may_read(targets):
        off = targets.sum(2, dtype=torch.float64) - 1
        fit = bool((targets >= 0).all()) and bool((off.abs() <= _SUM_TOLERANCE).all())
    if not fit:
        raise ValueError(
            f"the {what} set's targets are numbers to regress, not probabilities: give loss=SquaredError() (--loss "
            "squared-error); labels of classes are whole numbers"
        )


def _over_outputs(values: Tensor) -> Tensor:
    return values.flatten(2).mean(2) if values.dim() > 2 else values


def _require_same_shape(what: str, outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:
        raise ValueError(
            f"{what} must be of the outputs' shape, {tuple(outputs.shape[1:])} a task, got {tuple(targets.shape[1:])}"
        )
