"""Telling sources apart by a few of their texts: few-shot classification of sequences, which are no images.

A source goes from letter to letter of an alphabet that is a circle of twelve, by steps of which it likes some more than
others; each task has five sources never seen before, three texts of fifteen letters of each to learn from. That steps
are what matters, and not letters or pairs of them, is what all sources share: a network of an embedding and two
convolutions over time finds it out in meta-training, so that a linear head on its features, fitted to the fifteen
texts, tells the sources of new texts apart. Any sampler will do that makes ``Tasks``: here a function of ten lines.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from metagrad import HessianFree
from metagrad.cli.describe import call
from metagrad.fewshot import Batch, MemoryReduced, Tasks, admit, meta_gradient

LETTERS, LENGTH, WAYS = 12, 15, 5


class Result(NamedTuple):
    """Accuracy on texts of new sources, and that of knowing nothing."""

    before: float  # with the network as it was drawn
    after: float
    likelihood: float  # of the chain that the support texts' pairs of letters suggest
    chance: float


def draw(tasks: int, shots: int, queries: int, generator: torch.Generator) -> Tasks:
    """Draw tasks: texts ``(T, N, LENGTH)`` of letters as whole numbers, and which source each is of."""
    each = shots + queries
    # Squares of exponential numbers: a source likes a few steps and takes others rarely.
    likes = torch.rand(tasks * WAYS, LETTERS, generator=generator).log().square()
    steps = torch.multinomial(likes, each * LENGTH, replacement=True, generator=generator)
    whole = steps.view(tasks, WAYS, each, LENGTH).cumsum(-1) % LETTERS
    y = torch.arange(WAYS)[None, :, None].expand(tasks, -1, each)

    def batch(part: slice) -> Batch:
        return Batch(whole[:, :, part].flatten(1, 2), y[:, :, part].flatten(1, 2))

    return Tasks(batch(slice(0, shots)), batch(slice(shots, each)))


def network(features: int, generator: torch.Generator) -> nn.Module:
    """Return letters ``(N, LENGTH)`` to scores ``(N, WAYS)``."""
    model = nn.Sequential(
        nn.Embedding(LETTERS, features),
        Transposed(),
        nn.Conv1d(features, 2 * features, 2),
        nn.Tanh(),
        nn.Conv1d(2 * features, 2 * features, 1),
        nn.Tanh(),
        MeanOverTime(),
        nn.Linear(2 * features, WAYS),
    )
    with torch.no_grad():
        for leaf in model.parameters():
            leaf.normal_(0, leaf[0].numel() ** -0.5 if leaf.dim() > 1 else 0.01, generator=generator)
        model[-1].weight.zero_()
        model[-1].bias.zero_()
    return admit(model, draw(1, 1, 1, generator).support.x[0])


class Transposed(nn.Module):
    """Time last, as convolutions want it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, C, L)`` for ``(N, L, C)``."""
        return x.mT


class MeanOverTime(nn.Module):
    """What a text is like, wherever it begins."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, C)`` for ``(N, C, L)``."""
        return x.mean(-1)


def accuracy(method: MemoryReduced, model: nn.Module, theta: dict[str, Tensor], tasks: Tasks) -> float:
    """Adapt to every task and classify its query texts."""
    with torch.no_grad():
        solution = method.adapt(model, theta, tasks.support)
        outputs = method.predict(model, theta, solution, tasks.query.x)
    return float((outputs.argmax(-1) == tasks.query.y).float().mean())


def by_likelihood(tasks: Tasks) -> float:
    """Return the accuracy of counting: each source's pairs of letters in its support texts, one added to each count."""
    pairs = tasks.support.x[..., :-1] * LETTERS + tasks.support.x[..., 1:]
    hits = 0.0
    for task in range(len(tasks)):
        scores = []
        for way in range(WAYS):
            counts = torch.bincount(pairs[task][tasks.support.y[task] == way].flatten(), minlength=LETTERS**2)
            logs = (counts.view(LETTERS, LETTERS) + 1.0) / (counts.view(LETTERS, LETTERS) + 1.0).sum(1, keepdim=True)
            asked = tasks.query.x[task]
            scores.append(logs.log()[asked[:, :-1], asked[:, 1:]].sum(1))
        hits += float((torch.stack(scores, 1).argmax(1) == tasks.query.y[task]).float().mean())
    return hits / len(tasks)


def main(meta_steps: int = 120, tasks: int = 8, shots: int = 3, features: int = 24, seed: int = 0) -> Result:
    """Meta-train, then test on sources never seen.

    Parameters
    ----------
    meta_steps:
        more is more accurate.
    tasks:
        tasks a meta-step.
    shots:
        texts of each source to learn from.
    features:
        width of the embedding; the convolutions have twice as many channels.
    seed:
        of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    model = network(features, generator)
    # Newton's method, as the gradient is that of the solution: twenty short steps of descent are far from it, and learn
    # more slowly (docs/results-diary.md).
    method = MemoryReduced(head="7.*", solver=HessianFree(max_steps=5, cg_steps=10))
    theta = method.init(model)
    test = draw(200, shots, 5, torch.Generator().manual_seed(seed + 1))
    before = accuracy(method, model, theta, test)
    optimizer = torch.optim.Adam(theta.values(), lr=1e-2)
    for step in range(1, meta_steps + 1):
        metrics = meta_gradient(method, model, theta, draw(tasks, shots, 5, generator))
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            assert metrics.residual is not None
            print(
                f"meta-step {step}: accuracy {metrics.accuracy.mean():.0%}, residual of the linear solve "
                f"{metrics.residual.mean():.1g}"
            )
    result = Result(before, accuracy(method, model, theta, test), by_likelihood(test), 1 / WAYS)
    print(
        f"new sources, {shots} texts each: {result.after:.1%} (untrained network {result.before:.1%}, counting pairs "
        f"of letters {result.likelihood:.1%}, chance {result.chance:.0%})"
    )
    return result


if __name__ == "__main__":
    call(main)
