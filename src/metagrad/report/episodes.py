"""Tasks as pictures: support images, predictions for query images, and the classes that a run confuses."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from metagrad.classifier.learner import Learner
from metagrad.experiment.sources import Sources
from metagrad.fewshot import Tasks

_TASKS = 60  # at most: enough to see which classes are confused


@dataclass(frozen=True)
class Prediction:
    """A query image: the picture, the predicted class with its probability, and whether it is right."""

    picture: str
    label: str
    probability: float
    right: bool


@dataclass(frozen=True)
class Row:
    """One class of a task: its name, its support images and the predictions for its query images."""

    name: str
    support: list[str]
    query: list[Prediction]


@dataclass(frozen=True)
class Confusion:
    """Percentage of images of class ``one`` classified as ``other``, among tasks that have both classes."""

    one: str
    other: str
    percent: float
    times: int
    pictures: tuple[str, str]


@dataclass(frozen=True)
class Judged:
    """Validation tasks, each image classified by itself.

    Attributes
    ----------
    grids:
        some of the tasks as pictures: a row a class.
    hardest:
        pairs of classes that are confused most often.
    accuracy, pixels:
        accuracy in these tasks, of the network and of the nearest class mean of the pixels.
    tasks:
        how many there are.
    """

    grids: list[list[Row]]
    hardest: list[Confusion]
    accuracy: float
    pixels: float
    tasks: int


def judge_tasks(
    learner: Learner, sources: Sources, *, tasks: int | None = None, shown: int = 2, seed: int = 0
) -> Judged:
    """Classify validation tasks; return some of them as pictures, and what is confused most often.

    Each image is classified by itself, as in ``metagrad predict``.

    Parameters
    ----------
    tasks:
        how many; ``None``: as many as the run validates on, at most 60.
    shown:
        how many of them as pictures.
    seed:
        of the draw.
    """
    tasks = min(_TASKS, learner.experiment.budget.val_tasks) if tasks is None else tasks
    episodes = learner.episodes
    assert sources.dataset is not None
    assert sources.pictures is not None
    dataset = sources.dataset
    # The same seed draws the same tasks twice: as pictures, and as the network's inputs.
    drawn, taken = (
        episodes.sampler(part, "val")(tasks, generator=torch.Generator().manual_seed(seed))
        for part in (sources.pictures, dataset)
    )
    assert drawn.classes is not None
    if learner.reading.kind == "strokes":  # read as ink 1 on paper 0; people draw with dark ink on white paper
        for part in (drawn.support.x, drawn.query.x):
            torch.sub(1.0, part, out=part)
    available = dataset.val.with_at_least(episodes.shots + episodes.queries).names
    names = [[available[number] for number in row] for row in drawn.classes.tolist()]
    temperature = learner.calibration.own.temperature if learner.calibration else 1.0
    grids: list[list[Row]] = []
    wrong: dict[tuple[str, str], list[int]] = {}
    pictures: dict[str, str] = {}
    right = pixels_right = 0
    for first in range(0, tasks, 16):
        some = slice(first, min(tasks, first + 16))
        x, queries = (part.x[some] for part in taken)
        networks = learner.solved(x, drawn.support.y[some], episodes.ways)
        for task, (network, _) in enumerate(networks, start=first):
            with torch.inference_mode():
                p = (network(queries[task - first]) / temperature).softmax(-1)
            called = names[task]
            y = drawn.query.y[task]
            right += int((p.argmax(-1) == y).sum())
            pixels_right += int((_nearest_mean(drawn, task, len(called)) == y).sum())
            for way, name in enumerate(called):
                support = drawn.support.x[task, drawn.support.y[task] == way]
                pictures.setdefault(name, png(support[0]))
                for other, rival in enumerate(called):
                    if other != way:
                        hits = (p[y == way].argmax(-1) == other).sum()
                        counts = wrong.setdefault((name, rival), [0, 0])
                        counts[0] += int(hits)
                        counts[1] += int((y == way).sum())
            if task < shown:
                grids.append(_grid(drawn.support.x[task], drawn.support.y[task], drawn.query.x[task], y, p, called))
    order = sorted(wrong.items(), key=lambda item: (-item[1][0], item[1][1], item[0]))
    hardest = [
        Confusion(one, other, 100 * hits / seen, hits, (pictures[one], pictures[other]))
        for (one, other), (hits, seen) in order[:8]
        if hits
    ]
    total = drawn.query.y.numel()
    return Judged(grids, hardest, right / total, pixels_right / total, tasks)


def _nearest_mean(drawn: Tasks, task: int, ways: int) -> Tensor:
    """Return the class whose mean support image is nearest to each query image of a task."""
    x, y = drawn.support.x[task].flatten(1), drawn.support.y[task]
    means = torch.stack([x[y == way].mean(0) for way in range(ways)])
    return torch.cdist(drawn.query.x[task].flatten(1), means).argmin(-1)


def _grid(x: Tensor, y: Tensor, query: Tensor, truth: Tensor, p: Tensor, called: list[str]) -> list[Row]:
    rows = []
    for way, name in enumerate(called):
        best, index = p[truth == way].max(-1)
        predictions = [
            Prediction(png(image), called[i], b, i == way)
            for image, b, i in zip(query[truth == way][:5], best.tolist(), index.tolist(), strict=False)
        ]
        rows.append(Row(name, [png(image) for image in x[y == way][:5]], predictions))
    return rows


def png(image: Tensor) -> str:
    """Return an image ``(C, H, W)`` in [0, 1] as a data URI."""
    pixels = (image * 255).round().to(torch.uint8)
    array = pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
