"""Code of a user's own that experiments name: a network, a task source, a loss, a method."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from metagrad import GradientDescent
from metagrad.fewshot import IMAML, MAML, Bilevel, Sinusoids, Tasks


class Rhythm(nn.Module):
    """A GRU and a head."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(1, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])


def rhythms(num_tasks, *, generator):
    """Two kinds of waves a task, told apart by their period."""
    periods = 2 + 6 * torch.rand(num_tasks, 2, 1, 1, 1, generator=generator)
    start = 10 * torch.rand(num_tasks, 2, 6, 1, 1, generator=generator)
    x = torch.sin(6.28 * (torch.arange(8.0)[:, None] + start) / periods)
    y = torch.arange(2)[:, None].expand(num_tasks, 2, 6)
    return Tasks(
        (x[:, :, :2].flatten(1, 2), y[:, :, :2].flatten(1)), (x[:, :, 2:].flatten(1, 2), y[:, :, 2:].flatten(1))
    )


def smooth(outputs, targets):
    """Cross-entropy with smoothed labels."""
    return F.cross_entropy(outputs, targets, label_smoothing=0.1)


def margin(outputs, targets):
    """How sure the outputs are."""
    return outputs.softmax(-1).max(-1).values.mean()


@dataclass(frozen=True, kw_only=True)
class Slow(MAML):
    """A method of one's own, with a field of its own."""

    patience: int = 1


@dataclass(frozen=True, kw_only=True)
class Quick(Slow):
    """One that says its name."""

    name: ClassVar[str] = "the quick one"


@dataclass(frozen=True, kw_only=True)
class Sparse(IMAML):
    """iMAML with an objective that does not show its structure."""

    l1: float = 0.01

    def inner(self, model, theta, support):
        inner = super().inner(model, theta, support)

        def objective(phi, theta, batch):
            return inner.objective(phi, theta, batch) + self.l1 * sum(
                (w.square() + 1e-4).sqrt().sum() for w in phi.values()
            )

        return inner._replace(objective=objective)


class Curves:
    """A source with splits of its own."""

    train = Sinusoids(shots=4, queries=4)
    val = Sinusoids(shots=4, queries=6)
    test = Sinusoids(shots=4, queries=8)


def curves():
    """Make a source."""
    return Sinusoids(shots=4, queries=4)


def columns(num_tasks, *, generator):
    """Draw regressions in which two of four columns say nothing."""
    x = torch.randn(num_tasks, 24, 4, generator=generator)
    noise = torch.randn(num_tasks, 24, generator=generator)
    y = x[..., 0] - x[..., 1] + 2 * noise
    return Tasks((x[:, :8], y[:, :8]), (x[:, 8:], y[:, 8:]))


def misfit(phi, theta, batch):
    """Mean squared error."""
    return (batch.x @ phi["w"] - batch.y).square().mean()


def ridge(phi, theta, batch):
    """With a strength for each column."""
    return misfit(phi, theta, batch) + (theta["log_lam"].exp() * phi["w"].square()).sum()


def zero_strengths():
    return {"log_lam": torch.zeros(4)}


def zero_weights(theta):
    return {"w": torch.zeros(4)}


STRENGTHS = Bilevel(
    theta=zero_strengths, phi=zero_weights, inner_objective=ridge, outer_objective=misfit,
    solver=GradientDescent(lr=0.1, max_steps=80),
)  # fmt: skip


def nothing():
    """Return no network."""


def takes(argument):
    """Need an argument."""


number = 3
