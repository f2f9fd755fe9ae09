"""Draw docs/idea.png: the gradient through the steps, and from the solution. Run: python docs/idea.py."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt

from metagrad import GradientDescent, HessianFree
from metagrad.implicit import Problem

CURVED = torch.tensor([[1.0, 0.8], [0.8, 3.0]])
MINIMUM = torch.tensor([2.2, 0.9])
LAM = 0.25
INK, PATH, SOLUTION = "#30343b", "#c2571a", "#1f6fb2"


def inner(phi, theta, data):
    """Return a support loss with its minimum aside, and the pull towards theta."""
    off = phi["w"] - MINIMUM
    return off @ CURVED @ off / 2 + LAM / 2 * (phi["w"] - theta["w"]).square().sum()


THETA = {"w": torch.tensor([-1.6, -0.9])}
PROBLEM = Problem(inner, THETA, torch.zeros(1))
EXACT = torch.linalg.solve(CURVED + LAM * torch.eye(2), CURVED @ MINIMUM + LAM * THETA["w"])


def path(solver_of):
    """Return where a solver stands after 0, 1, 2, ... steps."""
    start = {"w": THETA["w"][None]}
    return torch.stack([THETA["w"], *(solver_of(steps)(PROBLEM, start).value["w"][0] for steps in range(1, 31))])


def contours(axis):
    """Draw the inner problem's level lines."""
    x, y = torch.meshgrid(torch.linspace(-2.4, 3.2, 120), torch.linspace(-1.7, 2.2, 120), indexing="xy")
    points = torch.stack([x, y], -1).flatten(0, 1)
    height = torch.vmap(lambda w: inner({"w": w}, THETA, None))(points).view_as(x)
    axis.contour(x, y, height, levels=14, colors="#c9ced6", linewidths=0.8)
    axis.set(xticks=[], yticks=[], aspect="equal", xlim=(-2.4, 3.2), ylim=(-1.7, 2.2))
    axis.spines[:].set_visible(False)
    axis.plot(*THETA["w"], "s", color=INK, ms=9)
    axis.annotate("theta", THETA["w"], (-8, -20), textcoords="offset points", color=INK, fontsize=12)
    axis.plot(*EXACT, "*", color=SOLUTION, ms=18, zorder=5)
    axis.annotate("phi*", EXACT, (4, 13), textcoords="offset points", color=SOLUTION, fontsize=12)


def main():
    """Draw both panels."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)
    for axis in (left, right):
        contours(axis)
    steps = path(lambda n: GradientDescent(lr=0.16, max_steps=n))
    left.plot(*steps.T, "o-", color=PATH, lw=1.4, ms=5)
    for a, b in zip(steps[1:8], steps[:7], strict=True):
        bend = {"arrowstyle": "->", "color": PATH, "ls": ":", "lw": 1.1, "connectionstyle": "arc3,rad=0.45"}
        left.annotate("", b, a, arrowprops=bend)
    left.set_title("through the steps: every one is kept,\nand gone through again backwards", color=INK, fontsize=11)
    solvers = {
        "descent": (lambda n: GradientDescent(lr=0.16, max_steps=n), "-"),
        "with momentum": (lambda n: GradientDescent(lr=0.08, momentum=0.6, max_steps=n), "--"),
        "Newton": (lambda n: HessianFree(max_steps=n, curvature="hessian"), ":"),
    }
    for name, (solver_of, style) in solvers.items():
        right.plot(*path(solver_of).T, style, color="#8a919c", lw=1.5, label=name)
    # The curvature at the solution: what is needed of the inner problem, and no path.
    values, vectors = torch.linalg.eigh(CURVED + LAM * torch.eye(2))
    turn = torch.linspace(0, 6.2832, 80)
    circle = torch.stack([turn.cos() / values[0].sqrt(), turn.sin() / values[1].sqrt()])
    right.plot(*(EXACT[:, None] + 0.55 * vectors @ circle), color=SOLUTION, lw=1.6)
    bend = {"arrowstyle": "->", "color": SOLUTION, "lw": 2, "connectionstyle": "arc3,rad=-0.35"}
    right.annotate("", THETA["w"] + torch.tensor([0.05, 0.12]), EXACT, arrowprops=bend)
    right.legend(loc="lower right", framealpha=1, edgecolor="none", fontsize=9, labelcolor=INK)
    right.set_title("from the solution: any path, none kept;\none linear system with the curvature there", color=INK,
                    fontsize=11)  # fmt: skip
    figure.savefig(Path(__file__).with_name("idea.png"), dpi=160, facecolor="white")


if __name__ == "__main__":
    main()
