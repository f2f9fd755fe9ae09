"""A recurrent network, whose tasks run one by one, against a loop over tasks written by hand in plain autograd.

python benchmarks/loop_fallback.py             # LSTM of 32, rows of length 20, 8 tasks of 25 examples

Both are timed in turns, and the least time of each counts: what else the machine does only adds to it.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metagrad import CG, GradientDescent, Implicit
from metagrad.fewshot import ANIL, IMAML, MAML, Batch, Tasks, meta_gradient

TASKS, EXAMPLES, LENGTH, INPUTS, HIDDEN, WAYS = 8, 25, 20, 8, 32, 5
LR, STEPS, LAM = 0.1, 5, 2.0
Params = dict[str, Tensor]
Task = tuple[Tensor, Tensor, Tensor, Tensor]


class Reader(nn.Module):
    """A recurrent body and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(INPUTS, HIDDEN, batch_first=True), nn.Linear(HIDDEN, WAYS)

    def features(self, x: Tensor) -> Tensor:
        """Return the last state of ``(N, length, inputs)``."""
        return self.body(x)[0][:, -1]

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        return self.head(self.features(x))


def maml(model: Reader, theta: Params, task: Task) -> list[Tensor]:
    """Return one task's meta-gradient."""
    x, y, query_x, query_y = task
    phi = theta
    for _ in range(STEPS):
        grads = torch.autograd.grad(
            F.cross_entropy(functional_call(model, phi, (x,)), y), list(phi.values()), create_graph=True
        )
        phi = {name: leaf - LR * grad for (name, leaf), grad in zip(phi.items(), grads, strict=True)}
    loss = F.cross_entropy(functional_call(model, phi, (query_x,)), query_y)
    return list(torch.autograd.grad(loss, list(theta.values())))


def imaml(model: Reader, theta: Params, task: Task) -> list[Tensor]:
    """Return one task's meta-gradient: descent without a graph, then conjugate gradients on the Hessian."""
    x, y, query_x, query_y = task
    center = {name: leaf.detach() for name, leaf in theta.items()}
    phi = dict(center)
    for _ in range(STEPS):
        leaves = {name: leaf.requires_grad_() for name, leaf in phi.items()}
        grads = torch.autograd.grad(F.cross_entropy(functional_call(model, leaves, (x,)), y), list(leaves.values()))
        phi = {
            name: (leaf - LR * (grad + LAM * (leaf - center[name]))).detach()
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
        }
    leaves = {name: leaf.requires_grad_() for name, leaf in phi.items()}
    weights = list(leaves.values())
    v = torch.autograd.grad(F.cross_entropy(functional_call(model, leaves, (query_x,)), query_y), weights)
    slope = torch.autograd.grad(F.cross_entropy(functional_call(model, leaves, (x,)), y), weights, create_graph=True)

    def product(d: list[Tensor]) -> list[Tensor]:
        bent = torch.autograd.grad(slope, weights, d, retain_graph=True)
        return [a + LAM * b for a, b in zip(bent, d, strict=True)]

    return [LAM * part for part in _conjugate_gradients(product, list(v))]


def _conjugate_gradients(product: Callable[[list[Tensor]], list[Tensor]], b: list[Tensor]) -> list[Tensor]:
    x, r, d = [torch.zeros_like(part) for part in b], b, b
    rr = sum((part * part).sum() for part in r)
    for _ in range(STEPS):
        after = product(d)
        step = rr / sum((a * b).sum() for a, b in zip(d, after, strict=True))
        x = [a + step * b for a, b in zip(x, d, strict=True)]
        r = [a - step * b for a, b in zip(r, after, strict=True)]
        new = sum((part * part).sum() for part in r)
        d, rr = [a + new / rr * b for a, b in zip(r, d, strict=True)], new
    return x


def anil(model: Reader, theta: Params, task: Task) -> list[Tensor]:
    """Return one task's meta-gradient; the body reads each example once."""
    x, y, query_x, query_y = task
    body = {name.removeprefix("body."): leaf for name, leaf in theta.items() if name.startswith("body.")}
    known, asked = (functional_call(model.body, body, (part,))[0][:, -1] for part in (x, query_x))
    weight, bias = theta["head.weight"], theta["head.bias"]
    for _ in range(STEPS):
        grads = torch.autograd.grad(
            F.cross_entropy(F.linear(known, weight, bias), y), (weight, bias), create_graph=True
        )
        weight, bias = weight - LR * grads[0], bias - LR * grads[1]
    return list(torch.autograd.grad(F.cross_entropy(F.linear(asked, weight, bias), query_y), list(theta.values())))


_SOLVER = GradientDescent(lr=LR, max_steps=STEPS)
_EXACT = Implicit(linear_solver=CG(max_steps=STEPS, on_negative="continue"), measure=False)
METHODS = {
    "MAML, 5 steps": (MAML(inner_lr=LR, inner_steps=STEPS), maml),
    "iMAML, 5 steps and 5 CG": (IMAML(lam=LAM, solver=_SOLVER, adjoint=_EXACT), imaml),
    "ANIL, 5 steps": (ANIL(inner_lr=LR, inner_steps=STEPS), anil),
}


def drawn(dtype: torch.dtype) -> Tasks:
    """Draw tasks of random rows."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(WAYS).repeat(EXAMPLES // WAYS).expand(TASKS, -1)
    return Tasks(*(Batch(torch.randn(TASKS, EXAMPLES, LENGTH, INPUTS, generator=g, dtype=dtype), y) for _ in range(2)))


def by_hand(
    gradient: Callable[[Reader, Params, Task], list[Tensor]], model: Reader, theta: Params, tasks: Tasks
) -> None:
    """Leave the mean of the tasks' gradients in theta."""
    for task in range(TASKS):
        given = tuple(part[task] for batch in (tasks.support, tasks.query) for part in (batch.x, batch.y))
        for leaf, grad in zip(theta.values(), gradient(model, theta, given), strict=True):  # type: ignore[arg-type]
            leaf.grad = grad / TASKS if leaf.grad is None else leaf.grad + grad / TASKS


def compared(name: str, dtype: torch.dtype, repeats: int) -> Iterator[tuple[float, float, float]]:
    """Yield the seconds that metagrad and the loop take in turns, and how far apart their gradients are."""
    method, gradient = METHODS[name]
    torch.manual_seed(0)
    model, tasks = Reader().to(dtype), drawn(dtype)
    for _ in range(repeats):
        found = []
        for run in (lambda theta: meta_gradient(method, model, theta, tasks), None):
            theta = method.init(model)
            began = time.perf_counter()
            run(theta) if run else by_hand(gradient, model, theta, tasks)
            took = time.perf_counter() - began
            found.append((took, torch.cat([leaf.grad.flatten() for leaf in theta.values() if leaf.grad is not None])))
        (ours, a), (theirs, b) = found
        yield ours, theirs, float((a - b).norm() / b.norm())


def main() -> None:
    """Print both times, and how many times the second the first is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30, help="turns of each (30)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in METHODS:
        times = list(compared(name, torch.float32, options.repeats))
        ours, theirs = (min(one[which] for one in times) for which in (0, 1))
        print(
            f"{name}: metagrad {1e3 * ours:.1f} ms, by hand {1e3 * theirs:.1f} ms: {ours / theirs:.2f} times; "
            f"gradients {max(one[2] for one in times):.0e} apart"
        )


if __name__ == "__main__":
    main()
