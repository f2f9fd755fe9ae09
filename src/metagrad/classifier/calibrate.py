"""Calibrate a classifier's probabilities by temperature scaling, and choose the threshold of ``--reject``.

Both are chosen on validation classes, which the network was not trained on: a temperature (Guo et al. 2017) and a
threshold are fitted on one half of the tasks and evaluated on the other half; the final ones are fitted on all tasks.
Both depend on the number of classes and of images a class, so they are fitted for several of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from metagrad.classifier.calibration import Calibration, Size, pixels
from metagrad.classifier.learner import Learner
from metagrad.classifier.network import Prototypes, logits_and_features
from metagrad.data import Classes, Dataset, ImageClasses
from metagrad.data.features import FeatureDataset
from metagrad.errors import MetagradError
from metagrad.experiment.episodes import Episodes
from metagrad.fewshot import EpisodeSampler, TaskSource
from metagrad.torch_modes import default_modes

KEPT = 0.95  # share of images of known classes below the threshold
_BINS = 15
_TASKS = 16  # at once
_MOST_WAYS = 20  # calibrated beside the run's own ways and 2
_SHOTS = (1, 5)
_OTHERS = 5  # most unknown classes of a task
_FEWEST = 4  # tasks of a size: half to fit, half to evaluate
_TRIED = 2  # tasks, to measure the time of one
_ASKED = 1000  # query images of known classes at each size


@default_modes()
def calibrate(
    learner: Learner,
    dataset: Dataset | FeatureDataset,
    *,
    tasks: int = 100,
    share: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Fit temperatures and thresholds on validation tasks of several sizes, and measure how good they are.

    Parameters
    ----------
    tasks:
        number of tasks of the run's own size; of other sizes, as many as have 1000 query images.
    share:
        fraction of these tasks to use, if there is less time (:func:`affordable`); at least four of each size.

    Raises
    ------
    MetagradError
        for fewer than four tasks.
    """
    if tasks < 4:
        raise MetagradError(f"calibration needs at least 4 tasks, got {tasks}")
    episodes = learner.episodes
    sizes = {
        size: max(min(_FEWEST, count), int(share * count))
        for size, count in _counts(episodes, dataset.val, tasks).items()
    }
    tasks = sizes[(episodes.ways, episodes.shots)]
    done, total = 0, sum(sizes.values())
    found = []
    for (ways, shots), count in sizes.items():
        outcomes = Outcomes()
        for number in outcomes_of(learner, dataset.val, outcomes, ways=ways, shots=shots, tasks=count, seed=seed):
            progress(done + number, total)
        done += count
        found.append(_measured(outcomes, ways, shots))
    protocol = (
        f"{dataset.name} val, {episodes.queries} queries a class, {tasks} tasks of the run's own size, "
        "each image by itself"
    )
    pictures = dataset.pictures if isinstance(dataset, FeatureDataset) else dataset
    assert pictures is not None
    return Calibration(f"validation classes of {dataset.name}", protocol, tuple(found), pixels(_some(pictures.train)))


@default_modes()
def affordable(
    learner: Learner, dataset: Dataset | FeatureDataset, *, tasks: int, seconds: float, seed: int = 0
) -> tuple[float, float]:
    """Return the share of a calibration's tasks that fits into ``seconds``, and the time that this share takes.

    Two tasks of each size are solved to measure the time.
    """
    whole = least = 0.0
    for (ways, shots), count in _counts(learner.episodes, dataset.val, tasks).items():
        began = time.monotonic()
        for _ in outcomes_of(learner, dataset.val, Outcomes(), ways=ways, shots=shots, tasks=_TRIED, seed=seed):
            pass
        each = (time.monotonic() - began) / _TRIED
        whole, least = whole + count * each, least + min(_FEWEST, count) * each
    share = min(1.0, seconds / whole)
    return share, max(least, share * whole)


def _counts(episodes: Episodes, classes: Classes, tasks: int) -> dict[tuple[int, int], int]:
    """Return how many tasks of each size to measure at."""
    return {
        size: tasks if size == (episodes.ways, episodes.shots) else max(8, -(-_ASKED // (size[0] * episodes.queries)))
        for size in _sizes(episodes, classes)
    }


def _sizes(episodes: Episodes, classes: Classes) -> list[tuple[int, int]]:
    """Return the numbers of classes and of images to measure at, the run's own first."""
    shots = [episodes.shots]
    shots += [
        more
        for more in _SHOTS
        if more != episodes.shots and len(classes.with_at_least(more + episodes.queries).names) >= episodes.ways
    ]
    least = min(len(classes.with_at_least(number + episodes.queries).names) for number in shots)
    most = min(_MOST_WAYS, least - 1)  # at least one class stays unknown
    ways = [episodes.ways, *sorted({2, max(2, most)} - {episodes.ways})]
    return [(one, number) for one in ways for number in shots]


@dataclass
class Outcomes:
    """Of each task: logits and labels of images of known classes, OOD scores of these (near) and of unknown (far)."""

    known: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    near: list[Tensor] = field(default_factory=list)
    far: list[Tensor] = field(default_factory=list)


def outcomes_of(
    learner: Learner, val: Classes, outcomes: Outcomes, *, ways: int, shots: int, tasks: int, seed: int
) -> Iterator[int]:
    """Adapt to tasks of ``ways`` classes whose queries also show other classes; yield the number of tasks done."""
    queries = learner.episodes.queries
    classes = val.with_at_least(shots + queries)
    others = min(ways, _OTHERS, len(classes.names) - ways)
    source: TaskSource = EpisodeSampler(classes=classes, ways=ways + others, shots=shots, queries=queries)
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, tasks, _TASKS):
        drawn = source(min(_TASKS, tasks - first), generator=generator)
        # Every task has its classes in the same order, so the known ones are the same part of each.
        mine, own = drawn.support.y[0] < ways, drawn.query.y[0] < ways
        support, y = drawn.support.x[:, mine], drawn.support.y[:, mine]
        networks = learner.solved(support, y, ways)
        for number, (network, _) in enumerate(networks):
            with torch.inference_mode():
                prototypes = Prototypes.of(logits_and_features(network, support[number])[1], y[number], ways)
                logits, features = logits_and_features(network, drawn.query.x[number])
                ood_scores = prototypes.ood_score(features)
            outcomes.known.append(logits[own])
            outcomes.labels.append(drawn.query.y[number, own])
            outcomes.near.append(ood_scores[own])
            outcomes.far.append(ood_scores[~own])
            yield first + number + 1


def _measured(outcomes: Outcomes, ways: int, shots: int) -> Size:
    """Fit on one half of the tasks and evaluate on the other; the result's own fit uses all tasks."""
    half = len(outcomes.known) // 2

    def part(values: list[Tensor], second: bool) -> Tensor:
        return torch.cat(values[half:] if second else values[:half])

    temperature = fitted(part(outcomes.known, False), part(outcomes.labels, False))
    threshold = float(part(outcomes.near, False).quantile(KEPT))
    logits, truth = part(outcomes.known, True), part(outcomes.labels, True)
    near, far = part(outcomes.near, True), part(outcomes.far, True)
    return Size(
        ways,
        shots,
        temperature=fitted(torch.cat(outcomes.known), torch.cat(outcomes.labels)),
        ece_before=ece(logits.softmax(-1), truth),
        ece=ece((logits / temperature).softmax(-1), truth),
        accuracy=float((logits.argmax(-1) == truth).float().mean()),
        ood_threshold=float(torch.cat(outcomes.near).quantile(KEPT)),
        known_rejected=float((near > threshold).float().mean()),
        unknown_rejected=float((far > threshold).float().mean()) if len(far) else None,
        auroc=auroc(far, near) if len(far) else None,
    )


def fitted(logits: Tensor, y: Tensor) -> float:
    """Return the temperature at which the labels are likeliest; the likelihood is concave in its inverse."""
    log = torch.zeros((), dtype=torch.float64, device=logits.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits.double() * log.exp(), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float((-log.detach()).exp().clamp(0.01, 100.0))


def ece(probabilities: Tensor, y: Tensor) -> float:
    """Return the expected calibration error: how far, on average, the stated probability is from the accuracy."""
    sure, label = probabilities.max(-1)
    right = (label == y).double()
    bins = (sure * _BINS).long().clamp(max=_BINS - 1)
    counts = torch.bincount(bins, minlength=_BINS).clamp(min=1)
    off = torch.bincount(bins, right - sure.double(), minlength=_BINS) / counts
    return float((off.abs() * torch.bincount(bins, minlength=_BINS)).sum() / len(y))


def auroc(high: Tensor, low: Tensor) -> float:
    """Return the probability that a number of ``high`` is above one of ``low``; half for each tie."""
    ordered = low.sort().values
    below = torch.searchsorted(ordered, high, right=False)
    up_to = torch.searchsorted(ordered, high, right=True)
    return float((below + up_to).double().mean() / 2 / len(low))


def _some(classes: ImageClasses, most: int = 2000) -> Tensor:
    """Return images of these classes alone: several splits may lie in one array."""
    spots = [torch.arange(a, a + n) for a, n in zip(classes.first.tolist(), classes.counts.tolist(), strict=True)]
    own = torch.cat(spots)
    return classes.images[own[:: max(1, len(own) // most)]]
