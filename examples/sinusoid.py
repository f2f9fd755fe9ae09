"""Learning a curve from ten points: iMAML on sinusoids, drawn.

A task is a sinusoid of random amplitude and phase. A network adapts all its weights phi to ten points of it, held near
the meta-learned theta by ``(lam / 2) ‖phi − theta‖²``. The methods in ``metagrad.fewshot`` classify; for regression the
loop below does with ``argmin`` what they do. The picture shows three new tasks before and after adaptation.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from matplotlib import pyplot as plt
from torch import Tensor
from torch.nn import functional as F

from metagrad import CG, Composed, GradientDescent, Implicit, Proximal, Solution, argmin
from metagrad.cli.describe import call
from metagrad.fewshot import Batch, Sinusoids, Tasks
from metagrad.tree import Params, expand


class Result(NamedTuple):
    """Mean squared errors on the query points of new tasks."""

    before: float  # theta itself
    after: float  # adapted from theta
    untrained: float  # adapted from the theta that training began with


def initial(generator: torch.Generator, hidden: int = 40) -> Params:
    """Draw theta: the weights of a network with two hidden layers."""
    theta = {}
    for layer, (fan_in, fan_out) in enumerate([(1, hidden), (hidden, hidden), (hidden, 1)]):
        weight = torch.randn(fan_in, fan_out, generator=generator) * (2 / (fan_in + fan_out)) ** 0.5
        theta[f"weight{layer}"], theta[f"bias{layer}"] = weight, torch.zeros(1, fan_out)
    return theta


def network(phi: Params, x: Tensor) -> Tensor:
    """Map x ``(N, 1)`` to outputs ``(N, 1)``; with a task axis in front of everything, all tasks at once."""
    for layer in range(2):
        x = F.silu(x @ phi[f"weight{layer}"] + phi[f"bias{layer}"])
    return x @ phi["weight2"] + phi["bias2"]


def outputs(phi: Params, theta: Params, points: Batch) -> Tensor:
    """Predict y: the network in the form that an objective asks for."""
    return network(phi, points.x)


def error(predicted: Tensor, points: Batch) -> Tensor:
    """Return the mean squared error, of one task or of each."""
    return (predicted - points.y).square().mean((-2, -1))


def adapt(theta: Params, support: Batch, steps: int, lam: float = 0.5) -> Solution:
    """Fit the network to every task's support points, near theta."""
    # The parts take a task axis as they are, which is faster than vmap.
    objective = Composed(outputs, error, Proximal(lam), outputs_of_tasks=outputs, loss_of_tasks=error)
    solver = GradientDescent(lr=0.01, max_steps=steps)
    adjoint = Implicit(linear_solver=CG(max_steps=5), curvature="gauss_newton")
    return argmin(objective, expand(theta, len(support.x)), theta, support, solver=solver, adjoint=adjoint)


def main(
    *,
    out: Path = Path("sinusoid.png"),
    meta_steps: int = 200,
    inner_steps: int = 16,
    test_steps: int = 200,
    seed: int = 0,
) -> Result:
    """Meta-learn theta, measure it on 100 new tasks, draw three of them.

    Parameters
    ----------
    out:
        picture to write.
    meta_steps:
        steps of Adam on theta, of 16 tasks each.
    inner_steps, test_steps:
        gradient descent steps of adaptation, in training and on new tasks. The meta-gradient is that of a solution,
        not of so many steps towards it, so going further on new tasks is better.
    seed:
        of the network and the tasks.
    """
    generator = torch.Generator().manual_seed(seed)
    start = initial(generator)
    theta = {name: leaf.clone().requires_grad_() for name, leaf in start.items()}
    sampler = Sinusoids(shots=10, queries=10)
    optimizer = torch.optim.Adam(theta.values(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, meta_steps)
    for _ in range(meta_steps):
        tasks = sampler(16, generator=generator)
        solution = adapt(theta, tasks.support, inner_steps)
        optimizer.zero_grad()
        error(network(solution.value, tasks.query.x), tasks.query).mean().backward()
        optimizer.step()
        schedule.step()

    test = Sinusoids(shots=10, queries=200)(100, generator=generator)
    with torch.no_grad():
        before = network(theta, test.query.x)
        after, untrained = (
            network(adapt(weights, test.support, test_steps).value, test.query.x) for weights in (theta, start)
        )
    result = Result(*(error(curves, test.query).mean().item() for curves in (before, after, untrained)))
    print(f"mean squared error on {len(test)} new tasks: {result.before:.2f}; {result.after:.2f} adapted to ten points")
    print(f"a network that was not meta-trained, adapted in the same way: {result.untrained:.2f}")
    print(f"last meta-step: inner gradient {solution.grad_norm.mean():.1g}, ", end="")
    print(f"residual of the linear solve {solution.linear.residual.mean():.1g}")
    draw(out, test, before, after)
    return result


def draw(out: Path, tasks: Tasks, before: Tensor, after: Tensor, panels: int = 3) -> None:
    """Draw the first tasks: the true curve, the points, the network at theta and adapted."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(1, panels, figsize=(4 * panels, 3), sharey=True, layout="constrained")
    for task, panel in enumerate(axes):
        order = tasks.query.x[task, :, 0].argsort()
        x = tasks.query.x[task, order, 0]
        panel.plot(x, tasks.query.y[task, order, 0], color="0.7", linewidth=5, label="true curve")
        panel.plot(x, before[task, order, 0], "--", color="#c8553d", label="before (theta)")
        panel.plot(x, after[task, order, 0], color="#1f6f8b", label="after (phi)")
        panel.plot(tasks.support.x[task, :, 0], tasks.support.y[task, :, 0], "o", color="black", label="ten points")
        panel.set(xlabel="x", xlim=(-5, 5))
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("y")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(out, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    call(main)
