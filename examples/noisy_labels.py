"""Learning which labels to trust from a few that are known to be right.

Of 1000 training images of scikit-learn's digits, 40 % are labelled as the next digit. Each has a weight in the loss of
a softmax regression, and the weights are learned: what is good is what lowers the loss of the *trained* model on 200
clean images. The implicit gradient says how each weight moves the solution, without a look at how it was found.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from metagrad import CG, GradientDescent, Implicit, Solution, argmin
from metagrad.cli.describe import call
from metagrad.tree import Params

TRAIN, CLEAN = 1000, 200  # of 1797 images; the others are for testing
L2 = 3e-3


class Result(NamedTuple):
    """Test accuracy (fraction) of a model trained on …, and how well the weights part wrong labels from right ones."""

    noisy: float
    noisy_and_clean: float
    clean: float
    reweighted: float
    rightly_labelled: float
    auc: float


def scores(phi: Params, x: Tensor) -> Tensor:
    """Return the scores of the ten digits."""
    return x @ phi["weight"] + phi["bias"]


def objective(phi: Params, theta: Params, data: tuple[Tensor, Tensor]) -> Tensor:
    """Weighted cross-entropy and a small l2."""
    x, y = data
    trust = theta["trust"].sigmoid()
    losses = F.cross_entropy(scores(phi, x), y, reduction="none")
    # Relative to their mean: lowering all weights alike would only strengthen the l2.
    return (trust * losses).mean() / trust.mean() + L2 / 2 * phi["weight"].square().sum()


def fit(x: Tensor, y: Tensor, trust: Tensor, phi: Params | None = None, steps: int = 300) -> Solution:
    """Train from phi, or from zero. There is one task, and so a leading axis of length one."""
    phi = phi or {"weight": torch.zeros(1, x.shape[1], 10), "bias": torch.zeros(1, 10)}
    solver = GradientDescent(lr=0.3, max_steps=steps)
    adjoint = Implicit(linear_solver=CG(max_steps=20, tol=1e-4))
    return argmin(objective, phi, {"trust": trust}, (x[None], y[None]), solver=solver, adjoint=adjoint)


def main(*, systematic: bool = True, steps: int = 20, inner_steps: int = 20, seed: int = 0) -> Result:
    """Learn the weights; compare with training on all labels, on the clean ones alone and on the right ones.

    Parameters
    ----------
    systematic:
        wrong labels are the next digit; if not, any other digit, which hurts a linear model far less.
    steps, inner_steps:
        steps of Adam on the weights; of gradient descent on the model, for each.
    seed:
        of the split and the wrong labels.
    """
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=generator)
    x, y = torch.as_tensor(digits.data).float()[order] / 16, torch.as_tensor(digits.target)[order]
    x = x - x[: TRAIN + CLEAN].mean(0)
    (x, x_clean, x_test), (y, y_clean, y_test) = (part.tensor_split([TRAIN, TRAIN + CLEAN]) for part in (x, y))

    wrong = torch.randperm(TRAIN, generator=generator) < 0.4 * TRAIN
    shift = 1 if systematic else torch.randint(1, 10, (TRAIN,), generator=generator)
    y = torch.where(wrong, (y + shift) % 10, y)

    def accuracy(solution: Solution) -> float:
        outputs = scores({name: leaf[0] for name, leaf in solution.value.items()}, x_test)
        return (outputs.argmax(1) == y_test).float().mean().item()

    def evenly(x: Tensor, y: Tensor) -> float:
        return accuracy(fit(x, y, torch.zeros(len(x))))

    trust = torch.zeros(TRAIN, requires_grad=True)
    optimizer = torch.optim.Adam([trust], lr=0.2)
    phi = None
    for _ in range(steps):
        solution = fit(x, y, trust, phi, inner_steps)
        optimizer.zero_grad()
        F.cross_entropy(scores(solution.value, x_clean)[0], y_clean).backward()
        optimizer.step()
        phi = {name: leaf.detach() for name, leaf in solution.value.items()}  # the next search starts here

    result = Result(
        noisy=evenly(x, y),
        noisy_and_clean=evenly(torch.cat([x, x_clean]), torch.cat([y, y_clean])),
        clean=evenly(x_clean, y_clean),
        reweighted=accuracy(fit(x, y, trust.detach())),
        rightly_labelled=evenly(x[~wrong], y[~wrong]),
        auc=float(roc_auc_score(~wrong, trust.detach())),
    )
    print(f"test accuracy, trained on {TRAIN} images of which {wrong.float().mean():.0%} have wrong labels:")
    print(f"  as they are           {result.noisy:.1%}")
    print(f"  and {CLEAN} clean ones    {result.noisy_and_clean:.1%}    ({result.clean:.1%} on the clean ones alone)")
    print(f"  re-weighted           {result.reweighted:.1%}")
    print(f"  those labelled right  {result.rightly_labelled:.1%}    (nobody knows which these are)")
    print(f"a right label has the larger weight than a wrong one in {result.auc:.1%} of pairs (AUC)")
    assert solution.linear is not None
    print(f"last step: inner gradient {solution.grad_norm.item():.0e}, residual {solution.linear.residual.item():.0e}")
    return result


if __name__ == "__main__":
    call(main)
