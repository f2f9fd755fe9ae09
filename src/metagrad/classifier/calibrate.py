"""How far a classifier's probabilities can be trusted, and below which it should say that it knows no such thing.

Found on validation classes, none of which the network was trained on: on one half of the tasks a temperature (Guo et
al. 2017) and a threshold are chosen, on the other half they are judged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metagrad.classifier.learner import Learner
from metagrad.classifier.network import Landmarks, judged
from metagrad.data import Dataset, ImageClasses
from metagrad.errors import MetagradError
from metagrad.fewshot import EpisodeSampler

KEPT = 0.95  # of what is known, this much is to pass the threshold
_BINS = 15
_TASKS = 16  # at once


def calibrate(
    learner: Learner,
    dataset: Dataset,
    *,
    tasks: int = 100,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Return a temperature and a threshold with what they are worth, from validation tasks of the run's own size.

    Raises
    ------
    MetagradError
        for fewer than four tasks.
    """
    if tasks < 4:
        raise MetagradError(f"calibration needs at least 4 tasks, got {tasks}")
    config = learner.config
    classes = dataset.val.with_at_least(config.shots + config.queries)
    others = min(config.ways, len(classes.names) - config.ways)  # classes that a task is not told of
    sampler = EpisodeSampler(
        classes=classes, ways=config.ways + max(0, others), shots=config.shots, queries=config.queries
    )
    drawn = sampler(tasks, generator=torch.Generator().manual_seed(seed))
    # Every task has its classes in the same order, so that what it is told of is the same part of each.
    mine, own = drawn.support.y[0] < config.ways, drawn.query.y[0] < config.ways
    support, y = drawn.support.x[:, mine], drawn.support.y[:, mine]
    known, labels, near, far = [], [], [], []
    for first in range(0, tasks, _TASKS):
        some = slice(first, first + _TASKS)
        networks = learner.solved((support[some] * 255).round().to(torch.uint8), y[some], config.ways)
        for number, (network, _) in enumerate(networks, start=first):
            with torch.inference_mode():
                landmarks = Landmarks.of(judged(network, support[number])[1], y[number], config.ways)
                scores, features = judged(network, drawn.query.x[number])
                strangeness = landmarks.strangeness(features)
            known.append(scores[own])
            labels.append(drawn.query.y[number, own])
            near.append(strangeness[own])
            far.append(strangeness[~own])
            progress(number + 1, tasks)
    half = tasks // 2

    def part(values: list[Tensor], second: bool) -> Tensor:
        return torch.cat(values[half:] if second else values[:half])

    temperature = fitted(part(known, False), part(labels, False))
    scores, truth = part(known, True), part(labels, True)
    found: dict[str, Any] = {
        "temperature": temperature,
        "ece_before": ece(scores.softmax(-1), truth),
        "ece": ece((scores / temperature).softmax(-1), truth),
        "accuracy": float((scores.argmax(-1) == truth).float().mean()),
        "tasks": tasks,
        "protocol": f"{dataset.name} val, {config.ways}-way {config.shots}-shot, each image by itself",
        "pixels": pixels(_some(dataset.train)),
    }
    if others > 0:
        strange = float(part(near, False).quantile(KEPT))
        found["reject"] = {
            "strangeness": strange,
            "known_rejected": float((part(near, True) > strange).float().mean()),
            "unknown_rejected": float((part(far, True) > strange).float().mean()),
            "auroc": auroc(part(far, True), part(near, True)),
            "unknown_classes": others,
        }
    return found


def fitted(scores: Tensor, y: Tensor) -> float:
    """Return the temperature at which the labels are likeliest; the likelihood is concave in its inverse."""
    log = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(scores.double() * log.exp(), y)
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


FACTS = ("brightness", "contrast", "detail")


def _some(classes: ImageClasses, most: int = 2000) -> Tensor:
    """Return images of these classes alone: several splits may lie in one array."""
    spots = [torch.arange(a, a + n) for a, n in zip(classes.first.tolist(), classes.counts.tolist(), strict=True)]
    own = torch.cat(spots)
    return classes.images[own[:: max(1, len(own) // most)]]


def pixels(images: Tensor) -> dict[str, list[float]]:
    """Return mean and standard deviation over images uint8 ``(N, C, H, W)`` of what :func:`look` sees."""
    seen = look(images)
    return {"mean": seen.mean(0).tolist(), "std": seen.std(0).tolist()}


def look(images: Tensor) -> Tensor:
    """Return each image's mean, standard deviation and mean step from pixel to pixel, ``(N, 3)``, in [0, 1]."""
    x = images.float() / 255
    detail = (x.diff(dim=-1).abs().mean((1, 2, 3)) + x.diff(dim=-2).abs().mean((1, 2, 3))) / 2
    return torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3)), detail], dim=1)


def farthest(images: Tensor, seen: dict[str, list[float]]) -> tuple[float, str]:
    """Return how far the images are from those of training, in their standard deviations, and say in what."""
    mean, std = torch.tensor(seen["mean"]), torch.tensor(seen["std"])
    ours = look(images).median(0).values
    off = (ours - mean).abs() / std.clamp(min=1e-6)
    worst = int(off.argmax())
    return float(off[worst]), f"{FACTS[worst]} {ours[worst]:.2f}, there {mean[worst]:.2f} ± {std[worst]:.2f}"
