"""Add pictures to those that a classifier has learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metagrad.classifier.artifact import Classifier
from metagrad.errors import MetagradError

if TYPE_CHECKING:
    from metagrad.classifier.learner import Learner


def examples_of(learner: Learner, classifier: Classifier) -> tuple[Tensor, list[str]]:
    """Return a classifier's support examples: features ``(N, ...)`` and the class of each.

    Raises
    ------
    MetagradError
        If the classifier was adapted by another learner, or keeps no examples.
    """
    if classifier.examples is None:
        raise MetagradError("the model keeps no examples to add to: adapt again with all pictures")
    x, y = classifier.examples
    if classifier.facts.get("digest") != learner.facts.get("digest") or x.shape[1:] != learner.inputs:
        raise MetagradError("the model was adapted with another network: give the one that it was adapted with")
    return x, [classifier.classes[number] for number in y.tolist()]


def added(
    learner: Learner, classifier: Classifier, x: Tensor, labels: Sequence[str]
) -> tuple[Tensor, list[str], list[int]]:
    """Return a classifier's support examples together with new ones, for :meth:`Learner.adapt_inputs`.

    Parameters
    ----------
    x, labels:
        features ``(N, ...)`` of more pictures and their classes, those of the classifier or others.

    Returns
    -------
    Tensor, list, list
        All features, all labels, and the indices of the new pictures among ``x``; duplicates within a class are left
        out.

    Raises
    ------
    MetagradError
        As :func:`examples_of` does.
    """
    old, old_labels = examples_of(learner, classifier)
    repeated = _repeats(x, labels, old, old_labels)
    new = (~repeated).nonzero().flatten().tolist()
    return torch.cat([old, x[new]]), [*old_labels, *(labels[number] for number in new)], new


def _repeats(x: Tensor, labels: Sequence[str], old: Tensor, old_labels: Sequence[str]) -> Tensor:
    """Return which of the features ``x``, ``(N, ...)``, are those of a picture of the same class that is in ``old``.

    Features of one picture agree to rounding, which depends on the other pictures of the batch.
    """
    far = torch.cdist(x.flatten(1), old.flatten(1), compute_mode="donot_use_mm_for_euclid_dist") > 1e-4 * x.flatten(
        1
    ).norm(dim=1, keepdim=True)
    same = torch.tensor([[one == other for other in old_labels] for one in labels], dtype=torch.bool)
    return (same.view(far.shape) & ~far).any(1)
