"""One ridge strength for every feature, by hypergradients.

Ridge regression has one strength ``lam``, found on a grid by cross-validation. A strength for each feature could say
that one does not matter; thirty of them are beyond any grid, but their gradient is not. The data are scikit-learn's
diabetes set (442 patients, 10 measurements) and 20 columns of random numbers beside them, which a good model ignores.
Which way is better is decided on patients that neither has seen, in several random splits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

from metagrad import CG, GradientDescent, Implicit, argmin
from metagrad.cli.describe import call
from metagrad.tree import Params, detach

TEST, FOLDS = 112, 5  # of 442 patients in a random order, 112 to test on, then five folds of 66


class Result(NamedTuple):
    """Mean squared errors where 1 is the target's variance, for one strength and for learned ones."""

    validation: Tensor  # (2, splits)
    test: Tensor  # (2, splits)
    log_lam: Tensor  # (splits, features)
    slopes: tuple[float, float]  # one entry of the hypergradient, and of finite differences of exact solutions


def weights(phi: Params, log_lam: Tensor) -> Tensor:
    """Undo phi's units, in which the objective bends alike along every weight: one step size then suits any lam."""
    return phi["scaled"] / (1 + log_lam.exp()).sqrt()


def ridge(phi: Params, theta: Params, data: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """One task: half the mean squared error of a linear model, up to a constant, and the ridge."""
    gram, moment, log_lam = data
    w = weights(phi, log_lam)
    return (w @ gram @ w + (log_lam.exp() * w) @ w) / 2 - moment @ w


def exact(gram: Tensor, moment: Tensor, log_lam: Tensor) -> Tensor:
    """Return the weights in closed form: for the grid, and to check the gradient against."""
    return torch.linalg.solve(gram + torch.diag_embed(log_lam.exp()), moment)


def moments(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return all that a linear model needs of its data: the means of x xᵀ and of x y."""
    return x.mT @ x / x.shape[-2], (x.mT @ y / x.shape[-2])[..., 0]


def error(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Return the mean squared error of every model."""
    return (x @ w[..., None] - y).square().mean((-2, -1))


def patients(splits: int, random: int, generator: torch.Generator) -> list[Tensor]:
    """Return features and target, ``(splits, patients, columns)``, in the units of those that are not for testing."""
    x, y = (torch.as_tensor(part) for part in load_diabetes(return_X_y=True))
    x = torch.cat([x, torch.randn(len(x), random, dtype=x.dtype, generator=generator)], 1)
    order = torch.rand(splits, len(x), generator=generator).argsort(1)
    shuffled = (part[order] for part in (x, y[:, None]))
    return [(p - p[:, TEST:].mean(1, keepdim=True)) / p[:, TEST:].std(1, keepdim=True) for p in shuffled]


def main(*, splits: int = 10, random: int = 20, steps: int = 25, inner_steps: int = 50, seed: int = 0) -> Result:
    """Compare the best single strength of a grid with learned ones.

    Parameters
    ----------
    splits:
        random splits into patients to test on and others.
    random:
        columns of random numbers beside the ten measurements.
    steps, inner_steps:
        steps of Adam on the strengths; of gradient descent on the weights, for each.
    seed:
        of the splits and the random columns.
    """
    x, y = patients(splits, random, torch.Generator().manual_seed(seed))
    # A task is one fold of one split: fit to the other folds, be judged on this one.
    folds = torch.arange(TEST, x.shape[1]).view(FOLDS, -1)
    others = torch.stack([torch.cat([*folds[:k], *folds[k + 1 :]]) for k in range(FOLDS)])
    fit = moments(x[:, others].flatten(0, 1), y[:, others].flatten(0, 1))
    judge = x[:, folds].flatten(0, 1), y[:, folds].flatten(0, 1)

    def validation(w: Tensor) -> Tensor:
        return error(*judge, w).view(splits, FOLDS).mean(1)

    def exact_validation(log_lam: Tensor) -> Tensor:
        return validation(exact(*fit, log_lam.repeat_interleave(FOLDS, 0)))

    grid = torch.linspace(-9, 3, 49, dtype=x.dtype)[:, None, None].expand(-1, splits, x.shape[-1])
    single = grid[torch.stack([exact_validation(log_lam) for log_lam in grid]).argmin(0), 0]

    log_lam = single.clone().requires_grad_()
    optimizer = torch.optim.Adam([log_lam], lr=0.2)
    phi = {"scaled": torch.zeros_like(single).repeat_interleave(FOLDS, 0)}
    for step in range(steps + 1):
        done = step == steps  # then solve well once more, to see how good the gradient is
        strengths = log_lam.repeat_interleave(FOLDS, 0)  # they differ by task, so they are data and not theta
        solver = GradientDescent(lr=0.4, max_steps=10 * inner_steps if done else inner_steps)
        adjoint = Implicit(linear_solver=CG(max_steps=x.shape[-1], tol=1e-10))
        solution = argmin(ridge, phi, {}, (*fit, strengths), solver=solver, adjoint=adjoint)
        optimizer.zero_grad()
        validation(weights(solution.value, strengths)).sum().backward()
        if not done:
            optimizer.step()
        phi = detach(solution.value)  # the next search starts here: the gradient is that of its end alone

    both = torch.stack([single, log_lam.detach()])
    one = (log_lam.grad.abs() == log_lam.grad.abs().max()).double()  # the gradient's largest entry
    rise = exact_validation(both[1] + 1e-4 * one) - exact_validation(both[1] - 1e-4 * one)
    known = moments(x[:, TEST:], y[:, TEST:])
    result = Result(
        validation=torch.stack([exact_validation(lam) for lam in both]),
        test=torch.stack([error(x[:, :TEST], y[:, :TEST], exact(*known, lam)) for lam in both]),
        log_lam=both[1],
        slopes=((log_lam.grad * one).sum().item(), rise.sum().item() / 2e-4),
    )
    report(result, random)
    return result


def report(result: Result, random: int) -> None:
    """Print what came out."""
    splits, lam = len(result.log_lam), result.log_lam.exp()
    print(f"mean squared error, mean over {splits} splits   validation    test   (variance of the target: 1)")
    for row, name in enumerate(("one strength, by a grid", "learned strengths")):
        print(f"  {name:<39}{result.validation[row].mean():.3f}   {result.test[row].mean():.3f}")
    print(f"learned strengths are better on the test patients of {(result.test[1] < result.test[0]).sum()} splits")
    print(f"median strength: measurements {lam[:, :10].median():.2g}", end="")
    print(f", random numbers {lam[:, 10:].median():.2g}" if random else "")
    print("a hypergradient {:.5e}, by finite differences of exact solutions {:.5e}".format(*result.slopes))


if __name__ == "__main__":
    call(main)
